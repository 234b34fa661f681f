"""Why a task failed, as the log of its pod says, which Kubeflow serves: its API in one way, its UI in another."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from perfit.protocol import cut
from perfit_components.log_lines import ErrorFinder, plain
from perfit_pipelines.cluster.connection import Kubeflow
from perfit_pipelines.cluster.nodes import DRIVER, TaskState
from perfit_pipelines.cluster.pods import read_pod

_LOG_BYTES = 2**18
_POD_BYTES = 2**20
_TASK_TEMPLATES = ("metadata-0-1-system-container-impl", "system-container-impl")
"""Argo's templates of our tasks' pods: the first where KFP sets the one label that each of our tasks has."""
_DRIVER_TEMPLATES = ("system-container-driver", "system-dag-driver")
_KLOG = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ \S+\] ")
_KILLED = (
    "its process was killed (signal 9), as happens where memory runs out\n  fix: see what Kubernetes says of its pod; "
    "if it is OOMKilled, give its tier more memory"
)


@dataclass(frozen=True)
class PodLogs:
    """The logs and the pods of a run, as Kubeflow serves them.

    Args:
        kubeflow: The connection.
        run_id: The run's.
        namespace: Where its pods are.
    """

    kubeflow: Kubeflow
    run_id: str
    namespace: str

    def cause(self, task: TaskState) -> str:
        """Return why a task failed, with the fix where there is one; empty if neither log nor pod says it."""
        workflow, _, number = task.node.rpartition("-")
        if not workflow:
            return ""
        templates = _DRIVER_TEMPLATES if task.key.endswith(DRIVER) else _TASK_TEMPLATES
        for template in templates:
            pod = f"{workflow}-{template}-{number}"
            if log := self._log(pod):
                return own_error(log) or self._reason(pod) or other_error(log)
        return self._reason(f"{workflow}-{templates[0]}-{number}")

    def _log(self, pod: str) -> str | None:
        path = f"/apis/v1alpha1/runs/{self.run_id}/nodes/{pod}/log"
        where = {"podname": pod, "podnamespace": self.namespace, "runid": self.run_id}
        read = self.kubeflow.read_text
        return read(path, _LOG_BYTES) or read("/k8s/pod/logs", _LOG_BYTES, **where)

    def _reason(self, pod: str) -> str:
        """What Kubernetes says of a pod that its log does not: the UI passes it on."""
        text = self.kubeflow.read_text("/k8s/pod", _POD_BYTES, podname=pod, podnamespace=self.namespace)
        try:
            return read_pod(json.loads(text or "")).reason
        except (ValueError, KeyError, TypeError, AttributeError):  # cut, or no pod
            return ""


def own_error(log: str) -> str:
    """Return the last error of ours in a task's log, with its fix and without its traceback; empty if there is none."""
    finder = ErrorFinder()
    for line in log.splitlines():
        finder.read(plain(line))
    return cut(finder.last)


def other_error(log: str) -> str:
    """Return what else a task's log says of a failure; empty if nothing.

    The text of errors that are not ours may quote records: of those only the kind is returned.
    """
    lines = [plain(line) for line in log.splitlines()]
    return cut(_last_exception(lines) or _of_kubeflow(lines))


def _last_exception(lines: list[str]) -> str:
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    after = lines[starts[-1] + 1 :] if starts else []
    last = next((line for line in after if line and not line[0].isspace()), "")
    kind = re.match(r"[\w.]+", last)
    return f"{kind[0]}; its text, which may quote records, is in the task's log alone" if kind else ""


def _of_kubeflow(lines: list[str]) -> str:
    """What KFP's launcher or driver says, which runs around a task."""
    said = [_KLOG.sub("", line) for line in lines if line[:1] in ("E", "F") and _KLOG.match(line)]
    if any(text.endswith("signal: killed") for text in said):
        return _KILLED
    telling = [text for text in said if not re.search(r"exit status \d+$", text)]
    return telling[-1] if telling else ""
