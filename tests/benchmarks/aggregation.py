"""From update files to the new global file: GB/s and memory, beside Flower's FedAvg on as many values.

    python tests/benchmarks/aggregation.py speed FLOWER_PYTHON [REPETITIONS]
    python tests/benchmarks/aggregation.py memory
    python tests/benchmarks/aggregation.py kernels

``FLOWER_PYTHON`` is the Python of an environment with flwr, without this project. ``speed`` compares the server's own
path (``commit_round`` without the store's durable writes: records, masks and updates are read from a store of files and
verified, averaged, and the new global file is hashed and written) with Flower's reading, averaging and writing. ``all``
are dense updates (FedIT), ``half`` those of PerFIT with expansion 2, whose global file is twice as large as an update;
``half-refused`` are these with a byte changed in the last one, so that all are read once more. A value counts four
bytes, whatever its type on the wire. A system with one thread is bound to one processor. Each is a process of its own
that does a round on command, by turns, so that a change of the machine's load meets all; files are in the system's
cache. ``kernels`` times the compiled loops alone, on one block in memory. Linux only.
"""

from __future__ import annotations

import cProfile
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

if TYPE_CHECKING:
    from perfit.protocol import Plan
    from perfit_components.steps.context import FederationContext

CASES = {8: 64, 64: 16}
"""Clients, and LoRA modules of 4,096 features at rank 16: 8.4 and 2.1 million values a client."""
SYSTEMS = ("all", "half", "half-bfloat16", "half-int8", "half-refused")
"""Who shares what, and the type on the wire (float32), or what happens."""
MEMORY_CASES = {10: 4, 100: 4, 1000: 4, 64: 16, 8: 64}


def main() -> None:
    """Do a part."""
    part, *arguments = sys.argv[1:] or ["help"]
    parts = {"speed": speed, "memory": memory, "kernels": kernels, "write": write, "worker": worker, "profile": profile}
    if part not in parts:
        sys.exit(__doc__)
    parts[part](*arguments)


