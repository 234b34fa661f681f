"""The command ``data partition``: one data set split into the files of several clients."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from perfit.errors import PerfitError


class Scheme(StrEnum):
    """How a data set is split into clients."""

    IID = "iid"
    CATEGORY = "category"
    DIRICHLET = "dirichlet"


def register(app: typer.Typer) -> None:
    """Add the command, in a group of its own."""
    group = typer.Typer(no_args_is_help=True, help="Prepare data sets.")
    group.command()(partition)
    app.add_typer(group, name="data")


def partition(
    source: Annotated[str, typer.Argument(help="JSON lines, Parquet, or a hub data set as owner/name:split.")],
    directory: Annotated[Path, typer.Argument(help="Where the clients' files go.")],
    clients: Annotated[int, typer.Option(min=1, help="How many clients.")],
    scheme: Annotated[Scheme, typer.Option(help="How records are distributed.")] = Scheme.IID,
    label: Annotated[str, typer.Option(help="Field that category and dirichlet go by.")] = "category",
    categories_per_client: Annotated[int, typer.Option(min=1, help="With category: how many each client gets.")] = 1,
    alpha: Annotated[float, typer.Option(help="With dirichlet: concentration; small is uneven.")] = 0.5,
    held_out: Annotated[float, typer.Option(help="Fraction of each client's records that is held out.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace files of an earlier split.")] = False,
) -> None:
    """Split a data set into clients, and print the clients section of a federation file."""
    import yaml

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


def split_data_set(
    source: str,
    directory: Path,
    *,
    clients: int,
    scheme: str,
    label: str,
    categories_per_client: int,
    alpha: float,
    held_out_fraction: float,
    seed: int,
    overwrite: bool,
) -> list[dict[str, str]]:
    """Split a data set, write each client's training and held-out records, and return their entries.

    Args:
        source: As in :func:`perfit.records.read_records`.
        directory: Where the files go.
        clients: How many.
        scheme: ``iid``, ``category`` or ``dirichlet``.
        label: Field that the last two go by.
        categories_per_client: For ``category``.
        alpha: For ``dirichlet``.
        held_out_fraction: Of each client's records.
        seed: Of the split.
        overwrite: Replace files of an earlier split.

    Returns:
        The ``clients`` section of a federation file.

    Raises:
        PerfitError: The data cannot be read or split so; nothing is written.
    """
    from perfit.partition import by_category, dirichlet, iid, write_partition
    from perfit.records import check_records

    records = check_records(source, also=[label]).usable
    if scheme == "iid":
        parts = iid(len(records), clients, seed)
    else:
        without = [record.line for record in records if not isinstance(record.fields.get(label), str)]
        if without:
            raise PerfitError(
                f"{source}: {len(without)} records have no text in the field {label!r}, the first in line {without[0]}",
                "name the field that holds the category with --label, or use --scheme iid",
            )
        labels = [record.fields[label] for record in records]
        if scheme == "category":
            parts = by_category(labels, clients, seed, categories_per_client=categories_per_client)
        else:
            parts = dirichlet(labels, clients, alpha, seed, minimum=2)
    names = [f"client-{number}" for number in range(1, clients + 1)]
    return write_partition(records, parts, names, directory, held_out_fraction, seed, overwrite=overwrite)
