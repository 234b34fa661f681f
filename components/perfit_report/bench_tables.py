"""The tables of a bench: as texts for the page and Markdown, as numbers for CSV."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfit.bench.comparison import Comparison, MethodResult
from perfit.bench.statistics import WORSE, Interval, Point
from perfit_report.data import csv_of
from perfit_report.templates import format_bytes, format_perplexity

NONE = "-"
FAILED = "failed"
PERPLEXITY, ROUNDS, COST = "Perplexity", "By round", "Cost"
"""Titles of the tables that figures follow."""

Row = dict[str, Any]
"""Numbers and texts by name; those that there are not are missing or None."""
Columns = Mapping[str, tuple[str, Callable[[Any], str]]]
"""By the title of a column: the name in a row, and how it is written."""


@dataclass(frozen=True)
class Table:
    """A table of texts; ``note`` says what its columns mean."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(comparison: Comparison) -> list[Table]:
    """Return the tables of a bench in the order of the page."""
    rows = [_summary(comparison, method) for method in comparison.methods]
    gains = [_gains(comparison, rows)] if comparison.baselines else []
    found = [_perplexities(comparison, rows), *gains, _rounds(comparison), _costs(rows)]
    if comparison.targets:
        found.append(_targets(comparison, rows))
    if any(row.get("rouge_l") is not None for row in rows):
        found.append(_answers(rows))
    cells = [cell for method in comparison.methods for point in method.points for cell in point.cells]
    return [*found, _grids(comparison.methods)] if any(cell.validation or cell.failure for cell in cells) else found


def summary_csv(comparison: Comparison) -> str:
    """Return a line for each method at its chosen point."""
    return csv_of(summary_rows(comparison))


def summary_rows(comparison: Comparison) -> list[Row]:
    """Return the numbers of each method at its chosen point; of a difference its mean and the ends of its interval."""
    rows = []
    for method in comparison.methods:
        row = _summary(comparison, method)
        for name, value in list(row.items()):
            if isinstance(value, Interval):
                row |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
        rows.append(row)
    return rows


def clients_csv(comparison: Comparison) -> str:
    """Return a line for each method, point, seed, round and client: all that was measured by client."""
    return csv_of(
        [row for method in comparison.methods for point in method.points for row in _clients(comparison, method, point)]
    )


def _summary(comparison: Comparison, method: MethodResult) -> Row:
    """Return a method's numbers at its chosen point."""
    if (point := method.chosen) is None:
        return {"method": method.label, "point": FAILED}
    row = {
        "method": method.label,
        "point": _text(point),
        "validation": _number(point.validation),
        "start": point.start,
        "personal": float(point.personal.mean()),
        "geometric_mean": point.geometric_mean,
        "pairs": point.personal.size,
        "worst_client": point.worst,
        "spread": point.spread,
        "shared": None if point.shared is None else float(point.shared.mean()),
        **{f"minus_{label}": difference for label, difference in method.differences.items()},
        **{f"ratio_to_{label}": gain.ratio for label, gain in method.gains.items()},
        **{f"worst_ratio_to_{label}": gain.worst for label, gain in method.gains.items()},
        **{f"worse_than_{label}": gain.worse for label, gain in method.gains.items()},
        "trainable": point.trainable,
        "bytes_up": point.total("bytes_up"),
        "bytes_down": point.total("bytes_down"),
        "client_seconds": point.client_seconds,
        "peak_memory": point.peak_memory,
        "exact_match": point.answers("exact_match"),
        "rouge_l": point.answers("rouge_l"),
    }
    for cost in map(point.cost, comparison.targets):
        row[f"seeds_to_{cost.target:g}"] = cost.reached
        row[f"rounds_to_{cost.target:g}"] = cost.rounds
        row[f"bytes_to_{cost.target:g}"] = cost.bytes
    return row


def _pick(title: str, note: str, rows: Sequence[Row], columns: Columns) -> Table:
    def cell(row: Row, name: str, write: Callable[[Any], str]) -> str:
        value = row.get(name)
        return NONE if value is None else write(value)

    columns = {"Method": ("method", str), **columns}
    texts = tuple(tuple(cell(row, *column) for column in columns.values()) for row in rows)
    return Table(title, note, tuple(columns), texts)


def _perplexities(comparison: Comparison, rows: Sequence[Row]) -> Table:
    note = (
        f"Perplexity on held-out records after round {comparison.rounds}, means over {len(comparison.seeds)} seed(s) "
        "and the clients of each. Personal: under the adapter that a client has after its own tuning. Worst client and "
        "spread (standard deviation over clients): of these, by seed. Shared: under what a client would start from "
        "next, after the last round of which that is known."
    )
    note += _records(comparison)
    if comparison.baselines:
        drawn = "clients, the same in all seeds" if comparison.keeps_clients else "clients within seeds"
        note += f" Differences are paired by client and seed, with 95 % bootstrap intervals over seeds and {drawn}."
    names = {"Personal": "personal", "Worst client": "worst_client", "Spread": "spread", "Shared": "shared"}
    columns = {title: (name, format_perplexity) for title, name in names.items()}
    differences = {f"Personal minus {label}'s": (f"minus_{label}", _interval) for label in comparison.baselines}
    return _pick(PERPLEXITY, note, rows, {"Grid point": ("point", str), **columns, **differences})


