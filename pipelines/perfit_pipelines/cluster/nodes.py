"""What the API lists of a run, read as the states of the pipeline's tasks.

The API lists the nodes of the Argo workflow that KFP made of a pipeline: flat, without names and ids of their own, each
with the ids of its children. Argo derives the id of a node from its name, which is its place in the workflow; so the
ids that the tasks of the compiled pipeline must have can be computed, and a listed node be recognised by its child.

Where a workflow is retried (by default since KFP 2.17) each node ``n`` is a Retry node, its attempts ``n(0)``, ``n(1)``
are its children, and what is inside is named after the attempt. Both forms are read. Where a server names its nodes
otherwise, tasks keep the names of the compiled pipeline, numbered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from kfp_server_api import V2beta1PipelineTaskDetail

from perfit_pipelines.cluster.tasks import POD, Task

WAITING, RUNNING, SUCCEEDED, FAILED = "PENDING", "RUNNING", "SUCCEEDED", "FAILED"
STARTED = "STARTED"
"""A task's pod waits or runs: the list does not say which, where tasks that started in the same second differ."""
DELIVERED, NO_UPDATE, COMMITTED = "DELIVERED", "NO_UPDATE", "COMMITTED"
"""What the store tells of a client (the second also of one whose pod did well) and of a round's aggregation."""
FINAL = (SUCCEEDED, FAILED, NO_UPDATE, "SKIPPED", "CANCELED")
DONE = (SUCCEEDED, DELIVERED, COMMITTED, "SKIPPED")
DRIVER = "-driver"
_ATTEMPT = re.compile(r"\(\d+\)")
_SEGMENTS = re.compile(r"\.(?!onExit\b)")


@dataclass(frozen=True)
class TaskState:
    """What is known of one task of a run.

    Args:
        key: Its name in the IR.
        stage: Display name of the task of the whole pipeline that it is part of.
        label: What it is within the stage.
        state: One of KFP's runtime states, or of this module's.
        attempt: Which attempt this is, from 1.
        node: Id of the workflow's node that is its last pod; empty if it is not known.
        reason: Why it waits or failed, where that is known.
    """

    key: str
    stage: str
    label: str
    state: str
    attempt: int = 1
    node: str = ""
    reason: str = ""

    @property
    def name(self) -> str:
        """Stage and label, as one."""
        return self.label if self.stage in ("", self.label) else f"{self.stage}: {self.label}"


@dataclass(frozen=True)
class RunView:
    """What is known of a run at one moment.

    Args:
        state: One of KFP's runtime states.
        tasks: Those that have begun, in the order of the pipeline.
        waiting: How many pods wait for a node or an image.
        nodes: How many nodes of the workflow KFP lists.
        seconds: How long the run took, if it is over.
        message: KFP's message about its failure, if any.
        told_by: What else than KFP's list was asked and answered.
    """

    state: str
    tasks: list[TaskState]
    waiting: int = 0
    nodes: int = 0
    seconds: float | None = None
    message: str = ""
    told_by: tuple[str, ...] = ()


class Source(Protocol):
    """What knows more of a run's tasks than KFP's list."""

    def add(self, view: RunView) -> RunView:
        """Return the view with what is known here; the view itself where nothing is."""


def place_of_node(name: str) -> str:
    """Return the place of a node in the workflow, as :attr:`Task.node` has it: without the workflow and attempts."""
    return "." + _ATTEMPT.sub("", name.partition(".")[2])


class TaskReader:
    """Recognises the tasks of a run in what the API lists of it.

    Args:
        tasks: Those of the run's pipeline.
    """

    def __init__(self, tasks: Sequence[Task]):
        self.tasks = tasks
        self._order = {(task.stage, task.label): position for position, task in enumerate(tasks)}
        self._display = {task.key: task.display or task.label for task in tasks}

    def read(self, details: Sequence[V2beta1PipelineTaskDetail]) -> list[TaskState]:
        """Return the states of tasks, in the order of the pipeline; those not started are left out."""
        graph = _Graph(details)
        states = [state for task in self.tasks if (state := graph.state_of(task))]
        return self.in_order(states or self._numbered(details)) + _failed_drivers(details)

    def in_order(self, states: Iterable[TaskState]) -> list[TaskState]:
        """Return states in the order of the pipeline."""
        return sorted(states, key=lambda state: self._order.get((state.stage, state.label), len(self._order)))

    def _numbered(self, details: Sequence[V2beta1PipelineTaskDetail]) -> list[TaskState]:
        """Tasks under the names of the compiled pipeline, where none is recognised."""
        listed = [detail for detail in details if detail.display_name in self._display]
        linked = any(detail.child_tasks for detail in details)
        states, numbers = [], {}
        for detail in listed:
            if linked and not _children(detail):
                continue  # its pod has not begun
            key = detail.display_name
            numbers[key] = number = numbers.get(key, 0) + 1
            states.append(TaskState(key, "", f"{self._display[key]} #{number}", detail.state or ""))
        return states


