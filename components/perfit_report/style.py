"""Style and helpers of the report's figures: light grids, direct labels, colours that follow the page's theme."""

from __future__ import annotations

import html
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0528c", "#56b4e9", "#e69f00", "#7a6a00", "#666666")
"""One per client, after Okabe and Ito (2008): distinct with any colour vision."""

WIDTH = 960
"""Of every figure, in CSS pixels."""

FAINT_LINES = 40
"""Groups of up to this many clients are drawn as faint lines behind their median, larger ones as bands."""

INK, MUTED, GRID, PAGE = "#1b1f24", "#59636e", "#dfe3e8", "#fffffe"

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAGE: "--page"} | {
    c: f"--c{i}" for i, c in enumerate(COLOURS, 1)
}
_HOVER = "hover"
_DPI = 72  # SVG is measured in points: at 72 to the inch, a pixel of a figure is a pixel of the page.
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 12.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
}


@dataclass(frozen=True)
class Series:
    """Clients that share a line.

    Args:
        label: Written at the end of the line.
        colour: One of ``COLOURS``.
        rows: The clients' rows in the array that is drawn: one, or several that are drawn as their median.
    """

    label: str
    colour: str
    rows: tuple[int, ...]

    @property
    def is_group(self) -> bool:
        """Whether the line is a median."""
        return len(self.rows) > 1


def as_svg(draw: Callable[..., Figure]) -> Callable[..., str]:
    """Run ``draw`` in the report's style, whatever the user's own is, and return its figure as SVG for an HTML page."""

    @wraps(draw)
    def svg(*args) -> str:
        import matplotlib.style

        # A salt for each figure keeps the ids of its clip paths and markers distinct within the page.
        with matplotlib.style.context(_STYLE | {"svg.hashsalt": draw.__name__}, after_reset=True):
            return _to_svg(draw(*args))

    return svg


def blank(height: int) -> Figure:
    """Return an empty figure of the page's width and ``height`` pixels."""
    from matplotlib.figure import Figure

    return Figure((WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor="none")


def panel(height: int, left: int = 60, right: int = 150, top: int = 34, bottom: int = 48) -> tuple[Figure, Axes]:
    """Return a figure of one panel; the margins, in pixels, leave room for labels at the ends of lines."""
    figure = blank(height)
    box = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (top + bottom) / height)
    return figure, figure.add_axes(box, facecolor="none")


def titles(axes: Axes, x: str, y: str) -> None:
    """Name the axes; the name of y is above its ticks, where it can be horizontal."""
    axes.set_xlabel(x, loc="left", labelpad=7)
    axes.annotate(y, (0, 1), (-axes.bbox.x0, 14), xycoords="axes fraction", textcoords="offset points", color=MUTED)


def band(axes: Axes, x: np.ndarray, rows: np.ndarray, colour: str) -> None:
    """Draw the median of rows (clients, points) over the rows themselves or, if many, their middle 50 % and 90 %."""
    if len(rows) <= FAINT_LINES:
        axes.plot(x, rows.T, color=colour, linewidth=0.8, alpha=0.4)
    else:
        bounds = _percentiles(rows, [5, 25, 75, 95])
        axes.fill_between(x, bounds[0], bounds[3], color=colour, alpha=0.12, linewidth=0)
        axes.fill_between(x, bounds[1], bounds[2], color=colour, alpha=0.25, linewidth=0)
    axes.plot(x, line(rows), color=colour, linewidth=2)


def line(rows: np.ndarray) -> np.ndarray:
    """Return the line that represents rows (clients, points): their median, NaN where there is none."""
    return _percentiles(rows, [50])[0]


