"""A federation's files in a store, and the rules by which they change.

The store holds these files under ``federations/<name>/``::

    spec.yaml                              the federation file
    files/<digest>.yaml                    federation files that runs are given by URI, not as an argument
    model.json                             the files of the base model, by hash
    head.json                              round, branches, and key and digest of the global adapter and server state
    masks/<client>/<digest>                a client's personal architectures
    rounds/<n>/plan.json                   written once
    rounds/<n>/served.json                 of a round of several runs: how many of its participants have had theirs
    rounds/<n>/exchanged.safetensors       for the server alone: the positions that enough participants share
    rounds/<n>/downloads/<client>.safetensors, or for all clients of a rank ranks/<rank>.safetensors
    rounds/<n>/updates/<client>.safetensors
    rounds/<n>/updates/<client>.json       written last: without it there is no update
    rounds/<n>/global.safetensors          for the server alone: the vectors of which clients download their part
    rounds/<n>/state.safetensors           for the server alone: its other vectors, if the method has any (moments)
    rounds/<n>/summary.json, report.html
    rounds/0/state.probe.safetensors       one line, left by check_conditions
    clients/<client>/                      what only this client may read

Without a head there is no federation. Until a client has a mask, it may be founded again with another file and model.
After that, and after a rollback, rounds have directories ``rounds/<n>.<branch>/``; see ``Head.place``.

Plans, records and summaries are only bytes here. An object that a record or the head may name is never overwritten: if
another attempt left other bytes under the usual name, the new ones go to ``<usual name>.<digest>.safetensors``, and the
record or head names that key. All keys in records and heads are relative to the federation's directory.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from blake3 import blake3

from perfit_storage.conditions import check_conditions
from perfit_storage.errors import CorruptObject, ObjectNotFound, StoreError, UnsafeStore
from perfit_storage.head import Blob, Head, RoundPlace, dump_head, parse_head
from perfit_storage.objects import Data, Fill, ObjectStore, StoredObject, Write
from perfit_storage.patience import with_patience
from perfit_storage.uris import open_store

_SEGMENT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DIRECTORY = re.compile(rf"{_SEGMENT.pattern}(\.{_SEGMENT.pattern})?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PROBE = "rounds/0/state.probe.safetensors"
"""Scratch object of ``check_conditions``: where only the server's key may write, by policies of every version."""
_RECORD_ATTEMPTS = 20
_SERVED_BYTES = 16
HASH_THREADS = 2
"""Threads that hash a blob that is written."""
_SPEC_BYTES, _HEAD_BYTES, _PLAN_BYTES = 2**22, 2**20, 2**26
"""Of what clients read again and again: whoever may write it shall not fill their memory."""
_BLOB_FIX = "restore it from a backup, or run its round again"
_SINGLE_FILES = ("head.json", "model.json", "spec.yaml")
_DIRECTORIES = ("clients/", "rounds/", "masks/")
"""In the order in which they are deleted."""


class BlobStream:
    """A blob that is read on demand. Its bytes are not known to be those of the hash before :meth:`finish` returns.

    Args:
        fill: See ``ObjectStore.stream``.
        check: Takes the hash of all bytes; raises ``CorruptObject`` if it is another.
    """

    def __init__(self, fill: Fill, check: Callable[[str], None]):
        self._fill, self._check, self._hasher = fill, check, blake3()

    def read(self, buffer: memoryview) -> int:
        """Fills a buffer, uint8, with the next bytes; returns their number, which is less only at the end."""
        rest = buffer
        while rest and (count := self._fill(rest)):
            rest = rest[count:]
        filled = buffer[: len(buffer) - len(rest)]
        self._hasher.update(filled)
        return len(filled)

    def finish(self) -> None:
        """Checks that nothing is left, and what was read.

        Raises:
            CorruptObject: The bytes do not match the hash.
        """
        self.read(memoryview(bytearray(1)))  # what is too long has another hash
        self._check(self._hasher.hexdigest())


