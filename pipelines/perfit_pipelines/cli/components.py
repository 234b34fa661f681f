"""The command ``components``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perfit_pipelines.options import ClientImage, ServerImage, out


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(components)


def components(
    directory: Annotated[Path, typer.Argument(help="Where to write them.")],
    owner: Annotated[list[str], typer.Option(help="GitHub name of who looks after them; may be repeated.")],
    client_image: ClientImage = None,
    server_image: ServerImage = None,
) -> None:
    """Write the components for other pipelines: component.yaml, and what Kubeflow's catalog of components asks for."""
    from perfit_pipelines.catalog import COMPONENTS, write_catalog
    from perfit_pipelines.pipelines import Images

    group = write_catalog(directory, Images.of(client_image, server_image), owner)
    out.print(f"wrote {', '.join(COMPONENTS)} to {group}: load one with", markup=False)
    out.print(f'  kfp.components.load_component_from_file("{group}/{COMPONENTS[0]}/component.yaml")', markup=False)
