"""The commands ``submit``, ``follow`` and ``schedule``. KFP is imported when one of them runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from perfit.errors import PerfitError
from perfit_pipelines.cluster.connection import Endpoint, connect
from perfit_pipelines.cluster.options import CREDENTIALS, check_cron, connecting, parse_interval
from perfit_pipelines.options import (
    ClientImage,
    File,
    JsonOption,
    Pipeline,
    PipelineOption,
    PodStore,
    ServerImage,
    errors,
    out,
)

if TYPE_CHECKING:
    from perfit.cluster_spec import ClusterSpec
    from perfit_pipelines.cluster.connection import Kubeflow
    from perfit_pipelines.cluster.upload import ClusterPipeline, Version
    from perfit_pipelines.compile import PipelineName
    from perfit_pipelines.pipelines import Part

RunId = Annotated[str, typer.Argument(help="Id of the run, as in the address of its page.", show_default=False)]
PollInterval = Annotated[
    float, typer.Option(min=0.01, help="Seconds until the run is looked at again; more while nothing changes.")
]
Timeout = Annotated[str | None, typer.Option(help="Follow for at most this long, e.g. 6h; the run goes on.")]
Experiment = Annotated[str | None, typer.Option(help="Experiment of the runs; else the federation's name.")]
ServiceAccount = Annotated[
    str | None,
    typer.Option(help="Service account of the pods; the manifests provide perfit-runner, which cannot read Secrets."),
]
Context = Annotated[
    str | None,
    typer.Option(help="Context of the kubeconfig whose cluster tells of the pods; else its current one, if it can."),
]
ScheduleName = Annotated[str, typer.Argument(help="Name of the schedule.", show_default=False)]

schedule_app = typer.Typer(no_args_is_help=True, help="Run rounds at set times, on Kubeflow.")


def register(app: typer.Typer) -> None:
    """Add the commands of this package to the ``perfit`` command."""
    app.command("submit", epilog=CREDENTIALS)(connecting(submit))
    app.command("follow", epilog=CREDENTIALS)(connecting(follow))
    app.add_typer(schedule_app, name="schedule")


def submit(
    endpoint: Endpoint,
    file: File,
    pipeline: PipelineOption = Pipeline.TUNING,
    store: PodStore = None,
    experiment: Experiment = None,
    run_name: Annotated[str | None, typer.Option(help="Name of the run; else pipeline and time.")] = None,
    client_image: ClientImage = None,
    server_image: ServerImage = None,
    service_account: ServiceAccount = "perfit-runner",
    first_run: Annotated[
        int, typer.Option(min=1, help="Of a pipeline that takes several runs, begin with this one.")
    ] = 1,
    follow: Annotated[bool, typer.Option(help="Follow the run until it is over.")] = True,
    poll_interval: PollInterval = 2.0,
    timeout: Timeout = None,
    context: Context = None,
) -> None:
    """Run a federation on Kubeflow, and follow it to its end. Where the store can be read from here, the run has only
    the rounds that are not committed.

    The pipeline is uploaded as a version of <federation>-tuning or <federation>-round, unless it is already there.
    Ctrl-C ends following, not the run.

    A pipeline that is too large for one run takes several, each started when the one before it has succeeded.

    Exit code: 0 the run succeeded (with --no-follow: was started), 1 an error of this command, 3 the run failed,
    4 it was cancelled, skipped, or not over within --timeout, 130 after Ctrl-C.
    """
    from perfit.federation_file import load_federation
    from perfit_pipelines.cluster.following import follow_to_end, pace_of
    from perfit_pipelines.cluster.progress import RunProgress
    from perfit_pipelines.cluster.submit import start_run, submitted

    pace, spec = pace_of(poll_interval, timeout), load_federation(file)
    first = _first_round(spec, store) if pipeline is Pipeline.TUNING else 1
    if first is None:
        out.print(f"all {spec.rounds} rounds are committed: there is nothing to do", markup=False)
        return
    kubeflow, built = _connect(endpoint, spec, pipeline.value, store, client_image, server_image, first)
    runs = len(built.parts)
    if first_run > runs:
        raise PerfitError(f"--first-run {first_run}: the pipeline takes {runs} runs", f"give at most {runs}")
    for number, part in enumerate(built.parts[first_run - 1 :], first_run):
        version = _upload(kubeflow, built, part)
        name = run_name or f"{version.pipeline} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        name += f", run {number} of {runs}" if runs > 1 else ""
        run = start_run(kubeflow, version, name, experiment or spec.name, service_account)
        _print_link(f"run {name}, id {run.run_id}", kubeflow.link(f"runs/details/{run.run_id}"))
        if not follow:
            out.print(f"to follow it: perfit follow {run.run_id}", markup=False)
            break
        started = submitted(version.ir)
        progress = RunProgress(run.run_id, started, out)
        if code := follow_to_end(kubeflow, run.run_id, started, progress, pace, context):
            if runs > 1:
                errors.print(f"to go on: perfit submit {file} --first-run {number}", markup=False)
            raise typer.Exit(code)
    if runs > number:
        out.print(f"the next run, when it has ended: perfit submit {file} --first-run {number + 1}", markup=False)


def follow(
    endpoint: Endpoint,
    run_id: RunId,
    poll_interval: PollInterval = 2.0,
    timeout: Timeout = None,
    context: Context = None,
    json: Annotated[bool, typer.Option("--json", help="Print each change as an object on a line.")] = False,
) -> None:
    """Follow a run that was submitted or scheduled, to its end. Exit codes are those of submit.

    What Kubeflow lists is completed by what the store says (with the keys in AWS_* variables) and, where Kubernetes can
    be asked, its pods.
    """
    from perfit_pipelines.cluster.following import follow_to_end, pace_of
    from perfit_pipelines.cluster.progress import JsonProgress, RunProgress
    from perfit_pipelines.cluster.submit import find_run

    pace = pace_of(poll_interval, timeout)
    kubeflow = connect(endpoint)
    run, found = find_run(kubeflow, run_id)
    if not json:
        _print_link(f"run {run.display_name}, id {run_id}", kubeflow.link(f"runs/details/{run_id}"))
    progress = JsonProgress(run_id) if json else RunProgress(run_id, found, out)
    raise typer.Exit(follow_to_end(kubeflow, run_id, found, progress, pace, context))


@schedule_app.command("create", epilog=CREDENTIALS)
@connecting
def create(
    endpoint: Endpoint,
    file: File,
    cron: Annotated[
        str | None,
        typer.Option(help="Six fields, seconds first, in Kubeflow's time zone (UTC unless set): '0 0 2 * * *'."),
    ] = None,
    every: Annotated[str | None, typer.Option(help="Time between two rounds, such as 24h or 90m.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the schedule; else <federation>-round.")] = None,
    store: PodStore = None,
    experiment: Experiment = None,
    client_image: ClientImage = None,
    server_image: ServerImage = None,
    service_account: ServiceAccount = "perfit-runner",
) -> None:
    """Run a round of a federation at set times: one at a time, without catching up on missed ones.

    The schedule keeps the federation file as it is now. Creating a schedule again replaces it, and the two are never
    enabled at the same time; a round that is running goes on.
    """
    from perfit.federation_file import load_federation
    from perfit_pipelines.cluster.schedule import When, create_schedule

    if (cron is None) == (every is None):
        raise PerfitError(
            "a schedule needs either --cron or --every", "give one, such as --every 24h or --cron '0 0 2 * * *'"
        )
    when = When(check_cron(cron)) if cron is not None else When(seconds=parse_interval(every or ""))
    spec = load_federation(file)
    kubeflow, built = _connect(endpoint, spec, "federated_round", store, client_image, server_image)
    version = _upload(kubeflow, built, built.parts[0])
    schedule, replaced = create_schedule(
        kubeflow, version, name or version.pipeline, when, experiment or spec.name, service_account
    )
    verb = "replaced" if replaced else "created"
    _print_link(f"{verb} schedule {schedule.name}: {schedule.when}", kubeflow.link(schedule.page))


@schedule_app.command("list", epilog=CREDENTIALS)
@connecting
def list_(endpoint: Endpoint, json: JsonOption = False) -> None:
    """Show the schedules that perfit created."""
    from rich.table import Table

    from perfit_pipelines.cluster.schedule import list_schedules, schedules_json

    schedules = list_schedules(connect(endpoint))
    if json:
        print(schedules_json(schedules))
        return
    if not schedules:
        out.print("no schedules; create one: perfit schedule create FILE --every 24h", markup=False)
        return
    table = Table("name", "when", "state", "runs", "created (UTC)")
    for schedule in schedules:
        state = "enabled" if schedule.enabled else "paused"
        created = f"{schedule.created:%Y-%m-%d %H:%M}"
        table.add_row(schedule.name, str(schedule.when), state, schedule.about, created)
    out.print(table)


@schedule_app.command("pause", epilog=CREDENTIALS)
@connecting
def pause(endpoint: Endpoint, name: ScheduleName) -> None:
    """Start no more rounds; one that is running goes on."""
    from perfit_pipelines.cluster.schedule import pause_schedule

    pause_schedule(connect(endpoint), name)
    out.print(f"paused {name}; to go on: perfit schedule resume {name}", markup=False)


@schedule_app.command("resume", epilog=CREDENTIALS)
@connecting
def resume(endpoint: Endpoint, name: ScheduleName) -> None:
    """Start rounds again, from the next set time on."""
    from perfit_pipelines.cluster.schedule import resume_schedule

    resume_schedule(connect(endpoint), name)
    out.print(f"resumed {name}", markup=False)


@schedule_app.command("delete", epilog=CREDENTIALS)
@connecting
def delete(endpoint: Endpoint, name: ScheduleName) -> None:
    """Remove a schedule; a round that is running goes on."""
    from perfit_pipelines.cluster.schedule import delete_schedule

    delete_schedule(connect(endpoint), name)
    out.print(f"deleted {name}", markup=False)


def _first_round(spec: ClusterSpec, store: str | None) -> int | None:
    """The first round to run, None if all are committed; the first of all where the store cannot be asked."""
    from perfit_pipelines.cluster.submit import first_round
    from perfit_pipelines.cluster.upload import cluster_store

    uri = cluster_store(spec, store)
    try:
        return first_round(spec, uri)
    except PerfitError as error:
        problem = str(error).partition("\n")[0]
        errors.print(
            f"note: the run passes committed rounds, about a minute each, for the store cannot be asked: {problem}",
            markup=False,
        )
        return 1


def _connect(
    endpoint: Endpoint,
    spec: ClusterSpec,
    pipeline: PipelineName,
    store: str | None,
    client_image: str | None,
    server_image: str | None,
    first: int = 1,
) -> tuple[Kubeflow, ClusterPipeline]:
    """Connect, and divide a federation's pipeline into runs, after warnings about what may not work there.

    Raises:
        PerfitError: The pods cannot use the store, Kubeflow cannot be used, or the pipeline is too large.
    """
    from perfit_pipelines.cluster.upload import (
        LIMITED,
        ClusterPipeline,
        cluster_store,
        unreachable_data,
        without_limits,
    )
    from perfit_pipelines.pipelines import Images

    uri = cluster_store(spec, store)
    for warning in unreachable_data(spec):
        errors.print(f"warning: {warning}", markup=False)
    kubeflow = connect(endpoint)
    if kubeflow.version and kubeflow.version < LIMITED:
        errors.print("warning: this Kubeflow Pipelines is older than 2.17: the run has no deadline, its workflow stays")
        spec = without_limits(spec)
    built = ClusterPipeline.of(spec, pipeline, uri, Images.of(client_image, server_image), first)
    if built.file:
        out.print(f"the federation file is passed by its URI: {built.file}", markup=False)
    if len(built.parts) > 1:
        out.print(f"too large for one run: {built.division}", markup=False)
    return kubeflow, built


def _upload(kubeflow: Kubeflow, built: ClusterPipeline, part: Part) -> Version:
    """Upload what one run does, and say what it takes in the cluster.

    Raises:
        PerfitError: Kubeflow refuses it.
    """
    from perfit_pipelines.cluster.upload import upload

    version = upload(kubeflow, built, part)
    if not version.size.is_listed:
        errors.print(f"warning: {version.size.listing_stops}", markup=False)
    state = "uploaded" if version.uploaded else "unchanged since it was uploaded"
    _print_link(f"pipeline {version.pipeline}, version {version.name} ({state})", kubeflow.link(version.page))
    return version


def _print_link(text: str, link: str | None) -> None:
    """Print a line, with a link into the UI where there is one."""
    out.print(f"{text}: {link}" if link else text, markup=False)
