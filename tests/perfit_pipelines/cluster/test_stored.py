"""Progress from the store: a real federation, whose clients train, fail and are lost while a run of it is followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from perfit.cluster_spec import ClusterSpec
from perfit_components.steps.client import record_failure
from perfit_components.steps.failure import Failure
from perfit_pipelines.cluster.causes import Witnesses, explain_failure
from perfit_pipelines.cluster.connection import Endpoint, connect
from perfit_pipelines.cluster.logs import PodLogs
from perfit_pipelines.cluster.nodes import (
    COMMITTED,
    DELIVERED,
    FAILED,
    NO_UPDATE,
    RUNNING,
    SUCCEEDED,
    RunView,
    TaskState,
)
from perfit_pipelines.cluster.stored import StoreProgress
from perfit_pipelines.cluster.submit import Submitted, submitted
from perfit_pipelines.cluster.tasks import list_tasks
from perfit_pipelines.cluster.upload import read_ir
from perfit_pipelines.compile import compile_pipeline

from ...perfit_components.conftest import make_site, tiny_llama
from ...perfit_components.running import THREE, Site

__all__ = ["make_site", "tiny_llama"]

ROUND = "Round 1 of 2"


@pytest.fixture
def site(make_site) -> Site:
    """Three clients, two rounds, of which two may be lost; prepared."""
    return make_site(**THREE, rounds=2, participation={"minimum_clients": 1}).prepare()


@pytest.fixture
def progress(site, tmp_path) -> Callable[..., StoreProgress]:
    """A function that begins to follow a run of the federation."""

    def of(pipeline: str = "federated_tuning", **options) -> StoreProgress:
        compile_pipeline(site.spec, pipeline, "s3://bucket/prefix", file := tmp_path / "pipeline.yaml")
        tasks = list_tasks(read_ir(file.read_text()), site.spec)
        return StoreProgress(site.store_uri, site.spec.name, tasks, **options)

    return of


def listed(*states: tuple[str, str]) -> RunView:
    """What KFP lists of the first round."""
    return RunView("RUNNING", [TaskState("client-default", ROUND, label, state) for label, state in states])


def shown(view: RunView) -> dict[str, str]:
    return {state.name: state.state for state in view.tasks}


def fail(site: Site, client: str) -> None:
    """Let a client report a failure: its records are gone."""
    site.data(client).unlink()
    assert site.train_client(client)["status"] == "failed"


def test_the_task_that_waits_says_for_whom(make_site, tmp_path):
    clients = {"ann": {"tier": "far", "data": None}, "bob": {"tier": "far", "data": None}, "eve": {}}
    site = make_site(clients=clients, tiers={"default": {}, "far": {"runner": "remote"}}).prepare()
    compile_pipeline(site.spec, "federated_tuning", "s3://bucket/prefix", file := tmp_path / "pipeline.yaml")
    tasks = list_tasks(read_ir(file.read_text()), site.spec)
    (waits,) = (task for task in tasks if task.key == "wait")
    view = RunView("RUNNING", [TaskState("wait", waits.stage, waits.label, RUNNING)])
    followed = StoreProgress(site.store_uri, site.spec.name, tasks)
    assert followed.add(view).tasks[0].reason == "0 of 2 answered; waiting for ann, bob"
    failure = Failure("ill")
    record_failure(site.uri, 1, site.name("ann"), failure)
    (state,) = followed.add(view).tasks
    assert (state.label, state.reason) == ("Remote clients", "1 of 2 answered; waiting for bob")
    assert site.train_client("eve")["status"] == "trained"  # from a first mask on, nobody founds it again
    staying = tuple(client for client in site.spec.clients if client.id != "bob")
    Site(site.spec.model_copy(update={"clients": staying}), site.store_uri).prepare()
    followed = StoreProgress(site.store_uri, site.spec.name, tasks)
    (reason,) = (state.reason for state in followed.add(view).tasks if state.label == "Remote clients")
    assert reason == "1 of 1 answered"  # as the task itself counts


def test_a_list_that_has_stopped_is_completed(site, progress):
    """KFP's list stays as it is; the store tells who delivers, and that the round is committed."""
    followed, stopped = progress(), listed(("ann", RUNNING), ("bob", RUNNING))
    assert shown(followed.add(stopped)) == {f"{ROUND}: ann": RUNNING, f"{ROUND}: bob": RUNNING}
    site.planned(1)
    site.train_client("ann")
    assert shown(followed.add(stopped)) == {f"{ROUND}: ann": DELIVERED, f"{ROUND}: bob": RUNNING}
    assert followed.silent(1) == ["bob", "eve"]
    fail(site, "eve")
    site.aggregate(1)
    view = followed.add(stopped)
    assert shown(view) == {
        f"{ROUND}: ann": DELIVERED,
        f"{ROUND}: bob": NO_UPDATE,
        f"{ROUND}: eve": NO_UPDATE,
        f"{ROUND}: Aggregate": COMMITTED,
    }
    reasons = {state.label: state.reason for state in view.tasks}
    assert reasons["bob"] == "missing: its task left no record: it did not start, or its pod died"
    assert reasons["eve"].startswith("failed: ")
    assert "fix: " in reasons["eve"]
    assert (followed.head, view.told_by) == (1, ("the store",))


