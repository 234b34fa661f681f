"""Splits a data set among clients: at random (independent and identically distributed), by category, by Dirichlet
proportions, or by user.

Each scheme returns one sorted int64 index array per client. The arrays are disjoint and, but for users that are left
out, together hold every record; the same arguments give the same arrays.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from perfit.errors import PerfitError
from perfit.examples import held_out_indices
from perfit.records import Record, RecordReport, check_records
from perfit.split import Split

_CLIENT_ID = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_LONGEST_ID = 63


def split_records(data: RecordReport, split: Split, seed: int) -> list[np.ndarray]:
    """Split the usable records of a source, by any of the schemes.

    Returns:
        Indices into ``data.usable``, one array per client.

    Raises:
        PerfitError: A record lacks the label, the number of clients is missing, or as the scheme's function.
    """
    if split.clients is None and split.scheme != "user":
        raise PerfitError(f"{split.scheme}: no number of clients", "say how many clients there are")
    if split.scheme == "iid":
        return iid(len(data.usable), split.clients, seed)
    without = [record.line for record in data.usable if not isinstance(record.fields.get(split.label), str)]
    if without:
        raise PerfitError(
            f"{data.source}: {len(without)} records have no text in the field {split.label!r}, the first in line "
            f"{without[0]}",
            "name the field that holds the category or the user as the label, or use the scheme iid",
        )
    labels = [record.fields[split.label] for record in data.usable]
    if split.scheme == "user":
        return by_user(labels, split.clients, split.minimum)
    if split.scheme == "category":
        return by_category(labels, split.clients, seed, split.categories_per_client)
    return dirichlet(labels, split.clients, split.alpha, seed, split.minimum)


def iid(n: int, clients: int, seed: int) -> list[np.ndarray]:
    """Shuffle n records and split them among the clients, in numbers that differ by at most one.

    >>> [len(part) for part in iid(7, clients=3, seed=0)]
    [3, 2, 2]

    Raises:
        PerfitError: Fewer records than clients.
    """
    _check_clients(n, clients)
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(part) for part in np.array_split(order, clients)]


def by_category(labels: Sequence[str], clients: int, seed: int, categories_per_client: int = 1) -> list[np.ndarray]:
    """Give each client records of a few categories only.

    The C categories, sorted, form a ring. Client i of N gets the m = `categories_per_client` categories that start at
    position floor(i*C/N). If m = C/N, each category goes to one client. If m is larger, neighbouring clients share
    categories (N = C, m = 2: two clients share each category); a shared category is split at random into disjoint parts
    whose sizes differ by at most one.

    >>> labels = ["tea", "rice", "tea", "rye"]
    >>> rice, rye, tea = by_category(labels, clients=3, seed=0)
    >>> tea.tolist()
    [0, 2]

    Args:
        labels: The category of each record.
        clients: N.
        seed: Seed of the parts of shared categories.
        categories_per_client: m, from ceil(C/N) to C.

    Raises:
        PerfitError: A record has no category; a category would go to no client, or has fewer records than clients that
            share it; or a client would need more categories than there are.
    """
    _check_clients(len(labels), clients)
    categories, category_of = _categories(labels)
    count = len(categories)
    fewest = -(-count // clients)
    if not fewest <= categories_per_client <= count:
        raise PerfitError(
            f"{categories_per_client} categories per client do not fit {clients} clients and {count} categories",
            f"give each client {fewest} to {count} categories",
        )
    assigned = [(i * count // clients + np.arange(categories_per_client)) % count for i in range(clients)]
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for category, name in enumerate(categories):
        sharers = [client for client in range(clients) if category in assigned[client]]
        records = rng.permutation(np.flatnonzero(category_of == category))
        if len(records) < len(sharers):
            raise PerfitError(
                f"category {str(name)!r}: {len(records)} record(s) for {len(sharers)} clients that share it",
                "ask for fewer clients or fewer categories per client, or merge small categories",
            )
        for client, share in zip(sharers, np.array_split(records, len(sharers)), strict=True):
            parts[client].append(share)
    return [np.sort(np.concatenate(part)) for part in parts]


def dirichlet(labels: Sequence[str], clients: int, alpha: float, seed: int, minimum: int = 1) -> list[np.ndarray]:
    """Divide each category among the clients in proportions drawn from Dir(alpha), one draw per category.

    The scheme is that of Yurochkin et al. 2019 (arXiv 1905.12022). Hsu, Qi and Brown 2019 (arXiv 1909.06335) instead
    draw the proportions of the categories for each client. In both, a smaller alpha makes clients less alike.

    The draw may leave a client empty. A client with fewer than `minimum` records therefore takes records one at a time,
    each the last record of the client that has the most at that moment (the first such client on a tie).

    >>> labels = ["tea"] * 6 + ["rice"] * 4
    >>> even = dirichlet(labels, clients=2, alpha=1e6, seed=0)
    >>> [[labels[i] for i in part] for part in even]
    [['tea', 'tea', 'tea', 'rice', 'rice'], ['tea', 'tea', 'tea', 'rice', 'rice']]

    Args:
        labels: The category of each record.
        clients: Number of clients.
        alpha: Concentration, above 0: near 0 a category goes to one client, large values give equal shares.
        seed: Seed of the order of the records and of the proportions.
        minimum: Minimum number of records of a client.

    Raises:
        PerfitError: A record has no category, alpha is not a positive number, or there are too few records for the
            minimum.
    """
    _check_clients(len(labels), clients, minimum)
    if not 0 < alpha < np.inf:
        raise PerfitError(f"alpha {alpha}: not a positive number", "give a concentration such as 0.5")
    categories, category_of = _categories(labels)
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(clients)]
    for category in range(len(categories)):
        records = rng.permutation(np.flatnonzero(category_of == category))
        proportions = rng.dirichlet(np.full(clients, alpha))
        cuts = np.rint(np.cumsum(proportions)[:-1] * len(records)).astype(int)
        for part, share in zip(parts, np.split(records, cuts), strict=True):
            part.extend(share)
    for part in parts:
        while len(part) < minimum:
            part.append(max(parts, key=len).pop())
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


def by_user(users: Sequence[str], clients: int | None = None, minimum: int = 2) -> list[np.ndarray]:
    """Make a client of each user, in the order of their names.

    >>> [part.tolist() for part in by_user(["bo", "al", "bo", "cy", "al", "bo"])]
    [[1, 4], [0, 2, 5]]

    Args:
        users: The user of each record.
        clients: How many: the users with the most records, of equals the first by name; None for all.
        minimum: Users with fewer records are left out.

    Raises:
        PerfitError: Too few users have so many records, or a record has no user.
    """
    names, user_of = _categories(users)
    counts = np.bincount(user_of)
    able = np.flatnonzero(counts >= minimum)
    if len(able) < (clients or 1):
        raise PerfitError(
            f"{len(able)} of {len(names)} users have at least {minimum} records, {clients or 1} are needed",
            "ask for fewer clients or fewer records each, or give more records",
        )
    chosen = able[np.argsort(-counts[able], kind="stable")[:clients]]
    return [np.flatnonzero(user_of == user) for user in np.sort(chosen)]


def _categories(labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the categories, sorted, and for each record the index of its category."""
    missing = [i for i, label in enumerate(labels, start=1) if label is None or label == ""]
    if missing:
        raise PerfitError(
            f"record {missing[0]}: no category (missing in {len(missing)} of {len(labels)} records)",
            "give each record a category, or leave those records out",
        )
    return np.unique(np.array([str(label) for label in labels]), return_inverse=True)


