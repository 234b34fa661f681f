"""The commands ``init``, ``validate``, ``compile`` and ``run``."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from perfit.errors import PerfitError, printable
from perfit_pipelines import places
from perfit_pipelines.cli.stopping import stopping_is_said
from perfit_pipelines.cli.stores import Store, StoreOption, is_unused, use_store
from perfit_pipelines.options import (
    ClientImage,
    File,
    JsonOption,
    Pipeline,
    PipelineOption,
    ServerImage,
    Settings,
    errors,
    out,
)
from perfit_pipelines.tracking.live import LiveTracking
from perfit_pipelines.tracking.trackers import Kind, open_tracker
from perfit_pipelines.writing import write_file

if TYPE_CHECKING:
    from perfit.cluster_spec import ClusterSpec
    from perfit.protocol import RoundSummary
    from perfit_components.steps.context import FederationContext
    from perfit_pipelines.cli.display import Work
    from perfit_pipelines.tracking.history import History


@dataclass(frozen=True)
class Results:
    """A federation with committed rounds: the summary of each, and the page of the last one's report."""

    context: FederationContext
    summaries: list[RoundSummary]
    page: bytes

    def complete(self, spec: ClusterSpec) -> bool:
        """Whether a run of this federation has nothing to do."""
        return self.context.spec == spec and self.summaries[-1].round >= spec.rounds


_GO_ON = "run the same command again to go on where it stopped"
_TEMPLATE = Path(__file__).parents[1] / "federation.yaml"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(init)
    app.command()(validate)
    app.command("compile")(compile_)
    app.command()(run)


def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("federation.yaml"),
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented federation file to start from."""
    if file.exists() and not force:
        raise PerfitError(f"{file} exists", "give another name, or --force to overwrite it")
    write_file(file, _TEMPLATE.read_bytes())
    out.print(f"wrote {file}; edit its clients, then: perfit validate {file}", markup=False)


def validate(
    file: File,
    smoothness: Annotated[
        float | None, typer.Option(help="Estimate of the loss's smoothness L: also check the step size of Theorem 1.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check a federation file, and its model and records as far as they are on this machine."""
    from perfit.convergence import step_size_limit
    from perfit.federation_file import load_federation
    from perfit_pipelines.cli.checks import check_federation

    spec = load_federation(file)
    checked = check_federation(spec)
    limit = None if smoothness is None else step_size_limit(smoothness, spec.training.steps)
    if json:
        fields = {"federation": spec.name, "checked": checked.lines, "unknown": checked.unknown}
        print(dumps({**fields, "step_size_limit": limit}, indent=1))
        return
    for line in (*checked.lines, *checked.unknown):
        out.print(printable(line, keep="\n"), markup=False)
    if limit is not None:
        rate = spec.training.learning_rate
        verdict = "within" if rate <= limit else "above"
        out.print(f"learning rate {rate:g} is {verdict} the step size of Theorem 1, {limit:.3g}", markup=False)
    valid = "is valid as far as it can be known here" if checked.unknown else "is valid"
    out.print(f"{file} {valid}: {spec.method.name}, {len(spec.clients)} clients, {spec.rounds} rounds", markup=False)


def compile_(
    file: File,
    output: Annotated[Path, typer.Option("--output", "-o", help="IR to write (.yaml).")],
    pipeline: PipelineOption = Pipeline.TUNING,
    store: Annotated[
        str | None, typer.Option(help="Default of the pipeline's parameter `store`; else the file's.")
    ] = None,
    client_image: ClientImage = None,
    server_image: ServerImage = None,
) -> None:
    """Compile a federation to a pipeline that Kubeflow takes."""
    from perfit.federation_file import load_federation
    from perfit_pipelines.compile import PARAMETER_BYTES, compile_pipeline
    from perfit_pipelines.pipelines import Images

    spec = load_federation(file)
    uri = store or spec.store
    if not uri:
        raise PerfitError(f"{file} names no store", "add `store: s3://bucket/prefix`, or give --store")
    size = compile_pipeline(spec, pipeline.value, uri, output, Images.of(client_image, server_image))
    if not size.is_listed:
        errors.print(f"warning: {size.listing_stops}", markup=False)
    if (length := len(spec.to_json().encode())) > PARAMETER_BYTES:
        errors.print(
            f"warning: the federation file has {length:,} bytes, and the UI's form can send {PARAMETER_BYTES:,} unless "
            "Kubeflow's API server has another MAX_PARAMETER_BYTES: start it with perfit submit",
            markup=False,
        )
    out.print(f"wrote {output}: upload it in the Kubeflow UI, or with kfp.Client", markup=False)