def _records(comparison: Comparison) -> str:
    """Say between what the clients' records are, if it was counted: a perplexity of few tokens tells little."""
    cells = (cell for method in comparison.methods for point in method.points for cell in point.cells)
    counts = [of for cell in cells for of in cell.records.values()]
    if not counts:
        return ""
    train, held_out, tokens, skipped = (
        _range([getattr(of, name) for of in counts]) for name in ("train", "held_out", "held_out_tokens", "skipped")
    )
    return (
        f" Of the clients' records, {train} of each were trained on and {held_out} held out, with {tokens} response "
        f"tokens; {skipped} were left out, because they are too long or bad."
    )


def _range(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _gains(comparison: Comparison, rows: Sequence[Row]) -> Table:
    note = (
        "The same personal perplexities by ratio, so that a client with a large one counts like the others: geometric "
        "mean over seeds and clients; how far it is from a baseline's (below zero is better, intervals as above); how "
        f"many pairs of client and seed are worse off by more than {WORSE - 1:.0%}; and the worst of all pairs."
    )
    pairs = next((row["pairs"] for row in rows if "pairs" in row), 0)
    columns = {"Geometric mean": ("geometric_mean", format_perplexity)}
    for label in comparison.baselines:
        columns[f"Against {label}'s"] = (f"ratio_to_{label}", _percent)
        columns[f"Worse than {label}'s"] = (f"worse_than_{label}", f"{{}} of {pairs}".format)
        columns[f"Worst against {label}'s"] = (f"worst_ratio_to_{label}", _change)
    return _pick("Gains and losses", note, rows, columns)


def _costs(rows: Sequence[Row]) -> Table:
    note = (
        "Trainable: parameters of a client. Up, down: bytes of the files of all clients and rounds, with masks and "
        "headers, mean over seeds. Client seconds: wall time of one client in all rounds, with its search and its "
        "held-out evaluations. Peak memory: of the process that runs a cell, all clients and the server in one, or on "
        "the GPU if there is one; the largest of all seeds."
    )
    columns = {
        "Trainable": ("trainable", "{:,.0f}".format),
        "Up": ("bytes_up", format_bytes),
        "Down": ("bytes_down", format_bytes),
        "Client seconds": ("client_seconds", "{:.1f}".format),
        "Peak memory": ("peak_memory", format_bytes),
    }
    return _pick(COST, note, rows, columns)


def _targets(comparison: Comparison, rows: Sequence[Row]) -> Table:
    note = (
        "Rounds until the mean personal perplexity on held-out records was at the number or below, and the bytes of "
        f"all clients up to then, both ways; means over the seeds, of {len(comparison.seeds)}, that got there."
    )
    columns = {}
    for target in (f"{target:g}" for target in comparison.targets):
        columns[f"Rounds to {target}"] = (f"rounds_to_{target}", "{:g}".format)
        columns[f"Bytes to {target}"] = (f"bytes_to_{target}", format_bytes)
        columns[f"Seeds to {target}"] = (f"seeds_to_{target}", str)
    return _pick("Cost to reach a perplexity", note, rows, columns)


def _answers(rows: Sequence[Row]) -> Table:
    note = "Greedy answers to held-out records, under the personal adapters; from 0 to 1, means over seeds and clients."
    columns = {"Exact match": ("exact_match", "{:.3f}".format), "ROUGE-L": ("rouge_l", "{:.3f}".format)}
    return _pick("Answers", note, rows, columns)


def _rounds(comparison: Comparison) -> Table:
    rows = []
    for method in comparison.methods:
        row = {"method": method.label}
        if point := method.chosen:
            row["start"] = point.start
            row |= enumerate(zip(*(point.by_round(of).mean(axis=0) for of in ("shared", "personal")), strict=True), 1)
        rows.append(row)
    columns = {f"Round {number}": (number, _pair) for number in range(1, comparison.rounds + 1)}
    note = "Mean held-out perplexity, shared / personal."
    return _pick(ROUNDS, note, rows, {"Start": ("start", format_perplexity), **columns})


def _grids(methods: Sequence[MethodResult]) -> Table:
    note = (
        "Geometric mean of the perplexity on validation records under the last personal adapters. The lowest is "
        "chosen, of equals the first; held-out records play no part."
    )
    rows = [
        {
            "method": method.label,
            "point": _text(point),
            "validation": f"{FAILED}: {point.failures[0]}" if point.failures else format_perplexity(point.validation),
            "chosen": "yes" if point is method.chosen else "no",
        }
        for method in methods
        for point in method.points
    ]
    names = {"Grid point": "point", "Validation perplexity": "validation", "Chosen": "chosen"}
    return _pick("Grids", note, rows, {title: (name, str) for title, name in names.items()})


def _text(point: Point) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.values.items()) or NONE


def _interval(difference: Interval) -> str:
    return f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"


def _percent(ratio: Interval) -> str:
    return f"{_change(ratio.mean)} [{_change(ratio.low)}, {_change(ratio.high)}]"


def _change(ratio: float) -> str:
    return f"{ratio - 1:+.1%}"


def _pair(perplexities: tuple[float, float]) -> str:
    return " / ".join(NONE if math.isnan(value) else format_perplexity(value) for value in perplexities)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _clients(comparison: Comparison, method: MethodResult, point: Point) -> Iterator[Row]:
    for seed, cell in zip(comparison.seeds, point.cells, strict=True):
        chosen = int(point is method.chosen)
        run = {"method": method.label, "point": _text(point), "chosen": chosen, "seed": seed}
        if cell.failure:
            yield run | {"failure": cell.failure}
        for number, round in enumerate(cell.rounds, start=1):
            measured = round.model_dump()
            for client in round.personal:
                values = {name: by_client.get(client) for name, by_client in measured.items()}
                if counts := cell.records.get(client):
                    values |= counts.model_dump()
                yield run | {"round": number, "client": client} | values
