"""The figures of the report.

A few clients are drawn one by one and named at the ends of their lines; many are drawn as median and quartiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perfit.report_style import (
    COLOURS,
    INK,
    MUTED,
    PAGE,
    WIDTH,
    Series,
    band,
    blank,
    byte_unit,
    drawn,
    every,
    label_ends,
    line,
    log_ticks,
    panel,
    short,
    spread,
    titles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SMOOTHING = 5
"""Steps of the running mean of losses."""

_LOSS_POINTS = 400


@drawn
def perplexity_figure(values: np.ndarray, numbers: Sequence[int], series: Sequence[Series]) -> Figure:
    """Draw perplexities by round: each tuning as a solid line, what lies between two tunings dotted.

    Args:
        values: float, shape (clients, 1 + 2 * rounds): round 0, then before and after each round; NaN where not delivered.
        numbers: Of the rounds.
        series: What to draw.
    """
    rounds = len(numbers)
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
    axes.set_xlim(-0.2, rounds + 0.45)
    labels = ["round 0", *map(str, numbers)]
    axes.set_xticks(range(rounds + 1)[every(rounds + 1, 25)], labels[every(rounds + 1, 25)])
    log_ticks(axes)
    axes.grid(axis="x", visible=False)
    titles(axes, "round, from before (left edge) to after its tuning (right edge)", "held-out perplexity (log scale)")
    label_ends(axes, x, values, series)
    return figure


@drawn
def loss_figure(losses: Sequence[Mapping[int, Sequence[float]]], series: Sequence[Series]) -> Figure:
    """Draw training losses over the steps of all rounds.

    Args:
        losses: For each client, the loss of every step, by round.
        series: What to draw.
    """
    rounds = sorted({n for client in losses for n in client})
    lengths = [max(len(client.get(n, ())) for client in losses) for n in rounds]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    x, raw = _bins(_by_step(losses, rounds, starts, smooth=False))
    _, smooth = _bins(_by_step(losses, rounds, starts, smooth=True))
    figure, axes = panel(380)
    for one in series:
        if one.is_group:
            band(axes, x, smooth[list(one.rows)], one.colour)
        else:
            axes.plot(x, raw[one.rows[0]], color=one.colour, linewidth=1, alpha=0.35)
            axes.plot(x, smooth[one.rows[0]], color=one.colour, linewidth=2)
    for start, n in list(zip(starts, rounds, strict=False))[every(len(rounds), 12)]:
        _mark_round(axes, start, n)
    axes.set_xlim(0, starts[-1] + 0.5)
    axes.margins(y=0.12)
    axes.grid(axis="x", visible=False)
    titles(axes, "optimiser step, over all rounds", "training loss, nats per response token")
    label_ends(axes, x, smooth, series)
    return figure


@drawn
def overlap_figure(
    names: Sequence[str], observed: np.ndarray, expected: np.ndarray, chances: Mapping[str, float]
) -> Figure:
    """Draw the Jaccard indices as a heat map; beside it the colour scale with the overlaps expected by chance.

    Args:
        names: The n clients, at least two.
        observed: float, shape (n, n).
        expected: Overlap expected of random masks, shape (n, n).
        chances: The same by what to call the pair of budgets.
    """
    n = len(names)
    off = ~np.eye(n, dtype=bool)
    shown = np.concatenate([observed[off], expected[off]])
    low, high = math.floor(20 * shown.min()) / 20, math.ceil(20 * shown.max()) / 20
    side = min(560, max(240, 90 * n))
    figure, axes = panel(side + 110, left=170, right=WIDTH - 170 - side, top=6, bottom=104)
    image = axes.imshow(
        np.where(off, observed, np.nan), "viridis", vmin=low, vmax=max(high, low + 0.05), interpolation="none"
    )
    if n <= 30:
        _cell_numbers(axes, image, observed, expected if n <= 6 else None)
    ticks, size = range(n)[every(n, 40)], 12 if n <= 20 else 9
    labels = [short(names[i]) for i in ticks]
    axes.set_yticks(ticks, labels, fontsize=size)
    axes.set_xticks(ticks, labels, fontsize=size, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    _colour_scale(figure, image, axes.bbox.x1 + 76, chances)
    return figure


@drawn
def overlap_histogram(values: np.ndarray, chances: Mapping[str, float]) -> Figure:
    """Draw how the overlaps of pairs are spread, and the overlaps expected by chance as lines.

    Args:
        values: Jaccard index of each pair, shape (pairs,).
        chances: Overlap expected of random masks, by what to call the pair of budgets.
    """
    figure, axes = panel(320, right=40, top=84)
    low, high = min(values.min(), *chances.values()), max(values.max(), *chances.values())
    margin = max(0.01, 0.06 * (high - low))
    axes.hist(values, bins=80, range=(low - margin, high + margin), color=COLOURS[0], linewidth=0)
    axes.set_xlim(low - margin, high + margin)
    pixels = [axes.transData.transform((chance, 0))[0] for chance in chances.values()]
    for (name, chance), pixel in zip(chances.items(), spread(pixels, 120), strict=True):
        axes.axvline(chance, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            f"chance, {name}\n{chance:.2f}",
            (chance, axes.get_ylim()[1]),
            (pixel, axes.bbox.y1 + 34),
            textcoords="figure pixels",
            ha="center",
            fontsize=11.5,
            linespacing=1.3,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.8, "shrinkA": 2, "shrinkB": 0},
        )
    axes.grid(axis="x", visible=False)
    titles(axes, "Jaccard index of the masks of two clients", "pairs of clients")
    return figure


@drawn
def density_figure(values: np.ndarray, kinds: Sequence[str], parts: Sequence[str], series: Sequence[Series]) -> Figure:
    """Draw the fraction of positions held: a row of panels for each kind of module, a column for each part.

    Args:
        values: float, shape (clients, modules, parts).
        kinds: The kind of each module, such as ``q_proj``; modules in model order.
        parts: What to call each part: the whole module, A, B.
        series: What to draw.
    """
    rows = list(dict.fromkeys(kinds))
    height, gap, top, bottom = 130, 22, 34, 52
    total = top + bottom + len(rows) * (height + gap) - gap
    figure = blank(total)
    grid = figure.subplots(len(rows), len(parts), sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(
        110 / WIDTH, bottom / total, 1 - 150 / WIDTH, 1 - top / total, wspace=0.07, hspace=gap / height
    )
    last_panels = []
    for row, kind in zip(grid, rows, strict=True):
        members = [i for i, other in enumerate(kinds) if other == kind]
        for axes, part in zip(row, range(len(parts)), strict=True):
            x, binned = _bins(values[:, members, part])
            _density_lines(axes, x - 1, binned, series)
        last_panels.append((row[-1], x - 1, binned))
        row[0].annotate(kind, (0, 0.5), (-104, 0), xycoords="axes fraction", textcoords="offset points", va="center")
    for axes, part in zip(grid[0], parts, strict=True):
        axes.set_title(part, loc="left", fontsize=12.5)
    _density_axes(grid, values)
    for axes, x, binned in last_panels:
        label_ends(axes, x, binned, series, gap=15)
    return figure


@drawn
def bytes_figure(rounds: Sequence[int], sent: Mapping[str, Sequence[int]], dense: Sequence[int]) -> Figure:
    """Draw bytes by round as bars, and what dense LoRA would send as a line across each bar.

    Args:
        rounds: Round numbers.
        sent: Bytes of each round, by direction.
        dense: Bytes of dense float32 LoRA for the same clients, each way.
    """
    figure, axes = panel(280)
    x, width, wanted = np.arange(len(rounds)), 0.8 / len(sent), np.array(dense)
    scale, unit = byte_unit(max(max(dense), *(max(values) for values in sent.values())))
    for i, (name, values) in enumerate(sent.items()):
        at = x + (i - (len(sent) - 1) / 2) * width
        axes.bar(at, np.array(values) / scale, width * 0.94, color=COLOURS[i], linewidth=0)
        axes.hlines(wanted / scale, at - width * 0.47, at + width * 0.47, color=INK, linewidth=2)
        if len(rounds) <= 8:
            for place, value, line_at in zip(at, values, dense, strict=True):
                top = max(value, line_at) / scale
                axes.annotate(
                    f"{name} {value / scale:.3g}", (place, top), (0, 5), textcoords="offset points", ha="center"
                )
    chosen = every(len(rounds), 25)
    axes.set_xticks(x[chosen], rounds[chosen])
    axes.margins(x=0.02, y=0.15)
    axes.annotate(
        "dense float32\nLoRA", (x[-1] + 0.4, dense[-1] / scale), (axes.bbox.x1 + 8, 0), va="center",
        textcoords=("figure pixels", "offset points"), annotation_clip=False,
    )  # fmt: skip
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
    # Within a round only: losses do jump where values were averaged.
    half = SMOOTHING // 2
    sums = np.concatenate([[0], np.cumsum(values)])
    ends = np.minimum(np.arange(len(values)) + half + 1, len(values))
    begins = np.maximum(np.arange(len(values)) - half, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def _bins(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps (from 1) and losses, averaged over neighbouring steps where there are more than can be told apart."""
    width = max(1, math.ceil(table.shape[1] / _LOSS_POINTS))
    padded = np.pad(table, ((0, 0), (0, -table.shape[1] % width)), constant_values=np.nan)
    cells = padded.reshape(len(table), -1, width)
    known = np.isfinite(cells)
    count = known.sum(axis=2)
    means = np.where(known, cells, 0).sum(axis=2) / np.where(count, count, 1)
    return np.arange(cells.shape[1]) * width + (width + 1) / 2, np.where(count, means, np.nan)


