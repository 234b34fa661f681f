"""The trust boundary: turns what a participant wrote into a verified contribution, or a refusal with a reason.

No other server code reads what a client can write. Sizes are limited by the space before anything is read, every value
is compared with the plan, and any failure other than an outage of the store only refuses that client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from perfit.adapter_file import AdapterFile, AdapterFileError, AdapterHeader
from perfit.protocol import (
    MAX_OUTCOME_BYTES,
    ClientStatus,
    MessageError,
    Participant,
    Plan,
    UpdateRecord,
    cut,
    parse_outcome,
)
from perfit.round import ClientRound, update_of
from perfit.space import LoraSpace
from perfit.updates import Update
from perfit_components.steps.context import FederationContext, StoredVectors, place_of
from perfit_storage import Blob, FederationStore, StoreError, StoreUnreachable

T = TypeVar("T")

_HEADER_BYTES = 2**16
"""Maximum size of an adapter file's header, apart from the names of the matrices, which are in that of a mask."""

MAX_MAGNITUDE = 1e6
"""Maximum magnitude of a value in an update, so that no server rule overflows on one client's values."""


class Refused(ValueError):
    """Why an update does not count."""


@dataclass(frozen=True)
class Contribution:
    """A client's verified delivery.

    Args:
        record: Its record of the round.
        mask: Its architecture: bool, shape (N,).
        update: What it shares; None if the method shares nothing.
    """

    record: UpdateRecord
    mask: np.ndarray
    update: Update | None


def read_contribution(
    context: FederationContext, plan: Plan, participant: Participant, base: StoredVectors, exchanged: np.ndarray
) -> Contribution | ClientStatus:
    """Read what a participant wrote in a round.

    Args:
        context: The federation's context.
        plan: The round's plan.
        participant: A participant of the plan.
        base: All vectors of the server at the start of the round.
        exchanged: bool, shape (N,): the positions that the round exchanges.

    Returns:
        A contribution that follows the plan, or why there is none.

    Raises:
        StoreUnreachable: The store does not answer; no client is refused for that.
    """

    def verified() -> Contribution | ClientStatus:
        outcome = _reported(context, plan, participant)
        if isinstance(outcome, ClientStatus):
            return outcome
        return _verified(context, plan, participant, outcome, base, exchanged)

    return _or_refused(verified, plan, participant)


def read_outcome(context: FederationContext, plan: Plan, participant: Participant) -> UpdateRecord | ClientStatus:
    """Read what a participant says of itself in a round, to show how far the round is: its update is not looked at.

    Raises:
        StoreUnreachable: The store does not answer.
    """
    return _or_refused(lambda: _reported(context, plan, participant), plan, participant)


def _or_refused(read: Callable[[], T], plan: Plan, participant: Participant) -> T | ClientStatus:
    try:
        return read()
    except StoreUnreachable:
        raise
    except (Refused, MessageError, AdapterFileError, StoreError) as error:
        return _status(plan, participant, "refused", str(error))
    except Exception as error:  # one client's bytes must not stop the others, whatever error a library raises
        return _status(plan, participant, "refused", f"what it wrote cannot be read ({type(error).__name__})")


def _reported(context: FederationContext, plan: Plan, participant: Participant) -> UpdateRecord | ClientStatus:
    data = context.store.read_record(place_of(plan), participant.client, limit=MAX_OUTCOME_BYTES)
    if data is None:
        return _status(plan, participant, "missing", "its task left no record: it did not start, or its pod died")
    outcome = parse_outcome(data)
    _check_participant(outcome, plan, participant)
    return outcome


def read_mask(store: FederationStore, client: str, sha256: str, space: LoraSpace) -> np.ndarray | None:
    """Read an architecture again, for a report: bool, shape (N,); None if its client has changed or removed it.

    Raises:
        StoreUnreachable: The store does not answer.
    """
    try:
        file = _parse_mask(store.get_mask(client, sha256, limit=_mask_bytes(space)), space)
        return file.mask if file.header.mask_sha256 == sha256 else None
    except StoreUnreachable:
        raise
    except Exception:  # as above
        return None


def _status(plan: Plan, participant: Participant, status: str, reason: str) -> ClientStatus:
    return ClientStatus(**_identity(participant), round=plan.round, status=status, reason=cut(reason))


def _identity(participant: Participant) -> dict[str, str | int]:
    return participant.model_dump(include={"client", "tier", "rank"})


def _check_participant(outcome: UpdateRecord | ClientStatus, plan: Plan, participant: Participant) -> None:
    planned = {**_identity(participant), "round": plan.round}
    for name, value in planned.items():
        if getattr(outcome, name) != value:
            raise Refused(f"its record says {name} {getattr(outcome, name)!r}, the plan {value!r}")


