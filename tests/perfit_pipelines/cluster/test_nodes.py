"""The states of tasks, from what KFP listed of workflows that ran."""

from __future__ import annotations

from collections import Counter

import kfp_server_api
import pytest

from perfit.cluster_spec import ClusterSpec
from perfit_pipelines.cluster.nodes import FAILED, RUNNING, STARTED, SUCCEEDED, WAITING, TaskReader, waiting_pods
from perfit_pipelines.cluster.tasks import Task, list_tasks
from perfit_pipelines.cluster.upload import read_ir
from perfit_pipelines.compile import compile_pipeline

from .conftest import FEDERATION
from .recorded import TWO_TIERS, Recording, client_died, node_id

ITEM = "iteration-iterations({n}:{n}).iteration-item.client-{tier}.{step}-client.executor"
SEARCH = ".root.search.clients-default.for-loop-1." + ITEM.format(n="{n}", tier="default", step="search")
ROUND = ".root.round.clients-all.for-loop-1." + ITEM.format(n="{n}", tier="all", step="train")


def clients(stage: str, place: str, key: str, names: tuple[str, ...] = ("bank", "farm")) -> list[Task]:
    """Return the tasks of a loop in a pipeline that was recorded."""
    return [Task(key, stage, name, place.format(n=n)) for n, name in enumerate(names)]


@pytest.fixture
def reader(tmp_path) -> TaskReader:
    """Of the pipeline of one round of ``TWO_TIERS``."""
    spec = ClusterSpec.model_validate({**FEDERATION, **TWO_TIERS})
    compile_pipeline(spec, "federated_round", "s3://bucket/prefix", file := tmp_path / "pipeline.yaml")
    return TaskReader(list_tasks(read_ir(file.read_text()), spec))


def states(reader: TaskReader, details: list) -> dict[str, str]:
    return {state.label: state.state for state in reader.read(details)}


@pytest.mark.parametrize("name", ["search-pod-waits", "round-1-trains", "succeeded", "pod-deleted", "prepare-failed"])
def test_the_list_is_the_workflows_nodes(name):
    """What the tests' variations are listed by is how the real server listed the nodes of the same moment."""
    recording = Recording.of(name)

    def lines(details):
        children = [sorted(child.pod_name for child in d.child_tasks or []) for d in details]
        return sorted(
            (d.display_name, str(d.state), str(d.start_time), *c) for d, c in zip(details, children, strict=True)
        )

    assert lines(recording.as_listed()) == lines(recording.details)


def test_ids_are_those_of_a_workflow_that_has_run_without_retries():
    # Of a run of KFP's sample "retry" (kubeflow/pipelines, frontend/mock-backend/mock-retry-runtime.ts).
    workflow = "retry-random-failures-p9snt"
    tasks = [Task("first", "", "one", ".print-msg"), Task("first", "", "two", ".print-msg-2")]
    child = kfp_server_api.PipelineTaskDetailChildTask(pod_name=f"{workflow}-1189960944")
    detail = kfp_server_api.V2beta1PipelineTaskDetail(display_name="first", state="SUCCEEDED", child_tasks=[child])
    (state,) = TaskReader(tasks).read([detail])
    assert (state.label, state.state, state.node) == ("two", SUCCEEDED, f"{workflow}-1189960944")


def test_a_client_that_failed_is_named_with_its_pod(reader):
    died = client_died()
    read = reader.read(died.as_listed())
    assert [(state.stage, state.label, state.state) for state in read] == [
        ("Prepare", "Prepare", SUCCEEDED),
        ("Round", "bank", SUCCEEDED),
        ("Round", "dock", FAILED),
        ("Round", "cafe", SUCCEEDED),
        ("Round", "farm", SUCCEEDED),
        ("Round", "Aggregate", SUCCEEDED),
    ]
    (failed,) = [name for name, node in died.nodes.items() if node["type"] == "Pod" and node["phase"] == "Failed"]
    assert read[2].node == node_id(failed)


def test_names_are_the_same_without_retries(reader):
    died = client_died()
    plain = reader.read(died.without_retries().as_listed())
    assert [(s.name, s.state) for s in plain] == [(s.name, s.state) for s in reader.read(died.as_listed())]
    assert len({state.node for state in plain}) == len(plain)