def _check_clients(n: int, clients: int, minimum: int = 1) -> None:
    if clients < 1 or minimum < 1:
        raise PerfitError(f"{clients} clients of at least {minimum} record(s)", "give numbers from 1 on")
    if n < clients * minimum:
        raise PerfitError(
            f"{n} records: too few for {clients} clients of at least {minimum} record(s)",
            f"ask for at most {n // minimum} clients, or give more records",
        )


def client_names(count: int) -> list[str]:
    """Return ids of so many clients: client-1, client-2, ..."""
    return [f"client-{number}" for number in range(1, count + 1)]


def write_partition(
    records: Sequence[Record],
    parts: Sequence[np.ndarray],
    names: Sequence[str],
    directory: str | Path,
    held_out_fraction: float,
    seed: int,
    *,
    overwrite: bool = False,
) -> list[dict[str, str]]:
    """Write each client's records, with their original fields, as JSON lines.

    All files are written to a temporary directory first, then moved into place: a failure leaves none half-written.

    Args:
        records: The data set.
        parts: Indices into the records, one array per client.
        names: Client ids, one per part.
        directory: Where `<client>.train.jsonl` and `<client>.held-out.jsonl` go; created if missing.
        held_out_fraction: Share of each client's records to hold out.
        seed: Seed of the draw; client i uses (seed, i).
        overwrite: Whether to replace existing files.

    Returns:
        The `clients` section of a federation file: `{"id", "data", "held_out"}` each, with the files' paths.

    Raises:
        PerfitError: A bad or repeated client id, a client with fewer than 2 records, files that already exist, or a
            record that JSON cannot hold. Nothing is written.
    """
    _check_names(names)
    directory = Path(directory)
    contents: dict[Path, bytes] = {}
    clients = []
    for i, (name, part) in enumerate(zip(names, parts, strict=True)):
        train, held_out = _split_client(name, part, held_out_fraction, [seed, i])
        files = [directory / f"{name}.{kind}.jsonl" for kind in ("train", "held-out")]
        contents |= {file: _lines(records, indices) for file, indices in zip(files, (train, held_out), strict=True)}
        clients.append({"id": name, "data": str(files[0]), "held_out": str(files[1])})
    existing = [file.name for file in contents if file.exists()]
    if existing and not overwrite:
        raise PerfitError(f"{directory}: already holds {', '.join(existing)}", "choose another directory, or overwrite")
    _write_all(contents, directory)
    return clients


