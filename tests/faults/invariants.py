"""What must hold at every moment of a federation, and in the end."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any

from blake3 import blake3

from perfit.protocol import RoundSummary, UpdateRecord, parse_outcome
from perfit_storage import ObjectNotFound

from .steps import Federation
from .totals import TOTALS


def torn(federation: Federation) -> list[str]:
    """What the head and its rounds' summaries name, or the record of a delivery, and is not there with its hash."""
    try:
        head = federation.store.read_head()
    except ObjectNotFound:
        return []
    found = _torn_of(federation, head)
    while head.summary is not None and not found:
        head = _summary(federation, head).base
        found += _torn_of(federation, head)
    updates = [record.update for record in delivered(federation).values() if record.update is not None]
    return found + [blob.key for blob in updates if not _whole(federation, blob)]


def _torn_of(federation: Federation, head: Any) -> list[str]:
    blobs = (head.adapter, head.state, head.summary)
    return [blob.key for blob in blobs if blob is not None and not _whole(federation, blob)]


def _whole(federation: Federation, blob: Any) -> bool:
    TOTALS.count("reads checked")
    try:
        return blake3(federation.objects.get(blob.key).data).hexdigest() == blob.digest
    except ObjectNotFound:
        return False


def _summary(federation: Federation, head: Any) -> RoundSummary:
    return RoundSummary.parse(federation.objects.get(head.summary.key).data)


def delivered(federation: Federation) -> dict[tuple[int, str], UpdateRecord]:
    """The records of clients that delivered, by round and client."""
    objects, found = federation.objects, {}
    for key in objects.list("rounds/"):
        if "/updates/" in key and key.endswith(".json"):
            outcome = parse_outcome(objects.get(key).data)
            if isinstance(outcome, UpdateRecord):
                found[outcome.round, outcome.client] = outcome
    return found


def committed(federation: Federation) -> dict[int, RoundSummary]:
    """The summaries of all committed rounds."""
    head, found = federation.store.read_head(), {}
    while head.summary is not None:
        found[head.round] = _summary(federation, head)
        head = found[head.round].base
    return found


def lost(federation: Federation, deliveries: Collection[tuple[int, str]]) -> list[tuple[int, str]]:
    """Deliveries for rounds that are committed, without them."""
    rounds = {round: {record.client for record in summary.trained} for round, summary in committed(federation).items()}
    return [(round, client) for round, client in deliveries if round in rounds and client not in rounds[round]]


def different(contents: Mapping[str, bytes], expected: Mapping[str, bytes]) -> list[str]:
    """Keys of objects that are missing, surplus or of other bytes."""
    return sorted(key for key in {*contents, *expected} if contents.get(key) != expected.get(key))


def check(federation: Federation, expected: Mapping[str, bytes]) -> None:
    """Check the end of a trial: the store holds exactly the expected objects, and its rounds what was delivered."""
    TOTALS.never("differing objects", different(federation.contents(), expected))
    TOTALS.never("torn reads", torn(federation))
    TOTALS.never("updates lost", lost(federation, delivered(federation)))
    TOTALS.count("trials")
    TOTALS.count("rounds committed", len(committed(federation)))


class Reader:
    """Within its context, a thread that reads what the head names, again and again."""

    def __init__(self, federation: Federation):
        self._federation, self._stop, self._torn, self._round = federation, threading.Event(), [], 0
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        TOTALS.never("torn reads", self._torn)

    def _read(self) -> None:
        while not self._stop.wait(0.01):
            try:
                head = self._federation.store.read_head()
            except ObjectNotFound:
                continue
            self._torn += _torn_of(self._federation, head)
            if head.round < self._round:
                self._torn.append(f"the head is back at round {head.round}")
            self._round = head.round
