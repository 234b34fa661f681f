"""The files of a bench whose cells run on other machines: records, jobs, results, and why there are none."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from perfit_storage.errors import CorruptObject, ObjectNotFound, StoreError
from perfit_storage.objects import ObjectStore
from perfit_storage.patience import with_patience
from perfit_storage.uris import open_store

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CELL = re.compile(rf"{_NAME.pattern}\.seed-[0-9]{{1,20}}\.[0-9a-f]{{16}}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DIRECTORY = "/benches/"
_FAILURE_BYTES = 16_384


class BenchStore:
    """The files of one bench, below ``<store URI>/benches/<name>``.

    A result, once there, is never replaced. Every method may be called again after a failure, or by two machines at the
    same time. All raise ``StoreError`` or one of its subclasses.

    Args:
        objects: The store.
        name: The bench's.
    """

    def __init__(self, objects: ObjectStore, name: str):
        self._objects, self._name = objects, _checked("bench's name", name, _NAME)

    @classmethod
    def open(
        cls, uri: str, name: str, environment: Mapping[str, str] | None = None, patience_s: float = 0.0
    ) -> BenchStore:
        """Opens a bench in the store at this URI; the arguments are those of ``FederationStore.open``."""
        return cls(with_patience(open_store(uri, environment), patience_s), name)

    @classmethod
    def at(cls, uri: str, patience_s: float = 0.0) -> BenchStore:
        """Opens a bench by its own URI."""
        store, found, name = uri.rpartition(_DIRECTORY)
        if not found:
            raise StoreError(f"{uri!r} names no bench", f"give <store URI>{_DIRECTORY}<name>")
        return cls.open(store, name, patience_s=patience_s)

    @property
    def uri(self) -> str:
        """The bench's directory."""
        return f"{self._objects.uri}{_DIRECTORY}{self._name}"

    def put_records(self, data: bytes) -> None:
        """Stores a file of records under its SHA-256."""
        digest = hashlib.sha256(data).hexdigest()
        if not self._objects.create(self._records(digest), data):
            raise CorruptObject(f"{self.uri}/records/{digest} holds other bytes than its name says", "delete it")

    def read_records(self, digest: str, limit: int) -> bytes:
        """Returns the file with this SHA-256. Raises ``ObjectNotFound``; ``UnreadableObject`` if it has another."""
        data = self._objects.get(self._records(digest), limit).data
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptObject(f"{self.uri}/records/{digest} holds other bytes than its name says", "delete it")
        return data

    def put_job(self, cell: str, data: bytes) -> None:
        """Stores what a cell has to run."""
        self._objects.put(self._of("jobs", cell), data)

    def read_job(self, cell: str, limit: int) -> bytes:
        """Returns what a cell has to run. Raises ``ObjectNotFound``; ``UnreadableObject``."""
        return self._objects.get(self._of("jobs", cell), limit).data

    def create_result(self, cell: str, data: bytes) -> None:
        """Stores a cell's result, if there is none."""
        self._objects.create(self._of("cells", cell), data)
        self._objects.delete(self._of("failures", cell))

    def has_result(self, cell: str) -> bool:
        """Whether there is a result of a cell, of whatever kind."""
        return self._objects.exists(self._of("cells", cell))

    def find_result(self, cell: str, limit: int) -> bytes | None:
        """Returns a cell's result, if there is one. Raises ``UnreadableObject``, also if it exceeds the limit."""
        return self._find("cells", cell, limit)

    def place_of_result(self, cell: str) -> str:
        """Returns the URI of a cell's result."""
        return f"{self._objects.uri}/{self._of('cells', cell)}"

    def put_failure(self, cell: str, reason: str) -> None:
        """Stores why a cell has no result, in place of an earlier reason."""
        self._objects.put(self._of("failures", cell), reason.encode()[:_FAILURE_BYTES])

    def find_failure(self, cell: str) -> str | None:
        """Returns why a cell has no result, if that is known. Raises ``UnreadableObject``."""
        data = self._find("failures", cell, _FAILURE_BYTES)
        return None if data is None else data.decode(errors="replace")

    def drop_failure(self, cell: str) -> None:
        """Removes the reason of an earlier run."""
        self._objects.delete(self._of("failures", cell))

    def results(self) -> set[str]:
        """Returns the cells that have a result, of whatever kind."""
        return self._listed("cells")

    def failures(self) -> set[str]:
        """Returns the cells with a reason why they have none."""
        return self._listed("failures")

    def _listed(self, directory: str) -> set[str]:
        prefix = f"benches/{self._name}/{directory}/"
        return {key.removeprefix(prefix).removesuffix(".json") for key in self._objects.list(prefix)}

    def _find(self, directory: str, cell: str, limit: int) -> bytes | None:
        try:
            return self._objects.get(self._of(directory, cell), limit).data
        except ObjectNotFound:
            return None

    def _records(self, digest: str) -> str:
        return f"benches/{self._name}/records/{_checked('SHA-256', digest, _DIGEST)}.jsonl"

    def _of(self, directory: str, cell: str) -> str:
        return f"benches/{self._name}/{directory}/{_checked('cell', cell, _CELL)}.json"


def _checked(what: str, value: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(value):
        raise StoreError(f"{value!r} cannot be a {what}", "use what perfit bench has stored")
    return value
