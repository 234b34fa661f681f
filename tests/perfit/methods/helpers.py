"""A space of six positions, clients with quadratic losses on it, and plain gradient descent, all in numpy.

The space has one adapted module: A is 2 x 2, positions 0 to 3 row by row, B is 1 x 2, positions 4 and 5. Client ``big``
has rank 2 and thus all six; client ``small`` has rank 1: A's first row and B's first column, positions 0, 1 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from perfit.errors import PerfitError
from perfit.exchange import Transfer
from perfit.federation_file import parse_federation
from perfit.methods import Roles, Tuned, Vectors
from perfit.round import ClientRound, Received, download, exchanged_positions, merge, new_cohort, update_of
from perfit.space import LoraSpace
from perfit.spec import FederationSpec
from perfit.updates import Update

SPACE = LoraSpace.from_shapes({"base_model.model.q.lora_A.weight": (2, 2), "base_model.model.q.lora_B.weight": (1, 2)})
A, B = [0, 1, 2, 3], [4, 5]
SMALL = [0, 1, 4]


def make_spec(method: Mapping[str, Any], ranks: Mapping[str, int | None] | None = None, **more: Any) -> FederationSpec:
    """A federation of rank 2 with the clients ``big`` (rank 2) and ``small`` (rank 1), or those of ``ranks``.

    Positions of one holder are exchanged too, so that the rules of a method show at all six, and in float32, so that
    sums by hand are exact.
    """
    ranks = ranks or {"big": 2, "small": 1}
    clients = [{"id": name, "data": f"{name}.jsonl", "rank": rank} for name, rank in ranks.items()]
    tree = {"name": "toy", "model": "none", "lora": {"rank": 2}, "method": dict(method), "clients": clients, **more}
    return FederationSpec.model_validate(
        {**tree, "exchange": {"holders": 1, "dtype": "float32", **more.get("exchange", {})}}
    )


def side_of(spec: FederationSpec, client: str, round: int = 1) -> ClientRound:
    """A client's side of a round, with a plain LoRA of its rank."""
    return ClientRound(spec, SPACE, SPACE.plain_mask(spec.rank_of(spec.client(client))), round)


def everything(roles: Roles, vectors: Vectors) -> Received:
    """What a client receives if all its shared positions are exchanged; vectors have shape (N,)."""
    return Received(roles.shared, {name: vector[roles.shared] for name, vector in vectors.items()})


@dataclass(frozen=True)
class Pull:
    """A client with the loss (w - target)^2 / 2 at each position, whose gradient is w - target; all (N,)."""

    target: Sequence[float]
    samples: int = 1


@dataclass(frozen=True)
class Federation:
    """After a round: the server's vectors, what each client keeps, and its last transfers, update and values."""

    vectors: Vectors
    kept: Mapping[str, Vectors] = field(default_factory=dict)
    downloads: Mapping[str, Transfer] = field(default_factory=dict)
    uploads: Mapping[str, Transfer] = field(default_factory=dict)
    updates: Mapping[str, Update] = field(default_factory=dict)
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    round: int = 0


def federation_at(spec: FederationSpec, values: Sequence[float]) -> Federation:
    """A federation whose global values are given, not initial."""
    return Federation(spec.algorithm.init(np.array(values, dtype=np.float32)))


def descend(
    side: ClientRound, pull: Pull, received: Received, kept: Vectors, *, steps: int, rate: float
) -> tuple[Transfer, Vectors, np.ndarray]:
    """Do a client's round with plain gradient descent in float64; return its upload, what it keeps, its values (N,)."""
    start = side.begin(received, kept)
    method, options, target = side.spec.algorithm, side.spec.method, np.array(pull.target)[side.roles.trained]
    values, gradients, active = start.values.astype(np.float64), [], side.active[side.roles.trained]
    for _ in range(steps):
        gradients.append(np.where(active, values - target, 0))
        correction = method.correction(options, values, start) if method.correction else 0
        values = np.where(active, values - rate * (gradients[-1] + correction), values)
    tuned = Tuned(values.astype(np.float32), np.mean(gradients, axis=0).astype(np.float32))
    upload, kept = side.finish(received, start, tuned, seed=0)
    return upload, kept, side.dense(tuned.values)