def _mark_round(axes: Axes, start: float, n: int) -> None:
    axes.axvline(start + 0.5, color=MUTED, linewidth=0.8, alpha=0.6)
    axes.annotate(
        f"round {n}", (start + 0.5, 1), (4, -3), xycoords=("data", "axes fraction"), textcoords="offset points",
        va="top", color=MUTED, fontsize=11.5,
    )  # fmt: skip


def _cell_numbers(axes: Axes, image: AxesImage, observed: np.ndarray, expected: np.ndarray | None) -> None:
    size = 13 if len(observed) <= 10 else 9
    for i, j in zip(*np.nonzero(~np.eye(len(observed), dtype=bool)), strict=True):
        luminance = np.dot(image.to_rgba(observed[i, j])[:3], (0.2126, 0.7152, 0.0722))
        colour = "#ffffff" if luminance < 0.45 else "#000001"
        number = f"{observed[i, j]:.2f}" if len(observed) <= 10 else f"{observed[i, j]:.2f}".removeprefix("0")
        axes.text(
            j, i - (0.08 if expected is not None else 0), number, color=colour, ha="center", va="center", fontsize=size
        )
        if expected is not None:
            chance = f"chance {expected[i, j]:.2f}"
            axes.text(j, i + 0.2, chance, color=colour, ha="center", va="center", fontsize=10)


