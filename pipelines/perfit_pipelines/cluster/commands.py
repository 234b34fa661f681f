"""The commands ``submit``, ``follow`` and ``schedule``. KFP is imported when one of them runs."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from perfit_pipelines.cluster.endpoint import Endpoint
from perfit_pipelines.cluster.options import (
    CREDENTIALS,
    ClientImage,
    Experiment,
    File,
    ServerImage,
    ServiceAccount,
    Store,
    connecting,
    errors,
    out,
    publish,
    say,
)
from perfit_pipelines.cluster.schedule_commands import schedule_app

if TYPE_CHECKING:
    from perfit_pipelines.cluster.client import Kubeflow
    from perfit_pipelines.cluster.follow import Outcome, Pace
    from perfit_pipelines.cluster.tasks import Task

INTERRUPTED = 130

RunId = Annotated[str, typer.Argument(help="Id of the run, as in the address of its page.", show_default=False)]
PollInterval = Annotated[
    float, typer.Option(min=0.01, help="Seconds until the run is looked at again; more while nothing changes.")
]
Timeout = Annotated[str | None, typer.Option(help="Follow at most so long, e.g. 6h; the run goes on.")]


class Pipeline(StrEnum):
    """The pipelines that can be submitted."""

    TUNING = "federated_tuning"
    ROUND = "federated_round"


def register(app: typer.Typer) -> None:
    """Add the commands of this package to the ``perfit`` command."""
    app.command("submit", epilog=CREDENTIALS)(connecting(submit))
    app.command("follow", epilog=CREDENTIALS)(connecting(follow))
    app.add_typer(schedule_app, name="schedule")


def submit(
    endpoint: Endpoint,
    file: File,
    pipeline: Annotated[Pipeline, typer.Option(help="All rounds, or one round from the head.")] = Pipeline.TUNING,
    store: Store = None,
    experiment: Experiment = None,
    run_name: Annotated[str | None, typer.Option(help="Name of the run; else pipeline and time.")] = None,
    client_image: ClientImage = None,
    server_image: ServerImage = None,
    service_account: ServiceAccount = "perfit-runner",
    follow: Annotated[bool, typer.Option(help="Stay until the run is over.")] = True,
    poll_interval: PollInterval = 2.0,
    timeout: Timeout = None,
) -> None:
    """Run a federation on Kubeflow, and follow it to its end.

    The pipeline is uploaded as a version of <federation>-tuning or <federation>-round, unless it is there already.
    Ctrl-C ends following, not the run.

    Exit code: 0 the run succeeded (with --no-follow: was started), 1 an error of this command, 3 the run failed,
    4 it was cancelled, skipped, or not over within --timeout, 130 after Ctrl-C.
    """
    from perfit.federation_file import load_federation
    from perfit_pipelines.cluster.submit import pipeline_tasks, start_run

    pace, spec = _pace(poll_interval, timeout), load_federation(file)
    kubeflow, version = publish(endpoint, spec, pipeline.value, store, client_image, server_image)
    name = run_name or f"{version.pipeline} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    run = start_run(kubeflow, version, name, experiment or spec.name, service_account)
    say(f"run {name}, id {run.run_id}", kubeflow.link(f"runs/details/{run.run_id}"))
    if follow:
        _follow(kubeflow, run.run_id, pipeline_tasks(version.ir), pace)
    else:
        out.print(f"to follow it: perfit follow {run.run_id}", markup=False)


def follow(endpoint: Endpoint, run_id: RunId, poll_interval: PollInterval = 2.0, timeout: Timeout = None) -> None:
    """Follow a run that was submitted or scheduled, to its end. Exit codes are those of submit."""
    from perfit_pipelines.cluster.client import connect
    from perfit_pipelines.cluster.submit import find_run

    pace = _pace(poll_interval, timeout)
    kubeflow = connect(endpoint)
    run, tasks = find_run(kubeflow, run_id)
    say(f"run {run.display_name}, id {run_id}", kubeflow.link(f"runs/details/{run_id}"))
    _follow(kubeflow, run_id, tasks, pace)


def _pace(poll_interval: float, timeout: str | None) -> Pace:
    from perfit_pipelines.cluster.follow import Pace
    from perfit_pipelines.cluster.timing import parse_duration

    limit = parse_duration(timeout, "--timeout") if timeout else None
    return Pace(first=poll_interval, longest=max(poll_interval, Pace.longest), limit=limit)


def _follow(kubeflow: Kubeflow, run_id: str, tasks: list[Task], pace: Pace) -> None:
    from perfit_pipelines.cluster.follow import follow as follow_run
    from perfit_pipelines.cluster.progress import RunProgress
    from perfit_pipelines.cluster.tasks import TaskReader

    try:
        with RunProgress(tasks, Console(highlight=False, soft_wrap=True)) as progress:
            outcome = follow_run(kubeflow, run_id, TaskReader(tasks), progress, pace)
    except KeyboardInterrupt:
        page = kubeflow.link(f"runs/details/{run_id}")
        errors.print(f"stopped following; the run goes on. Follow again: perfit follow {run_id}", markup=False)
        errors.print(f"stop the run: Terminate on its page{f', {page}' if page else ''}", markup=False)
        raise typer.Exit(INTERRUPTED) from None
    _say_outcome(kubeflow, run_id, outcome)
    raise typer.Exit(outcome.exit_code)


def _say_outcome(kubeflow: Kubeflow, run_id: str, outcome: Outcome) -> None:
    from perfit_pipelines.cluster.submit import advice

    if outcome.state == "SUCCEEDED":
        out.print("the run succeeded; the report is on the task Report of its last round", markup=False)
    elif outcome.state == "FAILED":
        errors.print("the run failed", style="bold red")
        for line in advice(kubeflow, run_id, outcome):
            errors.print(f"  {line}", markup=False)
    elif outcome.state in ("CANCELED", "SKIPPED"):
        errors.print(f"the run was {'cancelled' if outcome.state == 'CANCELED' else 'skipped'}", markup=False)
    else:
        errors.print(f"not over in time; the run goes on. Follow again: perfit follow {run_id}", markup=False)
