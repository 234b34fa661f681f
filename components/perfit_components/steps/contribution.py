"""The trust boundary: turns what a participant wrote into a verified contribution, or a refusal with a reason.

No other server code reads what a client can write. Sizes are limited by the space before anything is read, every value
is compared with the plan, and any failure other than an outage of the store only refuses that client.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from mmap import PAGESIZE
from typing import TypeVar

import numpy as np

from perfit.adapter_file import AdapterFile, AdapterFileError, AdapterHeader
from perfit.aggregation import Cohort
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
from perfit.robustness import Measure
from perfit.round import Reach, new_cohort, update_of
from perfit.scratch import Scratch, ScratchError
from perfit.space import LoraSpace
from perfit.updates import Update, count_bits
from perfit_components.steps.context import FederationContext, StoredVectors, place_of
from perfit_storage import Blob, FederationStore, StoreError, StoreUnreachable

T = TypeVar("T")

_HEADER_BYTES = 2**16
"""Maximum size of an adapter file's header, apart from the names of the matrices, which are in that of a mask."""

_RESULTS = 32
"""Vectors for which there is room: averages, those in new files, and masks of updates that are read once more."""

MAX_MAGNITUDE = 1e6
"""Maximum magnitude of a value in an update, so that no server rule overflows on one client's values."""


_NO_RECORD = {
    False: "its task left no record: it did not start, or its pod died",
    True: "its owner's process (perfit client) left no record in time",
}
"""Reasons of who is missing: in pods, and remote."""


class Refused(ValueError):
    """Why an update does not count."""


@dataclass(frozen=True)
class Contribution:
    """A client's verified delivery.

    Args:
        record: Its record of the round.
        mask: Its architecture as ``np.packbits`` packs it: uint8, shape (ceil(N / 8),).
        update: What it shares; None if it shares nothing in the round.
        measured: The update's measure.
    """

    record: UpdateRecord
    mask: np.ndarray
    update: Update | None = None
    measured: Measure | None = None


@dataclass(frozen=True)
class Announced:
    """What a client's verified record and mask announce.

    Args:
        record: Its record of the round.
        mask: As in :class:`Contribution`.
        shared: The positions that it shares in the round, packed like the mask.
        header: Of its update.
    """

    record: UpdateRecord
    mask: np.ndarray
    shared: np.ndarray
    header: AdapterHeader


