from __future__ import annotations

import pytest

from perfit.cluster_spec import ClusterSpec
from perfit_pipelines.doctor.nodes_check import check_images, check_tiers

from ..kubernetes_api import read_object
from .conftest import FEDERATION, amounts, gpu_taint, node

BIG = amounts("16", "64Gi", gpus="4")
GPU = {"labels": {"pool": "gpus"}, "taints": [gpu_taint()]}


def gpu_tier(nodes: list[dict], clients: int = 1, **tier):
    """The finding on the tier ``gpu`` (4 cores, 16Gi, 2 GPUs; pool gpus; tolerates the GPUs' taint)."""
    settings = {**FEDERATION["tiers"]["gpu"], **tier}
    entries = [{"id": f"c{n}", "data": "o/d:train", "tier": "gpu"} for n in range(clients)]
    spec = ClusterSpec.model_validate({**FEDERATION, "tiers": {"gpu": settings}, "clients": entries})
    (check,) = check_tiers(spec, [read_object(item) for item in nodes])
    assert check.name == "tier gpu"
    return check


def test_room_is_counted_by_the_scarcest_resource():
    check = gpu_tier([node("a", BIG, **GPU), node("b", amounts("7", "64Gi", gpus="8"), **GPU)], clients=3)
    assert check.status == "ok"
    assert check.finding == "room for 3 of its pods (cpu 4, memory 16Gi, nvidia.com/gpu 2) on 2 of 2 nodes"


def test_too_little_room_for_all_at_once():
    check = gpu_tier([node("a", BIG, **GPU)], clients=3)
    assert (check.status, check.fix) == ("warn", "add nodes, or set tiers.gpu.parallelism to 2")
    assert gpu_tier([node("a", BIG, **GPU)], clients=3, parallelism=2).status == "ok"


@pytest.mark.parametrize(
    ("allocatable", "finding"),
    [
        (amounts("16", "64Gi", gpus="1"), "the most that a node it may use has is nvidia.com/gpu 1"),
        (amounts("16", "64Gi"), "the most that a node it may use has is nvidia.com/gpu 0"),
        (amounts("3900m", "64Gi", gpus="4"), "the most that a node it may use has is cpu 3.9"),
        (amounts("16", "15Gi", gpus="4"), "the most that a node it may use has is memory 15Gi"),
    ],
)
def test_a_node_that_is_too_small(allocatable, finding):
    check = gpu_tier([node("a", allocatable, **GPU)])
    assert check.status == "fail"
    assert check.finding == f"a pod asks for cpu 4, memory 16Gi, nvidia.com/gpu 2; {finding}"


def test_enough_of_each_but_not_on_one_node():
    check = gpu_tier([node("a", amounts("2", "64Gi", gpus="4"), **GPU), node("b", amounts("16", "64Gi"), **GPU)])
    assert (check.status, check.finding.partition("; ")[2]) == ("fail", "no node that it may use has all of these")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": {"pool": "other"}}, "not matched by the node selector"),
        ({"labels": {}}, "not matched by the node selector"),
        ({"ready": "Unknown"}, "not ready"),
        ({"unschedulable": True}, "cordoned"),
        ({"taints": [{"key": "team", "value": "a", "effect": "NoSchedule"}]}, "with the taint team=a:NoSchedule"),
        ({"taints": [{"key": "nvidia.com/gpu", "effect": "NoExecute"}]}, "with the taint nvidia.com/gpu:NoExecute"),
    ],
)
def test_a_node_that_no_pod_may_go_to(changes, reason):
    check = gpu_tier([node("a", BIG, **{**GPU, **changes})])
    assert (check.status, check.finding) == ("fail", f"none of 1 nodes takes its pods: 1 {reason}")


@pytest.mark.parametrize(
    ("toleration", "taint", "tolerated"),
    [
        ({"operator": "Exists"}, {"key": "any", "value": "x", "effect": "NoExecute"}, True),
        ({"key": "a", "operator": "Exists"}, {"key": "a", "value": "x", "effect": "NoExecute"}, True),
        ({"key": "a", "value": "x"}, {"key": "a", "value": "x", "effect": "NoSchedule"}, True),
        ({"key": "a", "value": "x"}, {"key": "a", "value": "y", "effect": "NoSchedule"}, False),
        ({"key": "a"}, {"key": "a", "effect": "NoSchedule"}, True),
        ({"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoExecute"}, False),
        ({"key": "b", "operator": "Exists"}, {"key": "a", "effect": "NoSchedule"}, False),
        ({"key": "b", "operator": "Exists"}, {"key": "a", "effect": "PreferNoSchedule"}, True),
    ],
)
def test_tolerations_as_kubernetes_reads_them(toleration, taint, tolerated):
    check = gpu_tier([node("a", BIG, labels={"pool": "gpus"}, taints=[taint])], tolerations=[toleration])
    assert (check.status == "ok") == tolerated


def test_without_nodes():
    assert gpu_tier([]).finding == "none of 0 nodes takes its pods: there are none"


def images(image: str, *held: tuple[str, ...]):
    nodes = [read_object(node(f"n{n}", BIG, images=names)) for n, names in enumerate(held)]
    (check,) = check_images([image], nodes)
    return check


@pytest.mark.parametrize(
    ("image", "held"),
    [
        ("perfit-client:0.2.0", "docker.io/library/perfit-client:0.2.0"),
        ("ghcr.io/team/perfit-client", "ghcr.io/team/perfit-client:latest"),
        ("team/perfit-client:1", "docker.io/team/perfit-client:1"),
        ("localhost:5000/perfit-client:1", "localhost:5000/perfit-client:1"),
        ("ghcr.io/a/b@sha256:00", "ghcr.io/a/b@sha256:00"),
    ],
)
def test_images_that_the_nodes_have(image, held):
    assert images(image, (held,), ("other:1", held)).status == "ok"


def test_images_that_some_nodes_have_not():
    check = images("perfit-client:0.2.0", ("docker.io/library/perfit-client:0.2.0",), ())
    assert check.status == "warn"
    assert check.finding.startswith("perfit-client:0.2.0 is known to be on 1 of 2 nodes")
    assert "kind load docker-image" in check.fix
    check = images("ghcr.io/team/perfit-client:1", ())
    assert (check.status, "whether ghcr.io gives it to them" in check.finding) == ("unknown", True)
