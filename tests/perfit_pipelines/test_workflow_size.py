"""The estimate of a run's workflow, against workflows that ran."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from perfit.federation_file import parse_federation
from perfit_pipelines.cluster.upload import read_ir
from perfit_pipelines.compile import compile_part
from perfit_pipelines.pipelines import Images, Part
from perfit_pipelines.workflow_nodes import WORKFLOW, Workflow
from perfit_pipelines.workflow_size import ARGUMENT_BYTES, WORKFLOW_BYTES, estimate, listed_nodes, measure

from .goldens import FEDERATION, STORE

RECORDED = Path(__file__).with_name("recorded")
LOOPS = {
    "client-died-hook-aggregated": {"for-loop-1": 2, "for-loop-2": 2},
    "list-stopped": {"for-loop-1": 16},
    "pod-deleted": {"for-loop-1": 2},
}
"""What each recorded run iterated over."""


def recorded(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((RECORDED / f"{name}.json.gz").read_bytes()))


def pipeline(parameters: dict[str, str], loops: dict[str, int]) -> Workflow:
    """The compiled pipeline that KFP made a workflow's arguments of, which hold equal components once."""
    components, executors, settings, label = {}, {}, {}, ""
    for name, text in parameters.items():
        kind, _, key = name.partition("-")
        value = json.loads(text)
        if kind == "kubernetes":
            settings[key.replace("comp-", "exec-", 1)] = value
        elif kind == "implementations":
            executors[label] = {"container": value}
        elif key == "root" or key.startswith("comp-"):
            components[key] = value
        else:
            label = value["executorLabel"]
            components[label.replace("exec-", "comp-", 1)] = value
    root = components.pop("root")
    for group in [root, *components.values()]:
        for task in group.get("dag", {}).get("tasks", {}).values():
            reference = task["componentRef"]
            if reference["name"] not in components:
                stem = re.sub(r"-\d+$", "", reference["name"])
                reference["name"] = next(key for key in components if re.sub(r"-\d+$", "", key) == stem)
    ir = {"root": root, "components": components, "deploymentSpec": {"executors": executors}}
    return Workflow(ir, settings, loops)


def size_of(nodes: Any) -> int:
    return len(json.dumps(nodes, separators=(",", ":"), ensure_ascii=False).encode())


@pytest.fixture(params=LOOPS)
def run(request) -> tuple[dict[str, Any], Workflow]:
    """A recorded run, and its pipeline."""
    run = recorded(request.param)
    return run, pipeline(run["parameters"], LOOPS[request.param])


def test_the_nodes_are_those_of_the_recorded_run(run):
    run, workflow = run
    written = {node["name"].replace(WORKFLOW, run["name"]) for node in workflow.nodes()}
    there = {node["name"]: node for node in run["nodes"].values()}
    again = {name for name in there if name.endswith("(1)")}  # a pod that was deleted, and tried again
    assert set(there) - written == again
    if there[run["name"]]["phase"] != "Running":
        assert set(there) == written


def test_nodes_have_the_bytes_that_were_recorded(run):
    run, workflow = run
    written = {node["name"].replace(WORKFLOW, run["name"]): node for node in workflow.nodes()}
    both = [node for node in run["nodes"].values() if node["name"] in written]
    assert size_of([written[node["name"]] for node in both]) == pytest.approx(size_of(both), rel=0.06)


def test_the_rest_of_the_workflow_has_the_bytes_that_were_recorded(run):
    run, workflow = run
    assert measure(workflow).spec == pytest.approx(run["bytes_without_nodes"], rel=0.12)


def test_compressed_nodes_have_the_bytes_that_argo_counted():
    run = recorded("list-stopped")
    size = measure(pipeline(run["parameters"], LOOPS["list-stopped"]))
    a_node = run["compressed_bytes"] / len(run["nodes"])
    assert size.compressed / size.nodes == pytest.approx(a_node, rel=0.08)


@pytest.mark.parametrize(("name", "listed"), [("list-stopped", False), ("pod-deleted", True)])
def test_kfp_lists_a_run_as_long_as_it_did(name, listed):
    run = recorded(name)
    assert measure(pipeline(run["parameters"], LOOPS[name])).is_listed == listed
    if not listed:
        assert run["bytes_without_nodes"] + size_of(run["nodes"]) > WORKFLOW_BYTES


def test_following_says_that_the_list_stops_before_it_does():
    run = recorded("list-stopped")
    stops = (WORKFLOW_BYTES - run["bytes_without_nodes"]) / (size_of(run["nodes"]) / len(run["nodes"]))
    assert 0.85 * stops < listed_nodes(pipeline(run["parameters"], LOOPS["list-stopped"]).ir) < stops


def test_the_list_stops_at_fewer_nodes_where_rounds_take_more_of_the_workflow():
    spec = parse_federation(FEDERATION.replace("rounds: 2", "rounds: 10"))
    compiled = compile_part(spec, "federated_tuning", STORE, Images(), Part())
    size = compiled.size()
    stops = (WORKFLOW_BYTES - size.spec) / (size.status / size.nodes)
    assert 0.85 * stops < listed_nodes(read_ir(compiled.data)) < stops < 240


def test_the_list_of_version_0_1_stopped_at_fourteen_clients():
    parameters = recorded("list-stopped")["parameters"]
    sizes = {clients: measure(pipeline(parameters, {"for-loop-1": clients})) for clients in range(12, 17)}
    listed = [clients for clients, size in sizes.items() if size.is_listed]
    assert listed in ([12, 13], [12, 13, 14])


def test_a_file_of_600_clients_was_an_argument_too_long():
    size = measure(pipeline(recorded("file-too-long")["parameters"], {"for-loop-1": 2}))
    assert size.argument > ARGUMENT_BYTES
    assert not size.fits


def test_arguments_that_were_started_are_short_enough(run):
    assert measure(run[1]).argument < ARGUMENT_BYTES / 10


def test_pods_in_sequence_were_recorded():
    """From the first driver to the aggregation: each pod of the longest way began when the one before it had ended."""
    run = recorded("client-died-hook-aggregated")
    pods = [node for node in run["nodes"].values() if node["type"] == "Pod"]
    size = measure(pipeline(run["parameters"], LOOPS["client-died-hook-aggregated"]))
    assert size.pods == len(pods)
    last = max(pods, key=lambda node: node["startedAt"])
    assert last["name"].endswith("onExit(0).aggregate(0).executor(0)")
    assert size.sequence == len(_chain(pods, last))


def _chain(pods: list[dict[str, Any]], last: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods before one, each the last to end before the next began."""
    chain = [last]
    while before := [pod for pod in pods if pod["finishedAt"] <= chain[-1]["startedAt"] and pod not in chain]:
        chain.append(max(before, key=lambda pod: pod["finishedAt"]))
    return chain


@pytest.mark.parametrize("clients", [100, 400])
def test_many_clients_are_extrapolated_from_few(clients):
    parameters = recorded("client-died-hook-aggregated")["parameters"]
    workflow = pipeline(parameters, {"for-loop-1": clients // 4, "for-loop-2": clients - clients // 4})
    guessed, counted = estimate(workflow), measure(workflow)
    assert (guessed.nodes, guessed.pods, guessed.sequence) == (counted.nodes, counted.pods, counted.sequence)
    assert guessed.status == pytest.approx(counted.status, rel=0.01)
    assert guessed.compressed == pytest.approx(counted.compressed, rel=0.03)