def speed(flower: str, repetitions: str = "3") -> None:
    """Print GB of updates a second, wall clock and CPU, and their ratios to Flower's; medians of the repetitions."""
    print(_environment(flower))
    columns = [
        "clients",
        "system",
        "processors",
        "GB/s",
        "lowest to highest",
        "ratio",
        "GB per CPU s",
        "ratio",
        "peak MB",
    ]
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    theirs = [flower, str(Path(__file__).with_name("flower_fedavg.py"))]
    for clients, modules in CASES.items():
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run([*theirs, "write", directory, str(clients), str(2 * modules)], check=True)
            commands = {("Flower", 1): [*theirs, "worker", directory, str(clients)]}
            commands["Flower, SHA-256", 1] = [*commands["Flower", 1], "sha256"]
            for case in SYSTEMS:
                subprocess.run(
                    [sys.executable, __file__, "write", directory, case, str(clients), str(modules)], check=True
                )
                for processors in (1, 2):
                    commands[case, processors] = [sys.executable, __file__, "worker", directory, case]
            results = _by_turns(commands, int(repetitions))
        reference = results["Flower", 1]
        for (system, processors), rounds in results.items():
            wall, cpu = (_ratio(rounds, reference, clock) for clock in ("wall", "cpu"))
            rates = [one["bytes"] / one["wall"] / 1e9 for one in rounds]
            cells = [clients, system, processors, f"{median(rates):.2f}", f"{min(rates):.2f} to {max(rates):.2f}"]
            cells += [f"{wall:.2f}", f"{median(one['bytes'] / one['cpu'] for one in rounds) / 1e9:.2f}", f"{cpu:.2f}"]
            cells += [f"{max(one['peak'] for one in rounds):.0f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def memory() -> None:
    """Print the peak memory of a round, of half of the positions, by the number of clients."""
    print("| clients | MB of the global file | MB before | peak MB | above, in global files | seconds |")
    print(f"|{' --- |' * 6}", flush=True)
    for clients, modules in MEMORY_CASES.items():
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run(
                [sys.executable, __file__, "write", directory, "half", str(clients), str(modules)], check=True
            )
            command = [sys.executable, __file__, "worker", directory, "half"]
            one = _by_turns({("half", 2): command}, 0)["half", 2][0]
        above = (one["peak"] - one["before"]) / one["global"]
        cells = [clients, f"{one['global']:.0f}", f"{one['before']:.0f}", f"{one['peak']:.0f}", f"{above:.2f}"]
        print(f"| {' | '.join(map(str, cells))} | {one['wall']:.1f} |", flush=True)


def kernels() -> None:
    """Print the CPU time of the compiled loops for half of the positions, least of 15, in ns a byte of the updates."""
    print(f"{_processor()}\n\n| clients | choosing a client's positions | the mean |\n| --- | --- | --- |")
    for clients, positions in ((8, 2**17), (64, 2**16)):
        choose, mean = _loop_times(clients, positions)
        print(f"| {clients} | {choose:.2f} | {mean:.2f} |")


def _loop_times(clients: int, positions: int) -> list[float]:
    from perfit.kernels import SUMS, count_set, gather, set_mean
    from perfit.sweep import row_addresses

    draw = np.random.default_rng(clients)
    masks = draw.integers(0, 256, (clients, positions // 8), dtype=np.uint8)
    values = draw.standard_normal((clients, positions), dtype=np.float32)
    base, out, shared = values[0].copy(), np.empty(positions, np.float32), np.ones(positions, bool)
    ones, counts = np.ones(clients), [count_set(mask) for mask in masks]
    squares, largest = np.zeros((clients, SUMS)), np.zeros((clients, SUMS), np.int32)

    def choose() -> None:
        for mask, count in zip(masks, counts, strict=True):
            gather(mask, base, out[:count])

    def mean() -> None:
        set_mean(row_addresses(masks), row_addresses(values), ones, ones, base, shared, out, squares, largest)

    return [min(_cpu(call) for _ in range(15)) / (4 * sum(counts)) for call in (choose, mean)]


def _cpu(call: Callable[[], None]) -> int:
    """Return the CPU time of a call in ns."""
    began = time.process_time_ns()
    call()
    return time.process_time_ns() - began


def _environment(flower: str) -> str:
    versions = "import numpy, sys; print(f'Python {sys.version.split()[0]}, numpy {numpy.__version__}', end='')"
    ours = f"{versions}; import numba; print(f', numba {{numba.__version__}}')".replace("{{", "{").replace("}}", "}")
    theirs = f"{versions}; import flwr; print(f', flwr {{flwr.__version__}}')".replace("{{", "{").replace("}}", "}")
    lines = [
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for python, code in ((sys.executable, ours), (flower, theirs))
    ]
    return f"ours: {lines[0]}\nFlower: {lines[1]}\n{_processor()}"


def _processor() -> str:
    model = Path("/proc/cpuinfo").read_text().partition("model name")[2].partition("\n")[0].strip("\t :")
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, load {load}"


def _ratio(rounds: list[dict], reference: list[dict], clock: str) -> float:
    """Median over the repetitions of our rate over Flower's in the same turn."""
    return median(
        (one["bytes"] / one[clock]) / (other["bytes"] / other[clock])
        for one, other in zip(rounds, reference, strict=True)
    )


def _by_turns(commands: dict[tuple[str, int], list[str]], repetitions: int) -> dict[tuple[str, int], list[dict]]:
    """Start a process for each command and let each do a round in turn; the first, which also imports, counts only
    where there is no other."""
    processes = {
        key: subprocess.Popen(
            ["taskset", "--cpu-list", "0" if key[1] == 1 else "0,1", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for key, command in commands.items()
    }
    rounds: dict[tuple[str, int], list[dict]] = {key: [] for key in commands}
    for _ in range(1 + repetitions):
        for key, process in processes.items():
            process.stdin.write("round\n")
            rounds[key].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return {key: results[1:] or results for key, results in rounds.items()}


def write(directory: str, case: str, clients: str, modules: str) -> None:
    """Found a federation, plan its first round, and write what each of its clients delivers."""
    from perfit.adapter import mask_hash
    from perfit.adapter_file import AdapterHeader, dump_mask, dump_server_vectors, dump_transfer
    from perfit.cluster_spec import ClusterSpec
    from perfit.exchange import DTYPES, Transfer, pack
    from perfit.protocol import Blob, Perplexity, UpdateRecord
    from perfit.space import LoraSpace
    from perfit_components.steps.context import FederationContext
    from perfit_components.steps.plan import plan_round
    from perfit_storage import FederationStore, Head, RoundPlace

    share, _, kind = case.partition("-")
    tree = {
        "name": "bench",
        "model": "owner/model",
        "lora": {"rank": 16},
        "method": {"name": "fedit"},
        "exchange": {"dtype": kind if kind in DTYPES else "float32"},
    }
    if share == "half":
        tree |= {"method": {"name": "perfit"}, "lora": {"rank": 16, "expansion": 2}}
    ids = [f"client-{number:04d}" for number in range(int(clients))]
    spec = ClusterSpec.model_validate({**tree, "clients": [{"id": id, "data": f"/{id}.jsonl"} for id in ids]})
    shapes, rank = {}, spec.expanded_lora.rank
    for number in range(int(modules)):
        name = f"base_model.model.model.layers.{number}.self_attn.q_proj"
        shapes |= {f"{name}.lora_A.weight": (rank, 4096), f"{name}.lora_B.weight": (4096, rank)}
    space = LoraSpace.from_shapes(shapes)
    store = FederationStore.open(Path(directory, case).as_uri(), spec.name)
    store.write_spec(spec.to_yaml().encode(), None)
    initial = space.initial_values(0)
    store.create_head(
        Head(0, store.put_global(RoundPlace(0), dump_server_vectors(spec, space, 0, {"values": initial})))
    )
    plan, budget = plan_round(FederationContext.of(store), 1), space.budget(16)
    for number, participant in enumerate(plan.participants):
        draw, client = np.random.default_rng(number), participant.client
        mask = np.ones(space.size, dtype=bool)
        if budget < space.size:
            mask[draw.permutation(space.size)[budget:]] = False
        values = draw.standard_normal(budget, dtype=np.float32) / 100
        if not spec.exchange.sends_changes:
            values += initial[mask]
        header = AdapterHeader.of_client(spec, client, 1, budget, mask_hash(space, mask))
        store.put_mask(client, header.mask_digest, dump_mask(header, space, mask))
        update = Transfer(mask, {"values": pack(values, spec.exchange.dtype, number)})
        data = dump_transfer(header.at_base(plan.base.adapter.digest), mask, update)
        blob = store.put_update(RoundPlace(1), client, data)
        record = UpdateRecord(
            client=client,
            tier=participant.tier,
            rank=participant.rank,
            round=1,
            budget=budget,
            shared=budget,
            samples=100 + number,
            held_out_records=20,
            skipped_records=0,
            truncated_records=0,
            losses=(2.0, 1.5),
            perplexity=Perplexity(round_0=9.0, before=8.0, after=7.0),
            mask_digest=header.mask_digest,
            bytes_up=len(data),
            bytes_down=len(data),
            update=Blob(key=blob.key, digest=blob.digest),
        )
        store.put_record(RoundPlace(1), client, record.to_json(), lambda record: True)
    if kind == "refused":
        with Path(directory, case, "federations", spec.name, blob.key).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x7f")


def worker(directory: str, case: str) -> None:
    """Do a round for each line of the standard input, and print what it took."""
    import perfit.kernels  # noqa: F401
    import perfit_components.steps.commit  # noqa: F401  before the memory is measured

    federation = _open(directory, case)
    for _ in sys.stdin:
        before = _peak_mb()
        wall, cpu = time.perf_counter(), time.process_time()
        sizes = _round(*federation)
        used = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({**used, **sizes, "before": before, "peak": _peak_mb()}), flush=True)


def profile(directory: str, case: str) -> None:
    """Profile the second round of a process."""
    federation = _open(directory, case)
    _round(*federation)
    with cProfile.Profile() as profiler:
        _round(*federation)
    profiler.print_stats("tottime")


def _open(directory: str, case: str) -> tuple[FederationContext, Plan, Path]:
    from perfit_components.steps.context import FederationContext
    from perfit_storage import FederationStore, RoundPlace

    context = FederationContext.of(FederationStore.open(Path(directory, case).as_uri(), "bench"))
    return context, context.plan(RoundPlace(1)), Path(directory, case, "global")


def _round(context: FederationContext, plan: Plan, file: Path) -> dict[str, float]:
    from perfit_components.steps.commit import _average
    from perfit_storage.layout import HASH_THREADS

    result = _average(context, plan, {})
    values = sum(outcome.shared for outcome in result.summary.trained)
    blake3(result.adapter, max_threads=HASH_THREADS)  # as the store does
    file.write_bytes(result.adapter)
    return {"bytes": 4 * values, "global": len(result.adapter) / 1e6}


def _peak_mb() -> float:
    """Peak of the resident memory so far; a new process starts with its parent's ``ru_maxrss``, so not that."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
