"""What a client's pod does: search its architecture once, tune its values each round."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perfit.adapter import SparseAdapter, mask_hash
from perfit.adapter_file import AdapterHeader, dump_mask, dump_values, load_mask, load_values
from perfit.errors import PerfitError
from perfit.spec import Client, Federation
from perfit_components.steps.opening import OpenFederation, model_cache, open_federation
from perfit_components.steps.outcome import SEARCHED, TRAINED, softly
from perfit_components.steps.plan import SEARCH_ROUND
from perfit_components.steps.record import Perplexity, TrainedRecord
from perfit_storage import Head, ObjectNotFound, StoreError, open_store

if TYPE_CHECKING:
    from perfit.client import ClientData, ExpandedModel

_BASELINE = "baseline.json"
ADAPTER_DIRECTORY = "adapter"
"""Where a client keeps its personal adapter, below its own part of the store."""


def search(uri: str, client_id: str) -> dict:
    """Find and upload a client's mask, unless it has one.

    Returns:
        A record of status ``searched``, or ``failed`` with the reason.
    """
    return softly(client_id, lambda: _search(open_federation(uri), client_id))


def train(uri: str, round: int, client_id: str) -> dict:
    """Tune a client's values for a round and upload them, unless the round has its update.

    The personal adapter is written to the client's own part of the store, then the update, then its record.

    Returns:
        The record, of status ``trained``, or ``failed`` with the reason.
    """
    record = softly(client_id, lambda: _train(open_federation(uri), round, client_id))
    if record["status"] != TRAINED:
        # A store that cannot be written is why there is no record; the task's output still carries the reason.
        with suppress(StoreError, PerfitError):
            return open_federation(uri).store.put_update(round, client_id, {**record, "round": round}, None)
    return record


def _search(opened: OpenFederation, client_id: str) -> dict:
    client = opened.client(client_id)
    found = opened.store.find_masks(client_id)
    if found:
        return {"client": client_id, "status": SEARCHED, "mask_sha256": found[0]}
    space = opened.global_adapter(opened.store.read_head())[0].space
    if opened.spec.method.searches:
        mask = _searched_mask(opened.spec, client)
    else:
        mask = space.plain_mask(opened.spec.rank_of(client))
    sha256 = mask_hash(space, mask)
    opened.store.put_mask(client_id, sha256, dump_mask(_header(opened.spec, client, SEARCH_ROUND), space, mask))
    return {"client": client_id, "status": SEARCHED, "mask_sha256": sha256}


def _searched_mask(spec: Federation, client: Client) -> np.ndarray:
    from perfit.client import find_mask

    model, data = _load(spec, client)
    initial = model.space.initial_values(spec.training.seed)
    return find_mask(model, spec, client, data, initial, _progress(SEARCH_ROUND, client.id))


def _train(opened: OpenFederation, round: int, client_id: str) -> dict:
    store, spec, client = opened.store, opened.spec, opened.client(client_id)
    done = store.read_record(round, client_id)
    if done and done["status"] == TRAINED:
        return done
    from perfit.client import tune  # torch, which a round that is done does not need

    base = Head(**store.read_plan(round)["base"])
    start = _start(opened, round, client, base)
    model, data = _load(spec, client)
    if model.space != start.adapter.space:
        raise PerfitError(
            f"model: {spec.model} gives other LoRA matrices here than the federation was founded with",
            "use the same model files everywhere",
        )
    tuning = tune(model, spec, client, round, data, start.adapter, _progress(round, client_id))
    known = _baseline(opened, client, data)
    baseline = known or _measure_baseline(model, spec, client, data)
    _write_personal_adapter(opened, client_id, tuning.adapter)
    header = _header(spec, client, round)
    update = dump_values(header, tuning.adapter, spec.wire_dtype)
    record = TrainedRecord(
        client=client_id,
        round=round,
        tier=client.tier,
        rank=spec.rank_of(client),
        budget=tuning.adapter.budget,
        samples=len(data.train.examples),
        held_out_records=len(data.held_out.examples),
        skipped_records=len(data.train.skipped),
        truncated_records=data.train.truncated,
        losses=tuning.losses,
        perplexity=Perplexity(
            round_0=baseline["perplexity"], before=tuning.perplexity_before, after=tuning.perplexity_after
        ),
        mask_sha256=start.mask_sha256,
        bytes_up=(len(update) if spec.method.exchanges else 0) + (0 if known else start.mask_bytes),
        bytes_down=start.bytes_down,
    )
    private = not spec.method.exchanges
    stored = store.put_update(round, client_id, record.model_dump(), update, private=private)
    store.put_client_file(client_id, _BASELINE, json.dumps(baseline).encode())
    return stored


@dataclass(frozen=True)
class _Start:
    """What a client starts a round from, and what that cost: a mask travels once, before the first round."""

    adapter: SparseAdapter
    mask_sha256: str
    mask_bytes: int
    bytes_down: int


def _start(opened: OpenFederation, round: int, client: Client, base: Head) -> _Start:
    store, spec = opened.store, opened.spec
    found = store.find_masks(client.id)
    if not found:
        raise PerfitError(
            f"client {client.id!r} has no architecture yet: its search did not end well",
            "look at the log of its search, then run the round again",
        )
    mask_file = store.get_mask(client.id, found[0])
    _, space, mask = load_mask(mask_file)
    if not spec.method.exchanges:
        for earlier in range(round - 1, 0, -1):
            record = store.read_record(earlier, client.id)
            if record and record["status"] == TRAINED:
                return _Start(load_values(store.read_update(record), mask)[1], found[0], len(mask_file), 0)
    everything, size = opened.global_adapter(base)
    return _Start(SparseAdapter(space, mask, everything.values[mask]), found[0], len(mask_file), size)


def _load(spec: Federation, client: Client) -> tuple[ExpandedModel, ClientData]:
    from perfit.client import load_client_data, load_expanded

    model = load_expanded(spec, model_cache())
    with tempfile.TemporaryDirectory() as downloads:
        return model, load_client_data(spec, client, model.tokenizer, _fetcher(downloads))


def _fetcher(directory: str) -> Callable[[str], str]:
    """Return a function that downloads s3:// data into a directory and leaves every other URI as it is."""

    def fetch(uri: str) -> str:
        if not uri.startswith("s3://"):
            return uri
        folder, _, name = uri.rpartition("/")
        target = Path(directory, name)
        target.write_bytes(open_store(folder).get(name).data)
        return str(target)

    return fetch


