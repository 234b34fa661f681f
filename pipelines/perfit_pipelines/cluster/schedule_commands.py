"""The commands of ``perfit schedule``."""

from __future__ import annotations

from typing import Annotated

import typer

from perfit.errors import PerfitError
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
    out,
    publish,
    say,
)

Name = Annotated[str, typer.Argument(help="Name of the schedule.", show_default=False)]

schedule_app = typer.Typer(no_args_is_help=True, help="Run rounds at set times, on Kubeflow.")


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
    store: Store = None,
    experiment: Experiment = None,
    client_image: ClientImage = None,
    server_image: ServerImage = None,
    service_account: ServiceAccount = "perfit-runner",
) -> None:
    """Run a round of a federation at set times: one at a time, missed ones are not made up for.

    The federation file of this moment is kept with the schedule. Creating a schedule again replaces it, with never two
    of it enabled at once; a round that runs goes on.
    """
    from perfit.federation_file import load_federation
    from perfit_pipelines.cluster.schedule import When, create_schedule
    from perfit_pipelines.cluster.timing import check_cron, parse_interval

    if (cron is None) == (every is None):
        raise PerfitError(
            "a schedule needs either --cron or --every", "give one, such as --every 24h or --cron '0 0 2 * * *'"
        )
    when = When(check_cron(cron)) if cron is not None else When(seconds=parse_interval(every or ""))
    spec = load_federation(file)
    kubeflow, version = publish(endpoint, spec, "federated_round", store, client_image, server_image)
    schedule, replaced = create_schedule(
        kubeflow, version, name or version.pipeline, when, experiment or spec.name, service_account
    )
    verb = "replaced" if replaced else "created"
    say(f"{verb} schedule {schedule.name}: {schedule.when}", kubeflow.link(schedule.page))


@schedule_app.command("list", epilog=CREDENTIALS)
@connecting
def list_(endpoint: Endpoint) -> None:
    """Show the schedules that perfit created."""
    from rich.table import Table

    from perfit_pipelines.cluster.client import connect
    from perfit_pipelines.cluster.schedule import list_schedules

    schedules = list_schedules(connect(endpoint))
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
def pause(endpoint: Endpoint, name: Name) -> None:
    """Start no more rounds; one that runs goes on."""
    from perfit_pipelines.cluster.client import connect
    from perfit_pipelines.cluster.schedule import pause_schedule

    pause_schedule(connect(endpoint), name)
    out.print(f"paused {name}; to go on: perfit schedule resume {name}", markup=False)


@schedule_app.command("resume", epilog=CREDENTIALS)
@connecting
def resume(endpoint: Endpoint, name: Name) -> None:
    """Start rounds again, from the next time on."""
    from perfit_pipelines.cluster.client import connect
    from perfit_pipelines.cluster.schedule import resume_schedule

    resume_schedule(connect(endpoint), name)
    out.print(f"resumed {name}", markup=False)


@schedule_app.command("delete", epilog=CREDENTIALS)
@connecting
def delete(endpoint: Endpoint, name: Name) -> None:
    """Remove a schedule; a round that runs goes on."""
    from perfit_pipelines.cluster.client import connect
    from perfit_pipelines.cluster.schedule import delete_schedule

    delete_schedule(connect(endpoint), name)
    out.print(f"deleted {name}", markup=False)