def _verified(
    context: FederationContext,
    plan: Plan,
    participant: Participant,
    record: UpdateRecord,
    base: StoredVectors,
    exchanged: np.ndarray,
) -> Contribution:
    """Check a mask and an update, each parsed once, against the plan."""
    from perfit.kernels import largest_magnitude

    spec, client, space = context.spec, participant.client, base.space
    if participant.mask_sha256 not in (None, record.mask_sha256):
        raise Refused(f"its record says mask_sha256 {record.mask_sha256!r}, the plan {participant.mask_sha256!r}")
    expected = AdapterHeader.of_client(spec, client, plan.round, space.budget(participant.rank), record.mask_sha256)
    file = _verified_mask(context, expected, space)
    _check_next_mask(context, plan, record, expected, space)
    side = ClientRound(spec, space, file.mask, plan.round)
    known = participant.mask_sha256 is not None
    positions = side.active & (side.roles.shared & exchanged if known else side.exchanged_unknown)
    for name, mask in (("budget", side.active), ("shared", positions)):
        if getattr(record, name) != np.count_nonzero(mask):
            raise Refused(
                f"its record says {name} {getattr(record, name)}, the plan and its mask {np.count_nonzero(mask)}"
            )
    if not positions.any():
        return Contribution(record, file.mask, None)
    key = record.update.key if record.update else ""
    place = re.escape(str(place_of(plan)))
    if not re.fullmatch(rf"rounds/{place}/updates/{client}(\.[0-9a-f]{{64}})?\.safetensors", key):
        raise Refused(f"its record names {key!r} as its update")
    method, exchange = spec.algorithm, spec.exchange
    limit = _HEADER_BYTES + (5 * len(method.uploads) + 1) * record.shared  # at most 4 a value, its scale, its bit
    update = context.store.read_blob(Blob(key, record.update.sha256), limit=limit)
    file_of_update = _parse(update, "update", _HEADER_BYTES)
    _check_header(file_of_update, expected.at_base(plan.base.adapter.sha256), "update")
    transfer = file_of_update.transfer(positions, method.uploads, exchange.dtype)
    if (sent := np.count_nonzero(transfer.positions)) != exchange.count(record.shared):
        raise Refused(f"its update has {sent} values, the plan {exchange.count(record.shared)}")
    checked = update_of(spec, base.vectors, positions, transfer, record.samples)
    for name, vector in checked.vectors.items():
        if not (largest := largest_magnitude(vector)) <= MAX_MAGNITUDE:  # nor NaN
            raise Refused(f"its {name} reach {largest:.3g}, more than {MAX_MAGNITUDE:g}: no LoRA does")
    return Contribution(record, file.mask, checked)


def _verified_mask(context: FederationContext, expected: AdapterHeader, space: LoraSpace) -> AdapterFile:
    data = context.store.get_mask(expected.client, expected.mask_sha256, limit=_mask_bytes(space))
    file = _parse_mask(data, space)
    _check_header(file, expected, "mask", skip="round")
    return file


def _check_next_mask(
    context: FederationContext, plan: Plan, record: UpdateRecord, expected: AdapterHeader, space: LoraSpace
) -> None:
    """Check that a client names a mask for the next round if it had to search for one, and only then."""
    following, due = record.next_mask_sha256, context.spec.searches_after(plan.round)
    if due != (following is not None):
        when = "search" if due else "do not search"
        raise Refused(f"its record says next_mask_sha256 {following!r}, but clients {when} again after this round")
    if following:
        _ = _verified_mask(context, replace(expected, mask_sha256=following), space).mask  # of its hash and budget


def _parse_mask(data: bytes, space: LoraSpace) -> AdapterFile:
    file = _parse(data, "mask", _mask_header_bytes(space))
    if file.space != space:
        raise Refused("its mask belongs to another space")
    return file


def _parse(data: bytes, what: str, header_bytes: int) -> AdapterFile:
    if int.from_bytes(data[:8], "little") > header_bytes:  # as JSON it may need 30 times the memory
        raise Refused(f"its {what} is not an adapter file: its header has more than {header_bytes:,} bytes")
    return AdapterFile.parse(data)


def _check_header(file: AdapterFile, expected: AdapterHeader, what: str, skip: str = "") -> None:
    for name, value in vars(expected).items():
        if name != skip and getattr(file.header, name) != value:
            raise Refused(f"its {what} says {name} {getattr(file.header, name)!r}, the plan {value!r}")


def _mask_header_bytes(space: LoraSpace) -> int:
    return _HEADER_BYTES + 2 * len(json.dumps(space.to_list()))  # as JSON within JSON, quotes are escaped


def _mask_bytes(space: LoraSpace) -> int:
    return _mask_header_bytes(space) + space.size // 8 + 1
