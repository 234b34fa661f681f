"""An existing federation, opened by URI: its store and its federation file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from perfit.adapter_file import AdapterFile, AdapterFileError, AdapterHeader
from perfit.cluster_spec import ClusterClient, ClusterSpec
from perfit.errors import PerfitError
from perfit.federation_file import parse_federation
from perfit.model_files import ModelManifest
from perfit.protocol import Base, MessageError, Plan, RoundSummary
from perfit.scratch import Scratch
from perfit.space import LoraSpace
from perfit_storage import Blob, Branch, FederationStore, Head, ObjectNotFound, RoundPlace

_DIRECTORY = "/federations/"


@dataclass(frozen=True)
class StoredVectors:
    """Vectors of the server, read from the store.

    Args:
        space: The expanded space of N positions.
        vectors: float32, shape (N,), by name.
        size: Number of bytes read.
        release: Takes them out of this process's memory until one is looked at again.
    """

    space: LoraSpace
    vectors: dict[str, np.ndarray]
    size: int
    release: Callable[[], None]


@dataclass(frozen=True)
class FederationContext:
    """A federation's files and its validated federation file."""

    store: FederationStore
    spec: ClusterSpec

    @classmethod
    def open(cls, uri: str) -> FederationContext:
        """Open a task's federation, at ``<store URI>/federations/<name>``, with credentials from the environment.

        A store that goes away is waited for: see :func:`store_patience`.

        Raises:
            PerfitError: The store cannot be reached or holds no such federation; the URI or a stored file is wrong.
        """
        store, directory, name = uri.rpartition(_DIRECTORY)
        if not directory:
            raise PerfitError(f"{uri!r} names no federation", "give <store URI>/federations/<name>")
        return cls.of(FederationStore.open(store, name, patience_s=store_patience()))

    @classmethod
    def of(cls, store: FederationStore) -> FederationContext:
        """Read the federation file of an opened store.

        Raises:
            PerfitError: The store cannot be reached or holds no such federation; a stored file is wrong.
        """
        text = store.read_spec()
        store.read_head()  # raises if another version wrote the federation
        return cls(store, parse_federation(text.decode(), f"{store.uri}/spec.yaml"))

    def check_unchanged(self) -> None:
        """Check that this is still the federation of this file: until a client has a mask, it may be founded again.

        Raises:
            PerfitError: It is another's by now, or the store cannot be reached.
        """
        current = parse_federation(self.store.read_spec().decode(), f"{self.store.uri}/spec.yaml")
        if difference := self.spec.difference(current):
            raise PerfitError(
                f"{self.store.uri} was founded again with another file meanwhile: {difference}",
                "run again, with the file that shall count",
            )

    def client_named(self, name: str) -> ClusterClient:
        """Return the client whose name in the cluster, that of its Secret, this is.

        Raises:
            PerfitError: There is none.
        """
        by_name = {self.spec.secret_of(client): client for client in self.spec.clients}
        if name not in by_name:
            raise PerfitError(
                f"no client of federation {self.spec.name!r} has the Secret {name!r}",
                f"use one of: {', '.join(by_name)}",
            )
        return by_name[name]

    def model(self) -> ModelManifest:
        """Read what the base model's files are.

        Raises:
            PerfitError: It is not written, or damaged.
        """
        manifest = stored_model(self.store)
        if manifest is None:
            raise PerfitError(
                f"{self.store.uri}/model.json is missing: what files the base model consists of",
                "prepare the federation again (every run does), or restore it from a backup of the store",
            )
        return manifest

    def downloads(self, base: Base) -> StoredVectors:
        """Read the vectors of which clients download their part.

        Raises:
            PerfitError: They are missing, or not those of this federation and round.
        """
        return self._vectors(base, base.adapter, self.spec.algorithm.downloads)

    def state(self, base: Base) -> StoredVectors:
        """Read all vectors of the server.

        Raises:
            PerfitError: They are missing, or not those of this federation and round.
        """
        stored = self.downloads(base)
        if base.state is None:
            return stored
        own = self._vectors(base, base.state, None)

        def release() -> None:
            stored.release()
            own.release()

        return StoredVectors(stored.space, {**stored.vectors, **own.vectors}, stored.size + own.size, release)

    def exchanged(self, plan: Plan, space: LoraSpace) -> np.ndarray:
        """Read the positions that a round exchanges, packed: uint8, shape (ceil(N / 8),).

        Raises:
            PerfitError: They are missing, or damaged.
        """
        if plan.exchanged is None:
            return np.zeros(-(-space.size // 8), dtype=np.uint8)
        data = self.store.read_blob(Blob(plan.exchanged.key, plan.exchanged.digest))
        try:
            return AdapterFile.parse(data).packed_mask
        except AdapterFileError as error:
            raise self._damaged(plan.exchanged.key, error) from error

    def plan(self, place: RoundPlace) -> Plan:
        """Read the plan of a round.

        Raises:
            PerfitError: There is none, or it is damaged.
        """
        return self.parse_plan(place, self.store.read_plan(place))

    def find_plan(self, place: RoundPlace) -> Plan | None:
        """Read the plan of a round, None if there is none yet.

        Raises:
            PerfitError: It is damaged.
        """
        try:
            return self.plan(place)
        except ObjectNotFound:
            return None

    def parse_plan(self, place: RoundPlace, data: bytes) -> Plan:
        """Parse the plan of a round.

        Raises:
            PerfitError: It is damaged.
        """
        try:
            return Plan.parse(data)
        except MessageError as error:
            raise self._damaged(f"rounds/{place}/plan.json", error) from error

    def base_after(self, round: int) -> Base:
        """Return the base that a committed round left for the next one, following the summaries back from the head.

        Raises:
            PerfitError: The round is not committed, or a later round's summary is missing or damaged.
        """
        base = base_of(self.store.read_head())
        if base.round < round:
            raise PerfitError(f"round {round} of {self.spec.name!r} is not committed", "run it first")
        while base.round > round:
            base = self.summary_of(base).base
        return base

    def summary_of(self, after: Base) -> RoundSummary:
        """Read the summary of the round that left ``after``.

        Raises:
            PerfitError: It is missing or damaged.
        """
        if after.summary is None:
            raise PerfitError(f"no round of {self.spec.name!r} is committed yet", "run a round first")
        data = self.store.read_blob(Blob(after.summary.key, after.summary.digest))
        try:
            return RoundSummary.parse(data)
        except MessageError as error:
            raise self._damaged(after.summary.key, error) from error

    def summaries(self, last: int | None = None) -> list[RoundSummary]:
        """Read the summaries of all committed rounds in order, up to round ``last``.

        Raises:
            PerfitError: Round ``last`` is not committed, or a summary is missing or damaged.
        """
        base = base_of(self.store.read_head()) if last is None else self.base_after(last)
        summaries: list[RoundSummary] = []
        while base.summary is not None:
            summaries.append(self.summary_of(base))
            base = summaries[-1].base
        return summaries[::-1]

    def _vectors(self, base: Base, blob, names: tuple[str, ...] | None) -> StoredVectors:
        blob = Blob(blob.key, blob.digest)
        scratch = Scratch(size := self.store.size_of(blob))
        start = scratch.reserve(size)
        size = self.store.copy_blob(blob, lambda at, piece: scratch.write(start + at, piece), size)
        try:
            file = AdapterFile.parse(scratch.view(start, size))
            expected = AdapterHeader.of_server(self.spec, file.space, base.round)
            if file.header != expected:
                raise AdapterFileError(f"its header is {file.header}, but should be {expected}")
            everywhere = np.ones(file.space.size, dtype=bool)
            vectors = file.vectors(everywhere, names) if names else file.named_vectors(everywhere)
        except AdapterFileError as error:
            raise self._damaged(blob.key, error) from error
        scratch.release()
        return StoredVectors(file.space, vectors, size, scratch.release)

    def _damaged(self, path: str, error: Exception) -> PerfitError:
        return PerfitError(f"{self.store.uri}/{path}: {error}", "restore it from a backup of the store")


def stored_model(store: FederationStore) -> ModelManifest | None:
    """Read what a federation's base model's files are, None if it is not written (yet).

    Raises:
        PerfitError: It is damaged.
    """
    data = store.read_model()
    try:
        return None if data is None else ModelManifest.parse(data)
    except MessageError as error:
        raise PerfitError(f"{store.uri}/model.json: {error}", "restore it from a backup of the store") from error


def base_of(head: Head) -> Base:
    """Return the base of a round that is planned at this head."""
    return Base.model_validate(asdict(head))


def head_of(base: Base) -> Head:
    """Return the head at which a round was planned."""
    adapter, state, summary = (
        blob and Blob(blob.key, blob.digest) for blob in (base.adapter, base.state, base.summary)
    )
    branches = tuple(Branch(branch.number, branch.first_round) for branch in base.branches)
    return Head(base.round, adapter, state, summary, branches)


def place_of(message: Plan | RoundSummary) -> RoundPlace:
    """Return where the files of a planned or committed round are."""
    return head_of(message.base).place(message.round)


def store_patience() -> float:
    """Return for how many seconds a task waits for a store that has gone: $PERFIT_STORE_PATIENCE_S, or five minutes.

    A store that has not answered the task once is not waited for; see :mod:`perfit_storage.patience`.

    Raises:
        PerfitError: The variable is not a number of seconds.
    """
    text = os.environ.get("PERFIT_STORE_PATIENCE_S") or "300"
    if not text.isascii() or not text.isdecimal():
        raise PerfitError(f"PERFIT_STORE_PATIENCE_S is {text!r}", "set it to a whole number of seconds, or unset it")
    return float(text)


def model_cache() -> Path:
    """Return where prepare keeps converted models: $PERFIT_CACHE, a volume on the cluster, or the user's cache."""
    return Path(os.environ.get("PERFIT_CACHE") or Path.home() / ".cache" / "perfit")
