"""A client's part of a round in a TrainJob, by an API server that does what Kubeflow Trainer does with one."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kubeflow_trainer_api import models
from safetensors.torch import load

from perfit.cluster_spec import Cluster, Tier
from perfit.protocol import parse_outcome
from perfit_components import client_process
from perfit_components.steps import train_job as step
from perfit_components.train_job_object import ClientJob

from ..pod_api import NAMESPACE, pod_api
from .running import Site, files

JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
IMAGE = "registry.example/perfit-client:1"
SECRET = {"secretKeyRef": {"name": "perfit-tiny-bob", "key": "AWS_ACCESS_KEY_ID", "optional": False}}
CONFIG = {
    "resources": {"limits": {"cpu": "4", "memory": "24Gi", "nvidia.com/gpu": "2"}},
    "env": [{"name": "AWS_ACCESS_KEY_ID", "valueFrom": SECRET}, {"name": "SOME", "value": "thing"}],
    "node_selector": {"pool": "gpus"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "volumes": [{"name": "bob-data", "persistentVolumeClaim": {"claimName": "bob-data"}}],
    "volume_mounts": [{"name": "bob-data", "mountPath": "/data"}],
    "affinity": None,
}
POD = {"KFP_POD_NAME": "round-client-1", "KFP_POD_UID": "8b1c8f3e-0000-0000-0000-000000000000"}
SECTIONS = {
    "clients": {"ann": {"tier": "gpu"}, "bob": {"tier": "gpu", "rank": 1}},
    "cluster": {"allow_secret_readers": True},
    "tiers": {"gpu": {"runner": "trainjob", "queue": "gpus", "queue_priority": "research", "queue_seconds": 600}},
}


def read(job: dict[str, Any]) -> dict[str, Any]:
    """A TrainJob as Trainer's own models write it; they leave out what they do not know."""
    return models.TrainerV1alpha1TrainJob.from_dict(copy.deepcopy(job)).to_dict()


class Clock:
    """Time that only passes while somebody sleeps, and then much faster."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        time.sleep(0.05)


class Trainer:
    """A cluster with Kubeflow Trainer, which runs a job's command.

    Attributes:
        held: The TrainJobs by name.
        requests: Methods and paths, in order.
        refusal: What it answers to everything, if anything.
        created: The TrainJobs that it took.
        run: Starts what the pods of a job do; what it returns says how they ended, and nothing before.
        waits: Whether Kueue admits nothing.
        silent: How many requests are answered 503 first.
    """

    def __init__(self, run: Callable[[dict[str, Any]], Callable[[], str]]):
        self.held: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.refusal: tuple[int, str] | None = None
        self.run, self.waits, self.silent = run, False, 0
        self._pods: dict[str, Callable[[], str]] = {}

    def answer(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        name = path.partition("?")[0].removeprefix(JOBS).strip("/")
        self.requests.append(method)
        if self.silent:
            self.silent -= 1
            return 503, {"message": "etcd is away"}
        if self.refusal:
            return self.refusal[0], {"message": self.refusal[1]}
        if method == "POST":
            return self._create(body)
        if name not in self.held:
            return 404, {"message": "not found"}
        if method == "DELETE":
            self._pods.pop(name, None)
            return 200, self.held.pop(name)
        if not self.waits:
            self._go_on(name, self.held[name])
        return 200, self.held[name]

    def _go_on(self, name: str, job: dict[str, Any]) -> None:
        if job.get("status"):
            return
        job["spec"]["suspend"] = False
        if name not in self._pods:
            self._pods[name] = self.run(job)
        if ended := self._pods[name]():
            condition = {"type": ended, "status": "True", "reason": f"Jobs{ended}", "message": "as its pods ended"}
            job["status"] = {"conditions": [condition]}

    def _create(self, job: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert read(job) == job, "Trainer knows all of it"
        name = job["metadata"]["name"]
        if name in self.held:
            return 409, {"message": "already exists"}
        self.created.append(job)
        self.held[name] = copy.deepcopy(job)
        self.held[name]["spec"]["suspend"] = "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]
        return 201, self.held[name]


def as_pods(job: dict[str, Any], *of_nodes: dict[str, str]) -> Callable[[], str]:
    """Start a job's command as a process of its own on each node, with the environment that Trainer sets."""
    trainer, port = job["spec"]["trainer"], free_port()
    assert trainer["command"][0] == "python"
    pods = []
    for node in range(trainer["numNodes"]):
        # One process a node, where the resources have limits and no requests.
        shape = {"PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": str(node)}
        meeting = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        own = dict(enumerate(of_nodes)).get(node, {})
        pods.append(
            subprocess.Popen([sys.executable, *trainer["command"][1:]], env={**os.environ, **shape, **meeting, **own})
        )

    def ended() -> str:
        codes = [pod.poll() for pod in pods]
        return "Failed" if any(codes) else "" if None in codes else "Complete"

    return ended


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_a_thread(job: dict[str, Any]) -> Callable[[], str]:
    """Do in this process what a job's command does."""
    _, _, _, *arguments = job["spec"]["trainer"]["command"]
    pods = threading.Thread(target=client_process.main, args=(arguments,))
    pods.start()
    return lambda: "" if pods.is_alive() else "Complete"


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(step, "time", clock)
    return clock


