"""The report's figures over rounds: perplexity, training loss and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perfit_report.style import (
    COLOURS,
    INK,
    MUTED,
    PAGE,
    Series,
    as_svg,
    band,
    bins,
    byte_unit,
    every,
    hover,
    hover_id,
    label_ends,
    line,
    log_ticks,
    panel,
    titles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING = 5
"""Steps in the running mean of losses."""

_HOVER_POINTS = 60
"""Of each line of losses."""

RAW_LOSSES = 4
"""For up to this many clients the loss of every step is drawn too."""


@as_svg
def perplexity_figure(values: np.ndarray, numbers: Sequence[int], series: Sequence[Series]) -> Figure:
    """Draw perplexities by round: each tuning as a solid line, what happens between two tunings as a dotted one.

    Args:
        values: float, shape (clients, 1 + 2 * rounds): round 0, then before and after each round; NaN where a client
            did not deliver.
        numbers: Round numbers.
        series: What to draw.
    """
    rounds = len(numbers)
    places = ["round 0", *(f"round {n}, {when} tuning" for n in numbers for when in ("before", "after"))]
    x = np.array([0.0, *(n + side for n in range(1, rounds + 1) for side in (-0.3, 0.3))])
    figure, axes = panel(380)
    axes.set_yscale("log")
    if rounds <= 30:
        for n in range(1, rounds + 1):
            axes.axvspan(n - 0.3, n + 0.3, color=MUTED, alpha=0.07, linewidth=0)
    for one in series:
        if one.is_group:
            band(axes, x, values[list(one.rows)], one.colour)
        else:
            _tuning_lines(axes, x, values[one.rows[0]], one.colour, markers=rounds <= 12)
        shown = line(values[list(one.rows)])
        texts = [f"{one.label}\n{place}: {value:,.2f}" for place, value in zip(places, shown, strict=True)]
        hover(axes, x, shown, texts, one.colour)
    axes.set_xlim(-0.2, rounds + 0.45)
    shown = every(rounds + 1, 25)
    axes.set_xticks(range(rounds + 1)[shown], [0, *numbers][shown])
    log_ticks(axes)
    axes.grid(axis="x", visible=False)
    titles(
        axes,
        "round, from before its tuning (left edge) to after it (right edge); 0: the base model",
        "held-out perplexity (log scale)",
    )
    label_ends(axes, x, values, series)
    return figure


@as_svg
def loss_figure(losses: Sequence[Mapping[int, Sequence[float]]], series: Sequence[Series]) -> Figure:
    """Draw training losses over the steps of all rounds.

    Args:
        losses: For each client, the loss of every step, by round.
        series: What to draw.
    """
    from matplotlib.ticker import MaxNLocator

    rounds = sorted({n for client in losses for n in client})
    lengths = [max(len(client.get(n, ())) for client in losses) for n in rounds]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    x, raw = bins(_by_step(losses, rounds, starts, smooth=False))
    _, smooth = bins(_by_step(losses, rounds, starts, smooth=True))
    figure, axes = panel(380)
    for one in series:
        if one.is_group:
            band(axes, x, smooth[list(one.rows)], one.colour)
        else:
            if len(series) <= RAW_LOSSES:
                axes.plot(x, raw[one.rows[0]], color=one.colour, linewidth=1, alpha=0.35)
            marker = "o" if x.size <= 12 else ""  # A single step makes no line.
            axes.plot(x, smooth[one.rows[0]], color=one.colour, linewidth=2, marker=marker)
        points = every(len(x), _HOVER_POINTS)
        shown = line(smooth[list(one.rows)])[points]
        texts = [f"{one.label}\nstep {step:.0f}: {value:.3f}" for step, value in zip(x[points], shown, strict=True)]
        hover(axes, x[points], shown, texts, one.colour)
    for start, n in list(zip(starts, rounds, strict=False))[every(len(rounds), 12)]:
        _mark_round(axes, start, n if starts[-1] - start > 0.07 * starts[-1] else None)
    axes.set_xlim(0, starts[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.margins(y=0.12)
    axes.grid(axis="x", visible=False)
    titles(axes, "optimiser step, over all rounds", "training loss, nats per response token")
    label_ends(axes, x, smooth, series)
    return figure


@as_svg
def bytes_figure(rounds: Sequence[int], sent: Mapping[str, Sequence[int]], dense: Sequence[int]) -> Figure:
    """Draw bytes by round as bars, and what dense LoRA would take as a line across each bar.

    Args:
        rounds: Round numbers.
        sent: Bytes of each round, by direction.
        dense: Bytes of dense float32 LoRA for the same clients, each way.
    """
    figure, axes = panel(280)
    most = max(max(dense), *(max(values) for values in sent.values()))
    scale, unit = byte_unit(most)
    axes.set_ylim(0, 1.12 * most / scale)
    x, width, levels = np.arange(len(rounds)), 0.8 / len(sent), np.array(dense) / scale
    for i, (name, values) in enumerate(sent.items()):
        at, heights = x + (i - (len(sent) - 1) / 2) * width, np.array(values) / scale
        bars = axes.bar(at, heights, width * 0.94, color=COLOURS[i], linewidth=0, label=name)
        for bar, number, value, most in zip(bars, rounds, values, dense, strict=True):
            bar.set_gid(hover_id([f"round {number}, {name}: {value:,} bytes\ndense LoRA: {most:,} bytes"]))
        lines = axes.hlines(levels, at - width * 0.47, at + width * 0.47, color=INK, linewidth=2)
        if len(rounds) <= 8:
            _bar_numbers(axes, at, heights, levels)
    lines.set_label("dense float32\nLoRA")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, handlelength=1)
    chosen = every(len(rounds), 25)
    axes.set_xticks(x[chosen], rounds[chosen])
    axes.margins(x=0.02)
    axes.grid(axis="x", visible=False)
    titles(axes, "round", f"{unit}, all clients that delivered")
    return figure


def _tuning_lines(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, markers: bool) -> None:
    known = np.isfinite(y)
    axes.plot(x[known], y[known], color=colour, linewidth=1.2, linestyle=(0, (1, 2)))
    tunings = np.stack([x[1:], y[1:]]).reshape(2, -1, 2)
    breaks = np.full((2, tunings.shape[1], 1), np.nan)
    axes.plot(*np.concatenate([tunings, breaks], axis=2).reshape(2, -1), color=colour, linewidth=2)
    if markers:
        axes.plot(x[1::2], y[1::2], "o", color=colour, markerfacecolor=PAGE, markersize=5)
        axes.plot(x[2::2], y[2::2], "o", color=colour, markersize=5)
        axes.plot(x[:1], y[:1], "s", color=colour, markersize=5)


def _by_step(
    losses: Sequence[Mapping[int, Sequence[float]]], rounds: Sequence[int], starts: np.ndarray, smooth: bool
) -> np.ndarray:
    """Losses by client and step over all rounds, NaN where a client did not train."""
    table = np.full((len(losses), int(starts[-1])), np.nan)
    for row, client in zip(table, losses, strict=True):
        for start, n in zip(starts, rounds, strict=False):
            values = np.asarray(client.get(n, ()), dtype=float)
            row[start : start + len(values)] = _running_mean(values) if smooth else values
    return table


def _running_mean(values: np.ndarray) -> np.ndarray:
    # Within a round only: losses jump between rounds, where values are replaced.
    half = SMOOTHING // 2
    sums = np.concatenate([[0], np.cumsum(values)])
    ends = np.minimum(np.arange(len(values)) + half + 1, len(values))
    begins = np.maximum(np.arange(len(values)) - half, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def _mark_round(axes: Axes, start: float, n: int | None) -> None:
    axes.axvline(start + 0.5, color=MUTED, linewidth=0.8, alpha=0.6)
    axes.annotate(
        f"round {n}" if n else "",
        (start + 0.5, 1),
        (4, -3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        color=MUTED,
        fontsize=11.5,
    )


def _bar_numbers(axes: Axes, x: np.ndarray, values: np.ndarray, lines: np.ndarray) -> None:
    pixel = axes.get_ylim()[1] / axes.bbox.height
    for place, value, other in zip(x, values, lines, strict=True):
        # Between bar and line if the number fits there, otherwise above both.
        top = value if other > value + 22 * pixel else max(value, other)
        text = f"{value:.1f}" if value < 100 else f"{value:.0f}"
        axes.annotate(text, (place, top), (0, 4), textcoords="offset points", ha="center", fontsize=12)
