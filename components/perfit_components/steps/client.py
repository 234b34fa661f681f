"""A client's task in a round: search for its architecture if it has none yet, tune, upload."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from perfit.adapter_file import dump_transfer, dump_vectors
from perfit.collection import without_collection
from perfit.errors import PerfitError
from perfit.protocol import Blob, ClientStatus, MessageError, Outcome, Perplexity, UpdateRecord, parse_outcome
from perfit.round import ClientRound
from perfit_components.log_lines import format_failure
from perfit_components.steps.architecture import (
    Architecture,
    ensure_architecture,
    ensure_next_architecture,
    read_download,
    read_kept,
    state_file,
)
from perfit_components.steps.client_context import ClientContext
from perfit_components.steps.computation import evaluate, together, tune
from perfit_components.steps.failure import Failure, failure_as_record, stop_after, stoppable
from perfit_components.steps.memory_bound import bounded_memory
from perfit_components.steps.owner import Owner, check_terms, keep_terms
from perfit_report.summaries import client_metrics
from perfit_storage import ObjectNotFound

if TYPE_CHECKING:
    from perfit.client import ClientResult

ADAPTER_DIRECTORY = "adapter"
"""Where a client keeps its personal adapter, below its own part of the store."""
_BASELINE = "baseline.json"


class TaskResult(NamedTuple):
    """What a client's task shows.

    Args:
        output: client, status (trained, failed or out_of_memory) and reason.
        metrics: Of its record, by name; none if it did not deliver.
    """

    output: dict[str, str]
    metrics: dict[str, float]

    def show(self, artifact: Any) -> dict[str, str]:
        """Log the metrics to the task's ``dsl.Metrics``; return the output."""
        for name, value in self.metrics.items():
            artifact.log_metric(name, value)
        return self.output


def train(uri: str, round: int, name: str, threads: int = 0, owner: Owner | None = None) -> TaskResult:
    """Do a client's part of a round, unless it is done. The outcome is a record in the store, never an exception.

    The personal adapter and what the client keeps are written to its own part of the store, then the update, then the
    record.

    Args:
        uri: URI of the federation.
        round: From 1.
        name: The client's name in the cluster, that of its Secret.
        threads: CPU threads of the training; 0 for torch's own choice.
        owner: What the client's owner gives it, where it runs the client itself; None in a pod.
    """
    result = attempt(uri, round, name, threads, owner)
    return record_failure(uri, round, name, result) if isinstance(result, Failure) else shown(result)


def attempt(uri: str, round: int, name: str, threads: int = 0, owner: Owner | None = None) -> Outcome | Failure:
    """Do as :func:`train`, but return a failure, and leave it to the caller to write it into the record."""
    with stoppable():
        return failure_as_record(lambda: _train(ClientContext.open(uri, round, name, owner), threads))


def shown(outcome: Outcome) -> TaskResult:
    """Return the part of a client's record that its task shows."""
    output = {"client": outcome.client, "status": outcome.status, "reason": getattr(outcome, "reason", "")}
    return TaskResult(output, client_metrics(outcome) if isinstance(outcome, UpdateRecord) else {})


def is_final(record: bytes) -> bool:
    """Whether a client's record of a round must not be replaced, because the client delivered."""
    with suppress(MessageError):
        return isinstance(parse_outcome(record), UpdateRecord)
    return False


