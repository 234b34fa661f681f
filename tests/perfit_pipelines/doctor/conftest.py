"""A cluster, a Kubeflow and a store that are ready for a federation, for tests to break."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kfp
import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from perfit.cluster_spec import ClusterSpec
from perfit_pipelines.doctor import register

from ..kubernetes_api import KubernetesApi, Object, kubernetes_api
from ..store_roles import SERVER, KeyedStore, RoleServer, role_server

NAMESPACE = "kubeflow"
FEDERATION = {
    "name": "tiny",
    "model": "owner/model",
    "store": "s3://perfit",
    "tiers": {
        "gpu": {
            "cpu": 4,
            "memory": "16Gi",
            "accelerator": {"type": "nvidia.com/gpu", "count": 2},
            "node_selector": {"pool": "gpus"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
        "small": {"cpu": 1, "memory": "4Gi"},
    },
    "clients": [
        {"id": "ann", "data": "/data/ann.jsonl", "tier": "gpu", "volume": "ann-data"},
        {"id": "bob", "data": "owner/bob:train", "tier": "small"},
    ],
}


@pytest.fixture(scope="session")
def store_server(tmp_path_factory) -> Iterator[RoleServer]:
    with role_server(tmp_path_factory.mktemp("doctor-store")) as server:
        yield server


@pytest.fixture(scope="session")
def store(store_server) -> KeyedStore:
    """The store that the federation file names, with the policies that ``perfit deploy`` makes."""
    return KeyedStore(store_server, "s3://perfit", ClusterSpec.model_validate(FEDERATION))


@dataclass
class Pipelines:
    """A Kubeflow Pipelines that only answers health checks."""

    health: object = field(default_factory=lambda: {"tag_name": "2.17.0", "commit_sha": "abc", "multi_user": False})
    url: str = ""


@dataclass(frozen=True)
class Site:
    """Everything that the doctor checks."""

    directory: Path
    cluster: KubernetesApi
    pipelines: Pipelines
    store: KeyedStore

    def write(self, **sections) -> None:
        """Write the federation file."""
        (self.directory / "federation.yaml").write_text(yaml.safe_dump({**FEDERATION, **sections}))

    def remove(self, kind: str, name: str, namespace: str = "") -> None:
        removed = self.cluster.get(kind, name, namespace)
        self.cluster.objects = {key: item for key, item in self.cluster.objects.items() if item is not removed}

    def add_keys(self, secret: str, role: str, **changes: str) -> None:
        """Put a role's Secret into the cluster, with the given values replaced."""
        self.cluster.add(secret_object(secret, {**role_environment(self.store, role), **changes}))

    def examine(self, *arguments: str) -> Result:
        """Run ``perfit doctor``."""
        app = typer.Typer()
        app.callback()(lambda: None)
        register(app)
        command = ["doctor", str(self.directory / "federation.yaml"), "--host", self.pipelines.url, *arguments]
        return CliRunner().invoke(app, command)

    def findings(self, *arguments: str) -> list[dict[str, str]]:
        """Run it and return the findings that are not ``ok``."""
        result = self.examine("--json", *arguments)
        said = json.loads(result.output)
        assert result.exit_code == (0 if said["ok"] else 1)
        assert said["ok"] == all(check["status"] != "fail" for check in said["checks"])
        return [check for check in said["checks"] if check["status"] != "ok"]

    def only(self, status: str, name: str, *arguments: str) -> dict[str, str]:
        """Run it and return the only finding that is not ``ok``."""
        found = self.findings(*arguments)
        assert [(check["status"], check["name"]) for check in found] == [(status, name)], found
        assert found[0]["fix"]
        return found[0]


@pytest.fixture
def site(tmp_path, monkeypatch, store) -> Iterator[Site]:
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("PERFIT_KFP_NAMESPACE", "PERFIT_KFP_TOKEN", "PERFIT_KFP_COOKIES", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with kubernetes_api(tmp_path / "kubeconfig") as cluster, serve_pipelines() as pipelines:
        made = Site(tmp_path, cluster, pipelines, store)
        made.write()
        cluster.add(*sound_cluster(store))
        yield made


def sound_cluster(store: KeyedStore) -> list[Object]:
    """The objects of a cluster without problems."""
    secrets = {"perfit-server": SERVER} | {store.spec.secret_of(c): c.id for c in store.spec.clients}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}, "status": {"phase": "Active"}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "perfit-runner", "namespace": NAMESPACE}},
        *(secret_object(name, role_environment(store, role)) for name, role in secrets.items()),
        claim("perfit-model-cache", modes=["ReadWriteMany"]),
        claim("ann-data"),
        quota({"pods": "20"}, used={"pods": "1"}, scopes=["Terminating"]),
        node("big", labels={"pool": "gpus"}, taints=[gpu_taint()], allocatable=amounts("16", "64Gi", gpus="4")),
        node("plain", allocatable=amounts("4", "16Gi")),
    ]


def role_environment(store: KeyedStore, role: str) -> dict[str, str]:
    environment = store.environment(role)
    return {name: environment[name] for name in environment if name.startswith("AWS_")}


def secret_object(name: str, texts: dict[str, str]) -> Object:
    data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}


def claim(name: str, phase: str = "Bound", modes: list[str] | None = None, kind: str | None = None) -> Object:
    spec = {"accessModes": modes or ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}}
    spec |= {"storageClassName": kind} if kind else {}
    metadata = {"name": name, "namespace": NAMESPACE}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": spec,
        "status": {"phase": phase},
    }


def quota(hard: dict[str, str], used: dict[str, str] | None = None, **spec) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "bound", "namespace": NAMESPACE},
        "spec": {"hard": hard, **spec},
        "status": {"hard": hard, "used": used or {}},
    }


def amounts(cpu: str, memory: str, gpus: str | None = None) -> dict[str, str]:
    return {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": gpus} if gpus else {})}


def gpu_taint() -> Object:
    return {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


IMAGES = ("docker.io/library/perfit-client:0.2.0", "docker.io/library/perfit-server:0.2.0")


def node(
    name: str,
    allocatable: dict[str, str],
    labels: dict[str, str] | None = None,
    taints: list[Object] | None = None,
    ready: str = "True",
    images: tuple[str, ...] = IMAGES,
    **spec,
) -> Object:
    condition = {"type": "Ready", "status": ready}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": {**({"taints": taints} if taints else {}), **spec},
        "status": {
            "allocatable": allocatable,
            "conditions": [condition],
            "images": [{"names": [image], "sizeBytes": 1_000_000} for image in images],
        },
    }


class serve_pipelines:
    """Serve ``Pipelines`` while entered."""

    def __enter__(self) -> Pipelines:
        pipelines = Pipelines()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path == "/apis/v2beta1/healthz"
                health = pipelines.health
                data = health if isinstance(health, bytes) else json.dumps(health).encode()
                self.send_response(200 if known else 404)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        pipelines.url = f"http://127.0.0.1:{self._server.server_port}"
        return pipelines

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