def _colour_scale(figure: Figure, image: AxesImage, left: float, chances: Mapping[str, float]) -> None:
    box = image.axes.get_position()
    scale = figure.add_axes((left / WIDTH, box.y0, 18 / WIDTH, box.height))
    figure.colorbar(image, cax=scale).outline.set_visible(False)
    scale.yaxis.tick_left()
    scale.tick_params(length=0)
    scale.grid(visible=False)
    heights = [scale.transData.transform((0, chance))[1] for chance in chances.values()]
    for (name, chance), height in zip(chances.items(), spread(heights, 18), strict=True):
        scale.axhline(chance, color="#ffffff", linewidth=2)
        scale.annotate(
            f"{chance:.2f} by chance, {name}", (1, chance), (left + 40, height), xycoords=("axes fraction", "data"),
            textcoords="figure pixels", va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.8, "shrinkA": 3, "shrinkB": 0},
        )  # fmt: skip


def _density_lines(axes: Axes, x: np.ndarray, values: np.ndarray, series: Sequence[Series]) -> None:
    marker = "o" if len(x) <= 40 else ""
    for one in series:
        rows = values[list(one.rows)]
        if one.is_group:
            band(axes, x, rows, one.colour)
        axes.plot(x, line(rows), marker, color=one.colour, linestyle="-", linewidth=1.6, markersize=3)


def _density_axes(grid: np.ndarray, values: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    first = grid[0, 0]
    first.set_ylim(max(0, values.min() - 0.05), min(1, values.max() + 0.05) + 0.005)
    first.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    first.yaxis.set_major_locator(MaxNLocator(4))
    first.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    for axes in grid.flat:
        axes.set_facecolor("none")
        axes.grid(axis="x", visible=False)
    grid[-1, 0].set_xlabel("module of its kind, in model order", loc="left")
