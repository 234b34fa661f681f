"""From a bench file to its cells: the split of the data for each seed, and the federation of each cell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from perfit.bench.portable import combined_sha256, file_sha256
from perfit.bench.spec import BenchSpec, Cell, Job
from perfit.errors import PerfitError
from perfit.examples import held_out_indices
from perfit.federation_file import Lines, load_tree, read_text, validated
from perfit.locations import is_local
from perfit.partition import client_names, split_records, write_partition
from perfit.records import RecordReport, check_records
from perfit.seeds import derive_seed
from perfit.spec import FederationSpec

_COMMON = ("lora", "training", "data", "participation", "aggregation", "exchange")
_EXAMPLE = "give a bench file; docs/benchmarks.md shows one"


def load_bench(path: str | Path) -> tuple[BenchSpec, Lines]:
    """Read a bench file, and on which lines its keys are.

    Raises:
        PerfitError: The file is wrong by itself; the data and each method's options are not looked at.
    """
    tree, lines = load_tree(read_text(path, _EXAMPLE), str(path))
    if not isinstance(tree, dict):
        raise PerfitError(f"{path} holds no keys", _EXAMPLE)
    return validated(BenchSpec, tree, lines, str(path)), lines


def plan_cells(path: str | Path, directory: Path) -> tuple[BenchSpec, list[Cell]]:
    """Read a bench file, write the clients' files of each seed below ``directory / NAME``, and list the cells.

    Returns:
        What the file says; the cells, seed by seed, so that early results compare all methods.

    Raises:
        PerfitError: The file is wrong anywhere, for any method, grid point and seed, or the data do not fit the split.
    """
    bench, lines = load_bench(path)
    source = str(Path(path).resolve().parent / bench.records) if is_local(bench.records) else bench.records
    data = check_records(source, bench.data.bad_records, also=[bench.split.label])
    cells = []
    for seed in bench.seeds:
        clients = split_clients(bench, data, seed, directory.resolve() / bench.name / "data" / f"seed-{seed}")
        sha256 = combined_sha256(file_sha256(client[key]) for client in clients for key in ("data", "held_out"))
        for label in bench.methods:
            for point in bench.points(label):
                spec = _federation(bench, label, point, seed, clients, lines, str(path))
                job = Job(
                    spec=spec,
                    records_sha256=sha256,
                    validation_fraction=bench.validation_fraction,
                    answers=bench.answers,
                    threads=bench.threads,
                )
                cells.append(Cell(label, point, seed, job))
    return bench, cells


def split_clients(bench: BenchSpec, data: RecordReport, seed: int, directory: Path) -> list[dict[str, str]]:
    """Split the data set by a seed, write the clients' files, and return their entries of a federation file.

    Raises:
        PerfitError: A client would have no records to train on, to validate or to hold out.
    """
    split, fraction = bench.split, bench.data.held_out_fraction
    if split.labels is not None:
        chosen = tuple(record for record in data.usable if record.fields.get(split.label) in split.labels)
        data = RecordReport(data.source, chosen, data.skipped)
    parts = split_records(data, split, seed)
    names = client_names(len(parts))
    for i, (name, part) in enumerate(zip(names, parts, strict=True)):
        if split.records is not None:
            order = np.random.default_rng(derive_seed(seed, "bench", name)).permutation(part)
            parts[i] = part = np.sort(order[: split.records])
        if len(part) < 3 or len(held_out_indices(len(part), fraction, 0)[0]) < 2:
            raise PerfitError(
                f"seed {seed}: {name} has {len(part)} records: too few to train, to validate and to hold out",
                "use fewer clients, a larger split.minimum or split.records, or a smaller data.held_out_fraction",
            )
    return write_partition(data.usable, parts, names, directory, fraction, seed, overwrite=True)


def _federation(
    bench: BenchSpec,
    label: str,
    point: Mapping[str, JsonValue],
    seed: int,
    clients: list[dict[str, str]],
    lines: Lines,
    source: str,
) -> FederationSpec:
    """Return the federation of a cell; an error names the line of the bench file."""
    tree: dict[str, Any] = {name: getattr(bench, name).model_dump(exclude_unset=True) for name in _COMMON}
    tree |= {"name": bench.name, "model": bench.model, "rounds": bench.rounds, "clients": clients}
    tree["method"] = {"name": label, **bench.methods[label].method}
    own = ("methods", label)
    where = {**lines, ("method",): lines[own], ("method", "name"): lines[own]}
    where |= {path[2:]: line for path, line in lines.items() if path[:3] == (*own, "method")}
    for key, value in point.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
        where[(section, name)] = lines.get((*own, "grid", key)) or lines[("grid", key)]
    tree["training"]["seed"] = seed
    spec = validated(FederationSpec, tree, where, source)
    if searching := bench.methods[label].search_steps_of:
        key = (*own, "search_steps_of")
        other = _federation(bench, searching, next(bench.points(searching)), seed, clients, lines, source)
        if not (steps := search_steps(other)):
            problem = f"{'.'.join(key)}: clients of {searching!r} take no steps to search"
            raise PerfitError(f"{source}:{lines[key]}: {problem}", "name a method with a search by its data")
        longer = spec.training.steps + math.ceil(steps / bench.rounds)
        spec = spec.model_copy(update={"training": spec.training.model_copy(update={"steps": longer})})
    return spec


def search_steps(spec: FederationSpec) -> int:
    """Return how many steps a client that takes part in each round spends on its searches."""
    if spec.search is None or spec.search.is_drawn:
        return 0
    return spec.search.steps * (1 + sum(map(spec.searches_after, range(1, spec.rounds + 1))))