def test_a_task_that_ended_well_without_an_update_says_so(site, progress):
    """A client that could report its failure exits 0: for KFP it succeeded."""
    followed = progress()
    followed.add(listed())
    site.planned(1)
    fail(site, "ann")
    (state,) = followed.add(listed(("ann", SUCCEEDED))).tasks
    assert (state.state, state.reason.partition(":")[0]) == (NO_UPDATE, "failed")


def test_a_failure_of_an_earlier_run_is_not_shown_as_of_this_one(site, progress):
    site.planned(1)
    fail(site, "ann")
    followed = progress()
    assert shown(followed.add(listed(("ann", RUNNING)))) == {f"{ROUND}: ann": RUNNING}
    assert shown(followed.add(listed(("ann", SUCCEEDED)))) == {f"{ROUND}: ann": NO_UPDATE}


def test_what_kubeflow_says_of_a_pod_that_died_stays(site, progress):
    followed = progress()
    followed.add(listed())
    site.planned(1)
    site.train_client("ann")
    site.aggregate(1)
    view = followed.add(listed(("ann", SUCCEEDED), ("bob", FAILED)))
    assert [(state.label, state.state, state.reason) for state in view.tasks[:2]] == [
        ("ann", SUCCEEDED, ""),
        ("bob", FAILED, ""),
    ]


def test_a_scheduled_round_is_the_one_after_the_head(site, progress):
    site.run_round(1)
    followed = progress("federated_round")
    assert shown(followed.add(RunView("RUNNING", []))) == {}
    site.planned(2)
    site.train_client("bob", 2)
    assert shown(followed.add(RunView("RUNNING", []))) == {"Round: bob": DELIVERED}


def test_a_rounds_clients_are_those_of_its_plan(site, tmp_path):
    """A client that joined after the round was planned takes no part: the loop's first iteration is still ann's."""
    tree = site.spec.model_dump(mode="json")
    tree["clients"] = [{"id": "abe", "data": "s3://data/abe.jsonl"}, *tree["clients"]]
    spec = ClusterSpec.model_validate(tree)
    compile_pipeline(spec, "federated_tuning", "s3://bucket/prefix", file := tmp_path / "pipeline.yaml")
    ir = read_ir(file.read_text())
    found = [task for task in submitted(ir, {"store": site.store_uri}).tasks if task.client]
    assert [task.client for task in found if task.round == 1] == ["ann", "bob", "eve"]
    assert [task.client for task in found if task.round == 2] == ["abe", "ann", "bob", "eve"]
    assert "iterations(0:0)" in found[0].node


def test_a_store_that_is_not_there_is_asked_again_after_a_while(tmp_path):
    now = [0.0]
    followed = StoreProgress((tmp_path / "none").as_uri(), "demo", [], clock=lambda: now[0])
    view = RunView("RUNNING", [])
    assert followed.add(view) is view
    assert "there is no federation 'demo'" in str(followed.problem)
    problem = followed.problem
    now[0] = 30
    followed.add(view)
    assert followed.problem is problem
    now[0] = 61
    followed.add(view)
    assert followed.problem is not problem


def test_a_run_that_failed_while_its_round_counts(site, progress, api):
    """A client's pod died, the others delivered, the aggregator ran after all: the run is a failed one for Kubeflow."""
    followed = progress()
    followed.add(listed())
    site.planned(1)
    site.train_client("ann")
    fail(site, "bob")
    site.aggregate(1)
    view = replace(followed.add(listed(("ann", SUCCEEDED), ("bob", SUCCEEDED), ("eve", FAILED))), state=FAILED)
    run = Submitted(site.spec, [], site.store_uri, site.spec.name, 0, 250)
    logs = PodLogs(connect(Endpoint(api.url)), "a-run", "kubeflow")
    said = explain_failure(view, run, Witnesses(logs, followed, None))
    assert said[:2] == [
        f"failed: {ROUND}: eve: neither its log nor what Kubeflow has of its pod says why",
        "round 1 is committed: 1 clients delivered",
    ]
    assert said[2].startswith("  bob (failed): ")
    assert said[-3:-1] == [
        "  eve (missing): its task left no record: it did not start, or its pod died",
        "the federation is at round 1; the same again goes on from there",
    ]


def test_what_a_client_wrote_is_refused_not_believed(site, progress):
    """A record of another client's, or one that is no JSON, does not end following."""
    followed = progress()
    followed.add(listed())
    site.planned(1)
    directory = site.root / "rounds" / "1" / "updates"
    directory.mkdir()
    (directory / "ann.json").write_bytes(b"[" * 1000)
    (state,) = followed.add(listed(("ann", SUCCEEDED))).tasks
    assert (state.state, state.reason.partition(":")[0]) == (NO_UPDATE, "refused")
