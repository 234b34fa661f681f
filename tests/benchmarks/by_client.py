"""Who is better off with which method, from the tables of benches.

    python tests/benchmarks/by_client.py CLIENTS.CSV...

``perfit bench`` writes ``clients.csv``. Methods are compared at their chosen points, by the perplexities of held-out
records under the personal adapters after the last round. They differ tenfold between clients, so means are geometric,
but for those in brackets.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from perfit.bench.statistics import WORSE

METHODS = ["perfit", "perfit-adaptive", "local", "fedit"]
OWN = "perfit-adaptive"
"""Compared with the best of the others, client by client."""


def logarithms(path: Path) -> tuple[list[int], list[str], np.ndarray]:
    """Return seeds, clients, and logarithms of their perplexities: shape (methods, seeds, clients)."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["chosen"] == "1" and row["method"] in METHODS]
    last = max(int(row["round"]) for row in rows)
    rows = [row for row in rows if int(row["round"]) == last]
    found = {(row["method"], int(row["seed"]), row["client"]): float(row["personal"]) for row in rows}
    seeds, clients = sorted({seed for _, seed, _ in found}), list(dict.fromkeys(client for _, _, client in found))
    table = [[[found[method, seed, client] for client in clients] for seed in seeds] for method in METHODS]
    return seeds, clients, np.log(np.array(table))


def print_methods(seeds: list[int], logs: np.ndarray) -> None:
    """Print a line a method: perplexities by seed, and how far its clients are from what they could have had."""
    names = " | ".join(f"seed {seed}" for seed in seeds)
    print(f"| method | {names} | behind the best, mean | worst | behind it by 5 % | worse than alone by 5 % |")
    print("| --- |" + " --- |" * (len(seeds) + 4))
    best, pairs = logs.min(axis=0), logs[0].size
    for method, of in zip(METHODS, logs, strict=True):
        cells = [f"{np.exp(one.mean()):.2f} ({np.exp(one).mean():.2f})" for one in of]
        behind = of - best
        alone = int((of - logs[METHODS.index("local")] > np.log(WORSE)).sum())
        cells += [f"{100 * np.expm1(behind.mean()):.1f} %", f"{100 * np.expm1(behind.max()):.0f} %"]
        cells += [f"{int((behind > np.log(WORSE)).sum())} of {pairs}", f"{alone} of {pairs}"]
        print(f"| `{method}` | {' | '.join(cells)} |")


def print_clients(clients: list[str], logs: np.ndarray) -> None:
    """Print a line a client: each method's perplexity, and how far the own one is from the best of the others.

    The best is that of the seeds' mean, so chance favours it. The interval's standard deviation is of all clients, each
    about its own mean over seeds: a handful of seeds says little of one client's.
    """
    own, others = METHODS.index(OWN), [number for number, method in enumerate(METHODS) if method != OWN]
    best = [min(others, key=lambda other: logs[other, :, number].mean()) for number in range(len(clients))]
    changes = np.array([logs[own, :, number] - logs[other, :, number] for number, other in enumerate(best)])
    seeds = changes.shape[1]
    half = student(len(clients) * (seeds - 1)) * (changes.var(axis=1, ddof=1).mean() / seeds) ** 0.5
    print(f"\n| client | {' | '.join(METHODS)} | {OWN} to the best other [95 %] |")
    print("| --- |" + " --- |" * (len(METHODS) + 1))
    for number, client in enumerate(clients):
        cells = [f"{np.exp(one.mean()):.2f}" for one in logs[:, :, number]]
        ends = [100 * np.expm1(changes[number].mean() + distance) for distance in (0, -half, half)]
        cells += ["{} {:+.0f} % [{:+.0f}, {:+.0f}]".format(METHODS[best[number]], *ends)]
        print(f"| {client} | {' | '.join(cells)} |")


def student(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's distribution, by three terms of its Cornish-Fisher expansion."""
    normal = 1.959964
    first, second = normal**3 + normal, 5 * normal**5 + 16 * normal**3 + 3 * normal
    return normal + first / (4 * freedom) + second / (96 * freedom**2)


def main() -> None:
    """Print the tables of each bench."""
    for path in map(Path, sys.argv[1:] or sys.exit(__doc__)):
        seeds, clients, logs = logarithms(path)
        print(f"\n{path}\n")
        print_methods(seeds, logs)
        print_clients(clients, logs)


if __name__ == "__main__":
    main()
