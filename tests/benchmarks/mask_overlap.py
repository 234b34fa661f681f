"""How much of a searched mask is personal: overlaps between clients, orders of the records and initial values.

    python tests/benchmarks/mask_overlap.py run BENCH_FILE DIRECTORY
    python tests/benchmarks/mask_overlap.py table DIRECTORY

The first command trains the expanded LoRA of each client of a bench file's first seed, as a search does, and takes a
mask by every metric within every scope from the scores of all steps: what a search with one pruning, in its last step,
finds. It does so at several expansions, in two orders of the records, and once from other initial values; and it runs
the bench file's own search, which prunes step by step, in two orders. Each training leaves a file in the directory, so
that the command goes on where it was stopped. The second prints Jaccard indices.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch

from perfit.bench.cell import load
from perfit.bench.plan import plan_cells
from perfit.importance import METRICS
from perfit.lora import dense_weights, set_dense
from perfit.pruning import prune
from perfit.search import search_architecture
from perfit.seeds import derive_seed
from perfit.space import LoraSpace
from perfit.training import StatefulCallback, train

CACHE = Path.home() / ".cache" / "perfit"
SCOPES = ("layer", "matrix", "global")


@dataclass(frozen=True)
class Run:
    """A training of each client.

    Args:
        expansion: Of the LoRA.
        initial: Seed of the values that it starts from.
        order: Seed of the order of the records.
        stepwise: Whether it prunes as the file says.
    """

    expansion: int
    initial: int = 0
    order: int = 0
    stepwise: bool = False

    def file(self, directory: Path, client: str) -> Path:
        """Return where the masks of a client are."""
        kind = "stepwise" if self.stepwise else "once"
        return directory / f"{kind}.{self.expansion}.initial-{self.initial}.order-{self.order}.{client}.npz"


RUNS = (
    *(Run(2, order=order) for order in (0, 1)),
    Run(2, initial=1),
    *(Run(2, order=order, stepwise=True) for order in (0, 1)),
    *(Run(4, order=order) for order in (0, 1)),
)
"""At expansion 1 a client of the largest rank has nothing to prune, and all masks are the same."""


def run(file: Path, directory: Path) -> None:
    """Train what is not there yet."""
    cells = plan_cells(file, directory / "data")[1]
    job = next(cell.job for cell in cells if cell.job.spec.search)
    expansion, simulation = 0, None
    for one in RUNS:
        pending = [client for client in job.spec.clients if not one.file(directory, client.id).exists()]
        if pending and one.expansion != expansion:
            expansion = one.expansion
            lora = job.spec.lora.model_copy(update={"expansion": expansion})
            simulation, _ = load(job.model_copy(update={"spec": job.spec.model_copy(update={"lora": lora})}), CACHE)
        for client in pending:
            began = time.process_time()
            masks = stepwise(simulation, one, client) if one.stepwise else at_once(simulation, one, client)
            save(one.file(directory, client.id), masks, simulation.model.space)
            print(f"{one} {client.id}: {time.process_time() - began:.1f} s of CPU time", flush=True)


def stepwise(simulation, one: Run, client) -> dict[str, np.ndarray]:
    """Return the mask of the bench file's own search."""
    spec, model = simulation.spec, simulation.model
    mask = search_architecture(
        model.peft,
        model.space,
        simulation.data[client.id].train.examples,
        model.tokenizer,
        spec.search,
        spec.training,
        initial=model.space.initial_values(one.initial),
        rank=spec.rank_of(client),
        seed=seed_of(one, client),
    )
    return {f"{spec.search.metric} {spec.search.scope}": mask}


def at_once(simulation, one: Run, client) -> dict[str, np.ndarray]:
    """Return a mask by every metric and scope, all from one training."""
    spec, model, seed = simulation.spec, simulation.model, seed_of(one, client)
    space, initial = model.space, model.space.initial_values(one.initial)
    set_dense(model.peft, space, initial)
    scores, examples = Scores(model.peft, space, initial), simulation.data[client.id].train.examples
    steps = spec.search.steps
    train(model.peft, examples, model.tokenizer, spec.training, steps=steps, seed=seed, callbacks=[scores])
    everything, rank = np.ones(space.size, dtype=bool), spec.rank_of(client)
    return {
        f"{metric} {scope}": prune(
            space, everything, scores.flat(metric), rank=rank, redundant=0, scope=scope, seed=seed
        )
        for metric, scope in product(METRICS, SCOPES)
    }


