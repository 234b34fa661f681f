"""Following a run for who typed a command: who is asked about it, what is said of its end, and the exit code."""

from __future__ import annotations

from perfit.errors import PerfitError
from perfit_pipelines.cluster.causes import Witnesses, explain_failure
from perfit_pipelines.cluster.connection import Kubeflow
from perfit_pipelines.cluster.follow import Pace, exit_code, follow
from perfit_pipelines.cluster.logs import PodLogs
from perfit_pipelines.cluster.nodes import FAILED, TaskReader
from perfit_pipelines.cluster.options import parse_duration
from perfit_pipelines.cluster.pods import PodProgress
from perfit_pipelines.cluster.progress import JsonProgress, RunProgress
from perfit_pipelines.cluster.stored import StoreProgress
from perfit_pipelines.cluster.submit import Submitted
from perfit_pipelines.kube import Cluster
from perfit_pipelines.options import INTERRUPTED, errors

_STANDALONE = "kubeflow"
"""The namespace of Kubeflow Pipelines that serve one user."""


def pace_of(poll_interval: float, timeout: str | None) -> Pace:
    """Return how often a run is looked at.

    Args:
        poll_interval: Seconds between two looks after a change.
        timeout: How long to follow at most, as the user wrote it; None for as long as it takes.

    Raises:
        PerfitError: The time limit is not a duration.
    """
    limit = parse_duration(timeout, "--timeout") if timeout else None
    return Pace(first=poll_interval, longest=max(poll_interval, Pace.longest), limit=limit)


def follow_to_end(
    kubeflow: Kubeflow,
    run_id: str,
    submitted: Submitted,
    progress: RunProgress | JsonProgress,
    pace: Pace,
    context: str | None,
) -> int:
    """Follow a run until it is over, its time is up, or Ctrl-C, and say how it ended.

    Args:
        kubeflow: Where it runs.
        run_id: Of the run.
        submitted: What it was started with.
        progress: What shows it.
        pace: How often it is looked at.
        context: Of the kubeconfig whose cluster tells of the pods; None for its current one, if it can.

    Returns:
        The command's exit code.

    Raises:
        PerfitError: As :func:`perfit_pipelines.cluster.follow.follow`; or the named context cannot be used.
    """
    namespace = kubeflow.namespace or _STANDALONE
    store = StoreProgress(submitted.store, submitted.name, submitted.tasks)
    pods = _pods(namespace, run_id, submitted, context)
    sources = [source for source in (pods, store) if source]
    try:
        with progress:
            view = follow(kubeflow, run_id, TaskReader(submitted.tasks), progress, sources, pace)
        witnesses = Witnesses(PodLogs(kubeflow, run_id, namespace), store, pods)
        progress.end(view.state, explain_failure(view, submitted, witnesses) if view.state == FAILED else [])
    except KeyboardInterrupt:
        page = kubeflow.link(f"runs/details/{run_id}")
        errors.print(f"stopped following; the run goes on. Follow again: perfit follow {run_id}", markup=False)
        errors.print(f"stop the run: Terminate on its page{f', {page}' if page else ''}", markup=False)
        return INTERRUPTED
    return exit_code(view.state)


def _pods(namespace: str, run_id: str, submitted: Submitted, context: str | None) -> PodProgress | None:
    """What Kubernetes tells of a run's pods; None where no cluster is known, unless one was named."""
    try:
        return PodProgress(Cluster(context), namespace, run_id, submitted.tasks)
    except PerfitError:
        if context is not None:
            raise
        return None
