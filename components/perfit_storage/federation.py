"""A federation's files in a store, and the rules by which they change.

Under ``federations/<name>/`` of the store lie::

    spec.yaml                              the federation file
    head.json                              round, key and sha256 of the current global adapter
    masks/<client>-<sha256>                a client's personal architecture
    rounds/<n>/plan.json                   written once
    rounds/<n>/updates/<client>.safetensors
    rounds/<n>/updates/<client>.json       written last: without it there is no update
    rounds/<n>/global.safetensors, summary.json, report.html
    clients/<client>/                      what only this client may read

Whatever a record or the head may name is never overwritten: if another attempt left other bytes under the
usual name, the new ones go to ``<usual name>.<sha256>.safetensors``, and the record or head names that key.
All keys in records and heads are relative to the federation's directory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from perfit_storage.errors import CorruptObject, ObjectNotFound, StoreError
from perfit_storage.objects import ObjectStore, StoredObject, open_store

_SEGMENT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPEC_KEY = re.compile(r"federations/([^/]+)/spec\.yaml")
_SUMMARY_PATH = re.compile(r"rounds/([0-9]+)/summary\.json")
_TRAINED = "trained"


@dataclass(frozen=True)
class Head:
    """The global adapter that the federation stands at.

    Attributes:
        round: The round that made it.
        key: Its key in the federation's directory.
        sha256: Of its bytes, in hexadecimal.
    """

    round: int
    key: str
    sha256: str


class FederationStore:
    """The files of one federation.

    Every method may be called again after a failure, or by a second run at the same time. All raise
    ``StoreError`` or one of its subclasses.

    Args:
        objects: The store.
        name: The federation's name: lower-case letters, digits and inner hyphens, at most 63.
    """

    def __init__(self, objects: ObjectStore, name: str):
        self.name = _checked_segment("federation name", name)
        self._objects = objects

    @classmethod
    def open(cls, uri: str, name: str, environment: Mapping[str, str] | None = None) -> FederationStore:
        """Opens the federation in the store at this URI; see ``perfit_storage.open_store``."""
        return cls(open_store(uri, environment), name)

    @property
    def uri(self) -> str:
        """The federation's directory."""
        return f"{self._objects.uri}/federations/{self.name}"

    # Specification and head

    def write_spec(self, data: bytes, expected: bytes | None) -> bool:
        """Writes the federation file: once if nothing is expected, else in place of exactly those bytes.

        Returns:
            Whether the store now holds this file.
        """
        if expected is None:
            return self._objects.create(self._key("spec.yaml"), data)
        found = self._find("spec.yaml")
        if found is None or found.data not in (expected, data):
            return False
        return found.data == data or self._objects.replace(self._key("spec.yaml"), data, found.version)

    def read_spec(self) -> bytes:
        """Returns the federation file. Raises ``ObjectNotFound``, naming the federations that are there."""
        found = self._find("spec.yaml")
        if found is None:
            raise ObjectNotFound(
                f"there is no federation {self.name!r} in {self._objects.uri}",
                f"prepare it first, or correct its name{self._others()}",
            )
        return found.data

    def read_head(self) -> Head:
        """Returns the head. Raises ``ObjectNotFound`` before the federation is prepared."""
        return self._head()[0]

    def create_head(self, head: Head) -> bool:
        """Writes the first head; returns whether the federation now stands there."""
        return self._objects.create(self._key("head.json"), _json_bytes(asdict(head)))

    def advance_head(self, old: Head, new: Head) -> bool:
        """Moves the head from one round to the next, if it still is where the caller saw it.

        Returns:
            True if the head is ``new`` now, also if an earlier attempt moved it there; False if it is
            elsewhere.

        Raises:
            ValueError: ``new`` is not of the round after ``old``.
        """
        if new.round != old.round + 1:
            raise ValueError(f"the head cannot move from round {old.round} to round {new.round}")
        current, version = self._head()
        if current != old:
            return current == new
        return self._objects.replace(self._key("head.json"), _json_bytes(asdict(new)), version)

    # Masks

    def put_mask(self, client: str, sha256: str, data: bytes) -> None:
        """Stores a client's mask under the mask's own hash (of its bits, as the caller defines it)."""
        path = _mask_path(client, sha256)
        if not self._objects.create(self._key(path), data):
            raise CorruptObject(
                f"{self.uri}/{path} already holds other bytes than this mask's",
                "delete that object and run the client's search again",
            )

    def get_mask(self, client: str, sha256: str) -> bytes:
        """Returns the mask's file. Raises ``ObjectNotFound``."""
        fix = f"run the search of client {client!r} again"
        return self._get(_mask_path(client, sha256), fix).data

    def find_masks(self, client: str) -> list[str]:
        """Returns the hashes, sorted, of the masks that this client has."""
        prefix = self._key(f"masks/{_checked_segment('client id', client)}-")
        rests = (key.removeprefix(prefix) for key in self._objects.list(prefix))
        return [rest for rest in rests if _SHA256.fullmatch(rest)]

    # Rounds

    def create_plan(self, round: int, plan: dict[str, Any]) -> dict[str, Any]:
        """Stores the round's plan unless there is one; returns the one that holds."""
        path = f"rounds/{round}/plan.json"
        self._objects.create(self._key(path), _json_bytes(plan))
        return self.read_plan(round)

    def read_plan(self, round: int) -> dict[str, Any]:
        """Returns the round's plan. Raises ``ObjectNotFound``."""
        path = f"rounds/{round}/plan.json"
        return self._parse(path, self._get(path, f"plan round {round} first"))

    def put_update(
        self, round: int, client: str, record: dict[str, Any], data: bytes | None, private: bool = False
    ) -> dict[str, Any]:
        """Stores what a client has to say about a round: its adapter, if it has one, then its record.

        A record with status ``trained`` is final: a later attempt changes nothing. Any other gives way.

        Args:
            round: The round.
            client: The client's id.
            record: JSON, without NaN. ``key``, ``bytes`` and ``sha256`` of the adapter are filled in here.
            data: The adapter's file; None if the client has no update.
            private: Whether only the client may read it (methods that exchange nothing).

        Returns:
            The record that holds now.

        Raises:
            ValueError: The record holds a number that is not finite.
        """
        _checked_segment("client id", client)
        path = f"rounds/{round}/updates/{client}.json"
        stem = f"clients/{client}/rounds/{round}" if private else f"rounds/{round}/updates/{client}"
        stored = self.read_record(round, client)
        if stored is not None and stored.get("status") == _TRAINED:
            return stored
        return self._put_record(path, _json_bytes(record | self._put_blob(stem, data)))

    def read_record(self, round: int, client: str) -> dict[str, Any] | None:
        """Returns the client's record of the round, None if there is none (yet)."""
        path = f"rounds/{round}/updates/{_checked_segment('client id', client)}.json"
        found = self._find(path)
        return None if found is None else self._parse(path, found)

    def read_update(self, record: dict[str, Any]) -> bytes:
        """Returns the adapter that a record names. Raises ``CorruptObject`` if it is not the one it was."""
        if record.get("key") is None:
            raise ObjectNotFound("the record names no update", "read updates of trained clients only")
        return self._get_exact(record["key"], record.get("sha256"))

    def put_global(self, round: int, data: bytes) -> Head:
        """Stores a round's global adapter and returns the head that would name it; moves nothing."""
        blob = self._put_blob(f"rounds/{round}/global", data)
        return Head(round, blob["key"], blob["sha256"])

    def read_global(self, head: Head) -> bytes:
        """Returns the global adapter that a head names. Raises ``CorruptObject`` if it is another."""
        return self._get_exact(head.key, head.sha256)

    def put_summary(self, round: int, summary: dict[str, Any]) -> None:
        """Stores a round's summary, over an earlier one: write it after the head has moved."""
        self._objects.put(self._key(f"rounds/{round}/summary.json"), _json_bytes(summary))

    def read_summary(self, round: int) -> dict[str, Any] | None:
        """Returns a round's summary, None if there is none (yet)."""
        path = f"rounds/{round}/summary.json"
        found = self._find(path)
        return None if found is None else self._parse(path, found)

    def summaries(self) -> list[dict[str, Any]]:
        """Returns all summaries in the order of their rounds."""
        root = self._key("")
        paths = (key.removeprefix(root) for key in self._objects.list(f"{root}rounds/"))
        rounds = sorted(int(match[1]) for path in paths if (match := _SUMMARY_PATH.fullmatch(path)))
        return [summary for round in rounds if (summary := self.read_summary(round)) is not None]

    def put_report(self, round: int, html: bytes) -> None:
        """Stores a round's report, over an earlier one."""
        self._objects.put(self._key(f"rounds/{round}/report.html"), html)

    def read_report(self, round: int) -> bytes:
        """Returns a round's report. Raises ``ObjectNotFound``."""
        return self._get(f"rounds/{round}/report.html", f"run round {round} first").data

    # Files of one client

    def put_client_file(self, client: str, name: str, data: bytes) -> None:
        """Stores a file that only this client may read; the name may have directories."""
        self._objects.put(self._client_key(client, name), data)

    def get_client_file(self, client: str, name: str) -> bytes:
        """Returns one of the client's files. Raises ``ObjectNotFound``."""
        return self._objects.get(self._client_key(client, name)).data

    def list_client_files(self, client: str) -> list[str]:
        """Returns the names of the client's files, sorted."""
        prefix = self._client_key(client, "")
        return [key.removeprefix(prefix) for key in self._objects.list(prefix)]

    def _key(self, path: str) -> str:
        return f"federations/{self.name}/{path}"

    def _client_key(self, client: str, name: str) -> str:
        return self._key(f"clients/{_checked_segment('client id', client)}/{name}")

    def _head(self) -> tuple[Head, str]:
        found = self._get("head.json", "prepare the federation first")
        try:
            return Head(**self._parse("head.json", found)), found.version
        except TypeError as error:
            raise CorruptObject(f"{self.uri}/head.json is not a head: {error}", "restore it from a backup") from error

    def _find(self, path: str) -> StoredObject | None:
        try:
            return self._objects.get(self._key(path))
        except ObjectNotFound:
            return None

    def _get(self, path: str, fix: str) -> StoredObject:
        found = self._find(path)
        if found is None:
            raise ObjectNotFound(f"there is no {self.uri}/{path}", fix)
        return found

    def _get_exact(self, path: str, sha256: str | None) -> bytes:
        data = self._get(path, "restore it from a backup, or run its round again").data
        actual = hashlib.sha256(data).hexdigest()
        if actual != sha256:
            raise CorruptObject(
                f"{self.uri}/{path} has sha256 {actual}, but its record says {sha256}",
                "restore it from a backup, or run its round again",
            )
        return data

    def _parse(self, path: str, found: StoredObject) -> dict[str, Any]:
        try:
            value = json.loads(found.data)
        except ValueError as error:
            raise CorruptObject(f"{self.uri}/{path} is not JSON: {error}", "restore it from a backup") from error
        if not isinstance(value, dict):
            raise CorruptObject(f"{self.uri}/{path} is not a JSON object", "restore it from a backup")
        return value

    def _put_blob(self, stem: str, data: bytes | None) -> dict[str, Any]:
        """Stores bytes that nobody will overwrite; returns what a record says of them."""
        if data is None:
            return {"key": None, "bytes": None, "sha256": None}
        sha256 = hashlib.sha256(data).hexdigest()
        path = f"{stem}.safetensors"
        if not self._objects.create(self._key(path), data):
            path = f"{stem}.{sha256}.safetensors"
            self._objects.put(self._key(path), data)
        return {"key": path, "bytes": len(data), "sha256": sha256}

    def _put_record(self, path: str, data: bytes) -> dict[str, Any]:
        """Writes the record unless a trained one is there; each turn of the loop is another writer's win."""
        while True:
            found = self._find(path)
            if found is None:
                written = self._objects.create(self._key(path), data)
            elif (stored := self._parse(path, found)).get("status") == _TRAINED:
                return stored
            else:
                written = self._objects.replace(self._key(path), data, found.version)
            if written:
                return json.loads(data)

    def _others(self) -> str:
        try:
            names = federation_names(self._objects)
        except StoreError:
            return ""
        return f"; the store has: {', '.join(names)}" if names else "; the store has no federation yet"


def federation_names(objects: ObjectStore) -> list[str]:
    """Returns the names, sorted, of the federations in a store."""
    matches = (_SPEC_KEY.fullmatch(key) for key in objects.list("federations/"))
    return sorted(match[1] for match in matches if match)


def _mask_path(client: str, sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise StoreError(f"{sha256!r} is not a SHA-256", "give the mask's hash as 64 hexadecimal digits")
    return f"masks/{_checked_segment('client id', client)}-{sha256}"


def _checked_segment(what: str, value: str) -> str:
    if not _SEGMENT.fullmatch(value):
        raise StoreError(
            f"{value!r} cannot be a {what}",
            "use lower-case letters, digits and inner hyphens, at most 63 characters",
        )
    return value


def _json_bytes(value: dict[str, Any]) -> bytes:
    """One text for one value, so that a step that runs twice writes the same bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
