"""Collects a round's updates: all side by side if nothing is out of the ordinary, otherwise each by itself.

Side by side, an update is averaged before all of it is read, so before its hash is known, and is kept nowhere. The
average counts only if afterwards every update turns out to be what its record says, and within all limits. Otherwise it
is thrown away, and each update is copied, checked and averaged by itself, which tells whose fault it is. Both ways
give the same bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from perfit.adapter_file import transfer_start
from perfit.aggregation import Cohort, threads
from perfit.exchange import BLOCK, DTYPES
from perfit.methods import VALUES
from perfit.protocol import ClientStatus, Outcome, Participant
from perfit.updates import Update
from perfit_components.steps.contribution import Announced, Refused, RoundReader, check_magnitudes, update_blob
from perfit_storage import StoreError
from perfit_storage.layout import BlobStream

MAX_STREAMS = 128
"""Updates that are read side by side, at most: each is an open file or connection."""


@dataclass
class Tally:
    """The updates of a round's participants, the number of positions that they hold, and their outcomes."""

    cohort: Cohort
    held: int
    outcomes: list[Outcome]


def collect(reader: RoundReader, lost: Mapping[str, ClientStatus]) -> Tally:
    """Verify the updates of a round.

    Args:
        reader: Reads what the participants wrote.
        lost: Statuses of participants whose updates do not count, whatever they wrote, by client.

    Raises:
        StoreUnreachable: The store does not answer.
        ScratchError: The disk is full.
    """
    return side_by_side(reader, lost) or one_by_one(reader, lost)


def one_by_one(reader: RoundReader, lost: Mapping[str, ClientStatus]) -> Tally:
    """Verify each participant's update, once, note the outcome and add the update to the cohort.

    While one thread waits for the store, another verifies: the cohort is the same in whatever order they come.
    """
    cohort = reader.new_cohort()
    held = _Held(cohort.size)

    def read(participant: Participant) -> Outcome:
        contribution = lost.get(participant.client) or reader.read(participant, cohort)
        if isinstance(contribution, ClientStatus):
            return contribution
        held.add(contribution.mask)
        if contribution.update is not None:
            cohort.add(participant.client, contribution.update, contribution.measured)
        return contribution.record

    with ThreadPoolExecutor(threads()) as pool:
        outcomes = list(pool.map(read, reader.plan.participants))
    return Tally(cohort, held.count, outcomes)


def side_by_side(reader: RoundReader, lost: Mapping[str, ClientStatus]) -> Tally | None:
    """Average the updates while they are read; None if one of them is out of the ordinary, or the method asks for more.

    What an ordinary client writes is known to the byte, but for the values: nothing else is parsed here.
    """
    spec, participants = reader.context.spec, reader.plan.participants
    by_mean = spec.algorithm.by_position and spec.aggregation.rule == "mean"
    one_vector = spec.algorithm.uploads == (VALUES,) and spec.exchange.top == 1
    if not (by_mean and one_vector and len(participants) <= MAX_STREAMS):
        return None
    cohort = reader.new_cohort()
    held = _Held(cohort.size)
    sources: dict[str, _Source] = {}

    def announce(participant: Participant) -> Outcome:
        client = participant.client
        announced = lost.get(client) or reader.announced(participant)
        if isinstance(announced, ClientStatus):
            if client not in lost and announced.status == "refused":
                raise Refused(announced.reason)
            return announced
        held.add(announced.mask)
        if announced.record.shared:
            shared, samples = reader.scratch.keep(announced.shared), announced.record.samples
            cohort.announce(client, Update(shared, cohort.size, {}, samples))
            sources[client] = _Source.open(reader, client, announced, streams)
        return announced.record

    try:
        with ExitStack() as streams, ThreadPoolExecutor(threads()) as pool:
            outcomes = list(pool.map(announce, participants))
            cohort.sweep(VALUES, {client: source.read for client, source in sources.items()})
            for client, source in sources.items():
                source.stream.finish()
                check_magnitudes(cohort.measures[client])
    except (Refused, StoreError):
        return None
    if any(scale.factors for scale in cohort.scales.values()):
        return None
    return Tally(cohort, held.count, outcomes)


class _Held:
    """The positions that some clients hold, packed."""

    def __init__(self, size: int):
        self._mask, self._lock = np.zeros(-(-size // 8), dtype=np.uint8), threading.Lock()

    def add(self, mask: np.ndarray) -> None:
        with self._lock:
            np.bitwise_or(self._mask, mask, out=self._mask)

    @property
    def count(self) -> int:
        return int(np.bitwise_count(self._mask).sum())


class _Source:
    """An update that is read block by block.

    Args:
        stream: The update, after what its file begins with.
        dtype: Type of its values.
        base: The vector that they change if it has another type than float32, shape (N,).
        scales: Of all its values, if they are int8.
    """

    def __init__(self, stream: BlobStream, dtype: str, base: np.ndarray, scales: np.ndarray):
        self.stream, self._dtype, self._base, self._scales, self._before = stream, dtype, base, scales, 0

    @classmethod
    def open(cls, reader: RoundReader, client: str, announced: Announced, streams: ExitStack) -> _Source:
        """Open an update.

        Raises:
            Refused: It does not begin like an ordinary one.
            StoreError: It cannot be read.
        """
        record, dtype = announced.record, reader.context.spec.exchange.dtype
        start, order = transfer_start(announced.header, record.shared, [VALUES], dtype)
        stream = streams.enter_context(reader.context.store.stream_blob(*update_blob(reader, client, record)))
        begin = bytearray(len(start))
        if stream.read(memoryview(begin)) < len(start) or begin != start:
            raise Refused("its update does not begin like an ordinary one")
        scales = np.empty(-(-record.shared // BLOCK) if len(order) > 1 else 0, np.float32)
        _fill(stream, scales)
        return cls(stream, dtype, reader.base.vectors[VALUES], reader.scratch.keep(scales))

    def read(self, block: slice, bits: np.ndarray, values: np.ndarray) -> None:
        """Fill in the values of a block, float32; bits are its packed mask.

        Raises:
            Refused: There are not as many.
            StoreError: They cannot be read.
        """
        from perfit.kernels import gather

        if self._dtype == "float32":
            _fill(self.stream, values)
            return
        changes = np.empty(values.size, DTYPES[self._dtype])
        _fill(self.stream, changes)
        first, ahead = divmod(self._before, BLOCK)
        self._before += values.size
        scales = np.repeat(self._scales[first : -(-self._before // BLOCK)], BLOCK)[ahead : ahead + values.size]
        gather(bits, self._base[block], values)
        with np.errstate(all="ignore"):  # what is not finite is found by the measure
            values += changes.astype(np.float32) * scales if scales.size else changes.astype(np.float32)


def _fill(stream: BlobStream, array: np.ndarray) -> None:
    if stream.read(array.view(np.uint8).data) < array.nbytes:
        raise Refused("its update ends too early")
