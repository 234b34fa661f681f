"""A client's architecture, and what it reads from the store for a round: what the server sent, and what it kept."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from perfit.adapter import mask_hash
from perfit.adapter_file import AdapterFile, AdapterFileError, AdapterHeader, dump_mask
from perfit.errors import PerfitError
from perfit.methods import Vectors
from perfit.round import ClientRound, Received
from perfit_components.steps.client_context import ClientContext
from perfit_components.steps.computation import find, search_again, together
from perfit_storage import Blob, ObjectNotFound, RoundPlace


@dataclass(frozen=True)
class Architecture:
    """A client's mask (bool, shape (N,)), its hash, and the bytes of its upload, 0 if that was in an earlier round."""

    mask: np.ndarray
    digest: str
    bytes_up: int


def ensure_architecture(context: ClientContext) -> Architecture:
    """Read the client's architecture; if it has none yet, search for one and upload it.

    Raises:
        PerfitError: The stored one is damaged, of another model, or not the one that the plan was made for.
    """
    store, client, planned = context.store, context.client, context.participant.mask_digest
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
    return _put_mask(context, together(find, context), context.round)


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
    store, client, number = context.store, context.client, context.round
    if not context.spec.searches_after(number):
        return None
    name = f"search/{context.place}.txt"
    with suppress(ObjectNotFound):
        return _read_architecture(context, store.get_client_file(client.id, name).decode(), number + 1)
    context.say("searching")
    following = _put_mask(context, together(search_again, context, held, received, kept), number + 1)
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
