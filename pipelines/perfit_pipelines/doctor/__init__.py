"""``perfit doctor``: whether a cluster is ready for a federation, before anything is booked."""

from __future__ import annotations

from typing import Annotated

import typer

from perfit_pipelines.cluster.connection import Endpoint
from perfit_pipelines.cluster.options import CREDENTIALS, connecting
from perfit_pipelines.options import ClientImage, File, PodStore, ServerImage, out

_STANDALONE = "kubeflow"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", epilog=CREDENTIALS)(connecting(doctor))


def doctor(
    endpoint: Endpoint,
    file: File,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig; else its current one.")] = None,
    store: PodStore = None,
    store_endpoint: Annotated[
        str | None, typer.Option(help="URL of the store as this machine reaches it; else that of the Secrets.")
    ] = None,
    service_account: Annotated[str, typer.Option(help="Service account that runs use.")] = "perfit-runner",
    client_image: ClientImage = None,
    server_image: ServerImage = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check whether a cluster is ready for a federation, before anything is booked. Nothing is changed.

    Exit code: 0 if nothing was found that is certain to stop a run, 1 otherwise.
    """
    from perfit.federation_file import load_federation
    from perfit_components.images import CLIENT_IMAGE, SERVER_IMAGE
    from perfit_pipelines.doctor.checks import Setup, run_checks
    from perfit_pipelines.doctor.finding import as_json, succeeded, summary, table

    spec = load_federation(file)
    namespace = endpoint.namespace or _STANDALONE
    images = (client_image or CLIENT_IMAGE, server_image or SERVER_IMAGE)
    uri = store or spec.store
    findings = run_checks(Setup(spec, endpoint, namespace, context, uri, store_endpoint, service_account, images))
    if json:
        typer.echo(as_json(findings))
    else:
        out.print(table(findings))
        out.print(summary(findings), markup=False)
    raise typer.Exit(0 if succeeded(findings) else 1)
