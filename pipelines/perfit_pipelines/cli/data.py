"""The command ``data partition``: one data set split into the files of several clients."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Scheme(StrEnum):
    """How a data set is split into clients."""

    IID = "iid"
    CATEGORY = "category"
    DIRICHLET = "dirichlet"
    USER = "user"


def register(app: typer.Typer) -> None:
    """Add the command, in a group of its own."""
    group = typer.Typer(no_args_is_help=True, help="Prepare data sets.")
    group.command()(partition)
    app.add_typer(group, name="data")


def partition(
    source: Annotated[str, typer.Argument(help="JSON lines, Parquet, or a hub data set as owner/name:split.")],
    directory: Annotated[Path, typer.Argument(help="Where the clients' files go.")],
    clients: Annotated[int | None, typer.Option(min=1, help="How many clients; with user, else all users.")] = None,
    scheme: Annotated[Scheme, typer.Option(help="How records are distributed.")] = Scheme.IID,
    label: Annotated[str, typer.Option(help="Field that category, dirichlet and user go by.")] = "category",
    categories_per_client: Annotated[int, typer.Option(min=1, help="With category: how many each client gets.")] = 1,
    alpha: Annotated[float, typer.Option(help="With dirichlet: concentration; small is uneven.")] = 0.5,
    minimum: Annotated[int, typer.Option(min=2, help="With dirichlet and user: fewest records of a client.")] = 2,
    held_out: Annotated[float, typer.Option(help="Fraction of each client's records that is held out.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace files of an earlier split.")] = False,
) -> None:
    """Split a data set into clients, and print the clients section of a federation file."""
    import yaml

    from perfit.partition import partition_records
    from perfit.split import Split

    split = Split.model_construct(
        scheme=scheme.value,
        clients=clients,
        label=label,
        categories_per_client=categories_per_client,
        alpha=alpha,
        minimum=minimum,
    )
    entries = partition_records(source, directory, split, held_out_fraction=held_out, seed=seed, overwrite=overwrite)
    print(yaml.safe_dump({"clients": entries}, sort_keys=False), end="")
