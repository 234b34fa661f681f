"""NetworkPolicies evaluated: may this pod open a connection to that one?

By https://kubernetes.io/docs/concepts/services-networking/network-policies/. Networks differ in whether an ipBlock also
matches pods; here it does, the answer that lets more through.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Policy = dict[str, Any]
"""A NetworkPolicy."""


@dataclass(frozen=True)
class Peer:
    """An end of a connection: a pod, or without a namespace a host outside the cluster."""

    ip: str
    namespace: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


def allows(policies: Iterable[Policy], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether the source may leave to the target, and the target lets it in."""
    policies = list(policies)
    return _direction(policies, "Egress", source, target, port, protocol) and _direction(
        policies, "Ingress", target, source, port, protocol
    )


def _direction(policies: list[Policy], kind: str, pod: Peer, other: Peer, port: int, protocol: str) -> bool:
    """A pod that no policy of this direction selects is open; of those that do, one rule that matches is enough."""
    chosen = [policy["spec"] for policy in policies if _selects(policy, pod) and kind in _types(policy["spec"])]
    side = {"Egress": "to", "Ingress": "from"}[kind]
    return not chosen or any(
        _peer_matches(rule, side, other, pod.namespace) and _port_matches(rule, port, protocol)
        for spec in chosen
        for rule in spec.get(kind.lower(), [])
    )


def _selects(policy: Policy, pod: Peer) -> bool:
    return policy["metadata"]["namespace"] == pod.namespace and matches(policy["spec"]["podSelector"], pod.labels)


def _types(spec: Policy) -> list[str]:
    return spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]


def _peer_matches(rule: Policy, side: str, other: Peer, own_namespace: str | None) -> bool:
    """No list of peers, or an empty one, stands for everybody."""
    peers = rule.get(side)
    return not peers or any(_is_peer(peer, other, own_namespace) for peer in peers)


def _is_peer(peer: Policy, other: Peer, own_namespace: str | None) -> bool:
    if "ipBlock" in peer:
        return _in_block(peer["ipBlock"], other.ip)
    if other.namespace is None:
        return False
    if "namespaceSelector" in peer:
        # The one label that every namespace has; a policy that trusts others must be tested with them.
        in_namespace = matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
    else:
        in_namespace = other.namespace == own_namespace
    return in_namespace and matches(peer.get("podSelector", {}), other.labels)


def _in_block(block: Policy, ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    inside = address in ipaddress.ip_network(block["cidr"])
    return inside and not any(address in ipaddress.ip_network(cidr) for cidr in block.get("except", []))


def _port_matches(rule: Policy, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    return not ports or any(
        entry.get("protocol", "TCP") == protocol
        and ("port" not in entry or entry["port"] <= port <= entry.get("endPort", entry["port"]))
        for entry in ports
    )


def matches(selector: Policy, labels: dict[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches all."""
    wanted = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _expression(expression, labels) for expression in selector.get("matchExpressions", [])
    )


def _expression(expression: Policy, labels: dict[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", [])
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[expression["operator"]]
