"""The report's figures of masks: their overlap and their density."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perfit_report.style import (
    COLOURS,
    INK,
    MUTED,
    PAGE,
    WIDTH,
    Series,
    as_svg,
    band,
    bins,
    blank,
    every,
    hover,
    label_ends,
    line,
    panel,
    short,
    spread,
    titles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

NUMBERED_CLIENTS = 30
"""Heat maps of more clients have no numbers in their cells."""

_HOVER_CLIENTS, _HOVER_POINTS = 40, 1000
"""Heat maps of more clients and densities of more points have no hover texts, which would be most of the page."""

_CHANCE_IN_CELL = 6  # Up to this many clients the cells also say what to expect by chance.


@as_svg
def overlap_figure(
    names: Sequence[str], observed: np.ndarray, expected: np.ndarray, chances: Mapping[str, float]
) -> Figure:
    """Draw Jaccard indices as a heat map and, on the colour scale beside it, the overlaps expected by chance.

    Args:
        names: The n clients, at least two.
        observed: float, shape (n, n).
        expected: Overlap expected of random masks, shape (n, n).
        chances: The same, by the label of the pairs that have it.
    """
    n = len(names)
    off = ~np.eye(n, dtype=bool)
    shown = np.concatenate([observed[off], expected[off]])
    high = math.ceil(20 * shown.max()) / 20
    low = min(math.floor(20 * shown.min()) / 20, high - 0.05)
    side = min(520, max(240, 90 * n))
    bottom = 28 + 5 * max(len(short(name)) for name in names)
    figure, axes = panel(side + bottom + 20, left=170, right=WIDTH - 170 - side, top=20, bottom=bottom)
    image = axes.imshow(np.where(off, observed, np.nan), "viridis", vmin=low, vmax=high, interpolation="none")
    if n <= _HOVER_CLIENTS:
        _cell_texts(axes, names, observed, expected, side / n)
    if n <= NUMBERED_CLIENTS:
        _cell_numbers(axes, image, observed, expected if n <= _CHANCE_IN_CELL else None)
    ticks, size = range(n)[every(n, 40)], 12 if n <= 20 else 9
    labels = [short(names[i]) for i in ticks]
    axes.set_yticks(ticks, labels, fontsize=size)
    axes.set_xticks(ticks, labels, fontsize=size, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    _colour_scale(figure, image, axes.bbox.x1 + 76, chances)
    return figure


@as_svg
def overlap_histogram(values: np.ndarray, chances: Mapping[str, float]) -> Figure:
    """Draw the distribution of the overlaps of pairs, and those expected by chance as lines.

    Args:
        values: Jaccard index of each pair, shape (pairs,).
        chances: Overlap expected of random masks, by the label of the pairs that have it.
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


@as_svg
def density_figure(values: np.ndarray, kinds: Sequence[str], parts: Sequence[str], series: Sequence[Series]) -> Figure:
    """Draw the fraction of positions held: one row of panels per kind of module, one column per part.

    Args:
        values: float, shape (clients, modules, parts).
        kinds: The kind of each module, such as ``q_proj``; modules in model order.
        parts: Title of each part: the whole module, A, B.
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
            x, binned = bins(values[:, members, part])
            _density_lines(axes, x - 1, binned, series)
            if len(kinds) * len(parts) * len(series) <= _HOVER_POINTS:
                _density_texts(axes, x - 1, binned, series, f"{kind}, {parts[part]}")
        last_panels.append((row[-1], x - 1, binned))
        row[0].annotate(kind, (0, 0.5), (-104, 0), xycoords="axes fraction", textcoords="offset points", va="center")
    for axes, part in zip(grid[0], parts, strict=True):
        axes.set_title(part, loc="left", fontsize=12.5)
    _density_axes(grid, values, max(map(kinds.count, rows)))
    for axes, x, binned in last_panels:
        label_ends(axes, x, binned, series, gap=15)
    return figure


def _cell_texts(axes: Axes, names: Sequence[str], observed: np.ndarray, expected: np.ndarray, size: float) -> None:
    cells = np.argwhere(~np.eye(len(names), dtype=bool))
    texts = [f"{names[i]} and {names[j]}: {observed[i, j]:.3f}\nby chance: {expected[i, j]:.3f}" for i, j in cells]
    hover(axes, cells[:, 1], cells[:, 0], texts, PAGE, marker="s", markersize=size)


def _cell_numbers(axes: Axes, image: AxesImage, observed: np.ndarray, expected: np.ndarray | None) -> None:
    roomy = len(observed) <= 10
    style = {"ha": "center", "va": "center"}
    for i, j in zip(*np.nonzero(~np.eye(len(observed), dtype=bool)), strict=True):
        luminance = np.dot(image.to_rgba(observed[i, j])[:3], (0.2126, 0.7152, 0.0722))
        colour = "#ffffff" if luminance < 0.45 else "#000001"
        number = f"{observed[i, j]:.2f}" if roomy else f"{observed[i, j]:.2f}".removeprefix("0")
        lift = 0 if expected is None else 0.08
        axes.text(j, i - lift, number, color=colour, fontsize=13 if roomy else 9, **style)
        if expected is not None:
            axes.text(j, i + 0.2, f"chance {expected[i, j]:.2f}", color=colour, fontsize=10, **style)


def _colour_scale(figure: Figure, image: AxesImage, left: float, chances: Mapping[str, float]) -> None:
    box = image.axes.get_position()
    scale = figure.add_axes((left / WIDTH, box.y0, 18 / WIDTH, box.height))
    figure.colorbar(image, cax=scale).outline.set_visible(False)
    scale.yaxis.tick_left()
    scale.tick_params(length=0)
    scale.grid(visible=False)
    heights = [scale.transData.transform((0, chance))[1] for chance in chances.values()]
    for (name, chance), height in zip(chances.items(), spread(heights, 34), strict=True):
        scale.axhline(chance, color="#ffffff", linewidth=2)
        scale.annotate(
            f"{chance:.2f} by chance,\n{name}",
            (1, chance),
            (left + 40, height),
            xycoords=("axes fraction", "data"),
            textcoords="figure pixels",
            va="center",
            fontsize=11.5,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.8, "shrinkA": 3, "shrinkB": 0},
        )


def _density_lines(axes: Axes, x: np.ndarray, values: np.ndarray, series: Sequence[Series]) -> None:
    marker = "o" if len(x) <= 40 else ""
    for one in series:
        rows = values[list(one.rows)]
        if one.is_group:
            band(axes, x, rows, one.colour)
        axes.plot(x, line(rows), color=one.colour, linewidth=1.6, marker=marker, markersize=3)


def _density_texts(axes: Axes, x: np.ndarray, values: np.ndarray, series: Sequence[Series], what: str) -> None:
    for one in series:
        shown = line(values[list(one.rows)])
        texts = [f"{one.label}\n{what}, module {i:.0f}: {value:.1%}" for i, value in zip(x, shown, strict=True)]
        hover(axes, x, shown, texts, one.colour, markersize=9)


def _density_axes(grid: np.ndarray, values: np.ndarray, modules: int) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    first = grid[0, 0]
    first.set_ylim(max(0, values.min() - 0.05), min(1, values.max() + 0.05) + 0.005)
    first.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    first.yaxis.set_major_locator(MaxNLocator(4))
    first.set_xlim(-0.5, modules - 0.5)
    first.set_xticks(range(modules)[every(modules, 10)])
    for axes in grid.flat:
        axes.set_facecolor("none")
        axes.grid(axis="x", visible=False)
    grid[-1, 0].set_xlabel("module of its kind, in model order", loc="left")
