"""The sections of the report that have a figure: what is drawn of how many clients, and the sentences beside it.

Each function returns None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perfit.space import LoraSpace
from perfit_report.mask_figures import density_figure, overlap_figure, overlap_histogram
from perfit_report.round_figures import bytes_figure, loss_figure, perplexity_figure
from perfit_report.statistics import chance_overlap, densities, jaccard
from perfit_report.style import COLOURS, Series

NAMED_CLIENTS = len(COLOURS)
"""Up to here each client has a line of its own in the figures; more are drawn as median and quartiles."""

HEATMAP_CLIENTS = 100
"""Up to here mask overlaps are a heat map, beyond a histogram."""

OVERLAP_CLIENTS = 200
"""The histogram is over at most this many clients, evenly spaced in the order of the federation file."""

BARS = 40
"""Rounds in the figure of bytes: the last ones."""

_RANKS_TOLD_APART = 3


def perplexity_section(delivered: Mapping[str, Mapping[int, dict]], rounds: Sequence[int]) -> str | None:
    """Draw held-out perplexity by round.

    Args:
        delivered: What each client delivered, by client and round.
        rounds: The rounds committed.
    """
    values = np.full((len(delivered), 1 + 2 * len(rounds)), np.nan)
    columns = {number: 1 + 2 * i for i, number in enumerate(rounds)}
    for row, records in zip(values, delivered.values(), strict=True):
        for number, record in records.items():
            found, at = record["perplexity"], columns[number]
            row[[0, at, at + 1]] = found["round_0"], found["before"], found["after"]
    return perplexity_figure(values, rounds, _series(list(delivered))) if np.isfinite(values).any() else None


def loss_section(delivered: Mapping[str, Mapping[int, dict]]) -> str | None:
    """Draw training losses over the steps of all rounds.

    Args:
        delivered: What each client delivered, by client and round.
    """
    losses = [{number: record["losses"] for number, record in records.items()} for records in delivered.values()]
    return loss_figure(losses, _series(list(delivered))) if any(losses) else None


def overlap_section(names: Sequence[str], masks: Mapping[str, np.ndarray], space: LoraSpace) -> dict[str, Any] | None:
    """Draw the overlap of each pair of the clients' masks, beside what random masks of the same budgets would share."""
    held = [name for name in names if name in masks]
    heatmap = len(held) <= HEATMAP_CLIENTS
    chosen = held if heatmap else [held[i] for i in _evenly(len(held), OVERLAP_CLIENTS)]
    if len(chosen) < 2:
        return None
    budgets = {name: np.count_nonzero(masks[name]) for name in chosen}
    chosen.sort(key=lambda name: -budgets[name])  # Pairs of the same ranks, hence the same chance, form blocks.
    observed = jaccard(masks[name] for name in chosen)
    held_by = np.array([budgets[name] for name in chosen])
    expected = chance_overlap(held_by, space.size)
    chances = _chances(held_by / space.budget(1), expected)
    upper = np.triu_indices(len(chosen), 1)

    def pair(k: int) -> dict[str, Any]:
        i, j = upper[0][k], upper[1][k]
        return {"clients": (chosen[i], chosen[j]), "observed": observed[i, j], "expected": expected[i, j]}

    lift = observed[upper] / expected[upper]
    heat = heatmap and overlap_figure(chosen, observed, expected, chances)
    return {
        "svg": heat or overlap_histogram(observed[upper], chances),
        "heatmap": heatmap,
        "clients": len(chosen),
        "held": len(held),
        "pairs": lift.size,
        "mean": observed[upper].mean(),
        "chance": expected[upper].mean(),
        "closest": pair(lift.argmax()),
        "furthest": pair(lift.argmin()),
    }


def density_section(names: Sequence[str], masks: Mapping[str, np.ndarray], space: LoraSpace) -> dict[str, Any] | None:
    """Draw the fraction of positions held by module; where every module holds the same, that of its A and B alone."""
    held = [name for name in names if name in masks]
    if not held:
        return None
    values = densities(space, (masks[name] for name in held))
    modules = space.layers()
    sizes = np.array([part.stop - part.start for part in modules.values()])
    ranks = np.rint(values[:, :, 0] @ sizes) / space.budget(1)
    even = bool(np.ptp(values[:, :, 0], axis=1).max() < 0.005)
    parts = ["whole module", "LoRA A", "LoRA B"][1 if even else 0 :]
    series = _series(names, held) if len(names) <= NAMED_CLIENTS else _rank_series(ranks)
    kinds = [name.rsplit(".", 1)[-1] for name in modules]
    return {
        "svg": density_figure(values[:, :, -len(parts) :], kinds, parts, series),
        "held": len(held),
        "shares": dict(sorted(zip(ranks.tolist(), values[:, 0, 0].tolist(), strict=True))) if even else None,
        "a": values[:, :, 1].mean(),
        "b": values[:, :, 2].mean(),
    }


def bytes_section(traffic: Sequence[dict]) -> str | None:
    """Draw the bytes of the last rounds.

    Args:
        traffic: For each round its ``round``, how many ``delivered``, and the bytes ``up``, ``down`` and ``dense``.
    """
    shown = [row for row in traffic if row["delivered"]][-BARS:]
    if not shown:
        return None
    columns = {key: [row[key] for row in shown] for key in ("round", "up", "down", "dense")}
    return bytes_figure(columns["round"], {"up": columns["up"], "down": columns["down"]}, columns["dense"])


def _series(names: Sequence[str], shown: Sequence[str] | None = None) -> list[Series]:
    """Series of the clients shown, which are the rows of what is drawn; a client has one colour in all figures."""
    shown = names if shown is None else shown
    if len(names) > NAMED_CLIENTS:
        return [Series("median client", COLOURS[0], tuple(range(len(shown))))]
    return [Series(name, COLOURS[names.index(name)], (row,)) for row, name in enumerate(shown)]


def _evenly(count: int, most: int) -> list[int]:
    return np.linspace(0, count - 1, min(count, most)).astype(int).tolist()


def _rank_series(ranks: np.ndarray) -> list[Series]:
    groups = {f"rank {rank:g}": np.flatnonzero(ranks == rank) for rank in np.unique(ranks)}
    if len(groups) > _RANKS_TOLD_APART:
        groups = {"median client": np.arange(len(ranks))}
    return [
        Series(label, colour, tuple(rows.tolist()))
        for (label, rows), colour in zip(groups.items(), COLOURS, strict=False)
    ]


def _chances(ranks: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Expected overlaps by pair of ranks, or their range where the ranks are many."""
    upper = np.triu_indices(len(ranks), 1)
    if len(np.unique(ranks)) > _RANKS_TOLD_APART:
        found = expected[upper]
        return {"least of all pairs": float(found.min()), "most of all pairs": float(found.max())}
    low, high = np.sort([ranks[upper[0]], ranks[upper[1]]], axis=0)
    named = {(a, b): float(chance) for a, b, chance in zip(low, high, expected[upper], strict=True)}
    return {f"ranks {a:g} and {b:g}": named[a, b] for a, b in sorted(named)}
