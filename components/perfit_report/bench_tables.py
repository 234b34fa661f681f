"""The tables of a bench: formatted for the page and Markdown, as numbers for CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perfit.bench.spec import BenchSpec
from perfit.bench.statistics import Cost, Interval, MethodResult, Point
from perfit_report.templates import format_bytes, format_perplexity

NONE = "-"
DIVERGED = "diverged"
PERPLEXITY, ROUNDS, COST = "Perplexity", "By round", "Cost"
"""Titles of the tables that figures follow."""


@dataclass(frozen=True)
class Table:
    """A table of texts; ``note`` says what its columns mean."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(bench: BenchSpec, methods: Sequence[MethodResult]) -> list[Table]:
    """Return the tables of a bench in the order of the page."""
    found = [_perplexities(bench, methods), _rounds(bench, methods), _costs(methods)]
    if bench.targets:
        found.append(_targets(bench, methods))
    if any(method.chosen and method.chosen.answers("rouge_l") is not None for method in methods):
        found.append(_answers(methods))
    return [*found, _grids(methods)]


def summary_csv(bench: BenchSpec, methods: Sequence[MethodResult]) -> str:
    """Return a line for each method at its chosen point, with the numbers of all tables."""
    return _csv([_summary(bench, method) for method in methods])


def clients_csv(bench: BenchSpec, methods: Sequence[MethodResult]) -> str:
    """Return a line for each method, point, seed, round and client: all that was measured by client."""
    return _csv([row for method in methods for point in method.points for row in _clients(bench, method, point)])


def point_text(point: Mapping[str, Any]) -> str:
    """Return a point of a grid on one line."""
    return ", ".join(f"{key}={value}" for key, value in point.items()) or NONE


def _table(title: str, note: str, columns: Sequence[str], methods: Sequence[MethodResult], cells) -> Table:
    """Make a table of a row for each method: its label, then ``cells(method, chosen point)``."""
    rows = []
    for method in methods:
        point = method.chosen
        found = cells(method, point) if point else [DIVERGED, *[NONE] * (len(columns) - 2)]
        rows.append((method.label, *found))
    return Table(title, note, tuple(columns), tuple(rows))


def _perplexities(bench: BenchSpec, methods: Sequence[MethodResult]) -> Table:
    columns = ["Method", "Grid point", "Personal", "Worst client", "Spread", "Shared"]
    columns += [f"Personal minus {label}'s" for label in bench.baselines]

    def cells(method: MethodResult, point: Point) -> list[str]:
        numbers = (point.personal.mean(), point.worst, point.spread, point.shared.mean())
        differences = [_interval(method.differences.get(label)) for label in bench.baselines]
        return [point_text(point.values), *map(format_perplexity, numbers), *differences]

    drawn = "clients, the same in all seeds" if bench.split.keeps_clients else "clients within seeds"
    note = (
        f"Perplexity on held-out records after round {bench.rounds}, means over {len(bench.seeds)} seed(s) and the "
        "clients of each. Personal: under the adapter that a client has after its own tuning. Worst client and spread "
        "(standard deviation over clients): of these, by seed. Shared: under what a client would start from next. "
    )
    if bench.baselines:
        note += f"Differences are paired by client and seed, with 95 % bootstrap intervals over seeds and {drawn}."
    return _table(PERPLEXITY, note.strip(), columns, methods, cells)


def _rounds(bench: BenchSpec, methods: Sequence[MethodResult]) -> Table:
    columns = ["Method", "Start", *(f"Round {number}" for number in range(1, bench.rounds + 1))]

    def cells(method: MethodResult, point: Point) -> list[str]:
        pairs = zip(point.by_round("shared").mean(axis=0), point.by_round("personal").mean(axis=0), strict=True)
        rounds = [f"{format_perplexity(shared)} / {format_perplexity(personal)}" for shared, personal in pairs]
        return [format_perplexity(point.start), *rounds]

    return _table(ROUNDS, "Mean held-out perplexity, shared / personal.", columns, methods, cells)


def _costs(methods: Sequence[MethodResult]) -> Table:
    columns = ["Method", "Trainable", "Up", "Down", "Client seconds", "Peak memory"]

    def cells(method: MethodResult, point: Point) -> list[str]:
        sent = [format_bytes(point.total(name)) for name in ("bytes_up", "bytes_down")]
        memory = NONE if point.peak_memory is None else format_bytes(point.peak_memory)
        return [f"{point.trainable:,.0f}", *sent, f"{point.client_seconds:.1f}", memory]

    note = (
        "Trainable: parameters of a client. Up, down: bytes of the files of all clients and rounds, with masks and "
        "headers, mean over seeds. Client seconds: wall time of one client in all rounds, with its search and its "
        "held-out evaluations. Peak memory: of the process that runs a cell, all clients and the server in one, or on "
        "the GPU if there is one; the largest of all seeds."
    )
    return _table(COST, note, columns, methods, cells)