def label_ends(axes: Axes, x: np.ndarray, values: np.ndarray, series: Sequence[Series], gap: float = 17) -> None:
    """Name each series to the right of the panel at the height of its last value; names that would touch move apart."""
    axes.get_ylim()  # Applies pending autoscaling; the transform below takes the limits as they are.
    ends = []
    for one in series:
        y = line(values[list(one.rows)])
        known = np.flatnonzero(np.isfinite(y))
        if known.size:
            ends.append((one, x[known[-1]], y[known[-1]]))
    heights = [axes.transData.transform((x, y))[1] for _, x, y in ends]
    for (one, x_end, y_end), height in zip(ends, spread(heights, gap), strict=True):
        axes.annotate(
            short(one.label),
            (x_end, y_end),
            (axes.bbox.x1 + 22, height),
            textcoords="figure pixels",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": one.colour,
                "linewidth": 1,
                "linestyle": (0, (1, 3)),
                "shrinkA": 2,
                "shrinkB": 5,
            },
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move places apart as little as leaves neighbours in order and at least ``gap`` apart."""
    order = np.argsort(places, kind="stable")
    # Neighbours that touch form a block; merging blocks is isotonic regression of places minus rank * gap.
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([places[i] - rank * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    moved = [float(np.mean(block)) for block in blocks for _ in block]
    result = [0.0] * len(places)
    for rank, i in enumerate(order):
        result[i] = moved[rank] + rank * gap
    return result


def bins(table: np.ndarray, most: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbouring columns of a table (rows, columns) that has more of them than a figure can show.

    Returns:
        The places of at most ``most`` columns, counted from 1, and their means, NaN where a row has no value.
    """
    width = max(1, math.ceil(table.shape[1] / most))
    padded = np.pad(table, ((0, 0), (0, -table.shape[1] % width)), constant_values=np.nan)
    cells = padded.reshape(len(table), -1, width)
    known = np.isfinite(cells)
    count = known.sum(axis=2)
    means = np.where(known, cells, 0).sum(axis=2) / np.where(count, count, 1)
    return np.arange(cells.shape[1]) * width + (width + 1) / 2, np.where(count, means, np.nan)


def hover(axes: Axes, x: Sequence[float], y: Sequence[float], texts: Sequence[str], colour: str, **marker) -> None:
    """Let the page say a text where the pointer is on a point, by SVG's own titles: no script, and little to load.

    Points without a value have none.
    """
    known = np.isfinite(y)
    texts = [text for text, is_known in zip(texts, known, strict=True) if is_known]
    style = {"marker": "o", "markersize": 11, "color": colour, "alpha": 0, "linestyle": "none", "zorder": 5} | marker
    (points,) = axes.plot(np.asarray(x)[known], np.asarray(y)[known], **style)
    points.set_gid(hover_id(texts))


def hover_id(texts: Sequence[str]) -> str:
    """Return the group id of an artist whose points, or which itself, say a text under the pointer."""
    return f"{_HOVER} {quote(json.dumps(texts))}"


def short(name: str, length: int = 20) -> str:
    """Shorten a name in its middle: what tells clients apart is often at the end."""
    return name if len(name) <= length else f"{name[: length - 8]}…{name[-7:]}"


def log_ticks(axes: Axes) -> None:
    """Label a log axis with plain numbers, enough of them even if it spans less than a decade."""
    from matplotlib import ticker

    low, high = axes.get_ylim()
    steps = ticker.LogLocator(subs=(1, 2, 5) if high / low < 2000 else (1,))
    axes.yaxis.set_major_locator(steps if high / low > 12 else ticker.MaxNLocator(6))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def every(count: int, most: int) -> slice:
    """Return the slice that takes at most ``most`` of ``count`` items, evenly spaced."""
    return slice(None, None, max(1, math.ceil(count / most)))


def byte_unit(most: float) -> tuple[int, str]:
    """Return the decimal unit that suits up to ``most`` bytes: its size and name."""
    units: Mapping[str, int] = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    name = max((name for name in units if units[name] <= max(most, 1)), key=units.__getitem__)
    return units[name], name


def _percentiles(rows: np.ndarray, percents: Sequence[float]) -> np.ndarray:
    """Percentiles over rows (clients, points) at each point, NaN where no client has a value."""
    result = np.full((len(percents), rows.shape[1]), np.nan)
    known = np.isfinite(rows).any(axis=0)
    result[:, known] = np.nanpercentile(rows[:, known], percents, axis=0)
    return result


def _to_svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)  # HTML needs neither, and without them the page has no URL.
    svg = re.sub(rf'<g id="{_HOVER} ([^"]*)">(.*?)</g>', _with_titles, svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # They recur in every figure, and nothing refers to them.
    svg = re.sub(r' (d|x|y|transform)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
    return re.sub(r"#[0-9a-f]{6}\b", lambda m: f"var({_VARIABLES[m[0]]})" if m[0] in _VARIABLES else m[0], svg)


def _with_titles(group: re.Match) -> str:
    """Put the texts of a group's id into its marks, in order, or the one text into the group itself."""
    titles = [f"<title>{html.escape(text)}</title>" for text in json.loads(unquote(group[1]))]
    style = re.search(r'<use [^>]*style="(fill: #[0-9a-f]{6})', group[2])
    if style is None:
        return f"<g>{''.join(titles)}{group[2]}</g>"
    following = iter(titles)
    # Their look is said once, here and in the page's style: a point then takes half the bytes.
    marks = re.sub(r'<use ([^>]*?) style="[^"]*"/>', lambda use: f"<use {use[1]}>{next(following)}</use>", group[2])
    return f'<g class="{_HOVER}" style="{style[1]}">{marks}</g>'
