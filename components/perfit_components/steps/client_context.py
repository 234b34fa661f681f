"""A client's context in one round: its federation, model and data, and what it reads from the store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perfit.adapter import mask_hash
from perfit.adapter_file import AdapterFile, AdapterFileError, AdapterHeader, dump_mask
from perfit.cluster_spec import ClusterClient, ClusterSpec, Tier
from perfit.errors import PerfitError
from perfit.methods import Vectors
from perfit.protocol import Participant, Plan
from perfit.round import ClientRound, Received
from perfit_components.log_lines import format_phase, format_step
from perfit_components.steps.context import FederationContext, model_cache
from perfit_components.steps.owner import Owner
from perfit_storage import Blob, FederationStore, Head, ObjectNotFound, RoundPlace, open_store

if TYPE_CHECKING:
    from perfit.client import ClientData, ExpandedModel

_CHECKPOINT = "checkpoint.safetensors"
SEARCH = 0
"""The round under which a search reports its progress."""


@dataclass(frozen=True)
class Architecture:
    """A client's mask (bool, shape (N,)), its hash, and the bytes of its upload, 0 if that was in an earlier round."""

    mask: np.ndarray
    digest: str
    bytes_up: int


@dataclass(frozen=True)
class ClientContext:
    """A client of a federation, in one round. Model and data are loaded once, and only if needed.

    ``head`` is that of the federation when the task began: what it says of places holds until the task's end.
    ``owner`` is what the client's owner gives it; None in a pod.
    """

    federation: FederationContext
    client: ClusterClient
    round: int
    head: Head
    owner: Owner | None = None

    @classmethod
    def open(cls, uri: str, round: int, name: str, owner: Owner | None = None) -> ClientContext:
        """Open a client's federation; ``name`` is that of its Secret.

        Raises:
            PerfitError: The store cannot be reached, or the federation has no such client.
        """
        federation = FederationContext.open(uri)
        client = federation.client_named(name)
        if owner:
            client = client.model_copy(update={"data": owner.data, "held_out": owner.held_out})
        return cls(federation, client, round, federation.store.read_head(), owner)

    @cached_property
    def spec(self) -> ClusterSpec:
        """The federation file, with the training of the client's tier."""
        return self.federation.spec.of_client(self.client)

    @property
    def store(self) -> FederationStore:
        """The federation's files."""
        return self.federation.store

    @property
    def place(self) -> RoundPlace:
        """Where the round's files are."""
        return self.head.place(self.round)

    @property
    def is_committed(self) -> bool:
        """Whether the round was committed when the task began."""
        return self.head.round >= self.round

    @cached_property
    def plan(self) -> Plan:
        """The plan of the round."""
        return self.federation.plan(self.place)

    @property
    def participant(self) -> Participant:
        """The client's entry in the plan.

        Raises:
            PerfitError: It does not take part.
        """
        for participant in self.plan.participants:
            if participant.client == self.client.id:
                return participant
        raise PerfitError(
            f"client {self.client.id!r} does not take part in round {self.round}",
            "the round was planned without it; it may be sampled for a later one",
        )

    @cached_property
    def loaded(self) -> tuple[ExpandedModel, ClientData]:
        """The model with the expanded LoRA, and the client's records.

        The cache of models is only read, and believed as far as its files are those that the federation was founded
        with. On its owner's machine the client also fills it.
        """
        from perfit.client import load_client_data, load_prepared
        from perfit.models import checked_model, own_model

        _check_device(self.spec.tiers[self.client.tier], self.client.tier)
        manifest, cache = self.federation.model(), model_cache()
        if manifest.model != self.spec.model:
            raise PerfitError(
                f"{self.store.uri}/model.json is about {manifest.model}, the federation's model is {self.spec.model}",
                "prepare the federation again (every run does), or restore it from a backup of the store",
            )
        with tempfile.TemporaryDirectory() as scratch:
            if self.owner:
                source = own_model(manifest, cache, self.owner.model)
            else:
                source = checked_model(manifest, cache, Path(scratch))
            model = load_prepared(self.spec, source)
        with tempfile.TemporaryDirectory() as downloads:
            return model, load_client_data(self.spec, self.client, model.tokenizer, _fetcher(downloads))

    def header(self, budget: int, mask_digest: str) -> AdapterHeader:
        """Return the header of a file that the client writes in this round."""
        return AdapterHeader.of_client(self.spec, self.client.id, self.round, budget, mask_digest)

    @property
    def checkpoint(self) -> StoredCheckpoint:
        """Where the client keeps the last checkpoint of the training that it is in."""
        return StoredCheckpoint(self.store, self.client.id)

    def say(self, phase: str) -> None:
        """Report what the client does from now on; see :class:`perfit_components.log_lines.Phase`."""
        print(format_phase(self.round, self.client.id, phase), flush=True)

    def on_step(self, round: int) -> Callable[[int, int, float], None]:
        """Return a function that reports the progress of a training, one line per step."""

        def report(step: int, steps: int, loss: float) -> None:
            print(format_step(round, self.client.id, step, steps, loss), flush=True)

        return report