def _baseline(opened: OpenFederation, client: Client, data: ClientData) -> dict | None:
    """The perplexity under the initial adapter, if it was measured on these held-out records before."""
    try:
        baseline = json.loads(opened.store.get_client_file(client.id, _BASELINE))
    except ObjectNotFound:
        return None
    return baseline if baseline["held_out_sha256"] == _fingerprint(data) else None


def _measure_baseline(model: ExpandedModel, spec: Federation, client: Client, data: ClientData) -> dict:
    from perfit.client import evaluate

    initial = model.space.initial_values(spec.training.seed)
    perplexity = evaluate(model, spec, client, data, initial)
    return {"held_out_sha256": _fingerprint(data), "perplexity": perplexity}


def _fingerprint(data: ClientData) -> str:
    tokens = [(example.input_ids, example.labels) for example in data.held_out.examples]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _write_personal_adapter(opened: OpenFederation, client_id: str, adapter: SparseAdapter) -> None:
    from perfit.export import peft_files

    for name, content in peft_files(opened.spec, adapter).items():
        opened.store.put_client_file(client_id, f"{ADAPTER_DIRECTORY}/{name}", content)


def _header(spec: Federation, client: Client, round: int) -> AdapterHeader:
    return AdapterHeader(
        federation=spec.name,
        round=round,
        client=client.id,
        base_model=spec.model,
        rank=spec.rank_of(client),
        expansion=spec.expansion,
    )


def _progress(round: int, client_id: str) -> Callable[[int, int, float], None]:
    def report(step: int, steps: int, loss: float) -> None:
        print(f"[perfit] round={round} client={client_id} step={step}/{steps} loss={loss:.4f}", flush=True)

    return report