def test_a_run_in_its_course(reader):
    """The moments at which something changed, one after the other; the probe had no searches."""
    died = client_died()
    moments = ("09:46:41", "09:46:45", "09:47:30", "09:47:46", "09:47:56", "09:48:05", "09:48:09")
    seen = [states(reader, died.at(moment).as_listed()) for moment in moments]
    everyone = ("bank", "dock", "cafe", "farm")
    assert seen == [
        {},
        {"Prepare": RUNNING},
        {"Prepare": SUCCEEDED},
        {"Prepare": SUCCEEDED, **dict.fromkeys(everyone, RUNNING)},
        {"Prepare": SUCCEEDED, **dict.fromkeys(everyone, SUCCEEDED), "dock": FAILED},
        {"Prepare": SUCCEEDED, **dict.fromkeys(everyone, SUCCEEDED), "dock": FAILED, "Aggregate": RUNNING},
        {"Prepare": SUCCEEDED, **dict.fromkeys(everyone, SUCCEEDED), "dock": FAILED, "Aggregate": SUCCEEDED},
    ]


def test_a_pod_that_waits_is_not_called_running():
    """Both pods began in one second: the list tells that one of them waits, not which."""
    recording = Recording.of("search-pod-waits")
    reader = TaskReader(clients("Search", SEARCH, "search-client"))
    assert states(reader, recording.details) == {"bank": STARTED, "farm": STARTED}
    assert waiting_pods(recording.details) == 1


def test_pods_that_all_wait_are_told_apart():
    recording = Recording.of("search-pod-waits")
    for detail in recording.details:
        if detail.display_name == "executor(0)" and detail.state == RUNNING:
            detail.state = WAITING
    reader = TaskReader(clients("Search", SEARCH, "search-client"))
    assert states(reader, recording.details) == {"bank": WAITING, "farm": WAITING}
    assert waiting_pods(recording.details) == 2


def test_a_pod_that_was_deleted_is_another_attempt():
    reader = TaskReader(clients("Round", ROUND, "train-client"))
    read = reader.read(Recording.of("pod-deleted").details)
    assert [(state.label, state.state, state.attempt) for state in read] == [("bank", RUNNING, 1), ("farm", RUNNING, 2)]


def test_the_list_of_many_clients():
    names = tuple(f"client-{number:02d}" for number in range(16))
    place = ROUND.replace("round.clients-all", "round.clients-default").replace("client-all", "client-default")
    read = TaskReader(clients("Round", place, "train-client", names)).read(Recording.of("list-stopped").details)
    assert Counter(state.state for state in read) == {SUCCEEDED: 12, RUNNING: 3}  # the sixteenth has no pod yet


def test_a_driver_that_failed():
    (driver,) = [d for d in Recording.of("prepare-failed").details if d.display_name == "prepare-federation-driver"]
    listed = Recording.of("prepare-failed").details
    for detail in listed:
        if detail.display_name == "prepare-federation-driver":
            detail.state = FAILED
    (state,) = TaskReader([]).read(listed)
    assert (state.name, state.node) == ("preparation of prepare-federation", driver.child_tasks[0].pod_name)


def test_a_task_that_has_not_begun_its_pod_is_left_out(reader):
    assert not states(reader, client_died().at("09:46:40").as_listed())


def test_without_links_tasks_are_numbered(reader):
    listed = client_died().without_retries().as_listed()
    for detail in listed:
        detail.child_tasks = None
    assert [state.name for state in reader.read(listed) if state.key == "client-strong"] == [
        "Client (strong) #1",
        "Client (strong) #2",
    ]


def test_nodes_named_otherwise_are_numbered(reader):
    listed = client_died().renamed({r"\.round\b": ".elsewhere"}).without_retries().renamed({r"\.root\b": ".r"})
    read = [(state.name, state.state) for state in reader.read(listed.as_listed()) if state.key == "client-strong"]
    assert sorted(read) == [("Client (strong) #1", SUCCEEDED), ("Client (strong) #2", FAILED)]
