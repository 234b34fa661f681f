"""Whether a store keeps the conditions of a write, found out by writers that race.

All that a federation's files promise stands on two conditions: ``create`` (S3's ``If-None-Match: *``) and ``replace``
(``If-Match``). There are stores and proxies that drop both and say that all is well, and stores that check them without
a lock, so that of two writers at once both win: a federation is founded twice, a round committed twice.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from perfit_storage.errors import ObjectNotFound, UnsafeStore
from perfit_storage.objects import ObjectStore, StoredObject

_CREATORS = 8
_REPLACERS = 2
"""Of more at once SeaweedFS lets some wait for seconds; many races of two find as much as a few of many."""
_RACES = 8
_ATTEMPTS = 50
_REFUSALS = 3
_PAUSE_S = 0.1
_LIMIT = 1024
_SCRATCH = b"left by perfit, which found that this store keeps the conditions of writes\n"
_NO_VERSION = '"00000000000000000000000000000000"'
CONDITIONS_FIX = (
    "use MinIO, AWS S3, Ceph, or SeaweedFS 4.18 or newer (older ones check conditions without a lock; Kubeflow "
    "Pipelines 2.15 and 2.16.1 ship 4.00, 2.17 ships 4.34), and let no proxy on the way drop or change the headers "
    "If-Match, If-None-Match and ETag"
)
_FILE_FIX = "use a file system that has hard links and flock, or an S3 store"


def check_conditions(store: ObjectStore, key: str) -> None:
    """Let writers race for a scratch object, which stays, one line long; others may do the same at the same time.

    The race to create it takes place when it is not there yet; the rest each time.

    Args:
        store: The store.
        key: Of the scratch object. It holds nothing else, and the caller may read and write it.

    Raises:
        UnsafeStore: The store lets two writers win, ignores a condition, or never finds one fulfilled.
        StoreError: It cannot be read or written.
    """
    probe = _Probe(store, key)
    if not store.exists(key) and probe.race(_CREATORS, lambda data: store.create(key, data)) > 1:
        raise probe.unsafe("several writers created one object, each of them the first (If-None-Match)")
    if store.create(key, probe.content()):
        raise probe.unsafe("it ignores the condition If-None-Match: an object that was there was written over")
    if store.replace(key, probe.content(), _NO_VERSION):
        raise probe.unsafe("it ignores the condition If-Match: an object of another version was written over")
    for _ in range(_RACES):
        probe.race_to_replace()
    store.put(key, _SCRATCH)


class _Probe:
    def __init__(self, store: ObjectStore, key: str):
        self._store, self._key = store, key

    def content(self) -> bytes:
        """Bytes that no other write has."""
        return f'{{"probe": "{uuid.uuid4()}"}}\n'.encode()

    def race(self, writers: int, write: Callable[[bytes], bool]) -> int:
        """Returns how many of the writers, who all write at once, were told that they had won."""
        start = threading.Barrier(writers)

        def run() -> bool:
            start.wait()
            return write(self.content())

        with ThreadPoolExecutor(writers) as pool:
            return sum(future.result() for future in [pool.submit(run) for _ in range(writers)])

    def race_to_replace(self) -> None:
        """Lets writers race from one version. That nobody wins is no fault of the store if another probe came first."""
        refused = 0
        for _ in range(_ATTEMPTS):
            found = self.read()
            winners = self.race_from(found)
            if winners > 1:
                raise self.unsafe(f"{winners} writers replaced one version of an object (If-Match)")
            if winners == 1 and found.data != _SCRATCH:
                return
            if winners == 0 and self.read().data == found.data:
                refused += 1
            if refused == _REFUSALS:
                raise self.unsafe("nobody could replace an object whose version had just been read (If-Match, ETag)")
            time.sleep(random.uniform(0, _PAUSE_S))

    def race_from(self, found: StoredObject) -> int:
        # Another probe may write the scratch object's last bytes again, and their version would be back meanwhile.
        writers = 1 if found.data == _SCRATCH else _REPLACERS
        return self.race(writers, lambda data: self._store.replace(self._key, data, found.version))

    def read(self) -> StoredObject:
        try:
            return self._store.get(self._key, limit=_LIMIT)
        except ObjectNotFound:
            raise self.unsafe("an object is gone right after it was written") from None

    def unsafe(self, what: str) -> UnsafeStore:
        fix = _FILE_FIX if self._store.uri.startswith("file:") else CONDITIONS_FIX
        return UnsafeStore(f"{self._store.uri} is no safe place for a federation: {what}", fix)
