"""The overlays of manifests/, and what their objects say about runs and the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfit.errors import PerfitError
from perfit_pipelines.deploy.kubectl import Kubectl

_RUNNER = "perfit-runner"
_OVERLAYS = Path("manifests", "overlays")


@dataclass(frozen=True)
class StoreServer:
    """A store that an overlay brings.

    Attributes:
        name: Of its StatefulSet and Service.
        title: Its name for people.
        port: Of its S3 API.
        root_user: Key of its Secret `root_secret` that holds the administrator's access key.
        root_password: Key of its Secret that holds the administrator's secret.
        setup_job: The Job that makes its users, once; None for a server that follows the Secrets itself.
    """

    name: str
    title: str
    port: int
    root_user: str
    root_password: str
    setup_job: str | None

    @property
    def root_secret(self) -> str:
        """Name of the administrator's Secret."""
        return f"perfit-{self.name}"

    @property
    def runs_policy(self) -> str:
        """Name of the NetworkPolicy that admits runs."""
        return f"{self.name}-runs"


MINIO = StoreServer("minio", "MinIO", 9000, "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "minio-setup")
SEAWEEDFS = StoreServer("seaweedfs", "SeaweedFS", 8333, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", None)


@dataclass(frozen=True)
class Store:
    """The store of an overlay, and its namespace."""

    server: StoreServer
    namespace: str

    @property
    def endpoint(self) -> str:
        """Its URL, as pods reach it."""
        return f"http://{self.server.name}.{self.namespace}.svc:{self.server.port}"


@dataclass(frozen=True)
class Overlay:
    """A kustomization of manifests/overlays.

    Attributes:
        name: Its name.
        directory: Where it is.
        run_namespace: Where its runs live.
        store: What it brings; None if it uses an existing store.
    """

    name: str
    directory: Path
    run_namespace: str
    store: Store | None


def open_overlay(name: str, kubectl: Kubectl) -> Overlay:
    """Find and build an overlay: by its name in manifests/overlays, here or in the package, or by its path.

    Raises:
        PerfitError: There is none, it cannot be built, or it does not say where runs live.
    """
    directory = _find(name)
    objects = kubectl.build(directory)
    run = _namespace(objects, "ServiceAccount", _RUNNER)
    if run is None:
        raise PerfitError(
            f"{directory} has no ServiceAccount {_RUNNER!r}, whose namespace is that of the runs",
            "build the overlay on manifests/base/run",
        )
    servers = {server: _namespace(objects, "StatefulSet", server.name) for server in (MINIO, SEAWEEDFS)}
    stores = [Store(server, namespace) for server, namespace in servers.items() if namespace]
    if len(stores) > 1:
        raise PerfitError(
            f"{directory} has two stores", "keep one of manifests/base/minio and manifests/base/seaweedfs"
        )
    return Overlay(name, directory, run, stores[0] if stores else None)


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