def waiting_pods(details: Sequence[V2beta1PipelineTaskDetail]) -> int:
    """Return how many pods wait for a node or an image."""
    return sum(detail.state == WAITING and not _children(detail) for detail in details)


class _Graph:
    """The listed nodes, each to be found by its child."""

    def __init__(self, details: Sequence[V2beta1PipelineTaskDetail]):
        self._parents: dict[str, list[V2beta1PipelineTaskDetail]] = {}
        for detail in details:
            for child in _children(detail):
                self._parents.setdefault(child, []).append(detail)
        self._workflow = next(iter(self._parents), "").rpartition("-")[0]
        self._root = _fnv1a(self._workflow.encode())
        self._pods = [detail for detail in details if _ATTEMPT.sub("", detail.display_name or "") == POD]

    def state_of(self, task: Task) -> TaskState | None:
        """Return the state of a task whose pod has begun."""
        for executor in self._find(task):
            retries = self._attempts(executor)
            node = self._id(retries[-1] if retries else executor)
            # The pod's parent: the Retry node of its attempts, or else the node of the task itself.
            name = POD if retries else task.key
            parent = next((d for d in self._parents.get(node, ()) if d.display_name == name), None)
            if parent:
                attempt = max(len(retries), 1)
                return TaskState(task.key, task.stage, task.label, self._state(parent, retries, attempt), attempt, node)
        return None

    def _find(self, task: Task) -> Iterator[int]:
        """The hashes of the names that a task's pod (or its Retry node) may have, the latest attempt first."""
        _, *path = _SEGMENTS.split(task.node)
        names = [*reversed(self._attempts(self._root)), self._root]
        for segment in path[:-1]:
            inner = (_fnv1a(f".{segment}".encode(), name) for name in names)
            begun = [name for name in inner if self._id(name) in self._parents]
            names = [name for outer in begun for name in [*reversed(self._attempts(outer)), outer]]
        for name in names:
            yield _fnv1a(f".{path[-1]}".encode(), name)

    def _attempts(self, name: int) -> list[int]:
        attempts: list[int] = []
        while self._id(attempt := _fnv1a(f"({len(attempts)})".encode(), name)) in self._parents:
            attempts.append(attempt)
        return attempts

    def _id(self, name: int) -> str:
        return f"{self._workflow}-{name}"

    def _state(self, parent: V2beta1PipelineTaskDetail, retries: Sequence[int], attempt: int) -> str:
        """The state of a task. Whether its pod waits is in the pod's entry, which nothing links to its parent."""
        if parent.state in FINAL:
            return parent.state
        name = f"{POD}({attempt - 1})" if retries else POD
        same = [pod for pod in self._pods if pod.display_name == name and pod.state not in FINAL]
        if retries and attempt == 1:  # the first attempt and the Retry node begin in the same moment
            same = [pod for pod in same if pod.start_time == parent.start_time]
        states = {pod.state for pod in same if not _children(pod)}
        return states.pop() or RUNNING if len(states) == 1 else STARTED


def _children(detail: V2beta1PipelineTaskDetail) -> list[str]:
    return [child.pod_name for child in detail.child_tasks or [] if child.pod_name]


def _failed_drivers(details: Sequence[V2beta1PipelineTaskDetail]) -> list[TaskState]:
    """The tasks that KFP could not prepare, each with its last attempt's pod where there are attempts."""
    failed = [d for d in details if d.state == FAILED and (d.display_name or "").endswith(DRIVER)]
    retried, states = {d.display_name for d in details}, []
    for detail in failed:
        name = detail.display_name
        attempts = _children(detail) if f"{name}(0)" in retried else []
        label = f"preparation of {name.removesuffix(DRIVER)}"
        states.append(TaskState(name, "", label, FAILED, max(len(attempts), 1), attempts[-1] if attempts else ""))
    return states


def _fnv1a(data: bytes, state: int = 0x811C9DC5) -> int:
    """The 32-bit FNV-1a hash, which Argo makes node ids with; ``state`` continues an earlier one."""
    for byte in data:
        state = ((state ^ byte) * 0x01000193) & 0xFFFFFFFF
    return state
