"""The commands ``init``, ``validate``, ``compile`` and ``run``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from perfit.errors import PerfitError
from perfit_pipelines.cli.stopping import stopping_is_said
from perfit_pipelines.cli.stores import Store, StoreOption, use_store
from perfit_pipelines.options import (
    STATE,
    ClientImage,
    File,
    Pipeline,
    PipelineOption,
    ServerImage,
    Settings,
    out,
)
from perfit_storage import ObjectNotFound
from perfit_storage.files import write_atomically

if TYPE_CHECKING:
    from perfit.cluster_spec import ClusterClient, ClusterSpec
    from perfit.protocol import RoundSummary
    from perfit_components.steps.context import FederationContext
    from perfit_pipelines.cli.display import Work


@dataclass(frozen=True)
class Results:
    """A federation with committed rounds: the summary of each, and the page of the last one's report."""

    context: FederationContext
    summaries: list[RoundSummary]
    page: bytes


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
    try:
        write_atomically(file, _TEMPLATE.read_bytes())
    except OSError as error:
        raise PerfitError(f"{file} cannot be written: {error}", "give a path in a directory that exists") from error
    out.print(f"wrote {file}; edit its clients, then: perfit validate {file}", markup=False)


def validate(
    file: File,
    smoothness: Annotated[
        float | None, typer.Option(help="Estimate of the loss's smoothness L: also check the step size of Theorem 1.")
    ] = None,
) -> None:
    """Check a federation file and the records that are on this machine."""
    from perfit.convergence import step_size_limit
    from perfit.federation_file import load_federation

    spec = load_federation(file)
    for line in check_data(spec):
        out.print(line, markup=False)
    if smoothness is not None:
        limit = step_size_limit(smoothness, spec.training.steps)
        rate = spec.training.learning_rate
        verdict = "within" if rate <= limit else "above"
        out.print(f"learning rate {rate:g} is {verdict} the step size of Theorem 1, {limit:.3g}", markup=False)
    out.print(f"{file} is valid: {spec.method.name}, {len(spec.clients)} clients, {spec.rounds} rounds", markup=False)


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
    from perfit_pipelines.compile import compile_pipeline
    from perfit_pipelines.pipelines import Images

    spec = load_federation(file)
    uri = store or spec.store
    if not uri:
        raise PerfitError(f"{file} names no store", "add `store: s3://bucket/prefix`, or give --store")
    default = Images()
    images = Images(client_image or default.client, server_image or default.server)
    compile_pipeline(spec, pipeline.value, uri, output, images)
    out.print(f"wrote {output}: upload it in the Kubeflow UI, or with kfp.Client", markup=False)


def run(
    file: File,
    settings: Settings = None,
    method: Annotated[
        str | None, typer.Option(help="Run by another method, with its default options, beside the file's.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, say what would run, and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    store: StoreOption = None,
) -> None:
    """Run a federation on this machine, through the compiled pipeline and KFP's local runner."""
    from perfit.federation_file import load_federation
    from perfit_components.steps.prepare import AS_IN_FILE, by_method, directory_of
    from perfit_pipelines.cli.results import client_table

    of_file, method = load_federation(file, settings or ()), method or AS_IN_FILE
    spec, name = by_method(of_file, method), directory_of(of_file, method)
    directory, say = STATE / name, Console(quiet=True) if quiet else out
    with stopping_is_said(_GO_ON), use_store(store or spec.store) as used:
        say.print(f"federation {name}: {spec.method.name}, store {used.uri}", markup=False)
        results = _results(name, used)
        if results and results.context.spec == spec and results.summaries[-1].round >= spec.rounds:
            say.print(f"all {spec.rounds} rounds are committed: there is nothing to do", markup=False)
        elif dry_run:
            check_data(spec)
            say.print(str(_work(spec, results)), markup=False)
        else:
            check_data(spec)
            _run_pipeline(of_file, method, used, directory, _work(spec, results), say)
            results = _results(name, used)
        if dry_run:
            return
        _export(results, directory / "adapters")
        write_atomically(directory / "report.html", results.page)
    say.print(client_table(results.summaries))
    say.print(f"adapters: {directory}/adapters/<client>  (each with a README that says how to load it)", markup=False)
    say.print(f"report:   {directory}/report.html", markup=False)


def _work(spec: ClusterSpec, results: Results | None) -> Work:
    from perfit_pipelines.cli.display import Work
    from perfit_report import last_records

    if results is None:
        return Work.of(spec, 1, 0)
    return Work.of(spec, min(results.summaries[-1].round + 1, spec.rounds), len(last_records(results.summaries)))


def _run_pipeline(
    of_file: ClusterSpec, method: str, used: Store, directory: Path, work: Work, console: Console
) -> None:
    from perfit_pipelines.cli.display import RunDisplay
    from perfit_pipelines.local_run import run_locally

    with RunDisplay(work, console) as display:
        run_locally(of_file, used.uri, used.environment, directory, display.on_line, work.first, method)


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

    try:
        context = used.federation(name)
        summaries = context.summaries()
        return Results(context, summaries, context.store.read_report(place_of(summaries[-1]))) if summaries else None
    except ObjectNotFound:  # a run from the first round makes it again
        return None


def check_data(spec: ClusterSpec) -> list[str]:
    """Read all client data that are on this machine.

    Returns:
        For each file a line: how many records it has, and which were skipped.

    Raises:
        PerfitError: Files are missing or records cannot be used; every client with such data is named.
    """
    lines, problems, fixes = [], [], []
    for client in spec.clients:
        for uri in filter(None, (client.data, client.held_out)):
            try:
                lines.append(_check_source(spec, client, uri))
            except PerfitError as error:
                problems.append(f"client {client.id}: {error.problem}")
                fixes.append(error.fix)
    if problems:
        raise PerfitError("\n".join(problems), "; ".join(dict.fromkeys(fixes)))
    return lines


def _check_source(spec: ClusterSpec, client: ClusterClient, uri: str) -> str:
    from perfit.federation_file import is_local
    from perfit.records import check_records, to_messages

    if not is_local(uri):
        return f"{client.id}: {uri} is not on this machine and was not read"
    checked = check_records(uri, spec.data.bad_records)
    first = to_messages(checked.usable[0].fields)
    if not client.held_out and all(to_messages(record.fields) == first for record in checked.usable):
        problem = f"{uri}: {len(checked.usable)} record(s), all of the same messages: none can be held out"
        raise PerfitError(problem, "give more records, or held_out records")
    skipped = "".join(f"\n  skipped line {line}: {reason}" for line, reason in checked.skipped)
    return f"{client.id}: {uri}: {len(checked.usable)} records{skipped}"
