"""What to say of a run that failed: which tasks, why, and what of it counts all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from perfit.protocol import ClientStatus
from perfit_pipelines.cluster.logs import PodLogs
from perfit_pipelines.cluster.nodes import DONE, DRIVER, FAILED, RunView, TaskState
from perfit_pipelines.cluster.pods import PodProgress
from perfit_pipelines.cluster.stored import StoreProgress
from perfit_pipelines.cluster.submit import Submitted

_LOGS_READ = 5
_MESSAGES = 3
_CLIENTS_NAMED = 10
_TOO_LONG = (
    "  fix: the federation file is too long to be an argument of a pod: leave out clients, or see docs/scaling.md"
)


@dataclass(frozen=True)
class Witnesses:
    """Who can be asked about a run besides the list of its tasks; Kubernetes cannot always."""

    logs: PodLogs
    store: StoreProgress
    pods: PodProgress | None


def explain_failure(view: RunView, submitted: Submitted, witnesses: Witnesses) -> list[str]:
    """Return why a run failed, what of it counts all the same, and where to look: only what is known."""
    late = _deadline(
        view,
        ("cluster", submitted.spec.cluster.deadline_seconds),
        "raise it (null: no limit), or give fewer rounds to one run; who delivered does not train again",
    )
    *causes, logs_of_all = _causes(view, late, witnesses.logs, witnesses.pods)
    return [*causes, *_of_rounds(witnesses.store, submitted.spec.rounds), logs_of_all]


def explain_bench_failure(
    view: RunView, deadline_seconds: int | None, logs: PodLogs, pods: PodProgress | None
) -> list[str]:
    """Return why a run of a bench's cells failed, and where to look."""
    again = "raise it (null: no limit), and run the same command again, which goes on"
    return _causes(view, _deadline(view, ("pods", deadline_seconds), again), logs, pods)


def _causes(view: RunView, late: list[str], logs: PodLogs, pods: PodProgress | None) -> list[str]:
    """What is known of why a run failed, at least one line; last where its logs are."""
    where = f"-n {logs.namespace} -l pipeline/runid={logs.run_id}"
    unknown = f"Kubeflow does not say why; Argo may: kubectl get workflows {where} -o yaml | grep message:"
    causes = [*late, *_of_tasks(view, logs)] or _of_the_workflow(view, pods) or [unknown]
    return [*causes, f"logs: kubectl logs {where} -c main --tail=40 --prefix"]


def _deadline(view: RunView, limit: tuple[str, int | None], fix: str) -> list[str]:
    """Say that a run ended at its deadline, given with the section of the user's file that has it."""
    section, deadline = limit
    if deadline is None or view.seconds is None or view.seconds < deadline:
        return []
    late = [task.name for task in view.tasks if task.state not in DONE]
    return [
        f"it was ended after {section}.deadline_seconds ({deadline:,}); not done by then: {_names(late) or 'unknown'}",
        f"  fix: {fix}",
    ]


def _of_tasks(view: RunView, logs: PodLogs) -> Iterator[str]:
    failed = [task for task in view.tasks if task.state == FAILED]
    for task in failed[:_LOGS_READ]:
        yield from f"failed: {task.name}: {_cause(task, logs)}".splitlines()
    if rest := failed[_LOGS_READ:]:
        yield f"failed as well: {_names([task.name for task in rest])}"


def _cause(task: TaskState, logs: PodLogs) -> str:
    if cause := task.reason or logs.cause(task):
        return cause
    if task.key.endswith(DRIVER):
        return "its log does not say why\n  fix: perfit doctor FILE checks what Kubeflow needs to prepare a task"
    return "neither its log nor what Kubeflow has of its pod says why"


def _of_the_workflow(view: RunView, pods: PodProgress | None) -> list[str]:
    messages = [*filter(None, [view.message]), *(pods.messages() if pods else [])][:_MESSAGES]
    too_long = any("configmaps is forbidden" in message for message in messages)
    return [f"Kubeflow says: {message}" for message in messages] + ([_TOO_LONG] if too_long else [])


def _of_rounds(store: StoreProgress, rounds: int) -> Iterator[str]:
    for number, outcomes in sorted(store.outcomes().items()):
        lost = [outcome for outcome in outcomes.values() if isinstance(outcome, ClientStatus)]
        verb = "is" if number in store.rounds else "is not"
        yield f"round {number} {verb} committed: {len(outcomes) - len(lost)} clients delivered"
        for status in lost[:_CLIENTS_NAMED]:
            yield from f"  {status.text}".splitlines()
        if rest := lost[_CLIENTS_NAMED:]:
            yield f"  and {len(rest)} more; perfit status names them"
        if silent := store.silent(number):
            yield f"  without a record: {_names(silent)}"
    if store.head is not None and store.head < rounds:
        yield f"the federation is at round {store.head}; the same again goes on from there"


def _names(names: Sequence[str]) -> str:
    more = len(names) - _CLIENTS_NAMED
    return ", ".join(names[:_CLIENTS_NAMED]) + (f" and {more} more" if more > 0 else "")