def _targets(bench: BenchSpec, methods: Sequence[MethodResult]) -> Table:
    columns = ["Method", *(f"{what} to {target:g}" for target in bench.targets for what in ("Rounds", "Bytes"))]

    def cells(method: MethodResult, point: Point) -> list[str]:
        return [text for target in bench.targets for text in _cost(point.cost(target), len(point.cells))]

    note = (
        "Rounds until the mean personal perplexity on held-out records was at the number or below, and the bytes of "
        "all clients up to then, both ways; means over the seeds that got there."
    )
    return _table("Cost to reach a perplexity", note, columns, methods, cells)


def _answers(methods: Sequence[MethodResult]) -> Table:
    columns = ["Method", "Exact match", "ROUGE-L"]

    def cells(method: MethodResult, point: Point) -> list[str]:
        scores = (point.answers("exact_match"), point.answers("rouge_l"))
        return [NONE if score is None else f"{score:.3f}" for score in scores]

    note = "Greedy answers to held-out records, under the personal adapters; from 0 to 1, means over seeds and clients."
    return _table("Answers", note, columns, methods, cells)


def _grids(methods: Sequence[MethodResult]) -> Table:
    rows = []
    for method in methods:
        for point in method.points:
            validation = f"{DIVERGED}: {point.failures[0]}" if point.failures else format_perplexity(point.validation)
            rows.append((method.label, point_text(point.values), validation, "yes" if point is method.chosen else ""))
    note = (
        "Mean perplexity on validation records under the last personal adapters. The lowest is chosen, of equals the "
        "first; held-out records play no part."
    )
    return Table("Grids", note, ("Method", "Grid point", "Validation perplexity", "Chosen"), tuple(rows))


def _interval(difference: Interval | None) -> str:
    if difference is None:
        return NONE
    return f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"


def _cost(cost: Cost, seeds: int) -> tuple[str, str]:
    if cost.rounds is None:
        return NONE, NONE
    some = f" ({cost.reached} of {seeds} seeds)" if cost.reached < seeds else ""
    return f"{cost.rounds:g}{some}", format_bytes(cost.bytes)


def _summary(bench: BenchSpec, method: MethodResult) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method.label}
    if (point := method.chosen) is None:
        return row | {"point": DIVERGED}
    row |= {
        "point": json.dumps(point.values),
        "validation": point.validation,
        "personal": point.personal.mean(),
        "worst_client": point.worst,
        "spread": point.spread,
        "shared": point.shared.mean(),
        "start": point.start,
    }
    for label, difference in method.differences.items():
        row |= {f"minus_{label}": difference.mean}
        row |= {f"minus_{label}_low": difference.low, f"minus_{label}_high": difference.high}
    row["trainable"] = point.trainable
    row |= {name: point.total(name) for name in ("bytes_up", "bytes_down")}
    row |= {"client_seconds": point.client_seconds, "peak_memory": point.peak_memory}
    row |= {name: point.answers(name) for name in ("exact_match", "rouge_l")}
    for target in bench.targets:
        cost = point.cost(target)
        row |= {f"seeds_to_{target:g}": cost.reached, f"rounds_to_{target:g}": cost.rounds}
        row |= {f"bytes_to_{target:g}": cost.bytes}
    return row


def _clients(bench: BenchSpec, method: MethodResult, point: Point) -> Iterator[dict[str, Any]]:
    for seed, cell in zip(bench.seeds, point.cells, strict=True):
        run = {
            "method": method.label,
            "point": json.dumps(point.values),
            "chosen": int(point is method.chosen),
            "seed": seed,
        }
        if cell.failure:
            yield run | {"failure": cell.failure}
        for number, round in enumerate(cell.rounds, start=1):
            for client, personal in round.personal.items():
                yield run | {
                    "round": number,
                    "client": client,
                    "personal": personal,
                    "shared": round.shared[client],
                    "bytes_up": round.bytes_up.get(client),
                    "bytes_down": round.bytes_down.get(client),
                    "seconds": round.seconds.get(client),
                }


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, np.floating) else value
