"""Hosts of a cluster's own network."""

from __future__ import annotations


def is_inside(host: str) -> bool:
    """Whether only a cluster's pods resolve the name: a Service's, in full, up to ``.svc``, or bare."""
    return host.endswith((".svc", ".svc.cluster.local")) or not any(mark in host for mark in ".:")
