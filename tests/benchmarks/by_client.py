"""Who is better off with which method, from the results of benches.

    python tests/benchmarks/by_client.py DIRECTORY [METHOD,METHOD...]

Every directory below DIRECTORY, such as tests/benchmarks/results, holds the results of one bench. Of the methods given,
by default perfit, perfit-adaptive, local and fedit, those seeds count that all of them have. Perplexities are those of
the held-out records under the personal adapters after the last round. They differ tenfold between clients, so means are
geometric, but for those in brackets.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from perfit.bench.results import CellResult
from perfit.bench.statistics import WORSE

METHODS = "perfit,perfit-adaptive,local,fedit"
OWN = "perfit-adaptive"
"""Compared with the best of the others, client by client."""
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided 95 % quantiles of Student's distribution, by the number of seeds."""


def logarithms(directory: Path, methods: list[str]) -> tuple[list[int], list[str], np.ndarray]:
    """Return seeds, clients, and logarithms of their perplexities: shape (methods, seeds, clients)."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for path in sorted(directory.glob("*.json")):
        label, seed = path.name.split(".")[0], int(path.name.split(".")[1].removeprefix("seed-"))
        found[label, seed] = CellResult.model_validate_json(path.read_bytes()).rounds[-1].personal
    seeds = sorted({seed for _, seed in found if all((method, seed) in found for method in methods)})
    if not seeds:
        return [], [], np.empty((len(methods), 0, 0))
    clients = list(found[methods[0], seeds[0]])
    table = [[[found[method, seed][client] for client in clients] for seed in seeds] for method in methods]
    return seeds, clients, np.log(np.array(table))


def print_methods(methods: list[str], seeds: list[int], logs: np.ndarray) -> None:
    """Print a line a method: perplexities by seed, and how far its clients are from what they could have had."""
    names = " | ".join(f"seed {seed}" for seed in seeds)
    print(f"| method | {names} | behind the best, mean | worst | behind it by 5 % | worse than alone by 5 % |")
    print("| --- |" + " --- |" * (len(seeds) + 4))
    best, pairs = logs.min(axis=0), logs[0].size
    for method, of in zip(methods, logs, strict=True):
        cells = [f"{np.exp(one.mean()):.2f} ({np.exp(one).mean():.2f})" for one in of]
        behind = of - best
        alone = int((of - logs[methods.index("local")] > np.log(WORSE)).sum()) if "local" in methods else "-"
        cells += [f"{100 * np.expm1(behind.mean()):.1f} %", f"{100 * np.expm1(behind.max()):.0f} %"]
        cells += [f"{int((behind > np.log(WORSE)).sum())} of {pairs}", f"{alone} of {pairs}"]
        print(f"| `{method}` | {' | '.join(cells)} |")


def print_clients(methods: list[str], clients: list[str], logs: np.ndarray) -> None:
    """Print a line a client: each method's perplexity, and how far the own one is from the best of the others."""
    own, others = methods.index(OWN), [number for number, method in enumerate(methods) if method != OWN]
    print(f"\n| client | {' | '.join(methods)} | {OWN} minus the best other [95 %] |")
    print("| --- |" + " --- |" * (len(methods) + 1))
    for number, client in enumerate(clients):
        of = logs[:, :, number]
        best = min(others, key=lambda other: of[other].mean())
        change = of[own] - of[best]
        cells = [f"{np.exp(one.mean()):.2f}" for one in of]
        cells += [f"{methods[best]} {100 * np.expm1(change.mean()):+.0f} % {interval(change)}"]
        print(f"| {client} | {' | '.join(cells)} |")


def interval(changes: np.ndarray) -> str:
    """Return the interval of the mean over seeds, by Student's t: a handful of seeds makes it wide."""
    if changes.size not in STUDENT:
        return ""
    half = STUDENT[changes.size] * changes.std(ddof=1) / changes.size**0.5
    return f"[{100 * np.expm1(changes.mean() - half):+.0f}, {100 * np.expm1(changes.mean() + half):+.0f}]"


def main(root: str, methods: str = METHODS) -> None:
    """Print the tables of every bench that has a seed with all methods."""
    labels = methods.split(",")
    for directory in sorted(path for path in Path(root).iterdir() if path.is_dir()):
        seeds, clients, logs = logarithms(directory, labels)
        if seeds:
            print(f"\n{directory.name}\n")
            print_methods(labels, seeds, logs)
            if OWN in labels:
                print_clients(labels, clients, logs)


if __name__ == "__main__":
    main(*sys.argv[1:])
