"""The command ``client``: an owner's own side of a federation, without Kubeflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from perfit.errors import PerfitError
from perfit_pipelines.cli.stopping import stopping_is_said
from perfit_pipelines.options import out

if TYPE_CHECKING:
    from perfit_components.remote_client import RemoteClient


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(client)


def client(
    federation: Annotated[
        str,
        typer.Option(
            envvar="PERFIT_FEDERATION",
            help="s3://bucket/prefix/federations/NAME; the client's key from AWS_* variables.",
        ),
    ],
    id: Annotated[str, typer.Option(envvar="PERFIT_CLIENT", help="The client's id in the federation file.")],
    data: Annotated[
        str | None, typer.Option(help="Its records: a .jsonl, .json or .parquet file, s3://bucket/key or a hub id.")
    ] = None,
    held_out: Annotated[str | None, typer.Option(help="Held-out records; else a fraction of the records.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Where this machine has the base model; else it is looked for by its name.")
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(
            envvar="PERFIT_DIGEST", help="Of the terms that are agreed to (--show-terms); others are refused."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of a training; 0 for torch's own choice.")] = 0,
    rounds: Annotated[int | None, typer.Option(min=1, help="End after so many rounds; else go on for ever.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="End, with code 4, if no round begins within so many seconds.")
    ] = None,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks into the store, at most.")] = 60.0,
    show_terms: Annotated[
        bool, typer.Option("--show-terms", help="Print what the client agrees to, and its digest, and stop.")
    ] = False,
) -> None:
    """Take part in a federation's rounds as a process of one's own: wait, train, upload, without Kubeflow.

    Exit codes: 0 done, 1 what was given or found is wrong, 3 a round failed, 4 timed out, 130 Ctrl-C, 143 SIGTERM.
    """
    from perfit.locations import check_records_uri
    from perfit_components.remote_client import Limits, RemoteClient
    from perfit_components.steps.owner import Owner

    if show_terms:
        return _show_terms(RemoteClient(federation, id, Owner("")))
    if data is None:
        raise PerfitError("no records are named", "give --data: the owner's records are not in the federation file")
    owner = Owner(check_records_uri(data), held_out and check_records_uri(held_out), model, digest)
    remote = RemoteClient(federation, id, owner, threads, Limits(rounds, timeout, poll))
    with stopping_is_said("start it again to go on where it stopped"):
        code = remote.run()
    raise typer.Exit(code)


def _show_terms(remote: RemoteClient) -> None:
    from perfit_components.steps.owner import show_terms, terms_digest, terms_of

    context, entry = remote.find()
    terms = terms_of(context.spec, entry)
    out.print(show_terms(terms), end="", markup=False)
    out.print(f"# digest: {terms_digest(terms)}", markup=False)
