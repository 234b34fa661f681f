"""The tasks of a compiled pipeline under names that a person knows, and their places in the workflow made of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from perfit.cluster_spec import ClusterSpec
from perfit.protocol import Plan
from perfit.sampling import sample_clients
from perfit_pipelines.workflow_nodes import place_in_group

POD = "executor"
"""What KFP calls the container of a task."""


@dataclass(frozen=True)
class Task:
    """A task of the compiled pipeline that runs a container.

    Args:
        key: Its name in the IR.
        stage: Display name of the task of the whole pipeline that it is part of.
        label: What it is within the stage: the client's id if it is a client's, otherwise its display name.
        node: Name of the workflow's node that is its container, after the name of the workflow.
        display: Its display name.
        client: Its client's id, where that can be told before the run; else empty.
        round: The number of its round; None outside of rounds, or where it is known only when the run has begun.
    """

    key: str
    stage: str
    label: str
    node: str
    display: str = ""
    client: str = ""
    round: int | None = None


def list_tasks(
    ir: dict[str, Any], spec: ClusterSpec, plan_of: Callable[[int], Plan | None] = lambda round: None
) -> list[Task]:
    """Return the tasks of a compiled pipeline, the clients' by the iterations that they are expected to be.

    Args:
        ir: The pipeline's specification (the first document of the compiled YAML).
        spec: The federation that it runs.
        plan_of: Returns the plan of a round that has one: the file may have changed since.
    """
    tasks = _walk(_Dag(ir, spec, plan_of, ir["root"]["dag"]["tasks"], ".root", {}))
    if at_most := served_at_most(ir):
        tasks = (_numbered(task, spec) for task in tasks if _iteration(task) < at_most)
    return list(tasks)


def served_at_most(ir: dict[str, Any]) -> int:
    """Return how many participants a run serves of a round that takes several runs; 0 for all."""
    inputs = ir["root"]["dag"]["tasks"].get("prepare", {}).get("inputs", {}).get("parameters", {})
    return int(inputs.get("at_most", {}).get("runtimeValue", {}).get("constant", 0))


def _iteration(task: Task) -> int:
    found = re.search(r"iterations\((\d+):", task.node)
    return int(found[1]) if found else 0


def _numbered(task: Task, spec: ClusterSpec) -> Task:
    """A client's task under its number: which client it is depends on the runs before."""
    if task.label not in spec.clients_by_id:
        return task
    label = f"client {_iteration(task) + 1} of {spec.clients_by_id[task.label].tier}"
    return replace(task, label=label, client="")


@dataclass(frozen=True)
class _Dag:
    """A component with tasks, in the place where the walk meets it.

    ``known`` holds the inputs whose values can be told before the run.
    """

    ir: dict[str, Any]
    spec: ClusterSpec
    plan_of: Callable[[int], Plan | None]
    tasks: dict[str, Any]
    node: str
    known: dict[str, Any]
    stage: str = ""
    item: str = ""

    def inputs(self, key: str) -> dict[str, Any]:
        """Return what can be told of a task's inputs before the run."""
        values = {}
        for name, source in self.tasks[key].get("inputs", {}).get("parameters", {}).items():
            if "runtimeValue" in source:
                values[name] = source["runtimeValue"].get("constant")
            elif "componentInputParameter" in source:
                values[name] = self.known.get(source["componentInputParameter"])
        return values


def _walk(dag: _Dag) -> Iterator[Task]:
    for key, task in _in_order(dag.tasks):
        name = task["taskInfo"]["name"]
        stage, node = dag.stage or name, f"{dag.node}.{place_in_group(key, task)}"
        component = dag.ir["components"][task["componentRef"]["name"]]
        inputs = dag.inputs(key)
        if "dag" not in component:
            client = dag.item if dag.item in dag.spec.clients_by_id else ""
            yield Task(key, stage, dag.item or name, f"{node}.{POD}", name, client, _integer(inputs.get("round")))
            continue
        inner = replace(dag, tasks=component["dag"]["tasks"], node=node, known=inputs, stage=stage)
        if "parameterIterator" not in task:
            yield from _walk(inner)
            continue
        # A loop is named after its tier.
        for index, item in enumerate(_iterations(dag, name, _integer(inputs.get("pipelinechannel--round")))):
            place = f"{node}.iteration-iterations({index}:{index}).iteration-item"
            yield from _walk(replace(inner, node=place, item=item))


def _in_order(tasks: dict[str, Any]) -> list[tuple[str, Any]]:
    """Tasks after those that they depend on; the IR has them by name."""
    order: dict[str, Any] = {}

    def visit(key: str) -> None:
        if key not in order:
            for before in tasks[key].get("dependentTasks", []):
                visit(before)
            order[key] = tasks[key]

    for key in tasks:
        visit(key)
    return list(order.items())


def _integer(value: Any) -> int | None:
    """An input's number, which is a float in the IR; None for 0, which stands for a round that is known later."""
    return int(value) or None if isinstance(value, int | float) else None


def _iterations(dag: _Dag, tier: str, round: int | None) -> list[str]:
    """The clients that a tier's loop iterates over, in order; by number where the round is not known yet."""
    spec = dag.spec
    if round is not None and (plan := dag.plan_of(round)):
        return [p.client for p in plan.participants if p.tier == tier and p.client in spec.clients_by_id]
    members = [client.id for client in spec.clients if client.tier == tier]
    if spec.participation.fraction == 1:
        return members
    if round is None:
        return [f"client {number} of {tier}" for number in range(1, len(members) + 1)]
    sampled = sample_clients(spec.clients, spec.participation, spec.training.seed, round)
    return [client.id for client in sampled if client.tier == tier]