@pytest.fixture
def trainer(tmp_path, clock) -> Iterator[Trainer]:
    trainer = Trainer(in_a_thread)
    with pod_api(tmp_path, trainer.answer) as (environment, mount):
        trainer.environment, trainer.mount = {**environment, **POD}, mount
        yield trainer


@pytest.fixture
def in_job(trainer, monkeypatch) -> Callable[[Site, str], dict[str, str]]:
    """A function that does a client's part of round 1 in a job."""
    monkeypatch.setattr(step.ClusterApi.of_pod.__func__, "__defaults__", (trainer.environment, trainer.mount))

    def act(site: Site, client: str) -> dict[str, str]:
        return step.train_in_job(site.uri, 1, site.name(client), 1, IMAGE, CONFIG, trainer.environment).output

    return act


@pytest.fixture
def bob(make_site, in_job) -> Callable[[], dict[str, str]]:
    """A function that does bob's part of round 1 in a job; its site is the attribute ``site``."""
    site = make_site(**SECTIONS).prepare()

    def act() -> dict[str, str]:
        return in_job(site, "bob")

    act.site = site
    return act


def record(site: Site):
    return parse_outcome((site.root / "rounds/1/updates/bob.json").read_bytes())


def test_a_job_leaves_what_a_pod_does_and_is_deleted(bob, trainer, make_site, tmp_path):
    trainer.run = as_pods
    trained = bob()
    assert trained == {"client": "bob", "status": "trained", "reason": ""}
    (tmp_path / "store").rename(tmp_path / "by-job")
    site = bob.site.prepare()
    site.train_client("bob")
    assert files(tmp_path / "by-job") == files(tmp_path / "store")
    assert trainer.held == {}
    assert len(trainer.created) == 1


def of_several(**tier: Any) -> dict[str, Any]:
    """Sections in which a client's job has several processes, and a pass over ann's records no whole number of steps.

    Of its last step one example is left: only one of two processes has any.
    """
    training = {"steps": 4, "batch_size": 3, "gradient_accumulation": 2, "checkpoint_steps": 2}
    return {**SECTIONS, "tiers": {"gpu": {"runner": "trainjob", **tier}}, "training": training}


def test_two_processes_leave_what_one_does(make_site, in_job, trainer, tmp_path, capfd):
    trainer.run = as_pods
    site = make_site(**of_several(accelerator={"count": 2, "divide": "batch"})).prepare()
    assert in_job(site, "ann")["status"] == "trained"
    printed = capfd.readouterr().out
    assert [printed.count(f"round={part} client=ann step=1/") for part in (0, 1)] == [1, 1], "of one process"
    (tmp_path / "store").rename(tmp_path / "by-job")
    site.prepare().train_client("ann")
    by_job, by_one = files(tmp_path / "by-job"), files(tmp_path / "store")
    assert by_job.keys() == by_one.keys(), "the mask's name, its digest, among them"
    differing = {name.rpartition("tiny/")[2] for name, data in by_one.items() if by_job[name] != data}
    tuned = {"rounds/1/updates/ann", "clients/ann/state/1", "clients/ann/adapter/adapter_model"}
    record = "rounds/1/updates/ann.json"
    assert differing <= {record, *(f"{name}.safetensors" for name in tuned)}
    for name in differing - {record}:
        one, job = (load(held[f"federations/tiny/{name}"]) for held in (by_one, by_job))
        torch.testing.assert_close(job, one, rtol=0, atol=1e-6)
    one, job = (numbers(held[f"federations/tiny/{record}"]) for held in (by_one, by_job))
    assert job == pytest.approx(one, rel=1e-5)


