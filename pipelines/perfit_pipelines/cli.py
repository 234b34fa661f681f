"""The ``perfit`` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from perfit.errors import PerfitError
from perfit_pipelines import deploy, doctor
from perfit_pipelines.cluster import commands as cluster
from perfit_pipelines.stores import STATE, use_store
from perfit_storage import StoreError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Personalised federated instruction tuning on Kubeflow Pipelines.",
)
data_app = typer.Typer(no_args_is_help=True, help="Prepare data sets.")
app.add_typer(data_app, name="data")

out = Console(highlight=False, soft_wrap=True, emoji=False)

File = Annotated[Path, typer.Argument(help="Federation file (YAML).", show_default=False)]
StoreOption = Annotated[
    str | None,
    typer.Option(help="s3://bucket/prefix (keys from AWS_* variables) or file:///DIR; else this machine's own."),
]
NameOption = Annotated[
    str | None, typer.Option("--federation", "-f", help="Name of the federation, if the store has several.")
]


class Pipeline(StrEnum):
    """The pipelines that can be compiled."""

    TUNING = "federated_tuning"
    ROUND = "federated_round"


class Scheme(StrEnum):
    """How a data set is split into clients."""

    IID = "iid"
    CATEGORY = "category"
    DIRICHLET = "dirichlet"


def main() -> None:
    """Run the command; a user's mistake is two lines, not a traceback."""
    try:
        app()
    except (PerfitError, StoreError) as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        console.print("[bold red]error:[/]", end=" ")
        console.print(error.problem, markup=False)
        console.print("  [bold]fix:[/]", end=" ")
        console.print(error.fix, markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on where it stopped", file=sys.stderr)
        sys.exit(130)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("federation.yaml"),
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented federation file to start from."""
    if file.exists() and not force:
        raise PerfitError(f"{file} exists", "give another name, or --force to overwrite it")
    from perfit_storage.files import write_atomically

    template = Path(__file__).with_name("federation.yaml").read_text(encoding="utf-8")
    try:
        write_atomically(file, template.encode())
    except OSError as error:
        raise PerfitError(f"{file} cannot be written: {error}", "give a path in a directory that exists") from error
    out.print(f"wrote {file}; edit its clients, then: perfit validate {file}", markup=False)


@app.command()
def validate(
    file: File,
    smoothness: Annotated[
        float | None, typer.Option(help="Estimate of the loss's smoothness L: also check the step size of Theorem 1.")
    ] = None,
) -> None:
    """Check a federation file and the records that lie on this machine."""
    from perfit.convergence import step_size_limit
    from perfit.federation_file import load_federation
    from perfit_pipelines.preflight import check_data

    spec = load_federation(file)
    for line in check_data(spec):
        out.print(line, markup=False)
    if smoothness is not None:
        limit = step_size_limit(smoothness, spec.training.steps)
        rate = spec.training.learning_rate
        verdict = "within" if rate <= limit else "above"
        out.print(f"learning rate {rate:g} is {verdict} the step size of Theorem 1, {limit:.3g}", markup=False)
    out.print(f"{file} is valid: {spec.method.name}, {len(spec.clients)} clients, {spec.rounds} rounds", markup=False)


@app.command("compile")
def compile_(
    file: File,
    output: Annotated[Path, typer.Option("--output", "-o", help="IR to write (.yaml).")],
    pipeline: Annotated[Pipeline, typer.Option(help="All rounds, or one round from the head.")] = Pipeline.TUNING,
    store: Annotated[
        str | None, typer.Option(help="Default of the pipeline's parameter `store`; else the file's.")
    ] = None,
    client_image: Annotated[str | None, typer.Option(help="Image of the clients' tasks.")] = None,
    server_image: Annotated[str | None, typer.Option(help="Image of the server's tasks.")] = None,
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


@app.command()
def run(file: File, store: StoreOption = None) -> None:
    """Run a federation on this machine, through the compiled pipeline and KFP's local runner."""
    from perfit.federation_file import load_federation
    from perfit_pipelines.display import RunDisplay
    from perfit_pipelines.local_run import run_locally
    from perfit_pipelines.preflight import check_data
    from perfit_pipelines.results import client_table, export_adapter, write_report

    spec = load_federation(file)
    check_data(spec)
    directory = STATE / spec.name
    with use_store(store or spec.store) as opened:
        out.print(f"federation {spec.name}: {spec.method.name}, store {opened.uri}", markup=False)
        with RunDisplay(spec, out) as display:
            run_locally(spec, opened.uri, opened.environment, directory, display.on_line)
        federation = opened.federation(spec.name)
        summaries = federation.summaries()
        for record in summaries[-1]["clients"]:
            if record["status"] == "trained":
                export_adapter(federation, record["client"], directory / "adapters" / record["client"])
        write_report(federation, directory / "report.html")
    out.print(client_table(summaries))
    out.print(f"adapters: {directory}/adapters/<client>  (PeftModel.from_pretrained loads them)", markup=False)
    out.print(f"report:   {directory}/report.html", markup=False)


@app.command()
def status(federation: NameOption = None, store: StoreOption = None) -> None:
    """Show where a federation stands."""
    from perfit_pipelines.results import client_table, round_table

    with use_store(store) as opened:
        files = opened.federation(federation)
        head, summaries = files.read_head(), files.summaries()
    out.print(f"{files.uri}: round {head.round} committed, global adapter sha256 {head.sha256[:12]}", markup=False)
    if summaries:
        out.print(round_table(summaries))
        out.print(client_table(summaries))


@app.command()
def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    federation: NameOption = None,
    store: StoreOption = None,
) -> None:
    """Draw the report of all committed rounds."""
    from perfit_pipelines.results import write_report

    with use_store(store) as opened:
        write_report(opened.federation(federation), output)
    out.print(f"wrote {output}", markup=False)


