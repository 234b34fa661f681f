"""A run's pods, where Kubernetes can be asked: which wait and for what, which run, and why those that died did."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from perfit.errors import PerfitError
from perfit_pipelines.cluster.nodes import FAILED, RUNNING, SUCCEEDED, WAITING, RunView, TaskState, place_of_node
from perfit_pipelines.cluster.tasks import Task
from perfit_pipelines.kube import Cluster, NotAllowed

_NODE_NAME = "workflows.argoproj.io/node-name"
_EXECUTORS = "perfit/role"
"""The label that only the pods of tasks have, not those of KFP's drivers."""
_PHASES = {"Pending": WAITING, "Running": RUNNING, "Succeeded": SUCCEEDED, "Failed": FAILED}
OUT_OF_MEMORY = (
    "its pod ran out of memory (OOMKilled)\n  fix: give its tier more memory, or lower training.batch_size (and raise "
    "gradient_accumulation) or training.sequence_length, or set training.gradient_checkpointing"
)
_LOST = "\n  fix: run the same again: who delivered does not train again"


@dataclass(frozen=True)
class Pod:
    """A task's pod.

    Args:
        node: Id of its node in the workflow.
        place: Where that is: see :attr:`perfit_pipelines.cluster.tasks.Task.node`.
        attempt: Its number, from 1.
        state: One of KFP's runtime states.
        reason: Why it waits or failed; empty where nothing is said.
    """

    node: str
    place: str
    attempt: int
    state: str
    reason: str


class PodProgress:
    """Completes a view of a run by what Kubernetes says of its pods, as long as it answers.

    Args:
        cluster: Where they run.
        namespace: In which.
        run_id: The run's.
        tasks: Of the run's pipeline.
    """

    def __init__(self, cluster: Cluster, namespace: str, run_id: str, tasks: Sequence[Task]):
        self._cluster, self._namespace, self._labels = cluster, namespace, f"pipeline/runid={run_id}"
        self._tasks = {task.node: task for task in tasks}
        self._answers = True

    def add(self, view: RunView) -> RunView:
        """See :class:`perfit_pipelines.cluster.nodes.Source`."""
        pods = self._pods()
        if not pods:
            return view
        states = {(state.stage, state.label): state for state in view.tasks}
        for pod in pods:
            if task := self._tasks.get(pod.place):
                before = states.get((task.stage, task.label))
                if before is None or before.state not in (SUCCEEDED, FAILED) or before.node == pod.node:
                    states[task.stage, task.label] = TaskState(
                        task.key, task.stage, task.label, pod.state, pod.attempt, pod.node, pod.reason
                    )
        waiting = sum(pod.state == WAITING for pod in pods)
        return replace(view, tasks=list(states.values()), waiting=waiting, told_by=(*view.told_by, "Kubernetes"))

    def messages(self) -> list[str]:
        """Return what Argo says of why the workflow failed, each message once; nothing where it cannot be asked."""
        try:
            workflows = self._cluster.workflows(self._namespace, self._labels)
        except (NotAllowed, PerfitError):
            return []
        return [message for workflow in workflows for message in workflow_messages(workflow)]

    def _pods(self) -> list[Pod]:
        if not self._answers:
            return []
        try:
            listed = self._cluster.pods(self._namespace, f"{self._labels},{_EXECUTORS}")
        except (NotAllowed, PerfitError):
            self._answers = False  # a help, not a need: what else is known is shown on
            return []
        latest: dict[str, Pod] = {}
        for pod in sorted((read_pod(item) for item in listed), key=lambda pod: pod.attempt):
            latest[pod.place] = pod
        return list(latest.values())


def read_pod(item: Mapping[str, Any]) -> Pod:
    """Read a pod of a workflow, as Kubernetes or KFP's UI describes it."""
    metadata, status = item["metadata"], item["status"]
    name = metadata.get("annotations", {}).get(_NODE_NAME, "")
    last = name.rpartition("(")[2].removesuffix(")")
    workflow = metadata.get("labels", {}).get("workflows.argoproj.io/workflow", "")
    node = f"{workflow}-{metadata['name'].rpartition('-')[2]}"
    state = _PHASES.get(status.get("phase", ""), RUNNING)
    reason = _why_waiting(status) if state == WAITING else _why_failed(status) if state == FAILED else ""
    return Pod(node, place_of_node(name), int(last) + 1 if last.isdecimal() else 1, state, reason)


def workflow_messages(workflow: Mapping[str, Any]) -> list[str]:
    """Return what an Argo workflow says of why it failed: of its pods if there is something, else of itself."""
    status = workflow.get("status", {})
    nodes = status.get("nodes") or {}
    if packed := status.get("compressedNodes"):
        nodes = json.loads(gzip.decompress(base64.b64decode(packed)))
    of_pods = [
        node["message"]
        for node in nodes.values()
        if node.get("type") == "Pod" and node.get("phase") in ("Failed", "Error") and node.get("message")
    ]
    return list(dict.fromkeys(of_pods or [status["message"]] if of_pods or status.get("message") else []))


def _why_waiting(status: Mapping[str, Any]) -> str:
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return ": ".join(filter(None, (waiting["reason"], waiting.get("message"))))
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition.get("status") == "False":
            return condition.get("message", condition.get("reason", ""))
    return ""


def _why_failed(status: Mapping[str, Any]) -> str:
    for container in status.get("containerStatuses", []):
        ended = container.get("state", {}).get("terminated", {})
        if ended.get("reason") == "OOMKilled":
            return OUT_OF_MEMORY
    if reason := ": ".join(filter(None, (status.get("reason"), status.get("message")))):
        return f"its pod was ended by Kubernetes ({reason}){_LOST}"
    return ""
