"""The command ``bench``: methods compared on one data set, each run in a process or a pod of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perfit.errors import PerfitError
from perfit_pipelines import places
from perfit_pipelines.cli.stopping import stopping_is_said
from perfit_pipelines.cluster.commands import Context, PollInterval, ServiceAccount, Timeout
from perfit_pipelines.cluster.connection import Endpoint
from perfit_pipelines.cluster.options import CREDENTIALS, connecting
from perfit_pipelines.options import checked_store, out
from perfit_pipelines.writing import write_file, writing

if TYPE_CHECKING:
    from perfit.bench.comparison import Comparison
    from perfit.bench.results import CellResult
    from perfit.bench.spec import BenchSpec, Cell


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=CREDENTIALS)(connecting(bench))


def bench(
    call: typer.Context,
    endpoint: Endpoint,
    file: Annotated[Path, typer.Argument(help="Bench file (YAML); see docs/benchmarks.md.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory of the results; else a place of the user's own."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Run on Kubeflow, through this store: s3://bucket/prefix.", callback=checked_store),
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="Kubernetes Secret with AWS_* keys to the store, for the pods.")
    ] = None,
    policy: Annotated[
        bool, typer.Option("--policy", help="Print what the keys need to be allowed in the store, and run nothing.")
    ] = False,
    service_account: ServiceAccount = "perfit-runner",
    poll_interval: PollInterval = 2.0,
    timeout: Timeout = None,
    context: Context = None,
) -> None:
    """Compare methods on one data set; run again, it goes on with the first run that is not done.

    Runs follow one another on this machine. With --store each is a pod on Kubeflow; Ctrl-C ends following, not the
    pods, and the same command fetches what is done. The other options are for that.

    Exit code: 0 all is compared, 1 an error, or a run has no result, 4 not over within --timeout, or cancelled,
    130 after Ctrl-C, 143 after SIGTERM.
    """
    from perfit.bench.comparison import compare
    from perfit.bench.plan import plan_cells

    if policy:
        _print_policy(file, store)
        return
    work = _run_here
    if where := _elsewhere(call, store, secret):
        work = partial(_run_on_kubeflow, endpoint, where, service_account, poll_interval, timeout, context)
    plan, cells = plan_cells(file, places.bench())
    directory = places.bench() / plan.name
    results = _run_cells(cells, directory / "cells", partial(work, plan))
    write_comparison(compare(plan, cells, results), output or directory)


def _print_policy(file: Path, store: str | None) -> None:
    from perfit.bench.plan import load_bench
    from perfit_pipelines.deploy.policies import bench_policy

    if store is None:
        raise PerfitError("a policy is of a store, and none is given", "give --store s3://bucket/prefix")
    print(dumps(bench_policy(load_bench(file)[0].name, store), indent=2))


def _run_cells(
    cells: Sequence[Cell], directory: Path, work: Callable[[Sequence[Cell], Path], None]
) -> dict[str, CellResult]:
    """Let those cells be run that have no file yet, and return the results of all by file."""
    from perfit.bench.results import CellResult

    pending = [cell for cell in cells if not (directory / cell.file).exists()]
    out.print(f"{len(cells)} runs, of which {len(cells) - len(pending)} are done", markup=False)
    if pending:
        directory.mkdir(parents=True, exist_ok=True)
        work(pending, directory)
    return {cell.file: CellResult.model_validate_json((directory / cell.file).read_bytes()) for cell in cells}


def _run_here(plan: BenchSpec, cells: Sequence[Cell], directory: Path) -> None:
    """Run cells one after another, each of which ends with this process."""
    from perfit.models import prepare_model

    with stopping_is_said("run the same command again to go on with the run that was interrupted"):
        prepare_model(cells[0].job.spec.model, _cache())  # here, so that it counts in no run's memory
        for number, cell in enumerate(cells, start=1):
            out.print(f"run {number} of {len(cells)}: {cell.title}", markup=False)
            began = time.monotonic()
            _run(cell, directory)
            out.print(f"  {time.monotonic() - began:.0f} s", markup=False)


def _run(cell: Cell, directory: Path) -> None:
    from perfit.bench.process import run_in_process

    try:
        run_in_process(cell.job, directory / cell.file, _cache())
    except PerfitError as error:
        raise PerfitError(f"{cell.title}: {error.problem}", error.fix) from error


def _elsewhere(call: typer.Context, store: str | None, secret: str | None) -> tuple[str, str] | None:
    """Return the store and the Secret of a bench on Kubeflow; None for one on this machine.

    Raises:
        PerfitError: One of them is missing, or the store cannot be reached from a pod.
    """
    example = "give --store s3://bucket/prefix and --secret NAME"
    if store is None and secret is None:
        source = call.get_parameter_source("host")
        if source and source.name == "COMMANDLINE":  # in the environment it is for other commands too
            raise PerfitError("--host is given, but no store through which the runs and their results pass", example)
        return None
    if store is None or secret is None:
        missing = "--store" if store is None else "--secret"
        raise PerfitError(f"{missing} is missing: runs on Kubeflow need a store, and a Secret with keys to it", example)
    if not store.startswith("s3://"):
        raise PerfitError(f"the store {store} is not one that the cluster's pods can reach", example)
    return store, secret


def _run_on_kubeflow(
    endpoint: Endpoint,
    where: tuple[str, str],
    service_account: str | None,
    poll_interval: float,
    timeout: str | None,
    context: str | None,
    plan: BenchSpec,
    cells: Sequence[Cell],
    directory: Path,
) -> None:
    """Let Kubeflow run cells, and fetch the results."""
    from perfit_pipelines.cluster.bench import Runner, run_cells
    from perfit_pipelines.cluster.cells import RemoteCells
    from perfit_pipelines.cluster.connection import connect
    from perfit_pipelines.cluster.following import pace_of
    from perfit_storage import BenchStore

    pace, (store, secret) = pace_of(poll_interval, timeout), where
    remote = RemoteCells(cells, directory, BenchStore.open(store, plan.name))
    note = directory.parent / f"kubeflow-run.{sha256(store.encode()).hexdigest()[:8]}"
    kubeflow = connect(endpoint)
    runner = Runner(kubeflow, plan.name, plan.model, plan.pods, secret, service_account, note, pace, context)
    run_cells(runner, remote)


def write_comparison(comparison: Comparison, directory: Path, json: bool = False) -> None:
    """Print the tables, or the numbers of each method as JSON; write them as HTML, Markdown and CSV."""
    from perfit_report.bench_page import bench_markdown, render_bench
    from perfit_report.bench_tables import clients_csv, summary_csv, summary_rows

    markdown = bench_markdown(comparison)
    pages = {
        "report.html": render_bench(comparison),
        "report.md": markdown,
        "summary.csv": summary_csv(comparison),
        "clients.csv": clients_csv(comparison),
    }
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        write_file(directory / name, text.encode())
    if json:
        print(dumps(summary_rows(comparison), indent=2, default=lambda number: number.item()))
        return
    out.print(f"\n{markdown}", markup=False)
    out.print(f"wrote {', '.join(pages)} in {directory}", markup=False)


def _cache() -> Path:
    return Path.home() / ".cache" / "perfit"