def numbers(record: bytes) -> list[float]:
    """What a client's record says that may differ in the order in which something was summed."""
    update = parse_outcome(record)
    return [*update.losses, update.perplexity.round_0, update.perplexity.before, update.perplexity.after]


def test_a_process_that_fails_ends_the_others_and_is_why(make_site, in_job, trainer):
    pods: list[Callable[[], str]] = []

    def run(job: dict[str, Any]) -> Callable[[], str]:
        pods.append(as_pods(job, {}, {"PERFIT_STORE_PATIENCE_S": "a while"}))
        return pods[0]

    trainer.run = run
    site = make_site(**of_several(nodes=2)).prepare()
    said = in_job(site, "ann")
    assert (said["status"], said["reason"].partition("\n")[0]) == ("failed", "PERFIT_STORE_PATIENCE_S is 'a while'")
    record = parse_outcome((site.root / "rounds/1/updates/ann.json").read_bytes())
    assert record.reason == said["reason"], "which the job's first process wrote"
    assert [pod() for pod in pods] == ["Complete"], "or Kubernetes would start the pods again"


def test_who_has_delivered_needs_no_job(bob, trainer):
    bob.site.train_client("bob")
    assert bob()["status"] == "trained"
    assert trainer.requests == []


def test_who_is_not_admitted_in_time_is_absent(bob, trainer, clock):
    trainer.waits = True
    said = bob()
    assert said["status"] == "failed"
    assert said["reason"].startswith("Kueue's queue gpus has not admitted the client in 600 s\n  fix: raise")
    assert record(bob.site).status == "failed"
    assert 600 < clock.now < 600 + 2 * step.POLL_S
    assert trainer.held == {}


@pytest.mark.parametrize("ended", ["Failed", "Complete"])
def test_a_job_without_a_record(bob, trainer, ended):
    trainer.run = lambda job: lambda: ended
    reason = bob()["reason"]
    assert f"left no record: {ended}: Jobs{ended}: as its pods ended" in reason
    assert record(bob.site).reason == reason
    trainer.run = in_a_thread
    assert bob()["status"] == "trained", "and the next attempt is not taken for the one before"


def test_a_record_of_a_failure_is_the_jobs_own(bob):
    Path(bob.site.data("bob")).unlink()
    reason = bob()["reason"]
    assert "left no record" not in reason
    assert "bob.jsonl" in reason


@pytest.mark.parametrize(
    ("refusal", "problem", "fix"),
    [
        ((403, "trainjobs is forbidden"), "may not create TrainJobs: trainjobs is forbidden", "components/trainjob"),
        ((404, "page not found"), "the cluster knows no TrainJobs", "install Kubeflow Trainer"),
        ((422, "runtime not found"), "does not take the TrainJob: runtime not found", "runner to pod"),
    ],
)
def test_a_cluster_that_takes_no_job(bob, trainer, refusal, problem, fix):
    trainer.refusal = refusal
    reason = bob()["reason"]
    assert problem in reason
    assert fix in reason.partition("fix: ")[2]


def test_a_server_that_is_away_for_a_while_stops_nothing(bob, trainer, clock):
    trainer.silent = 30
    assert bob()["status"] == "trained"
    trainer.silent = 10_000
    Path(bob.site.root / "rounds/1/updates/bob.json").unlink()
    assert "Kubernetes does not answer: 503 etcd is away" in bob()["reason"]


