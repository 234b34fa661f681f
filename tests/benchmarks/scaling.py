"""What a federation of many clients costs, by calculation and by simulation on this machine: docs/scaling.md.

    python tests/benchmarks/scaling.py [pipelines] [pods] [runs] [parameters] [traffic] [average] [server]

Nothing here runs in a cluster. ``pipelines``, ``pods`` and ``runs`` compile, and write the workflow's nodes as Argo has
them (``perfit_pipelines/workflow_nodes.py``, which tests compare with recorded runs); ``parameters``
and ``traffic`` write the real files and take their length; ``average`` and ``server`` run the server's own code on
random updates, each case in a process of its own, whose peak is its largest resident set (Linux).
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perfit.adapter import SparseAdapter, mask_hash
from perfit.adapter_file import AdapterFile, AdapterHeader, dump_mask, dump_server_vectors, dump_transfer
from perfit.aggregation import aggregate
from perfit.cluster_spec import ClusterSpec
from perfit.exchange import DTYPES, Packed, Transfer, pack
from perfit.space import LoraSpace
from perfit.updates import Update
from perfit_storage import FederationStore, Head, RoundPlace

if TYPE_CHECKING:
    from perfit_pipelines.compile import Compiled
    from perfit_pipelines.pipelines import Part

STORE = "s3://perfit"
MANY = 1000
MODELS = {
    # Layers, hidden size, outputs of q_proj and of v_proj, from the models' own config.json.
    "SmolLM2-135M, rank 8": (30, 576, (576, 192), 8),
    "SmolLM2-135M, rank 16": (30, 576, (576, 192), 16),
    "7B (Llama 2), rank 16": (32, 4096, (4096, 4096), 16),
}


def main() -> None:
    """Print the tables of the parts named, or of all."""
    parts = {
        "pipelines": pipelines,
        "pods": pods,
        "runs": runs,
        "parameters": parameters,
        "traffic": traffic,
        "average": average,
        "server": server,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(parts)}")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        name, clients = arguments.case.split(":")
        print(json.dumps({"average": measure_average, "server": measure_server}[name](int(clients))))
        return
    for name in arguments.parts or parts:
        parts[name]()


def spec_of(clients: int = MANY, tiers: int = 1, rounds: int = 1, claims: str = "") -> ClusterSpec:
    """A federation of clients spread evenly over tiers, none of which limits its parallelism.

    Clients have no volume claims, or claims of their Secrets' names (``of the Secret's name``) or of others.
    """
    entries = [
        {
            "id": f"client-{number:04d}",
            "tier": f"tier-{number % tiers}",
            **_data(number, claims),
        }
        for number in range(clients)
    ]
    tree = {"name": "hospitals", "model": "owner/model", "rounds": rounds, "clients": entries}
    return ClusterSpec.model_validate({**tree, "tiers": {f"tier-{number}": {} for number in range(tiers)}})


NO_CLAIMS, SECRETS_NAME, OTHER_NAME = "", "of the Secret's name", "of another name"


def _data(number: int, claims: str) -> dict[str, str]:
    name = f"client-{number:04d}"
    if claims == NO_CLAIMS:
        return {"data": f"{STORE}/data/{name}.jsonl"}
    volume = f"perfit-hospitals-{name}" if claims == SECRETS_NAME else f"records-{name}"
    return {"data": f"/data/{name}.jsonl", "volume": volume}


def space(model: str) -> LoraSpace:
    """The expanded space (expansion 2) of a LoRA on q_proj and v_proj."""
    layers, hidden, outputs, rank = MODELS[model]
    return _space(layers, hidden, outputs, 2 * rank)


def _space(layers: int, hidden: int, outputs: tuple[int, int], rank: int) -> LoraSpace:
    shapes = {}
    for layer, (module, width) in itertools.product(range(layers), zip(("q_proj", "v_proj"), outputs, strict=True)):
        name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
        shapes |= {f"{name}.lora_A.weight": (rank, hidden), f"{name}.lora_B.weight": (width, rank)}
    return LoraSpace.from_shapes(shapes)


# Calculated


def pipelines() -> None:
    """Size of the compiled pipelines, and pods of a run in which all clients take part."""
    print("| pipeline | clients | tiers | rounds | compiled bytes | pods |\n| --- | --- | --- | --- | --- | --- |")
    cases = [("federated_round", clients, 1, 1) for clients in (10, 100)]
    cases += [("federated_round", MANY, tiers, 1) for tiers in (1, 4, 8)]
    cases += [("federated_tuning", MANY, tiers, rounds) for tiers in (1, 4) for rounds in (1, 3, 10)]
    for pipeline, clients, tiers, rounds in cases:
        compiled = _compiled(spec_of(clients, tiers, rounds), pipeline)
        one, two = (compiled.size(dict.fromkeys(compiled.loops, count)).pods for count in (1, 2))
        count = one + (two - one) * (clients // tiers - 1)
        cells = f"{pipeline} | {clients} | {tiers} | {rounds} | {len(compiled.data):,} | {count:,}"
        print(f"| {cells} |", flush=True)


def pods() -> None:
    """Pods in sequence, and pods, nodes and bytes of a client, by claims and tiers."""
    print(
        "| claims | tiers | pods in sequence, first round | each further one | without clients: pods | nodes | kB |",
        end="",
    )
    print(" a client: pods | nodes | kB | kB compressed |\n|" + " --- |" * 11)
    for claims, tiers in itertools.product((NO_CLAIMS, SECRETS_NAME, OTHER_NAME), (1, 3)):
        specs = [spec_of(clients, tiers, rounds, claims) for clients, rounds in ((24, 1), (24, 2), (72, 1))]
        one, two, more = (_compiled(spec, "federated_tuning").size() for spec in specs)
        client = [getattr(more, name) - getattr(one, name) for name in ("pods", "nodes", "status", "compressed")]
        client = [each / 48 for each in client]
        fixed = [
            getattr(one, name) - 24 * each for name, each in zip(("pods", "nodes", "status"), client[:3], strict=True)
        ]
        print(f"| {claims or 'none'} | {tiers} | {one.sequence} | {two.sequence - one.sequence} |", end="")
        print(f" {fixed[0]:.0f} | {fixed[1]:.0f} | {fixed[2] / 1e3:.0f} |", end="")
        print(f" {client[0]:.0f} | {client[1]:.0f} | {client[2] / 1e3:.1f} | {client[3] / 1e3:.1f} |", flush=True)


def runs() -> None:
    """What is divided into how many runs, and what the largest takes."""
    from perfit_pipelines.pipelines import Images
    from perfit_pipelines.runs import divide

    columns = "clients | tiers | rounds | claims | runs | clients or rounds a run | nodes | MB | kB compressed, of 944"
    print(f"| {columns} |\n|{' --- |' * 9}")
    cases = [(15, 1, 1), (100, 1, 1), (100, 1, 30), (300, 1, 1), (MANY, 1, 1), (MANY, 8, 1), (MANY, 1, 30)]
    for clients, tiers, rounds in cases:
        for claims in (NO_CLAIMS, OTHER_NAME):
            spec = spec_of(clients, tiers, rounds, claims)
            parts = divide(spec, "federated_tuning", STORE, Images(), _BY_URI)
            size = _compiled(spec, "federated_tuning", parts[0]).size()
            share = f"{parts[0].at_most} clients" if parts[0].at_most else f"{parts[0].last or rounds} rounds"
            print(f"| {clients} | {tiers} | {rounds} | {claims or 'none'} | {len(parts)} | {share} |", end="")
            print(f" {size.nodes:,} | {size.status / 1e6:.1f} | {size.kept / 1e3:.0f} |", flush=True)


_BY_URI = f"{STORE}/federations/hospitals/files/{'0' * 64}.yaml"


def _compiled(spec: ClusterSpec, pipeline: str, part: Part | None = None) -> Compiled:
    from perfit_pipelines.compile import compile_part
    from perfit_pipelines.pipelines import Images, Part

    return compile_part(spec, pipeline, STORE, Images(), part or Part(), _BY_URI)


def parameters() -> None:
    """Size of what passes through KFP as parameters, and of what deploying writes into Secrets."""
    from perfit_pipelines.deploy.policies import policy_text
    from perfit_pipelines.deploy.roles import roles_of

    print("| clients | federation file, as stored | as compiled | items of a loop | policies of clients |")
    print("| --- | --- | --- | --- | --- |")
    for clients in (10, 100, MANY):
        spec = spec_of(clients)
        items = [spec.secret_of(client) for client in spec.clients]
        sizes = [len(spec.to_yaml()), len(spec.to_json()), len(json.dumps(items))]
        sizes.append(sum(len(policy_text(role.policy)) for role in roles_of(spec, STORE) if role.client))
        print(f"| {clients} | {' | '.join(f'{size:,}' for size in sizes)} |", flush=True)


def traffic() -> None:
    """Length of the files that a client and the server exchange, in MB (10^6 bytes)."""
    from perfit.export import peft_files

    columns = ["positions", "budget", "mask", "global adapter", *DTYPES, "personal adapter"]
    print(f"| model | {' | '.join(columns)} |\n|{' --- |' * (1 + len(columns))}")
    for model in MODELS:
        here, rank = space(model), MODELS[model][3]
        mask = here.plain_mask(rank)
        part = SparseAdapter(here, mask, np.zeros(here.budget(rank), np.float32))
        spec = ClusterSpec.model_validate({**spec_of(1).model_dump(), "lora": {"rank": rank}})
        header = _header("one", here, mask, rank)
        files = [dump_mask(header, here, mask)]
        files.append(dump_server_vectors(spec, here, 1, {"values": np.zeros(here.size, np.float32)}))
        for dtype in DTYPES:
            files.append(dump_transfer(header, mask, Transfer(mask, {"values": pack(part.values, dtype, 0)})))
        sizes = [len(file) for file in files] + [
            sum(map(len, peft_files(spec.expanded_lora, spec.model, part).values()))
        ]
        counts = f"{here.size:,} | {here.budget(rank):,}"
        print(f"| {model} | {counts} | {' | '.join(f'{size / 1e6:.2f}' for size in sizes)} |", flush=True)


# Simulated


def average() -> None:
    """Seconds and peak memory of reading and averaging updates from memory, without a store."""
    print("| clients | positions | seconds | seconds a client | peak MiB | MiB before |")
    print("| --- | --- | --- | --- | --- | --- |")
    for clients in (10, 100, MANY):
        measured = _in_own_process(f"average:{clients}")
        cells = f"{measured['positions']:,} | {measured['seconds']:.2f} | {measured['seconds'] / clients:.4f}"
        print(f"| {clients} | {cells} | {measured['peak']:.0f} | {measured['before']:.0f} |", flush=True)


def measure_average(clients: int) -> dict[str, float]:
    """Average as the server does: check every file, then sum; eight different updates take turns."""
    here = space("SmolLM2-135M, rank 8")
    files = [_files(here, 8, seed) for seed in range(8)]
    before = _peak_mib()

    def updates() -> Iterator[Update]:
        for mask_file, update in itertools.islice(itertools.cycle(files), clients):
            mask = AdapterFile.parse(mask_file).mask
            yield Update.at(mask, AdapterFile.parse(update).vectors(mask, ["values"]), 100)

    previous = here.initial_values(0)
    started = time.perf_counter()
    aggregate(previous, updates())
    seconds = time.perf_counter() - started
    return {"positions": here.size, "seconds": seconds, "peak": _peak_mib(), "before": before}


def server() -> None:
    """Seconds of the server's steps on a store of files on this machine, with a small space."""
    print("| clients | plan s | aggregate s | report s | report MB | peak MiB |\n| --- | --- | --- | --- | --- | --- |")
    for clients in (10, 100, MANY):
        measured = _in_own_process(f"server:{clients}")
        cells = " | ".join(f"{measured[key]:.2f}" for key in ("plan", "aggregate", "report", "megabytes"))
        print(f"| {clients} | {cells} | {measured['peak']:.0f} |", flush=True)


