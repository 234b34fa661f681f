"""Whether nodes have the images, or might get them: what can be told without starting a pod."""

from __future__ import annotations

from collections.abc import Sequence

from kubernetes.client import V1Node

from perfit_pipelines.doctor.check import Check, ok, unknown, warn

NAME = "images"
_DEFAULT_REGISTRY = "docker.io"


def check_images(images: Sequence[str], nodes: Sequence[V1Node]) -> list[Check]:
    """Look for images among those that nodes say they have.

    A kubelet names 50 of its images, the largest first, so that a small one may be there and not be named.

    Args:
        images: References.
        nodes: Those that pods may go to.
    """
    return [_check_image(image, nodes) for image in dict.fromkeys(images)]


def _check_image(image: str, nodes: Sequence[V1Node]) -> Check:
    wanted = _full_name(image)
    having = [node for node in nodes if wanted in _names(node)]
    if nodes and len(having) == len(nodes):
        return ok(NAME, f"{image} is on all {len(nodes)} nodes that pods may go to")
    there = f"{image} is known to be on {len(having)} of {len(nodes)} nodes that pods may go to"
    if wanted.startswith(f"{_DEFAULT_REGISTRY}/library/perfit-"):
        fix = (
            "load it onto every node (kind load docker-image), or push it to a registry and name it with "
            "--client-image and --server-image"
        )
        return warn(NAME, f"{there}, and its name has no registry to pull it from", fix)
    registry = wanted.partition("/")[0]
    fix = f"try it: kubectl run pull-test --image={image} --restart=Never --command -- true; then delete that pod"
    return unknown(NAME, f"{there}; whether {registry} gives it to them shows when a pod starts", fix)


def _names(node: V1Node) -> set[str]:
    return {_full_name(name) for image in node.status.images or [] for name in image.names or []}


def _full_name(image: str) -> str:
    """Return a reference with its registry, and with its tag unless it has a digest."""
    first, slash, _ = image.partition("/")
    if not slash:
        image = f"{_DEFAULT_REGISTRY}/library/{image}"
    elif not any(mark in first for mark in ".:") and first != "localhost":
        image = f"{_DEFAULT_REGISTRY}/{image}"
    last = image.rpartition("/")[2]
    return image if "@" in last or ":" in last else f"{image}:latest"
