"""``perfit data partition``: one data set into the files of several clients."""

from __future__ import annotations

from pathlib import Path

from perfit.errors import PerfitError
from perfit.partition import by_category, dirichlet, iid, write_partition
from perfit.records import check_records


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
    records = check_records(source).usable
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
