"""The sections of the report that have a figure: what is drawn for how many clients, and the numbers beside it.

Each function returns None if there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perfit.protocol import UpdateRecord
from perfit.space import LoraSpace
from perfit_report.mask_figures import density_figure, overlap_figure, overlap_histogram
from perfit_report.round_figures import bytes_figure, loss_figure, perplexity_figure
from perfit_report.statistics import chance_overlap, densities, jaccard
from perfit_report.style import COLOURS, Series
from perfit_report.tables import Traffic

NAMED_CLIENTS = len(COLOURS)
"""Up to this many clients each have a line of their own in the figures; more are drawn as their median."""

HEATMAP_CLIENTS = 100
"""Mask overlaps of up to this many clients are a heat map, of more a histogram."""

OVERLAP_CLIENTS = 200
"""The histogram covers at most this many clients, evenly spaced in the order of the federation file."""

BARS = 40
"""How many rounds the figure of bytes shows: the last ones."""

_NAMED_RANKS = 3


def perplexity_section(records: Mapping[str, Mapping[int, UpdateRecord]], rounds: Sequence[int]) -> str | None:
    """Draw held-out perplexity by round.

    Args:
        records: Of every client, by client and round.
        rounds: The committed rounds.
    """
    values = np.full((len(records), 1 + 2 * len(rounds)), np.nan)
    columns = {number: 1 + 2 * i for i, number in enumerate(rounds)}
    for row, by_round in zip(values, records.values(), strict=True):
        for number, record in by_round.items():
            perplexity, column = record.perplexity, columns[number]
            row[[0, column, column + 1]] = perplexity.round_0, perplexity.before, perplexity.after
    return perplexity_figure(values, rounds, _series(list(records))) if np.isfinite(values).any() else None


def loss_section(records: Mapping[str, Mapping[int, UpdateRecord]]) -> str | None:
    """Draw training losses over the steps of all rounds.

    Args:
        records: Of every client, by client and round.
    """
    losses = [{number: record.losses for number, record in by_round.items()} for by_round in records.values()]
    return loss_figure(losses, _series(list(records))) if any(losses) else None


def overlap_section(names: Sequence[str], masks: Mapping[str, np.ndarray], space: LoraSpace) -> dict[str, Any] | None:
    """Draw the overlap of each pair of masks, beside that expected of random masks of the same budgets."""
    known = [name for name in names if name in masks]
    heatmap = len(known) <= HEATMAP_CLIENTS
    chosen = known if heatmap else [known[i] for i in _evenly(len(known), OVERLAP_CLIENTS)]
    if len(chosen) < 2:
        return None
    by_name = {name: np.count_nonzero(masks[name]) for name in chosen}
    chosen.sort(key=lambda name: -by_name[name])  # Pairs of the same ranks, hence of the same chance, form blocks.
    observed = jaccard(masks[name] for name in chosen)
    budgets = np.array([by_name[name] for name in chosen])
    expected = chance_overlap(budgets, space.size)
    chances = _chances(budgets / space.budget(1), expected)
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
        "known": len(known),
        "pairs": lift.size,
        "mean": observed[upper].mean(),
        "chance": expected[upper].mean(),
        "closest": pair(lift.argmax()),
        "furthest": pair(lift.argmin()),
    }


def density_section(names: Sequence[str], masks: Mapping[str, np.ndarray], space: LoraSpace) -> dict[str, Any] | None:
    """Draw the fraction of positions held in each module; if it is the same in all, only those of A and of B."""
    known = [name for name in names if name in masks]
    if not known:
        return None
    values = densities(space, (masks[name] for name in known))
    modules = space.layers()
    sizes = np.array([part.stop - part.start for part in modules.values()])
    ranks = np.rint(values[:, :, 0] @ sizes) / space.budget(1)
    even = bool(np.ptp(values[:, :, 0], axis=1).max() < 0.005)
    parts = ["whole module", "LoRA A", "LoRA B"][1 if even else 0 :]
    series = _series(names, known) if len(names) <= NAMED_CLIENTS else _rank_series(ranks)
    kinds = [name.rsplit(".", 1)[-1] for name in modules]
    return {
        "svg": density_figure(values[:, :, -len(parts) :], kinds, parts, series),
        "known": len(known),
        "shares": dict(sorted(zip(ranks.tolist(), values[:, 0, 0].tolist(), strict=True))) if even else None,
        "a": values[:, :, 1].mean(),
        "b": values[:, :, 2].mean(),
    }


def bytes_section(traffic: Sequence[Traffic]) -> str | None:
    """Draw the bytes of the last rounds in which somebody delivered."""
    shown = [row for row in traffic if row.delivered][-BARS:]
    if not shown:
        return None
    sent = {"up": [row.up for row in shown], "down": [row.down for row in shown]}
    return bytes_figure([row.round for row in shown], sent, [row.dense for row in shown])


def _series(names: Sequence[str], shown: Sequence[str] | None = None) -> list[Series]:
    """Series of the ``shown`` clients, one row each; a client has the same colour in all figures."""
    shown = names if shown is None else shown
    if len(names) > NAMED_CLIENTS:
        return [Series("median client", COLOURS[0], tuple(range(len(shown))))]
    return [Series(name, COLOURS[names.index(name)], (row,)) for row, name in enumerate(shown)]


def _evenly(count: int, most: int) -> list[int]:
    return np.linspace(0, count - 1, min(count, most)).astype(int).tolist()


def _rank_series(ranks: np.ndarray) -> list[Series]:
    groups = {f"rank {rank:g}": np.flatnonzero(ranks == rank) for rank in np.unique(ranks)}
    if len(groups) > _NAMED_RANKS:
        groups = {"median client": np.arange(len(ranks))}
    return [
        Series(label, colour, tuple(rows.tolist()))
        for (label, rows), colour in zip(groups.items(), COLOURS, strict=False)
    ]


def _chances(ranks: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Expected overlaps by pair of ranks or, if there are many ranks, their range."""
    upper = np.triu_indices(len(ranks), 1)
    if len(np.unique(ranks)) > _NAMED_RANKS:
        pairs = expected[upper]
        return {"lowest of any pair": float(pairs.min()), "highest of any pair": float(pairs.max())}
    low, high = np.sort([ranks[upper[0]], ranks[upper[1]]], axis=0)
    named = {(a, b): float(chance) for a, b, chance in zip(low, high, expected[upper], strict=True)}
    return {f"ranks {a:g} and {b:g}": named[a, b] for a, b in sorted(named)}
