"""The tasks of a run under names that a person knows.

The API lists the nodes of the Argo workflow that KFP made of a pipeline: flat, without own ids, each with those of its
children, and all iterations of a loop under one name. Argo derives the id of a node from its place in the workflow, so
the ids that the tasks of the compiled pipeline must have can be computed, and a listed node be recognised by its child.
Where a server names its nodes otherwise, tasks keep the names of the compiled pipeline, numbered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kfp_server_api import V2beta1PipelineTaskDetail

from perfit.cluster_spec import ClusterSpec
from perfit.sampling import sample_clients

DRIVER = "-driver"
_POD = "executor"
_ALSO_AFTER_FAILURE = "ALL_UPSTREAM_TASKS_COMPLETED"


@dataclass(frozen=True)
class Task:
    """A task of the compiled pipeline that runs a container.

    Args:
        key: Its name in the IR.
        stage: Display name of the task of the whole pipeline that it is part of.
        label: What it is within the stage: the client's id if it is a client's, otherwise its display name.
        node: Name of the workflow's node that is its container, after the name of the workflow.
        display: Its display name.
    """

    key: str
    stage: str
    label: str
    node: str
    display: str = ""


@dataclass(frozen=True)
class TaskState:
    """What a run tells of one task; ``state`` is one of KFP's runtime states."""

    key: str
    stage: str
    label: str
    state: str

    @property
    def name(self) -> str:
        """Stage and label, as one."""
        return self.label if self.stage in ("", self.label) else f"{self.stage}: {self.label}"


def list_tasks(ir: dict[str, Any], spec: ClusterSpec) -> list[Task]:
    """Return the tasks of a compiled pipeline, the clients' by the iterations that they are expected to be.

    Args:
        ir: The pipeline's specification (the first document of the compiled YAML).
        spec: The federation that it runs.
    """
    tasks = _walk(_Dag(ir, spec, ir["root"]["dag"]["tasks"], ".root", {}))
    if at_most := _at_most(ir):
        tasks = (_numbered(task, spec) for task in tasks if _iteration(task) < at_most)
    return list(tasks)


def _at_most(ir: dict[str, Any]) -> int:
    """How many participants a run serves of a round that takes several runs; 0 for all."""
    inputs = ir["root"]["dag"]["tasks"].get("prepare", {}).get("inputs", {}).get("parameters", {})
    return int(inputs.get("at_most", {}).get("runtimeValue", {}).get("constant", 0))


def _iteration(task: Task) -> int:
    found = re.search(r"iterations\((\d+):", task.node)
    return int(found[1]) if found else 0


def _numbered(task: Task, spec: ClusterSpec) -> Task:
    """A client's task under its number: which client it is depends on the runs before."""
    if task.label not in spec.clients_by_id:
        return task
    return replace(task, label=f"client {_iteration(task) + 1} of {spec.clients_by_id[task.label].tier}")


class TaskReader:
    """Recognises the tasks of a run in what the API lists of it.

    Args:
        tasks: Those of the run's pipeline.
    """

    def __init__(self, tasks: Sequence[Task]):
        self._tasks = tasks
        self._order = {(task.stage, task.label): position for position, task in enumerate(tasks)}
        self._display = {task.key: task.display or task.label for task in tasks}
        self._by_id: dict[str, dict[str, Task]] = {}

    def read(self, details: Sequence[V2beta1PipelineTaskDetail]) -> list[TaskState]:
        """Return the states of tasks, in the order of the pipeline; those not started are left out."""
        listed = [detail for detail in details if detail.display_name in self._display]
        linked = any(detail.child_tasks for detail in details)
        states, numbers = [], {}
        for detail in listed:
            children = [child.pod_name for child in detail.child_tasks or [] if child.pod_name]
            task = self._recognise(detail.display_name, children)
            if task:
                states.append(TaskState(task.key, task.stage, task.label, detail.state or ""))
            elif children or not linked:
                numbers[detail.display_name] = number = numbers.get(detail.display_name, 0) + 1
                label = f"{self._display[detail.display_name]} #{number}"
                states.append(TaskState(detail.display_name, "", label, detail.state or ""))
        states.sort(key=lambda state: self._order.get((state.stage, state.label), len(self._order)))
        return states + self._failed_drivers(details)

    def waiting_pods(self, details: Sequence[V2beta1PipelineTaskDetail]) -> int:
        """Return how many tasks' pods wait for a node or an image."""
        return sum(detail.display_name == _POD and detail.state == "PENDING" for detail in details)

    def _recognise(self, key: str, children: Sequence[str]) -> Task | None:
        for child in children:
            workflow, _, number = child.rpartition("-")
            if workflow not in self._by_id:
                start = _fnv1a(workflow.encode())
                self._by_id[workflow] = {str(_fnv1a(task.node.encode(), start)): task for task in self._tasks}
            task = self._by_id[workflow].get(number)
            if task and task.key == key:
                return task
        return None

    def _failed_drivers(self, details: Sequence[V2beta1PipelineTaskDetail]) -> list[TaskState]:
        failed = [d.display_name for d in details if d.state == "FAILED" and (d.display_name or "").endswith(DRIVER)]
        return [TaskState(name, "", f"preparation of {name.removesuffix(DRIVER)}", "FAILED") for name in failed]


@dataclass(frozen=True)
class _Dag:
    """A component with tasks, in the place where the walk meets it.

    ``known`` holds the inputs whose values can be told before the run.
    """

    ir: dict[str, Any]
    spec: ClusterSpec
    tasks: dict[str, Any]
    node: str
    known: dict[str, Any]
    stage: str = ""
    client: str = ""

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
        stage, node = dag.stage or name, f"{dag.node}.{_place(key, task)}"
        component = dag.ir["components"][task["componentRef"]["name"]]
        if "dag" not in component:
            yield Task(key, stage, dag.client or name, f"{node}.{_POD}", name)
            continue
        inputs = dag.inputs(key)
        inner = _Dag(dag.ir, dag.spec, component["dag"]["tasks"], node, inputs, stage, dag.client)
        if "parameterIterator" not in task:
            yield from _walk(inner)
            continue
        # A loop is named after its tier.
        for index, client in enumerate(_iterations(dag.spec, name, inputs.get("pipelinechannel--round"))):
            place = f"{node}.iteration-iterations({index}:{index}).iteration-item"
            yield from _walk(_Dag(dag.ir, dag.spec, inner.tasks, place, inputs, stage, client))


def _place(key: str, task: dict[str, Any]) -> str:
    """A task's place in its DAG: KFP makes one that also runs after failures an exit hook of the task before it."""
    if task.get("triggerPolicy", {}).get("strategy") == _ALSO_AFTER_FAILURE:
        return f"{task['dependentTasks'][0]}.onExit.{key}"
    return key


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


def _iterations(spec: ClusterSpec, tier: str, round: Any) -> list[str]:
    """The clients that a tier's loop iterates over, in order; by number where the round is not known yet."""
    members = [client.id for client in spec.clients if client.tier == tier]
    if spec.participation.fraction == 1:
        return members
    if not isinstance(round, int | float):
        return [f"client {number} of {tier}" for number in range(1, len(members) + 1)]
    sampled = sample_clients(spec.clients, spec.participation, spec.training.seed, int(round))
    return [client.id for client in sampled if client.tier == tier]


def _fnv1a(data: bytes, state: int = 0x811C9DC5) -> int:
    """The 32-bit FNV-1a hash, which Argo makes node ids with; ``state`` continues an earlier one."""
    for byte in data:
        state = ((state ^ byte) * 0x01000193) & 0xFFFFFFFF
    return state
