"""What a client's pod does in a round: search its architecture if it has none yet, tune, upload."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perfit.adapter import mask_hash
from perfit.adapter_file import AdapterFile, AdapterFileError, AdapterHeader, dump_mask, dump_vectors
from perfit.cluster_spec import ClusterClient
from perfit.errors import PerfitError
from perfit.methods import Roles, Vectors
from perfit.protocol import (
    Blob,
    ClientStatus,
    MessageError,
    Participant,
    Perplexity,
    Plan,
    UpdateRecord,
    parse_outcome,
)
from perfit.round import received_by
from perfit_components.log_lines import format_failure, format_step
from perfit_components.steps.context import FederationContext, model_cache
from perfit_components.steps.failure import Failure, failure_as_record
from perfit_storage import ObjectNotFound, open_store

if TYPE_CHECKING:
    from perfit.client import ClientData, ClientResult, ExpandedModel

SEARCH = 0
"""The round under which a search reports its progress."""
ADAPTER_DIRECTORY = "adapter"
"""Where a client keeps its personal adapter, below its own part of the store."""
_BASELINE = "baseline.json"
_STATE = re.compile(r"state/([0-9]+)\.safetensors")


def train(uri: str, round: int, name: str, threads: int = 0) -> dict[str, str]:
    """Do a client's part of a round, unless it is done: the outcome is a record in the store, never an exception.

    The personal adapter and what the client keeps are written to its own part of the store, then the update, then its
    record.

    Args:
        uri: Of the federation.
        round: From 1.
        name: The client's name in the cluster, that of its Secret.
        threads: CPU threads of the training; 0 for torch's own choice.

    Returns:
        client, status (trained or failed) and reason: what the task shows of the record.
    """
    outcome = failure_as_record(lambda: _train(_Workplace.open(uri, round, name), threads))
    if isinstance(outcome, UpdateRecord):
        return {"client": outcome.client, "status": outcome.status, "reason": ""}
    # A store that cannot be written is why there is no record; the task's output still carries the reason.
    client = name
    with suppress(PerfitError):
        client = _record_failure(_Workplace.open(uri, round, name), outcome)
    print(format_failure(client, outcome.reason), flush=True)
    return {"client": client, "status": "failed", "reason": outcome.reason}


@dataclass(frozen=True)
class _Workplace:
    """A client in its pod, for one round; model and data are loaded once, and only if needed."""

    context: FederationContext
    client: ClusterClient
    round: int

    @classmethod
    def open(cls, uri: str, round: int, name: str) -> _Workplace:
        context = FederationContext.open(uri)
        return cls(context, context.client_named(name), round)

    @cached_property
    def plan(self) -> Plan:
        return self.context.plan(self.round)

    @property
    def participant(self) -> Participant:
        for participant in self.plan.participants:
            if participant.client == self.client.id:
                return participant
        raise PerfitError(
            f"client {self.client.id!r} does not take part in round {self.round}",
            "it was planned without it; it may be sampled for a later one",
        )

    @cached_property
    def loaded(self) -> tuple[ExpandedModel, ClientData]:
        from perfit.client import load_client_data, load_expanded

        model = load_expanded(self.context.spec, model_cache())
        with tempfile.TemporaryDirectory() as downloads:
            return model, load_client_data(self.context.spec, self.client, model.tokenizer, _fetcher(downloads))

    def header(self, round: int, budget: int, mask_sha256: str) -> AdapterHeader:
        return AdapterHeader.of_client(self.context.spec, self.client.id, round, budget, mask_sha256)


@dataclass(frozen=True)
class _Architecture:
    """A client's mask, its hash, and the bytes that it cost this round: it travels once."""

    mask: np.ndarray
    sha256: str
    bytes_up: int


def _train(workplace: _Workplace, threads: int) -> UpdateRecord:
    context, client, round = workplace.context, workplace.client, workplace.round
    done = context.store.read_record(round, client.id)
    if done is not None and is_final(done):
        return parse_outcome(done)
    participant = workplace.participant
    import torch  # which a round that is done does not need

    from perfit.client import run_client

    if threads:
        torch.set_num_threads(threads)  # torch sees all cores of a node, not a pod's share
    model, data = workplace.loaded
    architecture = _architecture(workplace)
    roles = context.spec.algorithm.roles(model.space, architecture.mask)
    received, bytes_down = _received(workplace, roles)
    kept = _kept(workplace, roles)
    report = _progress(round, client.id)
    result = run_client(model, context.spec, client, round, data, architecture.mask, received, kept, report)
    baseline = _baseline(workplace)
    _write_own_files(workplace, roles, architecture, result)
    update = _upload(workplace, architecture, result)
    record = UpdateRecord(
        client=client.id,
        tier=participant.tier,
        rank=participant.rank,
        round=round,
        budget=int(np.count_nonzero(roles.trained)),
        shared=int(np.count_nonzero(roles.shared)),
        samples=len(data.train.examples),
        held_out_records=len(data.held_out.examples),
        skipped_records=len(data.train.skipped),
        truncated_records=data.train.truncated,
        losses=tuple(result.losses),
        perplexity=Perplexity(round_0=baseline, before=result.perplexity_before, after=result.perplexity_after),
        mask_sha256=architecture.sha256,
        bytes_up=update.size + architecture.bytes_up,
        bytes_down=bytes_down,
        update=update.blob,
    )
    return parse_outcome(context.store.put_record(round, client.id, record.to_json(), is_final))


def is_final(record: bytes) -> bool:
    """Whether what a client said of a round may not be replaced: it delivered."""
    with suppress(MessageError):
        return isinstance(parse_outcome(record), UpdateRecord)
    return False


