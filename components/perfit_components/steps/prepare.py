"""Writes a federation's file and its initial vectors, once, and plans the first round of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from perfit.adapter_file import dump_server_vectors
from perfit.cluster_spec import ClusterSpec
from perfit.collection import without_collection
from perfit.errors import PerfitError
from perfit.federation_file import parse_federation, validated
from perfit.model_files import ModelManifest, check_files, describe_files
from perfit.round import initial_state, split_state
from perfit.space import LoraSpace
from perfit_components.steps.context import FederationContext, model_cache, store_patience, stored_model
from perfit_components.steps.file_by_uri import read_federation_file
from perfit_components.steps.plan import LoopItem, next_part, participants
from perfit_components.steps.recap import recap
from perfit_components.steps.service_account import check_account
from perfit_storage import FederationStore, Head, ObjectNotFound, RoundPlace

T = TypeVar("T")

AS_IN_FILE = "as in the file"
NEXT_ROUND = 0


@dataclass(frozen=True)
class Prepared:
    """A federation's URI, the first round of the run, and that round's participants by tier.

    ``served`` says how many of its participants, in the plan's order, will have had their run; 0 for all.
    """

    uri: str
    round: int
    participants: list[list[LoopItem]]
    served: int = 0


def prepare(
    federation_file: str,
    store_uri: str,
    method: str = AS_IN_FILE,
    round: int = NEXT_ROUND,
    tiers: Sequence[str] | None = None,
    claim_tiers: Sequence[str] | None = None,
    at_most: int = 0,
    waits: bool = True,
) -> Prepared:
    """Create a federation, or open an existing one.

    Everything is checked before anything is written. An existing federation may change its rounds, participation, tiers
    and clients; see :meth:`perfit.spec.FederationSpec.difference`. Until a client has begun its work, all may change.

    Args:
        federation_file: The text of the federation file, or its URI in the store.
        store_uri: Where federations are kept.
        method: A method's name, to run the file's federation with that method, in a directory of its own.
        round: First round of the run; ``NEXT_ROUND`` for the one after the head.
        tiers: Tiers of the compiled pipeline, in order; None for the file's.
        claim_tiers: Those of them whose loops pass the names of volume claims; None for the file's.
        at_most: Participants of the round that this run serves; 0 for all.
        waits: Whether the compiled pipeline waits for clients of remote tiers.

    Raises:
        PerfitError: The file is wrong, its name is in use by another federation, it does not fit the compiled pipeline,
            or the store cannot be reached or written.
    """
    spec = read_federation_file(federation_file, store_uri)
    directory = directory_of(spec, method)
    spec = by_method(spec, method)
    tiers = spec.pod_tiers() if tiers is None else tiers
    _check_compiled(spec, tiers, claim_tiers, waits)
    check_account(spec)
    store = FederationStore.open(store_uri, directory, patience_s=store_patience())
    _write_missing(spec, store)
    context, number = FederationContext(store, spec), round or store.read_head().round + 1
    for line in recap(context):
        print(line, flush=True)
    part = next_part(context, number, at_most)
    return Prepared(store.uri, number, participants(context, number, tiers, part), part.stop or 0)


def directory_of(spec: ClusterSpec, method: str) -> str:
    """Return the name of the federation's directory in the store when it is run by a method."""
    return spec.name if method in (AS_IN_FILE, spec.method.name) else f"{spec.name}.{method}"


def by_method(spec: ClusterSpec, method: str) -> ClusterSpec:
    """Return a federation with another method and that method's default options.

    Raises:
        PerfitError: There is no such method.
    """
    if method in (AS_IN_FILE, spec.method.name):
        return spec
    tree = spec.other_tree(method={"name": method})
    return validated(ClusterSpec, tree, {}, f"the federation file with method {method}")


def _check_compiled(spec: ClusterSpec, tiers: Sequence[str], claim_tiers: Sequence[str] | None, waits: bool) -> None:
    if spec.remote_tiers() and not waits:
        raise PerfitError(
            f"tier {spec.remote_tiers()[0]!r} is remote, but the compiled pipeline waits for nobody",
            "compile it again from this federation file (as perfit submit and schedule create do)",
        )
    for tier in spec.pod_tiers():
        if tier not in tiers:
            problem = f"tier {tier!r} has clients, but the compiled pipeline does not have it"
        elif claim_tiers is not None and spec.names_claims(tier) != (tier in claim_tiers):
            problem = f"tier {tier!r}: the names of its volume claims have changed since the pipeline was compiled"
        else:
            continue
        fix = "compile it again from this federation file (as perfit submit and schedule create do)"
        raise PerfitError(problem, fix)
    for tier in tiers:
        if tier not in spec.pod_tiers():
            raise PerfitError(  # nor has a tier whose clients are remote now
                f"the compiled pipeline has a loop for tier {tier!r}, which has no client in the federation file",
                "compile it again from this federation file (as perfit submit and schedule create do)",
            )


@dataclass(frozen=True)
class _Stored:
    """What the store has of a federation: each None if it is missing."""

    head: Head | None
    spec: bytes | None
    model: ModelManifest | None

    @classmethod
    def read(cls, store: FederationStore) -> _Stored:
        return cls(_read_or_none(store.read_head), _read_or_none(store.read_spec), stored_model(store))


