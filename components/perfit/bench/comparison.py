"""Methods compared: each at the chosen point of its grid, with paired differences to the baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfit.bench.results import CellResult, Measurements
from perfit.bench.spec import BenchSpec, Cell
from perfit.bench.statistics import Gain, Interval, Point, bootstrap, gain
from perfit.errors import PerfitError


@dataclass(frozen=True)
class MethodResult:
    """A method with all points of its grid, and how the chosen one compares with each baseline's, in pairs.

    Args:
        label: Of the method.
        points: All of its grid.
        differences: In personal perplexity, by baseline.
        gains: By ratio, by baseline.
    """

    label: str
    points: tuple[Point, ...]
    differences: Mapping[str, Interval]
    gains: Mapping[str, Gain]

    @property
    def chosen(self) -> Point | None:
        """See :func:`choose`."""
        return choose(self.points)


@dataclass(frozen=True)
class Comparison:
    """All that the tables and figures of a comparison show.

    Args:
        name: Its title.
        about: What was run, on one line.
        rounds: Number of rounds.
        seeds: Those of each method, in the order of a point's cells.
        methods: The methods.
        baselines: Labels of those that the others are compared with.
        keeps_clients: Whether a client is the same in all seeds.
        targets: Perplexities for the cost to reach them.
    """

    name: str
    about: str
    rounds: int
    seeds: tuple[int, ...]
    methods: tuple[MethodResult, ...]
    baselines: tuple[str, ...]
    keeps_clients: bool
    targets: tuple[float, ...] = ()


def choose(points: Sequence[Point]) -> Point | None:
    """Return the point with the lowest validation perplexity, of equals the first; None if all of them failed.

    One that is alone is not chosen by its perplexity, which need not have been measured.
    """
    best = min(points, key=lambda point: point.validation)
    return best if math.isfinite(best.validation) or (len(points) == 1 and not best.failures) else None


def compare(bench: BenchSpec, cells: Sequence[Cell], results: Mapping[str, CellResult]) -> Comparison:
    """Choose each method's point and compare the methods there.

    Args:
        bench: What the file says.
        cells: All of its cells.
        results: By the cell's file.
    """
    points = {label: _points(bench, label, cells, results) for label in bench.methods}
    return Comparison(
        name=bench.name,
        about=_about(bench, cells, results),
        rounds=bench.rounds,
        seeds=bench.seeds,
        methods=compare_points(points, bench.baselines, bench.split.keeps_clients),
        baselines=bench.baselines,
        keeps_clients=bench.split.keeps_clients,
        targets=bench.targets,
    )


def compare_methods(
    results: Mapping[str, Sequence[Measurements]],
    baselines: Sequence[str] = (),
    *,
    seeds: Sequence[int] = (0,),
    keeps_clients: bool = True,
    name: str = "comparison",
    about: str = "",
) -> Comparison:
    """Compare methods by what :func:`perfit.bench.measure.measure` returned.

    Args:
        results: By the method's label, one for each seed, over the same clients.
        baselines: Labels of those that the others are compared with, client by client and seed by seed.
        seeds: Those of each method's results, in their order.
        keeps_clients: Whether a client has the same records in all seeds.
        name: A title.
        about: What was run, on one line.

    Raises:
        PerfitError: A method has not as many results as there are seeds, or other clients or rounds than another, or
            there is no such baseline.
    """
    shapes = {label: [(len(one.rounds), list(one.start)) for one in of] for label, of in results.items()}
    expected = next(iter(shapes.values()), [])
    for label, shape in shapes.items():
        if not seeds or len(shape) != len(seeds) or shape != expected:
            raise PerfitError(
                f"{label}: its results are not of the seeds {list(seeds)}, clients and rounds that the others are of",
                "measure each method over the same clients and rounds, once for each seed",
            )
    if missing := [label for label in baselines if label not in results]:
        raise PerfitError(f"no method is called {missing[0]!r}", f"use one of {', '.join(results)}")
    points = {label: (Point({}, tuple(of)),) for label, of in results.items()}
    return Comparison(
        name=name,
        about=about,
        rounds=expected[0][0] if expected else 0,
        seeds=tuple(seeds),
        methods=compare_points(points, baselines, keeps_clients),
        baselines=tuple(baselines),
        keeps_clients=keeps_clients,
    )


def compare_points(
    points: Mapping[str, tuple[Point, ...]], baselines: Sequence[str], keeps_clients: bool
) -> tuple[MethodResult, ...]:
    """Compare methods, by label, each at its chosen point, with the baselines among them."""
    chosen = {label: choose(of) for label, of in points.items()}

    def result(label: str, of: tuple[Point, ...]) -> MethodResult:
        mine, others = chosen[label], {other: chosen[other] for other in baselines if other != label}
        pairs = {other: (mine.personal, point.personal) for other, point in others.items() if mine and point}
        differences = {other: bootstrap(own - theirs, keeps_clients) for other, (own, theirs) in pairs.items()}
        gains = {other: gain(own, theirs, keeps_clients) for other, (own, theirs) in pairs.items()}
        return MethodResult(label, of, differences, gains)

    return tuple(result(label, of) for label, of in points.items())


def _points(
    bench: BenchSpec, label: str, cells: Sequence[Cell], results: Mapping[str, CellResult]
) -> tuple[Point, ...]:
    own = [cell for cell in cells if cell.label == label]
    return tuple(
        Point(point, tuple(results[cell.file] for cell in own if cell.point == point)) for point in bench.points(label)
    )


def _about(bench: BenchSpec, cells: Sequence[Cell], results: Mapping[str, CellResult]) -> str:
    split, clients = bench.split, cells[0].job.spec.clients
    by = {
        "category": f"by {split.label}, {split.categories_per_client} a client",
        "dirichlet": f"by Dirichlet proportions of {split.label}, alpha {split.alpha:g}",
        "user": f"by {split.label}",
    }
    environments = "; ".join(sorted({results[cell.file].environment for cell in cells}))
    return (
        f"{bench.model} · {len(clients)} clients, split {by.get(split.scheme, 'at random')} · {bench.rounds} rounds · "
        f"seeds {', '.join(map(str, bench.seeds))} · {environments}"
    )
