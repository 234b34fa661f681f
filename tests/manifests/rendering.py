"""Rendered overlays, and questions about their objects."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from perfit_pipelines.deploy.kubectl import find_kubectl
from perfit_pipelines.deploy.overlay import MINIO, SEAWEEDFS, StoreServer

Object = dict[str, Any]
"""A Kubernetes object as in its YAML."""

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = ["base", *sorted(f"overlays/{path.name}" for path in (MANIFESTS / "overlays").iterdir())]
WITH_SEAWEEDFS = ["overlays/seaweedfs"]
WITH_MINIO = [overlay for overlay in OVERLAYS if overlay not in ("overlays/existing-minio", *WITH_SEAWEEDFS)]
WITH_STORE = WITH_MINIO + WITH_SEAWEEDFS


@functools.cache
def render(overlay: str) -> tuple[Object, ...]:
    """What `kubectl apply -k` would send."""
    done = subprocess.run([find_kubectl(), "kustomize", str(MANIFESTS / overlay)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"kustomize warns: {done.stderr}"
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, *kinds: str) -> list[Object]:
    """The overlay's objects of some kinds."""
    return [item for item in render(overlay) if item["kind"] in kinds]


def only(overlay: str, kind: str, name: str) -> Object:
    """The one object of this kind and name; a generated one goes by its name without the hash."""
    named = re.compile(f"{re.escape(name)}(-[a-z0-9]{{10}})?")
    (found,) = (item for item in of_kind(overlay, kind) if named.fullmatch(item["metadata"]["name"]))
    return found


def identity(item: Object) -> tuple[str, str | None, str]:
    """The object's kind, namespace and name."""
    return item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]


def store_of(overlay: str) -> StoreServer:
    """The store that an overlay of `WITH_STORE` brings."""
    return SEAWEEDFS if overlay in WITH_SEAWEEDFS else MINIO


def run_namespace(overlay: str) -> str:
    """Where the overlay puts what runs need."""
    return only(overlay, "ServiceAccount", "perfit-runner")["metadata"]["namespace"]


def pod_templates(overlay: str) -> Iterator[tuple[str, Object]]:
    """Every pod that the overlay starts: where it stands, and its template."""
    for item in render(overlay):
        template = item.get("spec", {}).get("template") if isinstance(item.get("spec"), dict) else None
        if item["kind"] == "CronJob":
            template = item["spec"]["jobTemplate"]["spec"]["template"]
        if item["kind"] == "Pod":
            template = item
        if template:
            yield f"{item['kind']} {item['metadata']['namespace']}/{item['metadata']['name']}", template


def containers(pod: Object) -> list[Object]:
    """All containers of a pod's spec."""
    return [item for kind in ("initContainers", "containers", "ephemeralContainers") for item in pod.get(kind, [])]


def walk(tree: Any) -> Iterator[Object]:
    """Every mapping in an object, itself included."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from walk(child)