def _record_failure(workplace: _Workplace, failure: Failure) -> str:
    spec, client = workplace.context.spec, workplace.client
    status = ClientStatus(
        client=client.id,
        tier=client.tier,
        rank=spec.rank_of(client),
        round=workplace.round,
        status="failed",
        reason=failure.reason,
    )
    with suppress(PerfitError):
        workplace.context.store.put_record(workplace.round, client.id, status.to_json(), is_final)
    return client.id


def _architecture(workplace: _Workplace) -> _Architecture:
    """Read the client's architecture; without one, search and upload it."""
    store, client = workplace.context.store, workplace.client
    model, data = workplace.loaded
    hashes = store.find_masks(client.id)
    if not hashes:
        from perfit.client import find_architecture

        mask = find_architecture(model, workplace.context.spec, client, data, _progress(SEARCH, client.id))
        sha256 = mask_hash(model.space, mask)
        file = dump_mask(workplace.header(workplace.round, int(np.count_nonzero(mask)), sha256), model.space, mask)
        store.put_mask(client.id, sha256, file)
        return _Architecture(mask, sha256, len(file))
    data = store.get_mask(client.id, hashes[0])
    try:
        file = AdapterFile.parse(data)
        if file.space == model.space and file.header.mask_sha256 == hashes[0]:
            cost = len(data) if file.header.round == workplace.round else 0
            return _Architecture(file.mask, hashes[0], cost)
    except AdapterFileError as error:
        raise PerfitError(f"the mask of client {client.id!r}: {error}", "restore it from a backup") from error
    raise PerfitError(
        f"model: {workplace.context.spec.model} gives other LoRA matrices here than when the client searched",
        "use the same model files everywhere",
    )


def _received(workplace: _Workplace, roles: Roles) -> tuple[dict[str, np.ndarray], int]:
    """Download what the server sends to the client, and how many bytes that was: nothing where nothing is shared."""
    if not roles.shared.any():
        return {}, 0
    stored = workplace.context.downloads(workplace.plan.base)
    if stored.space != workplace.loaded[0].space:
        raise PerfitError(
            f"model: {workplace.context.spec.model} gives other LoRA matrices here than the federation has",
            "use the same model files everywhere",
        )
    return received_by(roles, stored.vectors), stored.size


def _kept(workplace: _Workplace, roles: Roles) -> Vectors:
    """Read what the client kept of its last round before this one."""
    store, client = workplace.context.store, workplace.client
    numbers = [int(match[1]) for name in store.list_client_files(client.id) if (match := _STATE.fullmatch(name))]
    earlier = [number for number in numbers if number < workplace.round]
    if not earlier:
        return {}
    name = f"state/{max(earlier)}.safetensors"
    try:
        return AdapterFile.parse(store.get_client_file(client.id, name)).named_vectors(roles.trained)
    except AdapterFileError as error:
        raise PerfitError(f"clients/{client.id}/{name}: {error}", "restore it from a backup of the store") from error


def _write_own_files(workplace: _Workplace, roles: Roles, architecture: _Architecture, result: ClientResult) -> None:
    """Write the personal adapter, and what the client keeps, where only the client reads."""
    from perfit.export import peft_files

    spec, store, client = workplace.context.spec, workplace.context.store, workplace.client
    for name, content in peft_files(spec.expanded_lora, spec.model, result.adapter).items():
        store.put_client_file(client.id, f"{ADAPTER_DIRECTORY}/{name}", content)
    if result.kept:
        header = workplace.header(workplace.round, result.adapter.budget, architecture.sha256)
        state = dump_vectors(header, result.adapter.space, roles.trained, result.kept)
        store.put_client_file(client.id, f"state/{workplace.round}.safetensors", state)


@dataclass(frozen=True)
class _Uploaded:
    """An update in the store; none where nothing is shared."""

    blob: Blob | None
    size: int


def _upload(workplace: _Workplace, architecture: _Architecture, result: ClientResult) -> _Uploaded:
    update, adapter = result.update, result.adapter
    if not update.positions.any():
        return _Uploaded(None, 0)
    header = workplace.header(workplace.round, adapter.budget, architecture.sha256)
    dtype = workplace.context.spec.wire_dtype
    data = dump_vectors(header, adapter.space, update.positions, update.vectors, dtype)
    blob = workplace.context.store.put_update(workplace.round, workplace.client.id, data)
    return _Uploaded(Blob(key=blob.key, sha256=blob.sha256), len(data))


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


def _baseline(workplace: _Workplace) -> float:
    """The perplexity under the initial values; measured anew only when the held-out records have changed."""
    from perfit.client import evaluate

    context, client = workplace.context, workplace.client
    model, data = workplace.loaded
    with suppress(ObjectNotFound):
        baseline = json.loads(context.store.get_client_file(client.id, _BASELINE))
        if baseline["held_out_sha256"] == _fingerprint(data):
            return baseline["perplexity"]
    initial = model.space.initial_values(context.spec.training.seed)
    perplexity = evaluate(model, context.spec, data, initial)
    baseline = {"held_out_sha256": _fingerprint(data), "perplexity": perplexity}
    context.store.put_client_file(client.id, _BASELINE, json.dumps(baseline).encode())
    return perplexity


def _fingerprint(data: ClientData) -> str:
    tokens = [(example.input_ids, example.labels) for example in data.held_out.examples]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _progress(round: int, client_id: str) -> Callable[[int, int, float], None]:
    def report(step: int, steps: int, loss: float) -> None:
        print(format_step(round, client_id, step, steps, loss), flush=True)

    return report
