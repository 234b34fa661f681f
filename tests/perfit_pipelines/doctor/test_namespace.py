from __future__ import annotations

import pytest

from .conftest import amounts, claim, node, quota

LATER = "WaitForFirstConsumer"


def storage_class(mode: str) -> dict:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "standard"},
        "provisioner": "example.com/disks",
        "volumeBindingMode": mode,
    }


@pytest.mark.parametrize("name", ["ann-data", "perfit-model-cache"])
def test_a_claim_that_is_not_there(site, name):
    site.remove("PersistentVolumeClaim", name, "kubeflow")
    assert f"there is no claim {name}" in site.only("fail", "volumes")["finding"]


def test_without_a_model_cache(site):
    site.remove("PersistentVolumeClaim", "perfit-model-cache", "kubeflow")
    site.write(cluster={"model_cache": None})
    assert site.findings() == []


def test_a_claim_that_waits_for_its_first_pod(site):
    site.cluster.add(claim("ann-data", phase="Pending", kind="standard"), storage_class(LATER))
    assert site.findings() == []
    site.cluster.forbidden.add("storageclasses")
    assert "you may not read storage classes" in site.only("unknown", "volumes")["finding"]


@pytest.mark.parametrize("kind", [None, "standard"])
def test_a_claim_that_is_not_bound(site, kind):
    site.cluster.add(claim("ann-data", phase="Pending", kind=kind), storage_class("Immediate"))
    assert "ann-data is pending" in site.only("fail", "volumes")["finding"]


def test_a_claim_that_has_lost_its_volume(site):
    site.cluster.add(claim("ann-data", phase="Lost"))
    assert "ann-data is Lost" in site.only("fail", "volumes")["finding"]


def test_a_cache_that_one_node_can_mount(site):
    site.cluster.add(claim("perfit-model-cache", modes=["ReadWriteOnce"]))
    assert "2 nodes fit the tiers: the others' pods wait" in site.only("warn", "volumes")["finding"]
    site.remove("Node", "plain")
    site.cluster.add(node("big", labels={"pool": "gpus"}, allocatable=amounts("16", "64Gi", gpus="4")))
    assert site.findings() == [], "one node for all"


@pytest.mark.parametrize(
    ("hard", "used", "status", "finding"),
    [
        (
            {"requests.nvidia.com/gpu": "1"},
            {},
            "fail",
            "allows 1 of requests.nvidia.com/gpu, and one pod asks for 2",
        ),
        ({"requests.nvidia.com/gpu": "4"}, {"requests.nvidia.com/gpu": "3"}, "warn", "of which 3 are in use"),
        ({"pods": "1"}, {}, "warn", "allows 1 of pods, and clients that train at once ask for 2: some wait"),
        ({"count/pods": "0"}, {}, "fail", "one pod asks for 1"),
    ],
)
def test_a_quota_that_is_too_small(site, hard, used, status, finding):
    site.cluster.add(quota(hard, used))
    assert finding in site.only(status, "quota")["finding"]


@pytest.mark.parametrize(
    "spec",
    [
        {"scopes": ["NotTerminating"]},
        {"scopes": ["BestEffort"]},
        {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "Exists"}]}},
    ],
)
def test_quotas_that_do_not_count_pods_of_runs(site, spec):
    site.cluster.add(quota({"pods": "0"}, **spec))
    assert site.findings() == []


def test_a_quota_on_memory_needs_defaults(site):
    """The server's tasks state no memory, so such a quota refuses their pods unless a LimitRange gives one."""
    site.cluster.add(quota({"limits.memory": "64Gi", "requests.cpu": "40"}))
    assert "a quota on cpu and memory refuses pods that request none" in site.only("fail", "quota")["finding"]
    site.cluster.forbidden.add("limitranges")
    assert "you may not read limit ranges" in site.only("unknown", "quota")["finding"]
    site.cluster.forbidden.clear()
    limits = [{"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}}]
    metadata = {"name": "defaults", "namespace": "kubeflow"}
    site.cluster.add({"apiVersion": "v1", "kind": "LimitRange", "metadata": metadata, "spec": {"limits": limits}})
    assert site.findings() == []


def test_memory_of_a_quota(site):
    limits = [{"type": "Container", "default": {"memory": "1Gi"}}]
    metadata = {"name": "defaults", "namespace": "kubeflow"}
    site.cluster.add({"apiVersion": "v1", "kind": "LimitRange", "metadata": metadata, "spec": {"limits": limits}})
    site.cluster.add(quota({"limits.memory": "18Gi"}))
    problem = site.only("warn", "quota")["finding"]
    assert problem == "bound allows 18Gi of limits.memory, and clients that train at once ask for 20Gi: some wait"