@dataclass(frozen=True)
class RoundReader:
    """Reads what the participants of a round wrote.

    Args:
        context: The federation's context.
        plan: The round's plan.
        base: All vectors of the server at the start of the round.
        reach: Where the round's clients train and exchange.
        scratch: Where updates, averages and new files are kept.
    """

    context: FederationContext
    plan: Plan
    base: StoredVectors
    reach: Reach
    scratch: Scratch

    @classmethod
    def of(cls, context: FederationContext, plan: Plan) -> RoundReader:
        """Read what the updates of a round are checked against.

        Raises:
            PerfitError: What the round started from is missing or damaged, or the store cannot be reached.
        """
        base = context.state(plan.base)
        reach = Reach(context.spec, base.space, plan.round, context.exchanged(plan, base.space))
        vectors, size = len(context.spec.algorithm.uploads), base.space.size
        budgets = [base.space.budget(participant.rank) for participant in plan.participants]
        kept = [_update_bytes(vectors, budget) + 4 * vectors * budget + size // 8 for budget in budgets]
        kept += _RESULTS * [4 * size + _mask_header_bytes(base.space)]
        return cls(context, plan, base, reach, Scratch(sum(kept) + len(kept) * (vectors + 2) * PAGESIZE))

    def new_cohort(self) -> Cohort:
        """Return the cohort that the round's updates are added to."""
        return new_cohort(self.context.spec, self.base.space, self.base.vectors, self.release, self.scratch)

    def release(self) -> None:
        """Take what is kept in files out of this process's memory."""
        self.scratch.release()
        self.base.release()

    def read(self, participant: Participant, cohort: Cohort) -> Contribution | ClientStatus:
        """Read what a participant wrote; the cohort measures its update, and does not change.

        Returns:
            A contribution that follows the plan, or why there is none.

        Raises:
            StoreUnreachable: The store does not answer; no client is refused for that.
            ScratchError: The disk is full.
        """

        return self._checked(participant, lambda record: _verified(self, participant, record, cohort))

    def announced(self, participant: Participant) -> Announced | ClientStatus:
        """Read what a participant wrote, without its update, or why it does not count. Raises as :meth:`read`."""
        return self._checked(participant, lambda record: _announced(self, participant, record))

    def _checked(self, participant: Participant, check: Callable[[UpdateRecord], T]) -> T | ClientStatus:
        def checked() -> T | ClientStatus:
            outcome = _reported(self.context, self.plan, participant)
            return outcome if isinstance(outcome, ClientStatus) else check(outcome)

        return _or_refused(checked, self.plan, participant)


def read_outcome(context: FederationContext, plan: Plan, participant: Participant) -> UpdateRecord | ClientStatus:
    """Read what a participant says of itself in a round, to show how far the round is: its update is not looked at.

    Raises:
        StoreUnreachable: The store does not answer.
    """
    return _or_refused(lambda: _reported(context, plan, participant), plan, participant)


def _or_refused(read: Callable[[], T], plan: Plan, participant: Participant) -> T | ClientStatus:
    try:
        return read()
    except (StoreUnreachable, ScratchError):
        raise
    except (Refused, MessageError, AdapterFileError, StoreError) as error:
        return _status(plan, participant, "refused", str(error))
    except Exception as error:  # one client's bytes must not stop the others, whatever error a library raises
        return _status(plan, participant, "refused", f"what it wrote cannot be read ({type(error).__name__})")


def _reported(context: FederationContext, plan: Plan, participant: Participant) -> UpdateRecord | ClientStatus:
    data = context.store.read_record(place_of(plan), participant.client, limit=MAX_OUTCOME_BYTES)
    if data is None:
        remote = participant.tier in context.spec.remote_tiers()
        return _status(plan, participant, "missing", _NO_RECORD[remote])
    outcome = parse_outcome(data)
    _check_participant(outcome, plan, participant)
    return outcome


def read_mask(store: FederationStore, client: str, digest: str, space: LoraSpace) -> np.ndarray | None:
    """Read an architecture again, for a report: bool, shape (N,); None if its client has changed or removed it.

    Raises:
        StoreUnreachable: The store does not answer.
    """
    try:
        file = _parse_mask(store.get_mask(client, digest, limit=_mask_bytes(space)), space)
        return file.mask if file.header.mask_digest == digest else None
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


def _announced(reader: RoundReader, participant: Participant, record: UpdateRecord) -> Announced:
    """Check a record, and the mask, against the plan."""
    context, plan, space = reader.context, reader.plan, reader.base.space
    client, digest = participant.client, record.mask_digest
    if participant.mask_digest not in (None, digest):
        raise Refused(f"its record says mask_digest {digest!r}, the plan {participant.mask_digest!r}")
    expected = AdapterHeader.of_client(context.spec, client, plan.round, space.budget(participant.rank), digest)
    file = _verified_mask(context, expected, space)
    _check_next_mask(context, plan, record, expected, space)
    active, shared = reader.reach.positions(file.packed_mask, known=participant.mask_digest is not None)
    for name, positions in (("budget", active), ("shared", shared)):
        known = positions is file.packed_mask  # which has been checked for its budget
        count = expected.budget if known else count_bits(positions)
        if getattr(record, name) != count:
            raise Refused(f"its record says {name} {getattr(record, name)}, the plan and its mask {count}")
    return Announced(record, file.packed_mask, shared, expected.at_base(plan.base.adapter.digest))


def _verified(reader: RoundReader, participant: Participant, record: UpdateRecord, cohort: Cohort) -> Contribution:
    """Check a mask and an update, each parsed once, against the plan."""
    announced = _announced(reader, participant, record)
    if not record.shared:
        return Contribution(record, announced.mask)
    received = _received_update(reader, participant.client, record)
    _check_header(received, announced.header, "update")
    vectors = _vectors(reader, received, announced.shared, record)
    update = Update(reader.scratch.keep(announced.shared), reader.base.space.size, vectors, record.samples)
    measured = cohort.measure(update)
    check_magnitudes(measured)
    return Contribution(record, announced.mask, update, measured)


def check_magnitudes(measured: Measure) -> None:
    """Refuse values that no LoRA has."""
    for name, largest in measured.largest.items():
        if not math.isfinite(largest):
            raise Refused(f"its {name} are not finite")
        if largest > MAX_MAGNITUDE:
            raise Refused(f"its {name} reach {largest:.3g}, more than {MAX_MAGNITUDE:g}: no LoRA does")


def _received_update(reader: RoundReader, client: str, record: UpdateRecord) -> AdapterFile:
    """Copy an update to the scratch file, while it is hashed."""
    blob, limit = update_blob(reader, client, record)
    scratch, start = reader.scratch, reader.scratch.reserve(limit)
    size = reader.context.store.copy_blob(blob, lambda at, piece: scratch.write(start + at, piece), limit)
    return _parse(scratch.view(start, size), "update", _HEADER_BYTES)


def update_blob(reader: RoundReader, client: str, record: UpdateRecord) -> tuple[Blob, int]:
    """Return where a record says that the client's update is, and how many bytes it may have."""
    key = record.update.key if record.update else ""
    place = re.escape(str(place_of(reader.plan)))
    if not re.fullmatch(rf"rounds/{place}/updates/{client}(\.[0-9a-f]{{64}})?\.safetensors", key):
        raise Refused(f"its record names {key!r} as its update")
    limit = _update_bytes(len(reader.context.spec.algorithm.uploads), record.shared)
    return Blob(key, record.update.digest), limit


def _vectors(
    reader: RoundReader, received: AdapterFile, shared: np.ndarray, record: UpdateRecord
) -> dict[str, np.ndarray]:
    """Return an update's vectors, in the scratch file; their values may be of any size, or not finite."""
    spec, exchange = reader.context.spec, reader.context.spec.exchange
    if not exchange.sends_changes:
        return received.raw_vectors(record.shared, spec.algorithm.uploads)
    positions = np.unpackbits(shared, count=reader.base.space.size).view(bool)
    transfer = received.transfer(positions, spec.algorithm.uploads, exchange.dtype)
    if (sent := np.count_nonzero(transfer.positions)) != exchange.count(record.shared):
        raise Refused(f"its update has {sent} values, the plan {exchange.count(record.shared)}")
    update = update_of(spec, reader.base.vectors, positions, transfer, record.samples)
    return {name: reader.scratch.keep(vector) for name, vector in update.vectors.items()}


def _update_bytes(vectors: int, positions: int) -> int:
    """Return the maximum size of an update: 4 bytes a value, and at most one for its scale and its bit."""
    return _HEADER_BYTES + (5 * vectors + 1) * positions


def _verified_mask(context: FederationContext, expected: AdapterHeader, space: LoraSpace) -> AdapterFile:
    data = context.store.get_mask(expected.client, expected.mask_digest, limit=_mask_bytes(space))
    file = _parse_mask(data, space)
    _check_header(file, expected, "mask", skip="round")
    return file


def _check_next_mask(
    context: FederationContext, plan: Plan, record: UpdateRecord, expected: AdapterHeader, space: LoraSpace
) -> None:
    """Check that a client names a mask for the next round if it had to search for one, and only then."""
    following, due = record.next_mask_digest, context.spec.searches_after(plan.round)
    if due != (following is not None):
        when = "search" if due else "do not search"
        raise Refused(f"its record says next_mask_digest {following!r}, but clients {when} again after this round")
    if following:
        _ = _verified_mask(context, replace(expected, mask_digest=following), space).packed_mask  # of its budget


def _parse_mask(data: bytes, space: LoraSpace) -> AdapterFile:
    file = _parse(data, "mask", _mask_header_bytes(space), space)
    if file.space != space:
        raise Refused("its mask belongs to another space")
    return file


def _parse(data: bytes | np.ndarray, what: str, header_bytes: int, space: LoraSpace | None = None) -> AdapterFile:
    if int.from_bytes(data[:8], "little") > header_bytes:  # as JSON it may need 30 times the memory
        raise Refused(f"its {what} is not an adapter file: its header has more than {header_bytes:,} bytes")
    return AdapterFile.parse(data, space)


def _check_header(file: AdapterFile, expected: AdapterHeader, what: str, skip: str = "") -> None:
    for name, value in vars(expected).items():
        if name != skip and getattr(file.header, name) != value:
            raise Refused(f"its {what} says {name} {getattr(file.header, name)!r}, the plan {value!r}")


def _mask_header_bytes(space: LoraSpace) -> int:
    return _HEADER_BYTES + 2 * len(space.text)  # as JSON within JSON, quotes are escaped


def _mask_bytes(space: LoraSpace) -> int:
    return _mask_header_bytes(space) + space.size // 8 + 1