def measure_server(clients: int) -> dict[str, float]:
    """Commit and report one round, in which every client delivers, and plan the next, with what each downloads."""
    from perfit_components.steps.commit import commit_round
    from perfit_components.steps.context import FederationContext
    from perfit_components.steps.plan import participants
    from perfit_components.steps.report import draw_report

    spec, here = spec_of(clients), _space(2, 576, (576, 192), 16)
    with tempfile.TemporaryDirectory() as directory:
        store = FederationStore.open(Path(directory).as_uri(), spec.name)
        store.write_spec(spec.to_yaml().encode(), None)
        initial = dump_server_vectors(spec, here, 0, {"values": here.initial_values(0)})
        store.create_head(Head(0, store.put_global(RoundPlace(0), initial)))
        context = FederationContext.of(store)
        participants(context, 1, spec.tiers_in_use())
        base = store.read_head().adapter.digest
        for seed, client in enumerate(spec.clients):
            _deliver(store, here, client.id, seed, base)
        measured = {"aggregate": _seconds(lambda: commit_round(context, 1))}
        measured["plan"] = _seconds(lambda: participants(context, 2, spec.tiers_in_use()))
        measured["report"] = _seconds(lambda: store.put_report(RoundPlace(1), draw_report(context, 1).html.encode()))
        measured["megabytes"] = len(store.read_report(RoundPlace(1))) / 1e6
    return {**measured, "peak": _peak_mib()}