def _train(context: ClientContext, threads: int) -> Outcome:
    round, existing = context.round, context.store.read_record(context.place, context.client.id)
    if existing is not None and is_final(existing):
        return parse_outcome(existing)
    if context.is_committed:
        raise PerfitError(
            f"round {round} was committed without client {context.client.id!r}",
            "there is nothing to do: it may be sampled for a later round",
        )
    if context.owner:
        check_terms(context.spec, context.client, context.owner, context.store)
        keep_terms(context.spec, context.client, context.store)
    stop_after(context.spec.participation.client_deadline_seconds)
    context.say("loading")
    with computing(threads):
        return _tune(context)


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Within the context, torch has so many threads (0 for its own choice), and memory is bounded where it can be."""
    with without_collection():
        import torch  # imported only now: a round that is done does not need it

    if threads:
        torch.set_num_threads(threads)  # torch sees all cores of a node, not a pod's share
    # An accelerator's driver reserves far more than the host's memory, and bounds its own.
    with nullcontext() if torch.cuda.is_available() else bounded_memory():
        yield


def _tune(context: ClientContext) -> Outcome:
    """Search if need be, tune, write the client's own files, then the update, then the record."""
    round, participant = context.round, context.participant
    model, data = context.loaded
    architecture = ensure_architecture(context)
    side = ClientRound(context.spec, model.space, architecture.mask, round)
    received, bytes_down = read_download(context, architecture)
    kept = read_kept(context, architecture)
    following = ensure_next_architecture(context, architecture.mask, received, kept)
    context.say("evaluating")  # trains from its first step to its last, then evaluates again
    result = together(tune, context, architecture.mask, received, kept)
    baseline = _baseline(context)
    _write_own_files(context, architecture, result)
    update, bytes_up = _upload(context, architecture, result)
    record = UpdateRecord(
        client=participant.client,
        tier=participant.tier,
        rank=participant.rank,
        round=round,
        budget=int(np.count_nonzero(side.active)),
        shared=int(np.count_nonzero(result.updated)),
        samples=result.samples,
        held_out_records=len(data.held_out.examples),
        skipped_records=len(data.train.skipped),
        truncated_records=data.train.truncated,
        losses=tuple(result.losses),
        perplexity=Perplexity(round_0=baseline, before=result.perplexity_before, after=result.perplexity_after),
        own_weight=result.own_weight,
        tuned_weight=result.tuned_weight,
        mask_digest=architecture.digest,
        next_mask_digest=following and following.digest,
        bytes_up=bytes_up + architecture.bytes_up + (following.bytes_up if following else 0),
        bytes_down=bytes_down,
        update=update,
    )
    stored = context.store.put_record(context.place, context.client.id, record.to_json(), is_final)
    context.checkpoint.drop()
    context.say("done")
    return parse_outcome(stored)


def record_failure(uri: str, round: int, name: str, failure: Failure) -> TaskResult:
    """Write why there is no update, if the store can be written; a final record stays, as does a committed round."""
    output = {"client": name, "status": failure.status, "reason": failure.reason}
    result = TaskResult(output, {})
    with suppress(PerfitError):
        context = ClientContext.open(uri, round, name)
        output["client"] = context.client.id
        if not context.is_committed:
            result = shown(_put_failure(context, failure))
    if result.output["status"] != "trained":
        print(format_failure(result.output["client"], result.output["reason"]), flush=True)
    return result


def _put_failure(context: ClientContext, failure: Failure) -> Outcome:
    status = ClientStatus(
        client=context.client.id,
        tier=context.client.tier,
        rank=context.spec.rank_of(context.client),
        round=context.round,
        status=failure.status,
        reason=failure.reason,
    )
    return parse_outcome(context.store.put_record(context.place, context.client.id, status.to_json(), is_final))


def _write_own_files(context: ClientContext, architecture: Architecture, result: ClientResult) -> None:
    """Write the personal adapter, and what the client keeps, where only the client reads."""
    from perfit.export import peft_files

    spec, store, client = context.spec, context.store, context.client
    for name, content in peft_files(spec.expanded_lora, spec.model, result.adapter).items():
        store.put_client_file(client.id, f"{ADAPTER_DIRECTORY}/{name}", content)
    header = context.header(result.adapter.budget, architecture.digest)
    state = dump_vectors(header, result.adapter.space, result.kept)
    store.put_client_file(client.id, state_file(context.place), state)


def _upload(context: ClientContext, architecture: Architecture, result: ClientResult) -> tuple[Blob | None, int]:
    """Upload the update; return its blob (None if it has none) and its number of bytes."""
    if not result.updated.any():
        return None, 0
    header = context.header(result.adapter.budget, architecture.digest).at_base(context.plan.base.adapter.digest)
    data = dump_transfer(header, result.updated, result.upload)
    blob = context.store.put_update(context.place, context.client.id, data)
    return Blob(key=blob.key, digest=blob.digest), len(data)


def _baseline(context: ClientContext) -> float:
    """Return the perplexity under the initial values, measured again only if the held-out records have changed."""
    store, client = context.store, context.client
    model, data = context.loaded
    with suppress(ObjectNotFound):
        baseline = json.loads(store.get_client_file(client.id, _BASELINE))
        if baseline["held_out_sha256"] == data.held_out.sha256:
            return baseline["perplexity"]
    perplexity = together(evaluate, context, model.space.initial_values(context.spec.training.seed))
    baseline = {"held_out_sha256": data.held_out.sha256, "perplexity": perplexity}
    store.put_client_file(client.id, _BASELINE, json.dumps(baseline).encode())
    return perplexity
