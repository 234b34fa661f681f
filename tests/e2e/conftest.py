"""A live cluster, chosen by environment variables; without them every test here is skipped and says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from perfit.cluster_spec import ClusterSpec
from perfit.federation_file import load_federation
from perfit_components.steps.context import FederationContext
from perfit_pipelines.cluster.pods import read_pod
from perfit_storage import FederationStore, open_store

T = TypeVar("T")

NEEDED = (
    "PERFIT_E2E_KFP_ENDPOINT",
    "PERFIT_E2E_KUBE_CONTEXT",
    "PERFIT_E2E_STORE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
)
ROUNDS = 2
EXAMPLES = Path(__file__).parents[2] / "pipelines" / "examples" / "data"
CLIENTS = ("hospital", "bank")


@dataclass(frozen=True)
class Cluster:
    """The cluster under test, and the two tools that it is reached with."""

    kfp: str
    context: str
    store: str
    namespace: str = field(default_factory=lambda: os.environ.get("PERFIT_E2E_NAMESPACE", "kubeflow"))
    overlay: str = field(default_factory=lambda: os.environ.get("PERFIT_E2E_OVERLAY", "kind"))
    pods_endpoint: str | None = field(default_factory=lambda: os.environ.get("PERFIT_E2E_STORE_ENDPOINT"))

    def perfit(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the ``perfit`` command as a user would."""
        command = [str(Path(sys.executable).with_name("perfit")), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl in the namespace of the runs, and return what it prints."""
        command = ["kubectl", "--context", self.context, "-n", self.namespace, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    @property
    def connection(self) -> tuple[str, ...]:
        """Options of commands that talk to Kubeflow Pipelines."""
        return ("--host", self.kfp, "--namespace", self.namespace)

    @property
    def running(self) -> tuple[str, ...]:
        """Options of commands that start runs."""
        named = {"--client-image": "PERFIT_E2E_CLIENT_IMAGE", "--server-image": "PERFIT_E2E_SERVER_IMAGE"}
        images = [(option, os.environ[name]) for option, name in named.items() if os.environ.get(name)]
        return (*self.connection, *(word for pair in images for word in pair))


@dataclass(frozen=True)
class Home:
    """A federation of its own for this session: its file, and its part of the store."""

    cluster: Cluster
    file: Path

    @property
    def spec(self) -> ClusterSpec:
        return load_federation(self.file)

    @property
    def files(self) -> FederationStore:
        """The federation's files in the store, under the keys of this machine's environment."""
        return FederationStore.open(self.cluster.store, self.spec.name)

    @property
    def context(self) -> FederationContext:
        """What these files say."""
        return FederationContext.of(self.files)

    def edit(self, **sections: Any) -> None:
        """Change sections of the federation file."""
        self.file.write_text(yaml.safe_dump({**yaml.safe_load(self.file.read_text()), **sections}))

    def submit(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Start a tuning run."""
        return self.cluster.perfit("submit", self.file, *self.cluster.running, *options)

    def pods(self, run_id: str, task: str) -> list[str]:
        """Return the names of a run's pods that run a task's program (not its driver) just now."""
        listed = json.loads(self.cluster.kubectl("get", "pods", "-l", f"pipeline/runid={run_id}", "-o", "json"))
        return [pod["metadata"]["name"] for pod in listed["items"] if _runs(pod, task)]


def _runs(pod: dict[str, Any], task: str) -> bool:
    return pod["status"]["phase"] == "Running" and read_pod(pod).place.endswith(f".{task}.executor")


def wait_for(what: str, look: Callable[[], T], minutes: float, seconds: float = 5) -> T:
    """Look until there is something to see.

    Raises:
        TimeoutError: There was nothing in time.
    """
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(seconds)
    raise TimeoutError(f"{what}: not within {minutes:g} minutes")


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster that the environment names."""
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        pytest.skip(f"needs a live cluster; not set: {', '.join(missing)} (tests/e2e/README.md)")
    kfp, context, store = (os.environ[name] for name in NEEDED[:3])
    return Cluster(kfp, context, store.rstrip("/"))


@pytest.fixture(scope="session")
def home(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A new federation of two clients, whose records are put into the store where their pods read them."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    objects = open_store(cluster.store)
    sections = describe(name, cluster.store)
    keys = [uri.removeprefix(f"{cluster.store}/") for c in sections["clients"] for uri in (c["data"], c["held_out"])]
    for key in keys:
        objects.put(key, (EXAMPLES / Path(key).name).read_bytes())
    file = tmp_path_factory.mktemp("e2e") / "federation.yaml"
    file.write_text(yaml.safe_dump(sections))
    try:
        yield Home(cluster, file)
    finally:
        for key in [*keys, *objects.list(f"federations/{name}/")]:
            objects.delete(key)


def describe(name: str, store: str) -> dict[str, Any]:
    """Return a federation file that any CPU node can run in minutes."""
    data = f"{store}/{name}-records"
    return {
        "name": name,
        "model": os.environ.get("PERFIT_E2E_MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        "store": store,
        "method": {"search_steps": 6, "warmup_steps": 2, "pruning_iterations": 2},
        "lora": {"rank": 4},
        "training": {"steps": 4, "batch_size": 2, "sequence_length": 128},
        "rounds": ROUNDS,
        "participation": {"minimum_clients": 2},
        "tiers": {"default": {"cpu": 1, "memory": "4Gi"}},
        "clients": [
            {"id": client, "data": f"{data}/{client}.train.jsonl", "held_out": f"{data}/{client}.held-out.jsonl"}
            for client in CLIENTS
        ],
    }