def play(
    spec: FederationSpec,
    before: Federation,
    pulls: Mapping[str, Pull],
    *,
    steps: int = 1,
    rate: float = 0.5,
    lost: Sequence[str] = (),
) -> Federation:
    """Play a round in which the clients of ``pulls`` take part, of which those that are ``lost`` do not deliver."""
    number = before.round + 1
    sides = {name: side_of(spec, name, number) for name in pulls}
    exchanged = exchanged_positions(spec, SPACE, ((side.held, 1) for side in sides.values()))
    cohort = new_cohort(spec, SPACE, before.vectors)
    kept, downloads, uploads, updates, values = ({} for _ in range(5))
    for name, pull in pulls.items():
        side = sides[name]
        downloads[name] = download(spec, before.vectors, side.roles.shared & exchanged, number, spec.client(name))
        received = Received.by(downloads[name])
        uploads[name], kept[name], values[name] = descend(
            side, pull, received, before.kept.get(name, {}), steps=steps, rate=rate
        )
        updates[name] = update_of(spec, before.vectors, received.positions & side.active, uploads[name], pull.samples)
        if name not in lost:
            cohort.add(name, updates[name])
    return Federation(
        merge(spec, SPACE, before.vectors, cohort),
        {**before.kept, **kept},
        {**before.downloads, **downloads},
        {**before.uploads, **uploads},
        {**before.updates, **updates},
        {**before.values, **values},
        number,
    )


def masks(roles) -> tuple[list[int], list[int], list[int]]:
    """The positions that roles hold, train and share."""
    return tuple(np.flatnonzero(mask).tolist() for mask in (roles.held, roles.trained, roles.shared))


BIG = Pull([2, 4, 6, 8, 10, 12], samples=1)
"""One step of rate 0.5 from zero gives 1, 2, 3, 4, 5, 6."""
LITTLE = Pull([10, 12, 0, 0, 2, 0], samples=3)
"""Of client ``small``: one step of rate 0.5 from zero gives 5, 6 and 1 at positions 0, 1 and 4."""
MEAN = [4, 5, 3, 4, 2, 6]
"""Of the two, by samples: (1 + 3*5)/4, (2 + 3*6)/4, 3 and 4 of big alone, (5 + 3*1)/4, 6 of big alone."""


def refusal(section: str) -> str:
    """Return the problem that is reported for a federation file with this section ``method``."""
    text = f"name: toy\nmodel: none\nclients: [{{id: ann, data: ann.jsonl}}]\nmethod: {{{section}}}\n"
    with pytest.raises(PerfitError) as caught:
        parse_federation(text, "f.yaml")
    return caught.value.problem


SHAPES = {"q": (6, 3, 5), "v": (6, 9, 4)}
"""Rank, in features and out features of two modules."""
WIDE = LoraSpace.from_shapes(
    {
        f"base_model.model.{name}.lora_{letter}.weight": (rank, columns) if letter == "A" else (rows, rank)
        for name, (rank, columns, rows) in SHAPES.items()
        for letter in "AB"
    }
)


def product(space: LoraSpace, values: np.ndarray, module: str = "q", rank: int | None = None) -> np.ndarray:
    """The product BA of a module, of its first ranks."""
    matrices = space.split(values.astype(np.float64))
    a, b = (matrices[f"base_model.model.{module}.lora_{letter}.weight"] for letter in "AB")
    return b[:, :rank] @ a[:rank]


def merged(spec: FederationSpec, state: Vectors, updates: dict[str, Update]) -> np.ndarray:
    """The server's values after a round over ``WIDE``."""
    cohort = new_cohort(spec, WIDE, state)
    for name, update in updates.items():
        cohort.add(name, update)
    return merge(spec, WIDE, state, cohort)["values"]


def random_updates(rng: np.random.Generator, ranks: list[int]) -> dict[str, Update]:
    """Updates of plain LoRAs of some ranks over ``WIDE``."""
    updates = {}
    for number, rank in enumerate(ranks):
        held = WIDE.plain_mask(rank)
        vector = rng.normal(0, 1, np.count_nonzero(held)).astype(np.float32)
        updates[f"client-{number}"] = Update(held, {"values": vector}, int(rng.integers(1, 100)))
    return updates


def dense(update: Update) -> np.ndarray:
    """The values of an update over ``WIDE``, float64, zero where it shares nothing."""
    values = np.zeros(WIDE.size)
    values[update.positions] = update.vectors["values"]
    return values