class FederationStore:
    """The files of one federation.

    Every method may be called again after a failure, or by a second run at the same time. All raise
    ``StoreError`` or one of its subclasses.

    Args:
        objects: The store.
        name: The federation's name: lower-case letters, digits and inner hyphens, at most 63. With another method than
            the file's, a federation has a directory of its own, ``<name>.<method>``.
    """

    def __init__(self, objects: ObjectStore, name: str):
        self.name = _checked("federation name", name, _DIRECTORY)
        self._objects = objects

    @classmethod
    def open(
        cls, uri: str, name: str, environment: Mapping[str, str] | None = None, patience_s: float = 0.0
    ) -> FederationStore:
        """Opens the federation in the store at this URI.

        Args:
            uri: Of the store.
            name: The federation's.
            environment: See ``perfit_storage.open_store``.
            patience_s: How many seconds to wait for a store that has gone; see ``perfit_storage.patience``.
        """
        return cls(with_patience(open_store(uri, environment), patience_s), name)

    @property
    def uri(self) -> str:
        """The federation's directory."""
        return f"{self._objects.uri}/federations/{self.name}"

    # Specification and head

    def write_spec(self, data: bytes, expected: bytes | None) -> bool:
        """Creates the federation file if ``expected`` is None, otherwise replaces exactly the expected bytes.

        Returns:
            Whether the store now holds this file.
        """
        return self._write("spec.yaml", data, expected)

    def read_spec(self) -> bytes:
        """Returns the federation file. Raises ``ObjectNotFound``, naming the federations that exist."""
        stored = self._find("spec.yaml", _SPEC_BYTES)
        if stored is None:
            raise ObjectNotFound(
                f"there is no federation {self.name!r} in {self._objects.uri}",
                f"prepare it first, or correct its name{self._existing_names()}",
            )
        return stored.data

    def put_file(self, data: bytes) -> str:
        """Stores a federation file under its hash, for a run that is given the URI which this returns."""
        path = f"files/{blake3(data).hexdigest()}.yaml"
        if not self._objects.create(self._key(path), data):
            raise CorruptObject(f"{self.uri}/{path} already holds other bytes than its name says", "delete that object")
        return f"{self.uri}/{path}"

    def read_file(self, digest: str, limit: int) -> bytes:
        """Returns the federation file of this hash.

        Raises ``ObjectNotFound``; ``CorruptObject`` if it has another hash; ``UnreadableObject``, also if it exceeds
        the limit.
        """
        return self.read_blob(Blob(f"files/{_checked_digest(digest)}.yaml", digest), limit)

    def write_model(self, manifest: bytes, expected: bytes | None) -> bool:
        """Writes what the base model's files are; as ``write_spec``."""
        return self._write("model.json", manifest, expected)

    def read_model(self) -> bytes | None:
        """Returns what the base model's files are, None if it is not written (yet)."""
        found = self._find("model.json")
        return None if found is None else found.data

    def read_head(self) -> Head:
        """Returns the head. Raises ``ObjectNotFound`` before the federation is prepared."""
        return self._head()[0]

    def check_conditions(self) -> None:
        """Finds out, with the server's key, whether the store keeps the conditions that this class builds on.

        Raises ``UnsafeStore`` if not. A scratch object of one line stays in the federation's directory.
        """
        check_conditions(self._objects, self._key(_PROBE))

    def sweep(self) -> int:
        """Removes what writers that were killed left behind a day ago or longer; returns how many files."""
        return self._objects.sweep(self._key(""))

    def create_head(self, head: Head) -> bool:
        """Writes the first head; returns whether it is the stored one now."""
        return self._objects.create(self._key("head.json"), dump_head(head))

    def found_again(self, old: Head, new: Head) -> bool:
        """Moves the head from one beginning to another, on a new branch, unless it has moved since the caller read it.

        Returns:
            As ``advance_head``.

        Raises:
            ValueError: One of the two is no beginning, or ``new`` is not on the next branch.
        """
        if old.round or new.round or new != old.rolled_back_to(new):
            raise ValueError(f"{old} cannot become {new}")
        return self._move_head(old, new)

    def advance_head(self, old: Head, new: Head) -> bool:
        """Moves the head from one round to the next, unless it has moved since the caller read it.

        Returns:
            True if the head is ``new`` now, even if an earlier attempt moved it; False if it is another. That may be
            one that came after ``new``: the answer to a move may get lost, and the next move be made before it is
            repeated.

        Raises:
            ValueError: The round of ``new`` is not the one after that of ``old``, or the branches differ.
        """
        if new.round != old.round + 1 or new.branches != old.branches:
            raise ValueError(f"the head cannot move from round {old.place(old.round)} to round {new.place(new.round)}")
        return self._move_head(old, new)

    def roll_back_head(self, old: Head, new: Head) -> bool:
        """Moves the head back to an earlier round, on a new branch, unless it has moved since the caller read it.

        Returns:
            As ``advance_head``.

        Raises:
            ValueError: ``new`` is not what ``old.rolled_back_to`` returns for the head of an earlier round.
        """
        if new.round >= old.round or new != old.rolled_back_to(new):
            raise ValueError(f"{old} cannot be rolled back to {new}")
        return self._move_head(old, new)

    def _move_head(self, old: Head, new: Head) -> bool:
        current, version = self._head()
        if current != old:
            return current == new
        return self._objects.replace(self._key("head.json"), dump_head(new), version)

    # Masks

    def put_mask(self, client: str, digest: str, data: bytes) -> None:
        """Stores a client's mask under the hash of the mask (not of the file), which the caller computes."""
        path = _mask_path(client, digest)
        if not self._objects.create(self._key(path), data):
            raise CorruptObject(
                f"{self.uri}/{path} already holds other bytes than this mask's",
                "delete that object and run the client's search again",
            )

    def get_mask(self, client: str, digest: str, limit: int | None = None) -> bytes:
        """Returns the mask's file. Raises ``ObjectNotFound``; ``UnreadableObject``, also if it exceeds the limit."""
        fix = f"run the search of client {client!r} again"
        return self._get(_mask_path(client, digest), fix, limit).data

    def has_masks(self) -> bool:
        """Whether any client has a mask, as every client has that has begun to tune."""
        return any(self._objects.list(self._key("masks/")))

    def find_masks(self, client: str) -> list[str]:
        """Returns the hashes, sorted, of the masks that this client has."""
        prefix = self._key(f"masks/{_checked_segment('client id', client)}/")
        hashes = (key.removeprefix(prefix) for key in self._objects.list(prefix))
        return [digest for digest in hashes if _DIGEST.fullmatch(digest)]

    # Rounds

    def has_rounds(self) -> bool:
        """Whether any round was planned."""
        rounds = self._objects.directories(self._key("rounds/"))
        return any(self._objects.exists(self._key(f"rounds/{name}/plan.json")) for name in rounds)

    def create_plan(self, place: RoundPlace, plan: bytes) -> bytes:
        """Stores the round's plan unless there is one already; returns the stored one."""
        self._objects.create(self._key(f"rounds/{place}/plan.json"), plan)
        return self.read_plan(place)

    def read_plan(self, place: RoundPlace) -> bytes:
        """Returns the round's plan. Raises ``ObjectNotFound``."""
        return self._get(f"rounds/{place}/plan.json", f"plan round {place.number} first", _PLAN_BYTES).data

    def round_times(self, place: RoundPlace, summary: Blob) -> tuple[float, float]:
        """Returns when a committed round's plan and its summary were written, in seconds since 1970.

        Both are written once. They are the store's own times: a store that was copied may have those of the copy.
        """
        plan = self._key(f"rounds/{place}/plan.json")
        return self._objects.modified(plan), self._objects.modified(self._key(summary.key))

    def read_served(self, place: RoundPlace) -> int:
        """Returns how many of a round's participants, in the plan's order, earlier runs have served."""
        found = self._find(f"rounds/{place}/served.json", _SERVED_BYTES)
        if found is None:
            return 0
        if not re.fullmatch(rb"\d{1,9}\n", found.data):
            raise CorruptObject(f"{self.uri}/rounds/{place}/served.json is no number", "write 0 and a line end to it")
        return int(found.data)

    def put_served(self, place: RoundPlace, count: int) -> None:
        """Stores how many of a round's participants have been served."""
        self._objects.put(self._key(f"rounds/{place}/served.json"), f"{count}\n".encode())

    def put_exchanged(self, place: RoundPlace, data: bytes) -> Blob:
        """Stores the positions that a round exchanges; they count only once a plan names them."""
        return self._put_blob(f"rounds/{place}/exchanged", data)

    def put_download(self, place: RoundPlace, client: str, data: bytes) -> Blob:
        """Stores what one client downloads in a round; it counts only once a plan names it."""
        return self._put_blob(f"rounds/{place}/downloads/{_checked_segment('client id', client)}", data)

    def put_download_of_rank(self, place: RoundPlace, rank: int, data: bytes) -> Blob:
        """Stores what all clients of a rank download in a round; it counts only once a plan names it."""
        return self._put_blob(f"rounds/{place}/ranks/{rank}", data)

    def put_update(self, place: RoundPlace, client: str, data: bytes) -> Blob:
        """Stores a client's update; it counts only once a record names it."""
        return self._put_blob(f"rounds/{place}/updates/{_checked_segment('client id', client)}", data)

    def put_record(self, place: RoundPlace, client: str, record: bytes, is_final: Callable[[bytes], bool]) -> bytes:
        """Stores a client's record of a round.

        Args:
            place: The round's.
            client: The client's id.
            record: The record.
            is_final: Whether an existing record must not be replaced.

        Returns:
            The record that is stored now.

        Raises:
            UnsafeStore: The store refuses every write: it does not know its own versions.
        """
        path = _record_path(place, client)
        for attempt in range(_RECORD_ATTEMPTS):  # each but the last is another writer's win
            if attempt:
                time.sleep(random.uniform(0, 0.1))
            found = self._find(path)
            if found is None:
                written = self._objects.create(self._key(path), record)
            elif is_final(found.data):
                return found.data
            else:
                written = self._objects.replace(self._key(path), record, found.version)
            if written:
                return record
        raise UnsafeStore(
            f"cannot write {self.uri}/{path}: it was another than just read, {_RECORD_ATTEMPTS} times in a row",
            "let no proxy on the way to the store change ETag headers; if many pods write this record, end them",
        )

    def read_record(self, place: RoundPlace, client: str, limit: int | None = None) -> bytes | None:
        """Returns a client's record of a round, None if there is none (yet).

        Raises ``UnreadableObject``, also if it has more bytes than the limit.
        """
        found = self._find(_record_path(place, client), limit)
        return None if found is None else found.data

    def find_records(self, place: RoundPlace) -> set[str]:
        """Returns the ids of the clients that have a record of a round."""
        prefix = self._key(f"rounds/{place}/updates/")
        names = (key.removeprefix(prefix) for key in self._objects.list(prefix))
        return {name.removesuffix(".json") for name in names if name.endswith(".json")}

    def put_global(self, place: RoundPlace, data: Data) -> Blob:
        """Stores the vectors of which clients download their part after a round; the head does not move."""
        return self._put_blob(f"rounds/{place}/global", data)

    def put_state(self, place: RoundPlace, data: Data) -> Blob:
        """Stores the server's other vectors after a round; the head does not move."""
        return self._put_blob(f"rounds/{place}/state", data)

    def read_blob(self, blob: Blob, limit: int | None = None) -> bytes:
        """Returns the bytes of a blob.

        Bytes that do not match the hash are read once more, over another connection: a bit that flipped on the way is
        not the writer's fault.

        Raises:
            ObjectNotFound: It is gone.
            CorruptObject: Its bytes do not match the hash.
            UnreadableObject: It has more bytes than the limit, or the store cannot return it.
        """
        for repeated in (False, True):
            if repeated:
                self._objects.reconnect()
            data = self._get(blob.key, _BLOB_FIX, limit).data
            actual = blake3(data).hexdigest()
            if actual == blob.digest:
                return data
            del data  # before as much is read again
        raise self._corrupt(blob, actual)

    def copy_blob(self, blob: Blob, write: Write, limit: int) -> int:
        """Passes a blob's bytes to ``write`` piece by piece, as ``ObjectStore.copy`` does; returns their number.

        Not before it has returned are they known to be those of the hash. Raises as ``read_blob``.
        """
        hasher = blake3()

        def take(start: int, piece: memoryview) -> None:
            if start == 0:
                hasher.reset()
            hasher.update(piece)
            write(start, piece)

        for repeated in (False, True):
            if repeated:
                self._objects.reconnect()
            hasher.reset()
            try:
                size = self._objects.copy(self._key(blob.key), take, limit)
            except ObjectNotFound as error:
                raise ObjectNotFound(f"there is no {self.uri}/{blob.key}", _BLOB_FIX) from error
            if hasher.hexdigest() == blob.digest:
                return size
        raise self._corrupt(blob, hasher.hexdigest())

    @contextmanager
    def stream_blob(self, blob: Blob, limit: int) -> Iterator[BlobStream]:
        """Opens a blob to be read on demand, beside others. Raises as ``ObjectStore.stream``."""
        with self._objects.stream(self._key(blob.key), limit) as fill:
            yield BlobStream(fill, lambda actual: self._check_digest(blob, actual))

    def _check_digest(self, blob: Blob, actual: str) -> None:
        if actual != blob.digest:
            raise self._corrupt(blob, actual)

    def size_of(self, blob: Blob) -> int:
        """Returns a blob's size in bytes, as the store states it.

        Raises:
            ObjectNotFound: It is gone.
        """
        try:
            return self._objects.size(self._key(blob.key))
        except ObjectNotFound as error:
            raise ObjectNotFound(f"there is no {self.uri}/{blob.key}", _BLOB_FIX) from error

    def has_blob(self, key: str) -> bool:
        """Whether there is an object under a blob's key."""
        return self._objects.exists(self._key(key))

    def put_summary(self, place: RoundPlace, summary: bytes) -> Blob:
        """Stores a round's summary; it counts only once the head names it."""
        return self._put_blob(f"rounds/{place}/summary", summary, ".json")

    def put_report(self, place: RoundPlace, html: bytes) -> None:
        """Stores a round's report, replacing an earlier one."""
        self._objects.put(self._key(f"rounds/{place}/report.html"), html)

    def read_report(self, place: RoundPlace) -> bytes:
        """Returns a round's report. Raises ``ObjectNotFound``."""
        return self._get(f"rounds/{place}/report.html", f"run round {place.number} first").data

    # Files of one client

    def put_client_file(self, client: str, name: str, data: bytes) -> None:
        """Stores a file that only this client may read; the name may have directories."""
        self._objects.put(self._client_key(client, name), data)

    def get_client_file(self, client: str, name: str, limit: int | None = None) -> bytes:
        """Returns one of the client's files. Raises ``ObjectNotFound``; ``UnreadableObject``, as for its mask."""
        return self._objects.get(self._client_key(client, name), limit).data

    def empty_client_file(self, client: str, name: str) -> None:
        """Empties one of the client's files, if there is one; no key may delete it."""
        with suppress(ObjectNotFound):
            if self._objects.size(self._client_key(client, name)):
                self.put_client_file(client, name, b"")

    def list_client_files(self, client: str) -> list[str]:
        """Returns the names of the client's files, sorted."""
        prefix = self._client_key(client, "")
        return [key.removeprefix(prefix) for key in self._objects.list(prefix)]

    # Everything

    def is_empty(self) -> bool:
        """Whether the store holds nothing under the federation's name."""
        single = any(self._objects.exists(self._key(name)) for name in _SINGLE_FILES)
        prefixes = (self._key("files/"), *self._prefixes())
        return not single and not any(any(self._objects.list(prefix)) for prefix in prefixes)

    def delete(self) -> Iterator[int]:
        """Removes everything, and yields the number of removed files after each directory.

        The head goes first, so that nobody goes on from what is left; what shows that a client has worked goes last
        but for the federation's file. After an interruption, delete again.
        """
        removed = 0
        self._objects.delete(self._key("head.json"))
        for prefix in (*self._prefixes(), self._key("")):
            for key in self._objects.list(prefix):
                self._objects.delete(key)
                removed += 1
            yield removed

    def _prefixes(self) -> Iterator[str]:
        """What together holds all but the single files, in parts that a listing takes."""
        for directory in map(self._key, _DIRECTORIES):
            yield from [f"{directory}{name}/" for name in self._objects.directories(directory)]

    def _write(self, path: str, data: bytes, expected: bytes | None) -> bool:
        if expected is None:
            return self._objects.create(self._key(path), data)
        stored = self._find(path)
        if stored is None or stored.data not in (expected, data):
            return False
        return stored.data == data or self._objects.replace(self._key(path), data, stored.version)

    def _key(self, path: str) -> str:
        return f"federations/{self.name}/{path}"

    def _client_key(self, client: str, name: str) -> str:
        return self._key(f"clients/{_checked_segment('client id', client)}/{name}")

    def _head(self) -> tuple[Head, str]:
        stored = self._get("head.json", "prepare the federation first", _HEAD_BYTES)
        return parse_head(f"{self.uri}/head.json", stored.data), stored.version

    def _find(self, path: str, limit: int | None = None) -> StoredObject | None:
        try:
            return self._objects.get(self._key(path), limit)
        except ObjectNotFound:
            return None

    def _get(self, path: str, fix: str, limit: int | None = None) -> StoredObject:
        stored = self._find(path, limit)
        if stored is None:
            raise ObjectNotFound(f"there is no {self.uri}/{path}", fix)
        return stored

    def _put_blob(self, stem: str, data: Data, suffix: str = ".safetensors") -> Blob:
        """Stores bytes that are never overwritten."""
        digest = blake3(data, max_threads=HASH_THREADS).hexdigest()
        path = f"{stem}{suffix}"
        if not self._objects.create(self._key(path), data):
            path = f"{stem}.{digest}{suffix}"
            self._objects.put(self._key(path), data)
        return Blob(path, digest)

    def _corrupt(self, blob: Blob, actual: str) -> CorruptObject:
        problem = f"{self.uri}/{blob.key} has digest {actual}, but its record says {blob.digest}"
        return CorruptObject(problem, _BLOB_FIX)

    def _existing_names(self) -> str:
        try:
            names = federation_names(self._objects)
        except StoreError:
            return ""
        return f"; the store has: {', '.join(names)}" if names else "; the store has no federation yet"


def federation_names(objects: ObjectStore) -> list[str]:
    """Returns the names, sorted, of the federations in a store: those that have a head."""
    names = objects.directories("federations/")
    return [name for name in names if _DIRECTORY.fullmatch(name) and objects.exists(f"federations/{name}/head.json")]


def _mask_path(client: str, digest: str) -> str:
    return f"masks/{_checked_segment('client id', client)}/{_checked_digest(digest)}"


def _checked_digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise StoreError(f"{text!r} is not a digest", "give the hash as 64 hexadecimal digits")
    return text


def _checked_segment(what: str, value: str) -> str:
    return _checked(what, value, _SEGMENT)


def _checked(what: str, value: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(value):
        raise StoreError(
            f"{value!r} cannot be a {what}",
            "use lower-case letters, digits and inner hyphens, at most 63 characters",
        )
    return value


def _record_path(place: RoundPlace, client: str) -> str:
    return f"rounds/{place}/updates/{_checked_segment('client id', client)}.json"
