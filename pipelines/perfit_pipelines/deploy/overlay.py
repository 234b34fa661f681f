"""The overlays of manifests/, and what their objects say about runs and the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfit.errors import PerfitError
from perfit_pipelines.deploy.kubectl import Kubectl

SETUP_JOB = "minio-setup"
_RUNNER = "perfit-runner"
_OVERLAYS = Path("manifests", "overlays")


@dataclass(frozen=True)
class Overlay:
    """A kustomization of manifests/overlays.

    Attributes:
        name: Its name.
        directory: Where it is.
        run_namespace: Where its runs live.
        store_namespace: Where its MinIO lives; None if it has none, and uses an existing store.
    """

    name: str
    directory: Path
    run_namespace: str
    store_namespace: str | None


def open_overlay(name: str, kubectl: Kubectl) -> Overlay:
    """Find and build an overlay: by its name in manifests/overlays, here or in the package, or by its path.

    Raises:
        PerfitError: There is none, it cannot be built, or it does not say where runs live.
    """
    directory = _find(name)
    objects = kubectl.build(directory)
    run, store = _namespace(objects, "ServiceAccount", _RUNNER), _namespace(objects, "Job", SETUP_JOB)
    if run is None:
        raise PerfitError(
            f"{directory} has no ServiceAccount {_RUNNER!r}, whose namespace is that of the runs",
            "build the overlay on manifests/base/run",
        )
    return Overlay(name, directory, run, store)


def _find(name: str) -> Path:
    roots = [Path.cwd() / _OVERLAYS, Path(__file__).parents[1] / _OVERLAYS]
    for path in [*(root / name for root in roots), Path(name)]:
        if (path / "kustomization.yaml").is_file():
            return path.resolve()
    known = sorted({path.parent.name for root in roots for path in root.glob("*/kustomization.yaml")})
    raise PerfitError(
        f"there is no overlay {name!r}",
        f"use one of: {', '.join(known)}, or a path",
    )


def _namespace(objects: list[dict[str, Any]], kind: str, name: str) -> str | None:
    for item in objects:
        if item["kind"] == kind and item["metadata"]["name"] == name:
            return item["metadata"].get("namespace", "default")
    return None
