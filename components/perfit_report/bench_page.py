"""The results of a bench as one HTML page that needs nothing else, and as Markdown."""

from __future__ import annotations

import numpy as np

from perfit.bench.comparison import Comparison
from perfit_report.bench_figures import bytes_figure, colour, differences_figure, rounds_figure
from perfit_report.bench_tables import COST, PERPLEXITY, ROUNDS, Table, tables
from perfit_report.style import Series
from perfit_report.templates import template


def render_bench(comparison: Comparison) -> str:
    """Return the results as a self-contained HTML page; the same input gives the same bytes."""
    return template("bench.html.j2").render(
        comparison=comparison, tables=tables(comparison), figures=_figures(comparison)
    )


def bench_markdown(comparison: Comparison) -> str:
    """Return the results' tables as Markdown."""
    parts = [f"# {comparison.name}", comparison.about, *map(_markdown, tables(comparison))]
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    rows = "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)
    return f"## {table.title}\n\n{table.note}\n\n{rows}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _figures(comparison: Comparison) -> dict[str, list[str]]:
    """Draw the methods that have results; return the figures by the title of the table that they follow."""
    shown = {method.label: (method.chosen, colour(i)) for i, method in enumerate(comparison.methods) if method.chosen}
    if not shown:
        return {}
    seeds = len(comparison.seeds)
    by_seed = np.concatenate([_from_start(point.start, point.by_round("personal")) for point, _ in shown.values()])
    sent = np.concatenate([_from_start(0, point.bytes_by_round().mean(axis=0)[None]) for point, _ in shown.values()])
    groups, lines, colours = [], [], {}
    for i, (label, (_, own)) in enumerate(shown.items()):
        groups.append(Series(label, own, tuple(range(i * seeds, (i + 1) * seeds))))
        lines.append(Series(label, own, (i,)))
        colours[label] = own
    differences = {
        baseline: {m.label: m.differences[baseline] for m in comparison.methods if baseline in m.differences}
        for baseline in comparison.baselines
    }
    return {
        PERPLEXITY: [differences_figure(baseline, of, colours) for baseline, of in differences.items() if of],
        ROUNDS: [rounds_figure(by_seed, groups)],
        COST: [bytes_figure(sent, by_seed.reshape(len(shown), seeds, -1).mean(axis=1), lines)],
    }


def _from_start(start: float, rows: np.ndarray) -> np.ndarray:
    """Put the value before the first round in front of each row."""
    return np.concatenate([np.full((len(rows), 1), start), rows], axis=1)