def _check_device(tier: Tier, name: str) -> None:
    """Refuse to train on fewer accelerators than a pod was given; a local run ignores the cluster's machines."""
    import torch

    wanted, seen = tier.accelerator, torch.cuda.device_count()
    if wanted and "KUBERNETES_SERVICE_HOST" in os.environ and seen < wanted.count:
        raise PerfitError(
            f"tiers.{name}.accelerator: the pod asks for {wanted.count} of {wanted.type}, but torch "
            f"{torch.__version__} sees {seen or 'none'}",
            "look whether the image has a torch for it and the node its driver: "
            "`python3 -m perfit_components.health client` in the pod says what is there",
        )


@dataclass(frozen=True)
class StoredCheckpoint:
    """The last checkpoint of a client's training, in its own part of the store."""

    store: FederationStore
    client: str

    def load(self, limit: int) -> bytes | None:
        """See :class:`perfit.checkpoint.CheckpointFile`."""
        try:
            return self.store.get_client_file(self.client, _CHECKPOINT, limit) or None
        except ObjectNotFound:
            return None

    def save(self, data: bytes) -> None:
        """See :class:`perfit.checkpoint.CheckpointFile`."""
        self.store.put_client_file(self.client, _CHECKPOINT, data)

    def drop(self) -> None:
        """Empty the file: what it was for is done. If that fails, the next training replaces or drops it."""
        with suppress(PerfitError):
            self.store.empty_client_file(self.client, _CHECKPOINT)


def ensure_architecture(context: ClientContext) -> Architecture:
    """Read the client's architecture; if it has none yet, search for one and upload it.

    Raises:
        PerfitError: The stored one is damaged, of another model, or not the one that the plan was made for.
    """
    from perfit.client import find_architecture

    store, client, planned = context.store, context.client, context.participant.mask_digest
    model, data = context.loaded
    hashes = store.find_masks(client.id)
    if context.spec.search and planned and planned not in hashes:
        raise PerfitError(
            f"{store.uri}/masks/{client.id}/{planned} is missing, for which round {context.round} was planned",
            "restore it from a backup of the store; without it the client searches again, in a later round",
        )
    if planned and hashes:
        return _read_architecture(context, planned, 0 if context.spec.search else context.round)
    if hashes:  # It has not delivered yet: those that it found after its first one are for rounds to come.
        stored = [_read_mask(context, digest)[0] for digest in hashes]
        first = min(stored, key=lambda file: file.header.round)
        return _read_architecture(context, first.header.mask_digest, context.round)
    if context.spec.search:
        context.say("searching")
    mask = find_architecture(model, context.spec, client, data, context.on_step(SEARCH), context.checkpoint)
    return _put_mask(context, mask, context.round)


def ensure_next_architecture(
    context: ClientContext, held: np.ndarray, received: Received, kept: Vectors
) -> Architecture | None:
    """Search again if it is time to, unless that is done, and upload the result; None if it is not time.

    The result is for the next round. It has a file of its own that says so, since the round may be run in several
    attempts.

    Args:
        context: The client's context.
        held: Its architecture in this round: bool, shape (N,).
        received: What the server sent.
        kept: What the client kept from its last round, at the trained positions.

    Raises:
        PerfitError: The stored one is damaged, or the search was refused.
    """
    from perfit.client import search_again

    store, client, number = context.store, context.client, context.round
    if not context.spec.searches_after(number):
        return None
    name = f"search/{context.place}.txt"
    with suppress(ObjectNotFound):
        return _read_architecture(context, store.get_client_file(client.id, name).decode(), number + 1)
    (model, data), on_step = context.loaded, context.on_step(SEARCH)
    context.say("searching")
    mask = search_again(model, context.spec, client, number, data, held, received, kept, on_step, context.checkpoint)
    following = _put_mask(context, mask, number + 1)
    store.put_client_file(client.id, name, following.digest.encode())
    return following


