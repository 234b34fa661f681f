"""``perfit deploy``: an overlay of manifests/ with the credentials of a federation's server and clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perfit_pipelines.options import File, PodStore


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(deploy)


def deploy(
    file: File,
    overlay: Annotated[str, typer.Option(help="Name of an overlay in manifests/overlays, or a path.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory to write; else a place of the user's own."),
    ] = None,
    apply: Annotated[bool, typer.Option(help="Apply it with kubectl instead, and leave nothing on disk.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="With --apply: only let the server check it; its namespaces must exist.")
    ] = False,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Where runs live; else where the overlay puts them.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig; else its current one.")] = None,
    store: PodStore = None,
    endpoint: Annotated[
        str | None, typer.Option(help="URL of the store as pods reach it; else that of the overlay's own.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="Region of the store; else us-east-1.")] = None,
    offline: Annotated[
        bool, typer.Option(help="Do not ask the cluster for the keys that it has: nothing is deployed there yet.")
    ] = False,
    rotate: Annotated[
        str | None, typer.Option(metavar="CLIENT|server|all", help="Generate a new key; all others are kept.")
    ] = None,
    owners: Annotated[
        Path | None, typer.Option(help="Directory for the keys of remote clients, a file for each owner.")
    ] = None,
    owner_endpoint: Annotated[
        str | None, typer.Option(help="URL of the store as owners of remote clients reach it.")
    ] = None,
) -> None:
    """Add the credentials of a federation's server and clients to an overlay, as Secrets; none is ever shown."""
    from perfit_pipelines.deploy.apply import Request, apply_overlay, write_overlay

    request = Request(
        file, overlay, namespace, context, store, endpoint, region, rotate, offline, owners, owner_endpoint
    )
    lines = apply_overlay(request, dry_run) if apply else write_overlay(request, output)
    for line in lines:
        typer.echo(line)