@app.command()
def export(
    client: Annotated[str, typer.Argument(help="Id of the client.")],
    directory: Annotated[Path, typer.Argument(help="PEFT directory to write.")],
    federation: NameOption = None,
    store: StoreOption = None,
) -> None:
    """Write a client's personal adapter as a directory that PEFT loads."""
    from perfit_pipelines.results import export_adapter

    with use_store(store) as opened:
        export_adapter(opened.federation(federation), client, directory)
    out.print(
        f"wrote {directory}; load it with PeftModel.from_pretrained(base_model, {str(directory)!r})", markup=False
    )


@data_app.command()
def partition(
    source: Annotated[str, typer.Argument(help="JSON lines, Parquet, or a hub data set as owner/name:split.")],
    directory: Annotated[Path, typer.Argument(help="Where the clients' files go.")],
    clients: Annotated[int, typer.Option(min=1, help="How many clients.")],
    scheme: Annotated[Scheme, typer.Option(help="How records are spread.")] = Scheme.IID,
    label: Annotated[str, typer.Option(help="Field that category and dirichlet go by.")] = "category",
    categories_per_client: Annotated[int, typer.Option(min=1, help="With category: how many a client gets.")] = 1,
    alpha: Annotated[float, typer.Option(help="With dirichlet: concentration; small is uneven.")] = 0.5,
    held_out: Annotated[float, typer.Option(help="Fraction of each client's records that is held out.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace files of an earlier split.")] = False,
) -> None:
    """Split a data set into clients, and print the clients section of a federation file."""
    import yaml

    from perfit_pipelines.partitioning import split_data_set

    entries = split_data_set(
        source,
        directory,
        clients=clients,
        scheme=scheme.value,
        label=label,
        categories_per_client=categories_per_client,
        alpha=alpha,
        held_out_fraction=held_out,
        seed=seed,
        overwrite=overwrite,
    )
    print(yaml.safe_dump({"clients": entries}, sort_keys=False), end="")


for commands in (cluster, deploy, doctor):
    commands.register(app)
