"""A store whose outages its user waits for: what took hours to compute is not lost to minutes without a store."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from perfit_storage.errors import StoreError, StoreUnreachable
from perfit_storage.objects import Data, Fill, ObjectStore, StoredObject, Write

T = TypeVar("T")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 20.0

_log = logging.getLogger(__name__)


def with_patience(store: ObjectStore, seconds: float) -> ObjectStore:
    """Returns a store that repeats what finds it unreachable, for so many seconds from the first failure.

    Between two attempts lie 0.5, 1, 2, ... 20 s, each shortened by up to a half by chance, so that a hundred clients
    do not come back in step. Nothing but ``StoreUnreachable`` is repeated. An attempt takes its own time besides: 10 s
    where nothing answers, up to two minutes where what answers hangs.

    A store that has not answered once is not waited for: more likely its address is wrong.

    Args:
        store: Any store.
        seconds: How long to go on; 0 for the store as it is.
    """
    return PatientStore(store, seconds) if seconds > 0 else store


class PatientStore:
    """See ``with_patience``.

    ``create`` and ``replace`` may be repeated though an attempt whose answer was lost had succeeded: they then find
    their own bytes, which counts as written.
    """

    def __init__(self, store: ObjectStore, seconds: float):
        self._store, self._seconds, self._has_answered = store, seconds, False

    @property
    def uri(self) -> str:
        """See ``ObjectStore.uri``."""
        return self._store.uri

    def get(self, key: str, limit: int | None = None) -> StoredObject:
        """See ``ObjectStore.get``."""
        return self._patiently(lambda: self._store.get(key, limit))

    def copy(self, key: str, write: Write, limit: int) -> int:
        """See ``ObjectStore.copy``."""
        return self._patiently(lambda: self._store.copy(key, write, limit))

    @contextmanager
    def stream(self, key: str, limit: int) -> Iterator[Fill]:
        """See ``ObjectStore.stream``. Only opening it is tried again."""
        with ExitStack() as opened:
            yield self._patiently(lambda: opened.enter_context(self._store.stream(key, limit)))

    def put(self, key: str, data: Data) -> None:
        """See ``ObjectStore.put``."""
        self._patiently(lambda: self._store.put(key, data))

    def create(self, key: str, data: Data) -> bool:
        """See ``ObjectStore.create``."""
        return self._patiently(lambda: self._store.create(key, data))

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """See ``ObjectStore.replace``."""
        return self._patiently(lambda: self._store.replace(key, data, version))

    def exists(self, key: str) -> bool:
        """See ``ObjectStore.exists``."""
        return self._patiently(lambda: self._store.exists(key))

    def size(self, key: str) -> int:
        """See ``ObjectStore.size``."""
        return self._patiently(lambda: self._store.size(key))

    def modified(self, key: str) -> float:
        """See ``ObjectStore.modified``."""
        return self._patiently(lambda: self._store.modified(key))

    def list(self, prefix: str) -> Iterator[str]:
        """See ``ObjectStore.list``."""
        return iter(self._patiently(lambda: [*self._store.list(prefix)]))

    def directories(self, prefix: str) -> Iterator[str]:
        """See ``ObjectStore.directories``."""
        return iter(self._patiently(lambda: [*self._store.directories(prefix)]))

    def delete(self, key: str) -> None:
        """See ``ObjectStore.delete``."""
        self._patiently(lambda: self._store.delete(key))

    def reconnect(self) -> None:
        """See ``ObjectStore.reconnect``."""
        self._store.reconnect()

    def sweep(self, prefix: str) -> int:
        """See ``ObjectStore.sweep``. Only a store that has no server sweeps, so this is no answer of one."""
        return self._store.sweep(prefix)

    def _patiently(self, act: Callable[[], T]) -> T:
        deadline, pause = None, _FIRST_PAUSE_S
        while True:
            try:
                result = act()
            except StoreUnreachable as error:
                now = time.monotonic()
                deadline = now + self._seconds if deadline is None else deadline
                if not self._has_answered or now >= deadline:
                    raise
                _log.warning("%s; trying again, for another %.0f s", error.problem, deadline - now)
                time.sleep(min(pause * random.uniform(0.5, 1), deadline - now))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            except StoreError:
                self._has_answered = True
                raise
            else:
                self._has_answered = True
                return result
