"""Names and places of a pipeline's tasks."""

from __future__ import annotations

import pytest

from perfit.cluster_spec import ClusterSpec
from perfit_pipelines.cluster.tasks import Task, list_tasks
from perfit_pipelines.cluster.upload import read_ir
from perfit_pipelines.compile import compile_part, compile_pipeline
from perfit_pipelines.pipelines import Images, Part

from .conftest import FEDERATION
from .recorded import TWO_TIERS as ONE_ROUND

TWO_TIERS = {**ONE_ROUND, "rounds": 2}


@pytest.fixture
def tasks_of(tmp_path):
    """A function that compiles a federation and lists its tasks."""

    def compiled(pipeline="federated_tuning", **sections) -> list[Task]:
        spec = ClusterSpec.model_validate({**FEDERATION, **sections})
        file = tmp_path / "pipeline.yaml"
        compile_pipeline(spec, pipeline, "s3://bucket/prefix", file)
        return list_tasks(read_ir(file.read_text()), spec)

    return compiled


def clients(tasks: list[Task], stage: str) -> list[tuple[str, str]]:
    """Return the labels and keys of a stage's client tasks."""
    return [(task.label, task.key) for task in tasks if task.stage == stage and task.key.startswith("client-")]


def test_tasks_are_listed_in_the_order_of_the_pipeline(tasks_of):
    tasks = tasks_of(clients=FEDERATION["clients"][:1])
    assert [f"{task.stage}: {task.label}" for task in tasks] == [
        "Prepare: Prepare",
        "Round 1 of 2: bank",
        "Round 1 of 2: Aggregate",
        "Round 2 of 2: bank",
        "Round 2 of 2: Aggregate",
    ]
    assert [task.key for task in tasks] == ["prepare", *["client-default", "aggregate"] * 2]
    assert [task.display for task in tasks] == ["Prepare", *["Client (default)", "Aggregate"] * 2]


def test_who_is_served_by_one_of_several_runs_is_not_known_before(tmp_path):
    spec = ClusterSpec.model_validate({**FEDERATION, **TWO_TIERS})
    compiled = compile_part(spec, "federated_round", "s3://bucket/prefix", Images(), Part(at_most=1))
    labels = [task.label for task in list_tasks(read_ir(compiled.data), spec)]
    assert labels == ["Prepare", "client 1 of strong", "client 1 of weak", "Aggregate"]


# Of a probe of this shape that ran on KFP 2.17.0 with Argo 4.0.5 (wf for the workflow's name): the containers' nodes of
# a round "one" with the groups "client" and "client-2", whose "aggregate" also runs when a client has failed.
RECORDED = """\
wf(0).root(0).one(0).clients(0).for-loop-1(0).iteration-iterations(0:0)(0).iteration-item(0).client(0).executor(0)
wf(0).root(0).one(0).clients(0).for-loop-1(0).iteration-iterations(1:1)(0).iteration-item(0).client(0).executor(0)
wf(0).root(0).one(0).clients(0).for-loop-2(0).iteration-iterations(0:0)(0).iteration-item(0).client-2(0).executor(0)
wf(0).root(0).one(0).clients(0).for-loop-2(0).iteration-iterations(1:1)(0).iteration-item(0).client-2(0).executor(0)
wf(0).root(0).one(0).clients.onExit(0).aggregate(0).executor(0)
"""


def test_nodes_are_called_as_those_of_a_run_on_a_real_backend(tasks_of):
    """Without the ``(0)`` that Argo's retries add to each of them."""
    nodes = [task.node for task in tasks_of("federated_round", **TWO_TIERS) if task.stage == "Round"]
    names = {"(0)": "", "wf": "", ".one": ".round", ".client-2": ".client-weak", ".client.": ".client-strong."}
    recorded = RECORDED
    for theirs, ours in names.items():
        recorded = recorded.replace(theirs, ours)
    assert nodes == recorded.splitlines()


def test_nodes_of_later_rounds_and_of_claims_with_names_of_their_own(tasks_of):
    clients = [
        client | {"volume": f"records-{client['id']}"} for client in TWO_TIERS["clients"] if client["tier"] == "weak"
    ]
    tasks = tasks_of(**{**TWO_TIERS, "clients": clients, "tiers": {"weak": {}}})
    item = "iteration-iterations({n}:{n}).iteration-item.claim-weak.client-weak.executor"
    assert [task.node for task in tasks] == [
        ".root.prepare.executor",
        *(f".root.round.clients.for-loop-1.{item.format(n=n)}" for n in (0, 1)),
        ".root.round.clients.onExit.aggregate.executor",
        *(f".root.round-2.clients.for-loop-1.{item.format(n=n)}" for n in (0, 1)),
        ".root.round-2.clients.onExit.aggregate.executor",
    ]


def test_each_tier_loops_over_its_own_clients(tasks_of):
    tasks = tasks_of(**TWO_TIERS)
    assert clients(tasks, "Round 2 of 2") == [
        ("bank", "client-strong"),
        ("dock", "client-strong"),
        ("cafe", "client-weak"),
        ("farm", "client-weak"),
    ]


def test_only_a_rounds_participants_are_expected(tasks_of):
    tasks = tasks_of(**TWO_TIERS, participation={"fraction": 0.5})
    sampled = [[name for name, _ in clients(tasks, f"Round {n} of 2")] for n in (1, 2)]
    assert [len(names) for names in sampled] == [2, 2]
    assert all({names[0]} < {"bank", "dock"} and {names[1]} < {"cafe", "farm"} for names in sampled)


def test_clients_are_numbered_where_the_round_is_not_known_before(tasks_of):
    tasks = tasks_of("federated_round", **TWO_TIERS, participation={"fraction": 0.5})
    assert [name for name, _ in clients(tasks, "Round")] == [
        "client 1 of strong",
        "client 2 of strong",
        "client 1 of weak",
        "client 2 of weak",
    ]