def _deliver(store: FederationStore, here: LoraSpace, client: str, seed: int, base: str) -> None:
    """Store what a client leaves after a round that started from the global adapter of this hash."""
    from perfit.protocol import Blob, Perplexity, UpdateRecord

    mask_file, update = _files(here, 8, seed, client, base)
    digest, budget = AdapterFile.parse(mask_file).header.mask_digest, here.budget(8)
    store.put_mask(client, digest, mask_file)
    blob = store.put_update(RoundPlace(1), client, update)
    record = UpdateRecord(
        client=client,
        tier="tier-0",
        rank=8,
        round=1,
        budget=budget,
        shared=budget,
        samples=100,
        held_out_records=20,
        skipped_records=0,
        truncated_records=0,
        losses=(2.0, 1.5) * 10,
        perplexity=Perplexity(round_0=9.0, before=8.0, after=7.0),
        mask_digest=digest,
        bytes_up=len(update),
        bytes_down=len(update),
        update=Blob(key=blob.key, digest=blob.digest),
    )
    store.put_record(RoundPlace(1), client, record.to_json(), lambda record: True)


def _files(here: LoraSpace, rank: int, seed: int, client: str = "one", base: str = "") -> tuple[bytes, bytes]:
    """A random mask of a rank's budget, and values on it."""
    draw, budget = np.random.default_rng(seed), here.budget(rank)
    mask = np.zeros(here.size, dtype=bool)
    mask[draw.permutation(here.size)[:budget]] = True
    values = draw.standard_normal(budget, dtype=np.float32)
    header = _header(client, here, mask, rank)
    update = dump_transfer(header.at_base(base), mask, Transfer(mask, {"values": Packed(values)}))
    return dump_mask(header, here, mask), update


def _header(client: str, here: LoraSpace, mask: np.ndarray, rank: int) -> AdapterHeader:
    budget = int(np.count_nonzero(mask))
    return AdapterHeader("hospitals", 1, client, "owner/model", rank, 2, budget, mask_hash(here, mask))


def _in_own_process(case: str) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--case", case]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _seconds(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _peak_mib() -> float:
    # Not ru_maxrss: a new process starts with that of its parent.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
