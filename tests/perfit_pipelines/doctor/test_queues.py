"""The doctor on Kueue: queues, its pod integration, priorities, and an end of waiting."""

from __future__ import annotations

import json

import pytest
import yaml

from .conftest import FEDERATION, NAMESPACE

KUEUE = "kueue.x-k8s.io/v1beta1"
TIERS = FEDERATION["tiers"] | {
    "gpu": {**FEDERATION["tiers"]["gpu"], "queue": "gpus", "queue_priority": "research", "queue_seconds": 3600}
}


def settings(*frameworks: str) -> dict:
    """Kueue's own settings, as its manifests and its chart name them."""
    text = yaml.safe_dump({"integrations": {"frameworks": list(frameworks)}})
    metadata = {"name": "kueue-manager-config", "namespace": "kueue-system"}
    data = {"controller_manager_config.yaml": text}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def queue(active: str = "True", **spec) -> dict:
    condition = {"type": "Active", "status": active, "reason": "Ready", "message": "its ClusterQueue is inactive"}
    metadata = {"name": "gpus", "namespace": NAMESPACE}
    spec = {"clusterQueue": "all", "stopPolicy": "None", **spec}
    status = {"conditions": [condition]}
    return {"apiVersion": KUEUE, "kind": "LocalQueue", "metadata": metadata, "spec": spec, "status": status}


def limit() -> dict:
    container = {"name": "queue-limit", "image": "perfit-server:0.2.0"}
    pod = {"spec": {"containers": [container], "restartPolicy": "Never"}}
    spec = {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": pod}}}
    metadata = {"name": "perfit-queue-limit", "namespace": NAMESPACE}
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata, "spec": spec}


def runtime(job: str) -> dict:
    """A runtime as Trainer's manifests have it."""
    pod = {"spec": {"containers": [{"name": job, "image": "pytorch/pytorch"}]}}
    jobs = [{"name": job, "template": {"spec": {"template": pod}}}]
    spec = {"template": {"spec": {"replicatedJobs": jobs}}}
    item = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "ClusterTrainingRuntime", "spec": spec}
    return {**item, "metadata": {"name": "torch-distributed"}}


@pytest.fixture
def queued(site):
    """A cluster with Kueue, ready for a federation whose tier ``gpu`` queues."""
    site.write(tiers=TIERS)
    site.cluster.custom = {KUEUE: {"LocalQueue": "localqueues", "WorkloadPriorityClass": "workloadpriorityclasses"}}
    priority = {"apiVersion": KUEUE, "kind": "WorkloadPriorityClass", "metadata": {"name": "research"}, "value": 10}
    site.cluster.add(queue(), priority, settings("batch/job", "pod"), limit())
    return site


def test_kueue_in_order(queued):
    checks = json.loads(queued.examine("--json").output)["checks"]
    assert [check for check in checks if check["status"] != "ok"] == []
    assert checks[-1]["finding"] == "Kueue queues pods of clients in gpus"


def test_without_kueue(queued):
    queued.cluster.custom = {}
    assert "Kueue is not installed" in queued.only("fail", "queues")["finding"]


def test_without_the_queue(queued):
    queued.cluster.objects = {key: item for key, item in queued.cluster.objects.items() if key[1] != "localqueues"}
    assert "there is no LocalQueue gpus in namespace kubeflow" in queued.only("fail", "queues")["finding"]


@pytest.mark.parametrize(
    ("found", "reason"),
    [(queue(stopPolicy="Hold"), "its stopPolicy is Hold"), (queue("False"), "its ClusterQueue is inactive")],
)
def test_a_queue_that_admits_nothing(queued, found, reason):
    queued.cluster.add(found)
    assert queued.only("fail", "queues")["finding"] == f"the LocalQueue gpus admits nothing: {reason}"


def test_without_the_priority(queued):
    queued.remove("WorkloadPriorityClass", "research")
    assert "there is no WorkloadPriorityClass research" in queued.only("fail", "queues")["finding"]


def test_kueue_that_queues_no_pods(queued):
    queued.cluster.add(settings("batch/job"))
    found = queued.only("fail", "queues")
    assert found["finding"] == "Kueue does not queue pod: clients would not wait"
    assert "add pod to integrations.frameworks" in found["fix"]


def test_kueue_whose_frameworks_are_all_commented_out(queued):
    text = "integrations:\n  frameworks:\n  # - pod\n"
    queued.cluster.add({**settings(), "data": {"controller_manager_config.yaml": text}})
    assert queued.only("fail", "queues")["finding"] == "Kueue does not queue pod: clients would not wait"


def test_kueue_whose_settings_say_nothing(queued):
    queued.cluster.add({**settings(), "data": {}})
    assert "is not known" in queued.only("unknown", "queues")["finding"]


def test_waiting_without_an_end(queued):
    queued.remove("CronJob", "perfit-queue-limit", NAMESPACE)
    assert "manifests/components/kueue" in queued.only("warn", "queues")["fix"]
    unlimited = {**TIERS["gpu"], "queue_seconds": None}
    queued.write(tiers={**TIERS, "gpu": unlimited})
    assert "set tiers.gpu.queue_seconds" in queued.only("warn", "queues")["fix"]


def test_trainjobs_end_their_waiting_themselves(queued):
    group = "trainer.kubeflow.org/v1alpha1"
    queued.cluster.custom |= {group: {"ClusterTrainingRuntime": "clustertrainingruntimes"}}
    queued.write(tiers={**TIERS, "gpu": {**TIERS["gpu"], "runner": "trainjob"}}, cluster={"allow_secret_readers": True})
    queued.remove("CronJob", "perfit-queue-limit", NAMESPACE)
    found = queued.findings()
    assert [(check["status"], check["name"]) for check in found] == [("fail", "TrainJobs"), ("fail", "queues")]
    assert "there is no ClusterTrainingRuntime torch-distributed" in found[0]["finding"]
    assert "does not queue trainer.kubeflow.org/trainjob" in found[1]["finding"]
    queued.cluster.add(settings("trainer.kubeflow.org/trainjob"), runtime("launcher"))
    assert "has no job node" in queued.only("fail", "TrainJobs")["finding"]
    for template in ({"spec": {}}, {}):  # a JobSet may leave out its jobs, and a runtime the JobSet
        queued.cluster.add({**runtime("node"), "spec": {"template": template}})
        assert "has no job node" in queued.only("fail", "TrainJobs")["finding"]
    queued.cluster.add(runtime("node"))
    assert queued.findings() == []
    several = {**TIERS["gpu"], "runner": "trainjob", "nodes": 2, "accelerator": {"count": 1}}
    queued.write(tiers={**TIERS, "gpu": several}, cluster={"allow_secret_readers": True})
    assert "it has no mlPolicy.torch" in queued.only("fail", "TrainJobs")["finding"]
    meeting = runtime("node")
    meeting["spec"]["mlPolicy"] = {"numNodes": 1, "torch": {"numProcPerNode": "auto"}}
    queued.cluster.add(meeting)
    assert queued.findings() == []
    queued.cluster.custom.pop(group)
    assert "Kubeflow Trainer is not installed" in queued.only("fail", "TrainJobs")["finding"]


def test_what_may_not_be_read(queued):
    for forbidden, what in (("localqueues", "localqueues"), ("/apis", "API groups")):
        queued.cluster.forbidden = {forbidden}
        assert f"you may not read {what}" in queued.only("unknown", "queues")["finding"]
