"""Names of a run's tasks, from what KFP lists of its Argo workflow."""

from __future__ import annotations

import kfp_server_api
import pytest

from perfit.cluster_spec import ClusterSpec
from perfit_pipelines.cluster.tasks import Task, TaskReader, TaskState, list_tasks
from perfit_pipelines.cluster.upload import read_ir
from perfit_pipelines.compile import compile_pipeline

from .argo import details
from .conftest import FEDERATION

TWO_TIERS = {
    "rounds": 2,
    "tiers": {"strong": {}, "weak": {}},
    "clients": [
        {"id": name, "data": "s3://data/x.jsonl", "tier": tier}
        for name, tier in (("bank", "strong"), ("cafe", "weak"), ("dock", "strong"), ("farm", "weak"))
    ],
}


@pytest.fixture
def tasks_of(tmp_path):
    """A function that compiles a federation and lists its tasks."""

    def compiled(pipeline="federated_tuning", **sections) -> list[Task]:
        spec = ClusterSpec.model_validate({**FEDERATION, **sections})
        file = tmp_path / "pipeline.yaml"
        compile_pipeline(spec, pipeline, "s3://bucket/prefix", file)
        return list_tasks(read_ir(file.read_text()), spec)

    return compiled


def clients(tasks: list[Task], stage: str, key: str) -> list[tuple[str, str]]:
    """Return the labels and places of a stage's client tasks."""
    found = [task for task in tasks if (task.stage, task.key) == (stage, key)]
    return [(task.label.partition(":")[0], task.node.split(".")[3]) for task in found]


def test_ids_are_those_of_a_workflow_that_has_run():
    # Of a run of KFP's sample "retry" (kubeflow/pipelines, frontend/mock-backend/mock-retry-runtime.ts).
    workflow = "retry-random-failures-p9snt"
    tasks = [Task("first", "", "one", ".print-msg"), Task("first", "", "two", ".print-msg-2")]
    child = kfp_server_api.PipelineTaskDetailChildTask(pod_name=f"{workflow}-1189960944")
    detail = kfp_server_api.V2beta1PipelineTaskDetail(display_name="first", state="RUNNING", child_tasks=[child])
    assert TaskReader(tasks).read([detail]) == [TaskState("first", "", "two", "RUNNING")]


def test_tasks_are_listed_in_the_order_of_the_pipeline(tasks_of):
    tasks = tasks_of(clients=FEDERATION["clients"][:1])
    assert [f"{task.stage}: {task.label}" for task in tasks] == [
        "Prepare: Prepare",
        "search: Plan default",
        "search: bank: search-client",
        "search: Count architectures",
        "Round 1 of 2: Plan default",
        "Round 1 of 2: bank: train-client",
        "Round 1 of 2: Aggregate",
        "Round 1 of 2: Report",
        "Round 2 of 2: Plan default",
        "Round 2 of 2: bank: train-client",
        "Round 2 of 2: Aggregate",
        "Round 2 of 2: Report",
    ]


def test_each_tier_loops_over_its_own_clients(tasks_of):
    tasks = tasks_of(**TWO_TIERS)
    assert clients(tasks, "Round 2 of 2", "train-client") == [
        ("bank", "clients-strong"),
        ("dock", "clients-strong"),
        ("cafe", "clients-weak"),
        ("farm", "clients-weak"),
    ]


def test_only_a_rounds_participants_are_expected(tasks_of):
    tasks = tasks_of(**TWO_TIERS, participation={"fraction": 0.5})
    drawn = [[name for name, _ in clients(tasks, f"Round {n} of 2", "train-client")] for n in (1, 2)]
    assert [len(names) for names in drawn] == [2, 2]
    assert all({names[0]} < {"bank", "dock"} and {names[1]} < {"cafe", "farm"} for names in drawn)
    assert len(clients(tasks, "search", "search-client")) == 4


def test_clients_are_numbered_where_the_round_is_not_known_before(tasks_of):
    tasks = tasks_of("federated_round", **TWO_TIERS, participation={"fraction": 0.5})
    assert [name for name, _ in clients(tasks, "round", "train-client")][:2] == [
        "client 1 of strong",
        "client 2 of strong",
    ]


def test_a_node_that_has_not_begun_its_pod_is_left_out(tasks_of):
    reader = TaskReader(tasks_of())
    listed = details({"root.prepare-federation": "RUNNING"})
    begun = [task for task in listed if task.display_name == "prepare-federation"]
    begun[0].child_tasks = []
    assert reader.read(listed) == []


def test_without_links_tasks_are_numbered(tasks_of):
    reader = TaskReader(tasks_of())
    loop = "root.round.clients-default.for-loop-1.iteration-iterations"
    listed = details(
        {f"{loop}({n}:{n}).iteration-item.client-default.train-client": "RUNNING" for n in (0, 1)}, linked=False
    )
    assert [state.name for state in reader.read(listed)] == ["train-client #1", "train-client #2"]


def test_nodes_named_otherwise_are_numbered(tasks_of):
    reader = TaskReader(tasks_of())
    listed = details({"somewhere.else.train-client": "FAILED"})
    assert [(state.name, state.state) for state in reader.read(listed)] == [("train-client #1", "FAILED")]
