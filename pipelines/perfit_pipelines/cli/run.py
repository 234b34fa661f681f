"""The commands ``init``, ``validate``, ``compile`` and ``run``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perfit.errors import PerfitError
from perfit_pipelines import places
from perfit_pipelines.cli.stores import Store, StoreOption, use_store
from perfit_pipelines.options import (
    INTERRUPTED,
    ClientImage,
    File,
    Pipeline,
    PipelineOption,
    ServerImage,
    errors,
    out,
)
from perfit_storage import ObjectNotFound
from perfit_storage.files import write_atomically

if TYPE_CHECKING:
    from perfit.cluster_spec import ClusterClient, ClusterSpec
    from perfit.protocol import RoundSummary
    from perfit_components.steps.context import FederationContext


@dataclass(frozen=True)
class Results:
    """A federation with committed rounds: the summary of each, and the page of the last one's report."""

    context: FederationContext
    summaries: list[RoundSummary]
    page: bytes


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
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory for adapters, report and log; else a place of the user's own."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Run a federation on this machine, through the compiled pipeline and KFP's local runner."""
    from perfit.federation_file import load_federation
    from perfit_pipelines.cli.results import client_table, export_adapter

    spec = load_federation(file)
    uri = store or spec.store
    directory = output or places.results(spec.name, uri)
    with use_store(uri) as used:
        out.print(f"federation {spec.name}: {spec.method.name}, store {used}", markup=False)
        results = _results(spec, used)
        last = results.summaries[-1].round if results else 0
        if results and results.context.spec == spec and last >= spec.rounds:
            out.print(f"all {spec.rounds} rounds are committed: there is nothing to do", markup=False)
        else:
            _run_pipeline(spec, used, directory, first=min(last + 1, spec.rounds))
            results = _results(spec, used)
        for record in results.summaries[-1].trained:
            export_adapter(results.context, record.client, directory / "adapters" / record.client)
        write_atomically(directory / "report.html", results.page)
    out.print(client_table(results.summaries))
    out.print(f"adapters: {directory}/adapters/<client>  (PeftModel.from_pretrained loads them)", markup=False)
    out.print(f"report:   {directory}/report.html", markup=False)


def _results(spec: ClusterSpec, used: Store) -> Results | None:
    """Return what the store has of a federation; None if no round is committed, or something of them is lost."""
    from perfit_components.steps.context import place_of

    try:
        context = used.federation(spec.name)
        summaries = context.summaries()
        return Results(context, summaries, context.store.read_report(place_of(summaries[-1]))) if summaries else None
    except ObjectNotFound:  # a run from the first round makes it again
        return None


def _run_pipeline(spec: ClusterSpec, used: Store, directory: Path, first: int) -> None:
    from perfit_pipelines.cli.display import RunDisplay
    from perfit_pipelines.local_run import run_locally

    check_data(spec)
    try:
        with RunDisplay(spec, out) as display:
            run_locally(spec, used.uri, used.environment, directory, display.on_line, first)
    except KeyboardInterrupt:  # which typer would turn into the same code without a word
        errors.print("stopped; run the same command again to go on where it stopped", markup=False)
        raise typer.Exit(INTERRUPTED) from None


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
    from perfit.records import check_records

    if not is_local(uri):
        return f"{client.id}: {uri} is not on this machine and was not read"
    checked = check_records(uri, spec.data.bad_records)
    if len(checked.usable) < 2 and not client.held_out:
        raise PerfitError(f"{uri}: one record, of which none can be held out", "give more records, or held_out records")
    skipped = "".join(f"\n  skipped line {line}: {reason}" for line, reason in checked.skipped)
    return f"{client.id}: {uri}: {len(checked.usable)} records{skipped}"