class Scores(StatefulCallback):
    """Accumulates the scores of all metrics, and prunes nothing."""

    def __init__(self, model: torch.nn.Module, space: LoraSpace, initial: np.ndarray):
        self._weights = dense_weights(model)
        self._start = {name: torch.from_numpy(block) for name, block in space.split(initial).items()}
        self._scores = {metric: {name: torch.zeros_like(w) for name, w in self._weights.items()} for metric in METRICS}

    def state(self) -> dict[str, torch.Tensor]:
        return {f"{metric}/{name}": score for metric, of in self._scores.items() for name, score in of.items()}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        with torch.no_grad():
            for metric, of in self._scores.items():
                for name, weight in self._weights.items():
                    of[name] = METRICS[metric](of[name], weight, weight.grad, self._start[name])

    def flat(self, metric: str) -> np.ndarray:
        """Return the scores of a metric: float32, shape (N,)."""
        return np.concatenate([score.numpy().ravel() for score in self._scores[metric].values()])


def seed_of(one: Run, client) -> int:
    """Return the seed of a search: that of the bench's cells for order 0."""
    return derive_seed(one.order, "search", client.id)


def save(file: Path, masks: dict[str, np.ndarray], space) -> None:
    """Write masks with the ends of the matrices in them."""
    ends = np.array([part.stop for part in space.slices.values()])
    draft = file.with_suffix(".draft")
    with open(draft, "wb") as target:
        np.savez(target, ends=ends, **{name: np.packbits(mask) for name, mask in masks.items()})
    draft.replace(file)


def read(file: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return masks by metric and scope, each bool of shape (N,), and where the matrices end."""
    with np.load(file) as data:
        tensors = dict(data)
    ends = tensors.pop("ends")
    return {name: np.unpackbits(mask, count=int(ends[-1])).astype(bool) for name, mask in tensors.items()}, ends


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return the positions that both masks hold over those that either holds."""
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def chance(a: np.ndarray, b: np.ndarray, ends: np.ndarray) -> float:
    """Return the Jaccard index expected of random masks with as many positions in each matrix as these."""
    starts, sizes = np.r_[0, ends[:-1]], np.diff(ends, prepend=0)
    p, q = (np.add.reduceat(mask, starts, dtype=np.int64) / sizes for mask in (a, b))
    return float((p * q * sizes).sum() / ((p + q - p * q) * sizes).sum())


def table(directory: Path) -> None:
    """Print the overlaps: a line for each metric, scope and expansion of which all clients' masks are there."""
    columns = [
        "metric and scope",
        "expansion",
        "pruning",
        "A's share",
        "neighbours",
        "others",
        "same client, other order",
    ]
    for line in (columns := [*columns, "other start", "chance"]), ["---"] * len(columns):
        print(f"| {' | '.join(line)} |")
    for one in RUNS:
        runs = {change: _read_all(directory, replace(one, **{change: 1})) for change in ("order", "initial")}
        found = _read_all(directory, one)
        if one.order or one.initial or not found:
            continue
        for name in found[0][0]:
            masks, ends = [masks[name] for masks, _ in found], found[0][1]
            again = [[jaccard(m, other[0][name]) for m, other in zip(masks, runs[c], strict=False)] for c in runs]
            cells = [name, str(one.expansion), "stepwise" if one.stepwise else "once", a_share(masks, ends)]
            cells += map(_spread, (*between(masks), *again, [chance(a, b, ends) for a, b in combinations(masks, 2)]))
            print(f"| {' | '.join(cells)} |")


def _read_all(directory: Path, one: Run) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Return the masks of all clients, by client; none if some are missing."""
    clients = sorted({file.name.split(".")[-2] for file in directory.glob("*.npz")})
    files = [one.file(directory, client) for client in clients]
    return [read(file) for file in files] if all(file.exists() for file in files) else []


def between(masks: list[np.ndarray]) -> tuple[list[float], list[float]]:
    """Return the overlaps of clients next to each other, who share a category, and those of all other pairs."""
    pairs = {(i, j): jaccard(masks[i], masks[j]) for i, j in combinations(range(len(masks)), 2)}
    near = {pair for pair in pairs if (pair[1] - pair[0]) % len(masks) in (1, len(masks) - 1)}
    return [pairs[pair] for pair in near], [overlap for pair, overlap in pairs.items() if pair not in near]


def a_share(masks: list[np.ndarray], ends: np.ndarray) -> str:
    """Return what fraction of the positions held is in A matrices."""
    in_a = [np.add.reduceat(mask, np.r_[0, ends[:-1]], dtype=np.int64)[::2].sum() / mask.sum() for mask in masks]
    return f"{np.mean(in_a):.2f}"


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]" if values else "-"


def main() -> None:
    """Run or print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running, printing = commands.add_parser("run"), commands.add_parser("table")
    running.add_argument("file", type=Path)
    for command in (running, printing):
        command.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.file, arguments.directory)
    else:
        table(arguments.directory)


if __name__ == "__main__":
    main()