def partition_records(
    source: str,
    directory: str | Path,
    split: Split,
    *,
    held_out_fraction: float = 0.2,
    seed: int = 0,
    overwrite: bool = False,
) -> list[dict[str, str]]:
    """Split a data set among clients, called client-1, client-2, ..., and write each one's files.

    >>> split = Split(scheme="dirichlet", clients=2, alpha=0.5, label="instruction")
    >>> clients = partition_records(north, directory, split)
    >>> [client["id"] for client in clients]
    ['client-1', 'client-2']

    Args:
        source: As in :func:`perfit.records.read_records`. In the example ``north`` is a file of records.
        directory: As in :func:`write_partition`.
        split: How many clients, and by which scheme.
        held_out_fraction: As in :func:`write_partition`.
        seed: Of the split.
        overwrite: As in :func:`write_partition`.

    Returns:
        The `clients` section of a federation file, as :func:`write_partition` does.

    Raises:
        PerfitError: As :func:`perfit.records.check_records`, :func:`split_records` and :func:`write_partition`.
    """
    data = check_records(source, also=[split.label])
    parts = split_records(data, split, seed)
    names = client_names(len(parts))
    return write_partition(data.usable, parts, names, directory, held_out_fraction, seed, overwrite=overwrite)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if len(name) > _LONGEST_ID or not _CLIENT_ID.fullmatch(name):
            raise PerfitError(
                f"client id {name!r}: not a safe name",
                f"use at most {_LONGEST_ID} of a-z, 0-9 and -, with a letter or digit first and last",
            )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise PerfitError(f"client id {repeated[0]!r}: given more than once", "give each client its own id")


def _split_client(name: str, part: np.ndarray, fraction: float, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    try:
        train, held_out = held_out_indices(len(part), fraction, seed)
    except PerfitError as error:
        raise PerfitError(f"client {name}: {error.problem}", error.fix) from error
    return part[train], part[held_out]


def _lines(records: Sequence[Record], indices: np.ndarray) -> bytes:
    return b"".join(_line(records[i]) for i in indices)


def _line(record: Record) -> bytes:
    try:
        if record.problem:
            raise ValueError(record.problem)
        return json.dumps(record.fields, ensure_ascii=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise PerfitError(
            f"line {record.line}: cannot be written as JSON: {error}", "repair the record, or leave it out"
        ) from error


def _write_all(contents: Mapping[Path, bytes], directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".partition-") as temporary:
            for file, content in contents.items():
                (Path(temporary) / file.name).write_bytes(content)
            for file in contents:
                os.replace(Path(temporary) / file.name, file)
    except OSError as error:
        raise PerfitError(
            f"{directory}: cannot be written: {error}", "check the directory and its free space"
        ) from error