def test_a_job_that_runs_is_followed_and_one_that_has_ended_is_replaced(bob, trainer):
    name = object_of(SECTIONS, bob.site).job_name
    running = {"metadata": {"name": name}, "spec": {}}
    trainer.held[name] = running
    trainer.run = lambda job: in_a_thread(trainer_object(bob.site))
    assert bob()["status"] == "trained"
    assert trainer.created == []
    Path(bob.site.root / "rounds/1/updates/bob.json").unlink()
    over = {"conditions": [{"type": "Failed", "status": "True", "reason": "Earlier"}]}
    trainer.held[name] = {"metadata": {"name": name}, "spec": {}, "status": over}
    trainer.run = in_a_thread
    assert bob()["status"] == "trained"
    assert len(trainer.created) == 1


def test_outside_of_a_cluster_it_says_so(bob, trainer):
    trainer.environment.pop("KUBERNETES_SERVICE_HOST")
    assert "can only be created from a pod" in bob()["reason"]


def object_of(sections: dict[str, Any], site: Site, **changes: Any) -> ClientJob:
    given = {
        "federation": site.uri,
        "round": 1,
        "client": "bob",
        "name": site.name("bob"),
        "threads": 1,
        "image": IMAGE,
        "tier": Tier(**sections["tiers"]["gpu"]),
        "cluster": Cluster(),
        "config": CONFIG,
        "owner": tuple(POD.values()),
    }
    return ClientJob(**{**given, **changes})


def trainer_object(site: Site) -> dict[str, Any]:
    return object_of(SECTIONS, site).to_object()


def test_the_job_has_what_the_pod_would_have(make_site):
    job = trainer_object(make_site())
    assert job["metadata"]["labels"] == {
        "app.kubernetes.io/part-of": "perfit",
        "perfit/client": "bob",
        "kueue.x-k8s.io/queue-name": "gpus",
        "kueue.x-k8s.io/priority-class": "research",
    }
    assert [owner["uid"] for owner in job["metadata"]["ownerReferences"]] == [POD["KFP_POD_UID"]]
    trainer = job["spec"]["trainer"]
    assert (trainer["resourcesPerNode"], trainer["env"]) == (CONFIG["resources"], CONFIG["env"])
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (IMAGE, 1, 1)
    assert job["spec"]["runtimeRef"] == {"name": "torch-distributed"}
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]
    assert pod["metadata"]["labels"] == {"perfit/role": "client", "sidecar.istio.io/inject": "false"}, (
        "or the network policies would keep it from the store"
    )
    assert (pod["spec"]["nodeSelector"], pod["spec"]["tolerations"]) == (CONFIG["node_selector"], CONFIG["tolerations"])
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    assert mounts == {"/data": "bob-data", "/tmp": "tmp", "/dev/shm": "dshm"}
    assert {volume["name"] for volume in pod["spec"]["volumes"]} == set(mounts.values())
    assert "perfit-tiny-bob" in json.dumps(trainer["env"])


def test_torchrun_starts_the_processes_of_a_job_and_is_told_how_many(make_site):
    tier = Tier(runner="trainjob", nodes=4, accelerator={"count": 2, "divide": "batch"})
    spec = object_of(SECTIONS, make_site(), tier=tier, threads=7).to_object()["spec"]
    trainer, (patch,) = spec["trainer"], spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["template"]["spec"]["template"]["metadata"]["labels"]["perfit/nodes"] == "several"
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (4, 2)
    launcher = ["python", "-m", "torch.distributed.run", "--nnodes", "4", "--nproc-per-node", "2"]
    assert trainer["command"][:9] == [*launcher, "-m", "perfit_components.client_process"]
    assert trainer["command"][-2:] == ["--threads", "3"]


OF_NODES = Tier(runner="trainjob", nodes=2)


@pytest.mark.parametrize(
    "changes", [{"config": {}}, {"owner": None}, {"cluster": Cluster(model_cache=None)}, {"tier": OF_NODES}]
)
def test_trainers_models_know_every_field(make_site, changes):
    job = object_of(SECTIONS, make_site(), **changes).to_object()
    assert read(job) == job


def test_jobs_are_named_by_what_they_do(make_site):
    site = make_site()
    names = {object_of(SECTIONS, site, **changes).job_name for changes in ({}, {"round": 2}, {"client": "ann"})}
    assert len(names) == 3
    assert object_of(SECTIONS, site, owner=None).job_name in names
