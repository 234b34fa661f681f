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
    """Print a line a client: each method's perplexity, and how far the own one is from the best of the others.

    The best is that of the seeds' mean, so chance favours it. The interval's standard deviation is of all clients, each
    about its own mean over seeds: a handful of seeds says little of one client's.
    """
    own, others = methods.index(OWN), [number for number, method in enumerate(methods) if method != OWN]
    best = [min(others, key=lambda other: logs[other, :, number].mean()) for number in range(len(clients))]
    changes = np.array([logs[own, :, number] - logs[other, :, number] for number, other in enumerate(best)])
    half, seeds = np.nan, changes.shape[1]
    if freedom := len(clients) * (seeds - 1):
        half = student(freedom) * (changes.var(axis=1, ddof=1).mean() / seeds) ** 0.5
    print(f"\n| client | {' | '.join(methods)} | {OWN} to the best other [95 %] |")
    print("| --- |" + " --- |" * (len(methods) + 1))
    for number, client in enumerate(clients):
        cells = [f"{np.exp(one.mean()):.2f}" for one in logs[:, :, number]]
        ends = [100 * np.expm1(changes[number].mean() + distance) for distance in (0, -half, half)]
        cells += ["{} {:+.0f} % [{:+.0f}, {:+.0f}]".format(methods[best[number]], *ends)]
        print(f"| {client} | {' | '.join(cells)} |")


def student(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's distribution, by three terms of its Cornish-Fisher expansion."""
    normal = 1.959964
    first, second = normal**3 + normal, 5 * normal**5 + 16 * normal**3 + 3 * normal
    return normal + first / (4 * freedom) + second / (96 * freedom**2)


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
