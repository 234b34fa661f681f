"""Options and steps that the commands of this package share."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from perfit_pipelines.cluster.endpoint import Endpoint

if TYPE_CHECKING:
    from perfit.spec import Federation
    from perfit_pipelines.cluster.client import Kubeflow
    from perfit_pipelines.cluster.upload import Version
    from perfit_pipelines.compile import PipelineName

CREDENTIALS = (
    "Credentials come from the environment: PERFIT_KFP_TOKEN (a bearer token) or PERFIT_KFP_COOKIES (cookies of a "
    "browser session that is logged in). Without --host, a pod uses its service account, other machines a kubeconfig."
)

out = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

File = Annotated[Path, typer.Argument(help="Federation file (YAML).", show_default=False)]
Store = Annotated[str | None, typer.Option(help="s3://bucket/prefix that the pods use; else the file's.")]
Experiment = Annotated[str | None, typer.Option(help="Experiment of the runs; else the federation's name.")]
ServiceAccount = Annotated[
    str | None,
    typer.Option(help="Service account of the pods; the manifests bring perfit-runner, which may read no Secret."),
]
ClientImage = Annotated[str | None, typer.Option(help="Image of the clients' tasks.")]
ServerImage = Annotated[str | None, typer.Option(help="Image of the server's tasks.")]


def _endpoint(
    host: Annotated[
        str | None, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="URL of Kubeflow Pipelines' UI or API.")
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(envvar="PERFIT_KFP_NAMESPACE", help="Of your profile, where Kubeflow serves several users."),
    ] = None,
    ui_host: Annotated[
        str | None,
        typer.Option(envvar="KF_PIPELINES_UI_ENDPOINT", help="URL of the UI for links, where --host is the bare API."),
    ] = None,
    ca_cert: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Certificate of the authority that signed the server's."),
    ] = None,
    verify_ssl: Annotated[bool, typer.Option(help="Check the server's certificate.")] = True,
) -> Endpoint:
    token, cookies = os.environ.get("PERFIT_KFP_TOKEN"), os.environ.get("PERFIT_KFP_COOKIES")
    return Endpoint(host, namespace, token or None, cookies or None, ui_host, ca_cert, verify_ssl)


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of the connection, in place of its parameter ``endpoint``."""
    options = inspect.signature(_endpoint, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        connection = {name: given.pop(name) for name in options}
        command(endpoint=_endpoint(**connection), **given)

    parameters = [parameter for name, parameter in own.items() if name != "endpoint"] + list(options.values())
    # Typer reads the signature and, beside it, the annotations.
    with_options.__signature__ = inspect.Signature(
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def publish(
    endpoint: Endpoint,
    spec: Federation,
    pipeline: PipelineName,
    store: str | None,
    client_image: str | None,
    server_image: str | None,
) -> tuple[Kubeflow, Version]:
    """Connect, and bring a federation's pipeline to Kubeflow; what is doubtful is said before.

    Raises:
        PerfitError: The pods cannot use the store, or Kubeflow cannot be used.
    """
    from perfit_pipelines.cluster.client import connect
    from perfit_pipelines.cluster.upload import LIMITED, cluster_store, unreachable_data, upload, without_limits
    from perfit_pipelines.pipelines import Images

    uri, default = cluster_store(spec, store), Images()
    for warning in unreachable_data(spec):
        errors.print(f"warning: {warning}", markup=False)
    kubeflow = connect(endpoint)
    if kubeflow.version and kubeflow.version < LIMITED:
        errors.print("warning: this Kubeflow Pipelines is older than 2.17: the run has no deadline, its workflow stays")
        spec = without_limits(spec)
    images = Images(client_image or default.client, server_image or default.server)
    version = upload(kubeflow, spec, pipeline, uri, images)
    state = "uploaded" if version.uploaded else "unchanged since it was uploaded"
    say(f"pipeline {version.pipeline}, version {version.name} ({state})", kubeflow.link(version.page))
    return kubeflow, version


def say(text: str, link: str | None) -> None:
    """Print a line, with a link into the UI where there is one."""
    out.print(f"{text}: {link}" if link else text, markup=False)