def run(
    file: File,
    settings: Settings = None,
    method: Annotated[
        str | None, typer.Option(help="Run by another method, with its default options, beside the file's.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, say what would run, and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory for adapters, report and log; else a place of the user's own."),
    ] = None,
    store: StoreOption = None,
    track: Annotated[
        list[Kind] | None,
        typer.Option(help="Write metrics to it after each round; may be repeated.", envvar="PERFIT_TRACK"),
    ] = None,
) -> None:
    """Run a federation on this machine, through the compiled pipeline and KFP's local runner."""
    from perfit.federation_file import load_federation
    from perfit_components.steps.prepare import AS_IN_FILE, by_method, directory_of
    from perfit_components.steps.report import round_times
    from perfit_pipelines.cli.results import write_data

    of_file, method = load_federation(file, settings or ()), method or AS_IN_FILE
    spec, name, uri = by_method(of_file, method), directory_of(of_file, method), store or of_file.store
    say = Console(quiet=True) if quiet else out
    if uri is None and spec.remote_tiers():
        raise PerfitError(
            f"tier {spec.remote_tiers()[0]!r} is remote, and this machine's own store is for this command alone",
            "give --store, of a store that the clients' owners reach too",
        )
    if dry_run:
        return _say_work(spec, name, uri, say)
    directory = output or places.results(name, uri)
    trackers = [open_tracker(kind) for kind in dict.fromkeys(track or ())]  # before hours of training
    if unused := is_unused(uri):  # before one is made
        _check_quorum(spec)
    with stopping_is_said(_GO_ON), use_store(uri) as used:
        say.print(f"federation {name}: {spec.method.name}, store {used}", markup=False)
        results, tracking = _results(name, used), LiveTracking(trackers, lambda: _history(name, used))
        if results and results.complete(spec):
            say.print(_nothing_to_do(spec), markup=False)
        else:
            if not unused:
                _check_quorum(spec)
            _run_pipeline(of_file, method, used, directory, _work(spec, results), say, tracking)
            results = _results(name, used)
        _export(results, directory / "adapters")
        write_file(directory / "report.html", results.page)
        times = round_times(results.context, results.summaries)
        write_data(results.context.spec, results.summaries, times, directory / "report.html")
        _say_results(results, directory, say)
        for line in tracking.finish():
            say.print(line, markup=False)


def _say_work(spec: ClusterSpec, name: str, uri: str | None, console: Console) -> None:
    """Check a federation's records and say what a run of it would do; no store is made."""
    results, where = None, f"of this machine, in {places.home()}"
    if not is_unused(uri):
        with use_store(uri, existing=True) as used:
            results, where = _results(name, used), str(used)
    console.print(f"federation {name}: {spec.method.name}, store {where}", markup=False)
    if results and results.complete(spec):
        console.print(_nothing_to_do(spec), markup=False)
    else:
        _check_quorum(spec)
        console.print(str(_work(spec, results)), markup=False)


def _say_results(results: Results, directory: Path, console: Console) -> None:
    from perfit_pipelines.cli.results import client_table, lost_lines

    console.print(client_table(results.summaries))
    for line in lost_lines(results.summaries[-1].lost):
        console.print(line, markup=False)
    how = "each with a README that says how to load it"
    console.print(f"adapters: {directory}/adapters/<client>  ({how})", markup=False)
    console.print(f"report:   {directory}/report.html", markup=False)


def _nothing_to_do(spec: ClusterSpec) -> str:
    return f"all {spec.rounds} rounds are committed: there is nothing to do"


def _work(spec: ClusterSpec, results: Results | None) -> Work:
    from perfit_pipelines.cli.display import Work
    from perfit_report import last_records

    if results is None:
        return Work.of(spec, 1, 0)
    return Work.of(spec, min(results.summaries[-1].round + 1, spec.rounds), len(last_records(results.summaries)))


def _run_pipeline(
    of_file: ClusterSpec,
    method: str,
    used: Store,
    directory: Path,
    work: Work,
    console: Console,
    tracking: LiveTracking,
) -> None:
    from perfit_pipelines.cli.display import RunDisplay
    from perfit_pipelines.local_run import run_locally

    with RunDisplay(work, console) as display, tracking:

        def on_line(line: str) -> None:
            display.on_line(line)
            tracking.on_line(line)

        run_locally(of_file, used.uri, used.environment, directory, on_line, work.first, method)


def _export(results: Results, directory: Path) -> None:
    """Write the adapters of the clients of the last round, where they are not written already."""
    from perfit_pipelines.export import Exporter

    exporter = Exporter(results.context)
    for record in results.summaries[-1].trained:
        if not exporter.is_written(record.client, directory / record.client):
            exporter.write_adapter(record.client, directory / record.client)


def _results(name: str, used: Store) -> Results | None:
    """Return what the store has of a federation; None if no round is committed, or something of them is lost."""
    from perfit_components.steps.context import place_of
    from perfit_storage import ObjectNotFound

    try:
        context = used.federation(name)
        summaries = context.summaries()
        return Results(context, summaries, context.store.read_report(place_of(summaries[-1]))) if summaries else None
    except ObjectNotFound:  # a run from the first round makes it again
        return None


def _history(name: str, used: Store) -> History | None:
    """Return what can be tracked of a federation; None before its first round is committed.

    The libraries are this machine's: the tasks of a local run have no others.
    """
    from perfit_pipelines.tracking.history import read_history
    from perfit_report import versions
    from perfit_storage import ObjectNotFound

    try:
        return read_history(used.federation(name), versions())
    except ObjectNotFound:
        return None


def _check_quorum(spec: ClusterSpec) -> None:
    """Read the records that are here; go on without clients whose records are no use, if enough others are left."""
    from perfit_pipelines.cli.checks import check_records

    checked = check_records(spec)
    error, left = checked.error(), len(spec.clients) - len(checked.errors)
    if error and left < spec.participation.minimum_clients:
        raise error
    if error:
        errors.print(f"[bold yellow]going on without[/] {', '.join(checked.errors)}:", soft_wrap=True)
        errors.print(f"{printable(error.problem, keep=chr(10))}\n  fix: {error.fix}", markup=False)