def _put_mask(context: ClientContext, mask: np.ndarray, round: int) -> Architecture:
    """Upload a mask that is for a round and those after it, unless it is there already."""
    store, client, space = context.store, context.client.id, context.loaded[0].space
    digest = mask_hash(space, mask)
    if digest in store.find_masks(client):
        architecture = _read_architecture(context, digest, round)
    else:
        context.federation.check_unchanged()
        header = replace(context.header(int(np.count_nonzero(mask)), digest), round=round)
        data = dump_mask(header, space, mask)
        store.put_mask(client, digest, data)
        architecture = Architecture(mask, digest, len(data))
    context.checkpoint.drop()
    return architecture


def _read_architecture(context: ClientContext, digest: str, round: int) -> Architecture:
    """Read a mask; its bytes count if it was uploaded for this round."""
    file, size = _read_mask(context, digest)
    return Architecture(file.mask, digest, size if file.header.round == round else 0)


def _read_mask(context: ClientContext, digest: str) -> tuple[AdapterFile, int]:
    data = context.store.get_mask(context.client.id, digest)
    try:
        file = AdapterFile.parse(data)
        _check_space(context, file)
        if file.header.mask_digest != digest:
            raise AdapterFileError(f"it is mask {file.header.mask_digest}")
        _ = file.mask  # of that hash, and of the header's budget
        return file, len(data)
    except AdapterFileError as error:
        problem = f"the mask {digest} of client {context.client.id!r}: {error}"
        raise PerfitError(problem, "restore it from a backup of the store") from error


def read_download(context: ClientContext, architecture: Architecture) -> tuple[Received, int]:
    """Return what the client receives from the server, and the number of bytes read.

    Raises:
        PerfitError: It is missing, damaged, or of another model.
    """
    spec, client, participant = context.spec, context.client, context.participant
    side = ClientRound(spec, context.loaded[0].space, architecture.mask, context.round)
    if participant.mask_digest is None:
        return side.unknown(), 0
    blob = participant.download
    if blob is None:
        return Received(np.zeros_like(architecture.mask)), 0
    data = context.store.read_blob(Blob(blob.key, blob.digest))
    budget = int(np.count_nonzero(architecture.mask))
    base = context.plan.base.adapter.digest
    expected = AdapterHeader.of_download(spec, client.id, context.round, budget, architecture.digest, base)
    try:
        file = AdapterFile.parse(data)
        if file.header != expected:
            raise AdapterFileError(f"its header is {file.header}, but should be {expected}")
        transfer = file.transfer(side.roles.shared, spec.algorithm.downloads, spec.exchange.dtype)
    except AdapterFileError as error:
        raise PerfitError(
            f"{context.store.uri}/{blob.key}: {error}", "restore it from a backup of the store"
        ) from error
    return Received.by(transfer), len(data)


def read_kept(context: ClientContext, architecture: Architecture) -> Vectors:
    """Return what the client kept from its last round before this one, at its trained positions; may be empty.

    Rounds that a rollback has left behind do not count. In its last round its architecture may have been another.

    Raises:
        PerfitError: It is damaged.
    """
    store, client = context.store, context.client
    names = set(store.list_client_files(client.id))
    earlier = (state_file(context.head.place(number)) for number in range(context.round - 1, 0, -1))
    name = next((name for name in earlier if name in names), None)
    if name is None:
        return {}
    spec, space = context.spec, context.loaded[0].space
    try:
        file = AdapterFile.parse(store.get_client_file(client.id, name))
        same = file.header.mask_digest == architecture.digest
        held = architecture.mask if same else _read_mask(context, file.header.mask_digest)[0].mask
        kept = file.named_vectors(spec.roles(space, held).trained)
        return ClientRound(spec, space, architecture.mask, context.round).carried(kept, held)
    except AdapterFileError as error:
        raise PerfitError(f"clients/{client.id}/{name}: {error}", "restore it from a backup of the store") from error


def state_file(place: RoundPlace) -> str:
    """Return the name of the file with what a client kept from a round, in the client's own part of the store."""
    return f"state/{place}.safetensors"


def _check_space(context: ClientContext, stored) -> None:
    if stored.space != context.loaded[0].space:
        raise PerfitError(
            f"model: {context.spec.model} gives other LoRA matrices here than the federation has",
            "use the same model files everywhere",
        )


def _fetcher(directory: str) -> Callable[[str], str]:
    """Return a function that downloads s3:// data into a directory and leaves every other URI as it is."""

    def fetch(uri: str) -> str:
        if not uri.startswith("s3://"):
            return uri
        folder, _, name = uri.rpartition("/")
        target = Path(directory, name)
        target.write_bytes(open_store(folder).get(name).data)
        return str(target)

    return fetch
