"""The figures of a bench: perplexity by round and by bytes, and differences to a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perfit.bench.statistics import Interval
from perfit_report.style import (
    COLOURS,
    MUTED,
    Series,
    as_svg,
    band,
    byte_unit,
    every,
    hover,
    label_ends,
    line,
    log_ticks,
    panel,
    short,
    titles,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def colour(method: int) -> str:
    """Return the colour of a method by its place in the bench file."""
    return COLOURS[method % len(COLOURS)]


@as_svg
def rounds_figure(values: np.ndarray, series: Sequence[Series]) -> Figure:
    """Draw perplexity by round: the median over seeds, and each seed as a faint line.

    Args:
        values: float64, shape (methods and seeds, 1 + rounds), from before the first round.
        series: A method's rows.
    """
    x = np.arange(values.shape[1])
    figure, axes = panel(360)
    axes.set_yscale("log")
    for one in series:
        band(axes, x, values[list(one.rows)], one.colour)
        shown = line(values[list(one.rows)])
        texts = [f"{one.label}\nround {n}: {value:,.2f}" for n, value in zip(x, shown, strict=True)]
        hover(axes, x, shown, texts, one.colour)
    axes.set_xticks(x[every(len(x), 25)])
    log_ticks(axes)
    axes.grid(axis="x", visible=False)
    titles(axes, "round; 0: before the first", "held-out perplexity of personal adapters, mean of clients (log scale)")
    label_ends(axes, x, values, series)
    return figure


@as_svg
def bytes_figure(sent: np.ndarray, values: np.ndarray, series: Sequence[Series]) -> Figure:
    """Draw perplexity against the bytes sent until then, mean over seeds.

    Args:
        sent: float64, shape (methods, 1 + rounds): bytes of all clients, both ways.
        values: float64, shape (methods, 1 + rounds): perplexity.
        series: A method's row.
    """
    size, unit = byte_unit(sent.max())
    figure, axes = panel(360)
    axes.set_yscale("log")
    for one in series:
        (row,) = one.rows
        x = sent[row] / size
        axes.plot(x, values[row], "o-", color=one.colour, linewidth=2, markersize=5, label=one.label)
        texts = [
            f"{one.label}\nround {n}, {at:.3g} {unit}: {value:,.2f}"
            for n, (at, value) in enumerate(zip(x, values[row], strict=True))
        ]
        hover(axes, x, values[row], texts, one.colour)
    log_ticks(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, handlelength=1.5)
    titles(axes, f"{unit} of all clients, both ways", "held-out perplexity of personal adapters (log scale)")
    return figure


@as_svg
def differences_figure(baseline: str, differences: Mapping[str, Interval], colours: Mapping[str, str]) -> Figure:
    """Draw the paired differences to a baseline with their intervals; left of zero is better than the baseline."""
    figure, axes = panel(90 + 30 * len(differences), left=150, right=30)
    axes.axvline(0, color=MUTED, linewidth=1)
    for y, (label, difference) in enumerate(differences.items()):
        axes.plot([difference.low, difference.high], [y, y], color=colours[label], linewidth=2)
        axes.plot(difference.mean, y, "o", color=colours[label], markersize=7)
        text = f"{label}\n{difference.mean:+.3g} ({difference.low:+.3g} to {difference.high:+.3g})"
        hover(axes, [difference.mean], [y], [text], colours[label])
    axes.set_yticks(range(len(differences)), [short(label) for label in differences])
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    titles(axes, f"perplexity minus {baseline}'s; the bars are 95 % intervals", "")
    return figure