def _write_missing(spec: ClusterSpec, store: FederationStore) -> None:
    """Found the federation, or go on with it.

    Before that, what killed writers left is removed.
    """
    store.sweep()
    stored = _Stored.read(store)
    if stored.head is not None and stored.head.round:
        return _go_on(spec, store, stored)
    has_masks, has_rounds = store.has_masks(), store.has_rounds()
    stored = _Stored.read(store)  # again, now that these are known: whoever wrote them had found a head
    if stored.head is None:
        if has_masks or has_rounds:
            raise PerfitError(
                f"{store.uri} holds what rounds and clients left, but no head: it is damaged, or its deletion was "
                "interrupted",
                f"restore head.json from a backup of the store, or delete the rest: perfit delete {store.name}",
            )
        _found(spec, store, stored)
    elif stored.head.round or has_masks:
        _go_on(spec, store, stored)
    else:
        _found_again(spec, store, stored)


def _go_on(spec: ClusterSpec, store: FederationStore, stored: _Stored) -> None:
    """Take over what of the file may change while a federation exists."""
    text, model = spec.to_yaml().encode(), stored.model
    before = stored.spec and parse_federation(stored.spec.decode(), f"{store.uri}/spec.yaml")
    if before and (difference := spec.difference(before)):
        raise PerfitError(
            f"the name {spec.name!r} is already used by another federation at {store.uri}: {difference}",
            "choose another name, continue with the file that the federation was created with, or delete that "
            f"federation: perfit delete {store.name}",
        )
    if stored.spec == text and model is not None:
        return _fill_cache(spec, model)
    source, model = _prepared_model(spec, model)
    _space(spec, source)
    _write_files(spec, store, stored, model)


def _found(spec: ClusterSpec, store: FederationStore, stored: _Stored) -> None:
    """Create a federation: who creates the head also writes its files, over those of an attempt that failed."""
    source, model = _prepared_model(spec, stored.model)
    space = _space(spec, source)
    store.check_conditions()
    if not store.create_head(_beginning(spec, store, space)):
        return _write_missing(spec, store)  # another run has founded it meanwhile, and may have committed rounds
    _write_files(spec, store, stored, model)


def _found_again(spec: ClusterSpec, store: FederationStore, stored: _Stored) -> None:
    """Found a federation with another file, as long as no client has a mask: none has begun to tune.

    The head moves first and the federation file is written last. If this is interrupted, the next call finds another
    file than its own, or vectors of round 0 that are not its file's.
    """
    old = stored.head
    if stored.spec == spec.to_yaml().encode() and stored.model is not None and not old.branches:
        return _fill_cache(spec, stored.model)
    source, model = _prepared_model(spec, stored.model)
    new = _beginning(spec, store, _space(spec, source))
    before = stored.spec and parse_federation(stored.spec.decode(), f"{store.uri}/spec.yaml")
    anew = (new.adapter, new.state) != (old.adapter, old.state) or (before and _plans_differ(spec, before))
    if anew:
        new = old.rolled_back_to(new)
        if store.has_masks() or not store.found_again(old, new):
            raise _meanwhile(store, "head.json")
        print(f"federation {spec.name!r} is founded again: no client had begun to tune", flush=True)
    _write_files(spec, store, stored, model)
    if anew and store.read_head() != new:
        raise _meanwhile(store, "head.json")


def _plans_differ(one: ClusterSpec, other: ClusterSpec) -> bool:
    """Whether the first round would be planned otherwise, or its clients would do something else."""
    plans = [
        (spec.participation, [(client.id, client.tier, spec.rank_of(client)) for client in spec.clients])
        for spec in (one, other)
    ]
    return plans[0] != plans[1] or one.difference(other) is not None


def _write_files(spec: ClusterSpec, store: FederationStore, stored: _Stored, model: ModelManifest) -> None:
    if not store.write_model(model.to_json(), stored.model and stored.model.to_json()):
        raise PerfitError(
            f"{store.uri}/model.json was written by somebody else meanwhile: other files than {spec.model} has here",
            "use the same model files everywhere (for a hub id, owner/name@revision), then run again",
        )
    if not store.write_spec(spec.to_yaml().encode(), stored.spec):
        raise _meanwhile(store, "spec.yaml")


def _meanwhile(store: FederationStore, name: str) -> PerfitError:
    return PerfitError(f"{store.uri}/{name} was changed by somebody else meanwhile", "look at it, then run again")


def _beginning(spec: ClusterSpec, store: FederationStore, space: LoraSpace) -> Head:
    """Write the vectors of round 0; return the head that names them."""
    place = RoundPlace(0)
    downloads, own = split_state(spec, initial_state(spec, space))
    adapter = store.put_global(place, dump_server_vectors(spec, space, 0, downloads))
    state = store.put_state(place, dump_server_vectors(spec, space, 0, own)) if own else None
    return Head(0, adapter, state)


def _space(spec: ClusterSpec, source: str) -> LoraSpace:
    with without_collection():
        from perfit.model_check import check_model  # imports torch, which an existing federation does not need

        space, remarks = check_model(spec, source)
    for remark in remarks:
        print(remark, flush=True)
    return space


def _read_or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except ObjectNotFound:
        return None


def _prepared_model(spec: ClusterSpec, known: ModelManifest | None) -> tuple[str, ModelManifest]:
    """Convert or download the model into the cache; return its directory and its files.

    They are as known, if those are of this model.
    """
    from perfit.models import is_hub_id, prepare_model

    if known is not None and known.model == spec.model:
        source = prepare_model(spec.model, model_cache(), known.commit)
        check_files(known, source)
        return source, known
    source = prepare_model(spec.model, model_cache())
    return source, describe_files(spec.model, source, Path(source).name if is_hub_id(spec.model) else None)


def _fill_cache(spec: ClusterSpec, model: ModelManifest) -> None:
    """See to it that clients find the model in the cache, which only this step fills."""
    from perfit.models import cached_model

    if spec.cluster.model_cache and cached_model(spec.model, model_cache(), model.commit) is None:
        _prepared_model(spec, model)
