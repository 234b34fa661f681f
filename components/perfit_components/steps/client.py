"""What a client's pod does: search its architecture once, tune its values each round."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from perfit.adapter import SparseAdapter, mask_hash
from perfit.adapter_file import AdapterHeader, dump_mask, dump_values, load_mask, load_values
from perfit.errors import PerfitError
from perfit.spec import Client, Federation
from perfit_components.log_lines import format_step
from perfit_components.steps.opening import OpenFederation, model_cache, open_federation
from perfit_components.steps.outcome import SEARCHED, TRAINED, softly
from perfit_components.steps.plan import SEARCH_ROUND
from perfit_components.steps.record import Perplexity, TrainedRecord
from perfit_storage import Head, ObjectNotFound, StoreError, open_store

if TYPE_CHECKING:
    from perfit.client import ClientData, ExpandedModel, Tuning

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

    A client that has no mask yet searches it first, with the model that is loaded anyway.
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
    workplace = _Workplace(opened, opened.client(client_id))
    return {"client": client_id, "status": SEARCHED, "mask_sha256": _find_mask(workplace)}


def _train(opened: OpenFederation, round: int, client_id: str) -> dict:
    store, spec = opened.store, opened.spec
    workplace = _Workplace(opened, opened.client(client_id))
    done = store.read_record(round, client_id)
    if done and done["status"] == TRAINED:
        return done
    from perfit.client import tune  # torch, which a round that is done does not need

    base = Head(**store.read_plan(round)["base"])
    start = _start(workplace, round, base)
    model, data = workplace.loaded
    tuning = tune(model, spec, workplace.client, round, data, start.adapter, _progress(round, client_id))
    baseline = _baseline(workplace)
    _write_personal_adapter(opened, client_id, tuning.adapter)
    update = dump_values(_header(spec, workplace.client, round), tuning.adapter, spec.wire_dtype)
    record = _record(workplace, round, tuning, start, baseline, update)
    stored = store.put_update(round, client_id, record.model_dump(), update, private=not spec.method.exchanges)
    store.put_client_file(client_id, _BASELINE, json.dumps(baseline).encode())
    return stored


@dataclass(frozen=True)
class _Workplace:
    """A client in its pod: its federation, and its model and data, which are loaded once and only if needed."""

    opened: OpenFederation
    client: Client

    @cached_property
    def loaded(self) -> tuple[ExpandedModel, ClientData]:
        from perfit.client import load_client_data, load_expanded

        model = load_expanded(self.opened.spec, model_cache())
        with tempfile.TemporaryDirectory() as downloads:
            return model, load_client_data(self.opened.spec, self.client, model.tokenizer, _fetcher(downloads))


def _find_mask(workplace: _Workplace) -> str:
    """Return the hash of the client's mask, which is searched and uploaded if it has none."""
    store, spec, client = workplace.opened.store, workplace.opened.spec, workplace.client
    found = store.find_masks(client.id)
    if found:
        return found[0]
    space = workplace.opened.global_adapter(store.read_head())[0].space
    if spec.method.searches:
        from perfit.client import find_mask

        model, data = workplace.loaded
        initial = model.space.initial_values(spec.training.seed)
        mask = find_mask(model, spec, client, data, initial, _progress(SEARCH_ROUND, client.id))
    else:
        mask = space.plain_mask(spec.rank_of(client))
    sha256 = mask_hash(space, mask)
    store.put_mask(client.id, sha256, dump_mask(_header(spec, client, SEARCH_ROUND), space, mask))
    return sha256


@dataclass(frozen=True)
class _Start:
    """What a client starts a round from, and what that cost: a mask travels once, before the first update."""

    adapter: SparseAdapter
    mask_sha256: str
    mask_bytes_up: int
    bytes_down: int


def _start(workplace: _Workplace, round: int, base: Head) -> _Start:
    """Global values at the client's positions, or its own last ones where none are exchanged."""
    opened, client = workplace.opened, workplace.client
    sha256 = _find_mask(workplace)
    mask_file = opened.store.get_mask(client.id, sha256)
    _, space, mask = load_mask(mask_file)
    if workplace.loaded[0].space != space:
        raise PerfitError(
            f"model: {opened.spec.model} gives other LoRA matrices here than the federation was founded with",
            "use the same model files everywhere",
        )
    last = _last_update(workplace, round)
    mask_bytes = 0 if last else len(mask_file)
    if last and not opened.spec.method.exchanges:
        return _Start(load_values(opened.store.read_update(last), mask)[1], sha256, mask_bytes, 0)
    everything, size = opened.global_adapter(base)
    return _Start(SparseAdapter(space, mask, everything.values[mask]), sha256, mask_bytes, size)


def _last_update(workplace: _Workplace, round: int) -> dict | None:
    """The client's record of the latest round before this one in which it delivered."""
    records = (workplace.opened.store.read_record(n, workplace.client.id) for n in range(round - 1, 0, -1))
    return next((record for record in records if record and record["status"] == TRAINED), None)


def _record(
    workplace: _Workplace, round: int, tuning: Tuning, start: _Start, baseline: dict, update: bytes
) -> TrainedRecord:
    spec, client, data = workplace.opened.spec, workplace.client, workplace.loaded[1]
    return TrainedRecord(
        client=client.id,
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
        bytes_up=(len(update) if spec.method.exchanges else 0) + start.mask_bytes_up,
        bytes_down=start.bytes_down,
    )


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


def _baseline(workplace: _Workplace) -> dict:
    """The perplexity under the initial adapter; measured anew only when the held-out records have changed."""
    from perfit.client import evaluate

    opened, client = workplace.opened, workplace.client
    model, data = workplace.loaded
    with suppress(ObjectNotFound):
        baseline = json.loads(opened.store.get_client_file(client.id, _BASELINE))
        if baseline["held_out_sha256"] == _fingerprint(data):
            return baseline
    initial = model.space.initial_values(opened.spec.training.seed)
    perplexity = evaluate(model, opened.spec, client, data, initial)
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
        print(format_step(round, client_id, step, steps, loss), flush=True)

    return report
