"""Writes a federation's file and its initial vectors, once, and plans the first round of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import yaml

from perfit.adapter_file import dump_server_vectors
from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit.federation_file import parse_federation
from perfit.methods import METHODS
from perfit.model_files import ModelManifest, check_files, describe_files
from perfit.round import initial_state, split_state, trained_in_turn
from perfit.space import LoraSpace
from perfit_components.steps.context import FederationContext, model_cache, store_patience, stored_model
from perfit_components.steps.plan import LoopItem, participants
from perfit_components.steps.recap import recap
from perfit_components.steps.service_account import check_account
from perfit_storage import FederationStore, Head, ObjectNotFound, RoundPlace

T = TypeVar("T")

AS_IN_FILE = "as in the file"
NEXT_ROUND = 0


@dataclass(frozen=True)
class Prepared:
    """A federation's URI, the first round of the run, and that round's participants by tier."""

    uri: str
    round: int
    participants: list[list[LoopItem]]


def prepare(
    federation_file: str,
    store_uri: str,
    method: str = AS_IN_FILE,
    round: int = NEXT_ROUND,
    tiers: Sequence[str] | None = None,
    claim_tiers: Sequence[str] | None = None,
) -> Prepared:
    """Create a federation, or open an existing one.

    Everything is checked before anything is written. An existing federation may change its rounds, participation, tiers
    and clients; see :meth:`perfit.spec.FederationSpec.difference`.

    Args:
        federation_file: The text of the federation file.
        store_uri: Where federations are kept.
        method: A method's name, to run the file's federation with that method, in a directory of its own.
        round: First round of the run; ``NEXT_ROUND`` for the one after the head.
        tiers: Tiers of the compiled pipeline, in order; None for the file's.
        claim_tiers: Those of them whose loops pass the names of volume claims; None for the file's.

    Raises:
        PerfitError: The file is wrong, its name is in use by another federation, it does not fit the compiled pipeline,
            or the store cannot be reached or written.
    """
    spec = parse_federation(federation_file)
    directory = directory_of(spec, method)
    spec = by_method(spec, method)
    tiers = spec.tiers_in_use() if tiers is None else tiers
    _check_compiled(spec, tiers, claim_tiers)
    check_account(spec)
    store = FederationStore.open(store_uri, directory, patience_s=store_patience())
    _write_missing(spec, store)
    context, number = FederationContext(store, spec), round or store.read_head().round + 1
    for line in recap(context):
        print(line, flush=True)
    return Prepared(store.uri, number, participants(context, number, tiers))


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
    tree = spec.model_dump(mode="json")
    tree["method"] = {"name": method}
    if method in METHODS and METHODS[method].search(METHODS[method].options()) is None:
        del tree["lora"]["expansion"]
    return parse_federation(yaml.safe_dump(tree), f"the federation file with method {method}")


def _check_compiled(spec: ClusterSpec, tiers: Sequence[str], claim_tiers: Sequence[str] | None) -> None:
    for tier in spec.tiers_in_use():
        if tier not in tiers:
            problem = f"tier {tier!r} has clients, but the compiled pipeline does not have it"
        elif claim_tiers is not None and spec.names_claims(tier) != (tier in claim_tiers):
            problem = f"tier {tier!r}: the names of its volume claims have changed since the pipeline was compiled"
        else:
            continue
        fix = "compile it again from this federation file (as perfit submit and schedule create do)"
        raise PerfitError(problem, fix)
    for tier in tiers:
        if tier not in spec.tiers_in_use():
            raise PerfitError(
                f"the compiled pipeline has a loop for tier {tier!r}, which has no client in the federation file",
                "compile it again from this federation file (as perfit submit and schedule create do)",
            )


def _write_missing(spec: ClusterSpec, store: FederationStore) -> None:
    """Write what is missing: the federation file, the files of the model, the vectors of round 0, the head.

    Before that, what killed writers left is removed.
    """
    store.sweep()
    head, stored, text = _read_or_none(store.read_head), _read_or_none(store.read_spec), spec.to_yaml().encode()
    model = stored_model(store)
    if stored is not None:
        _check_same(spec, stored, store.uri)
    if stored == text and head is not None and model is not None:
        return _fill_cache(spec, model)
    source, model = _prepared_model(spec, model)
    space = _check_model(spec, source)
    if head is None:
        store.check_conditions()
    if not store.write_spec(text, stored):
        raise PerfitError(f"{store.uri}/spec.yaml was changed by somebody else meanwhile", "look at it, then run again")
    if not store.create_model(model.to_json()):
        raise PerfitError(
            f"{store.uri}/model.json was written by somebody else meanwhile: other files than {spec.model} has here",
            "use the same model files everywhere (for a hub id, owner/name@revision), then run again",
        )
    if head is None:
        founding = RoundPlace(0)
        downloads, own = split_state(spec, initial_state(spec, space))
        adapter = store.put_global(founding, dump_server_vectors(spec, space, 0, downloads))
        state = store.put_state(founding, dump_server_vectors(spec, space, 0, own)) if own else None
        store.create_head(Head(0, adapter, state))


def _read_or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except ObjectNotFound:
        return None


def _prepared_model(spec: ClusterSpec, known: ModelManifest | None) -> tuple[str, ModelManifest]:
    """Convert or download the model into the cache; return its directory and its files, which are as known if known."""
    from perfit.models import is_hub_id, prepare_model

    source = prepare_model(spec.model, model_cache(), known and known.commit)
    if known is None:
        commit = Path(source).name if is_hub_id(spec.model) else None
        return source, describe_files(spec.model, source, commit)
    check_files(known, source)
    return source, known


def _fill_cache(spec: ClusterSpec, model: ModelManifest) -> None:
    """See to it that clients find the model in the cache, which only this step fills."""
    from perfit.models import cached_model

    if spec.cluster.model_cache and cached_model(spec.model, model_cache(), model.commit) is None:
        _prepared_model(spec, model)


def _check_model(spec: ClusterSpec, source: str) -> LoraSpace:
    """Check that every tier has the memory for a training; return the expanded space of the model."""
    from perfit.lora import expand  # imports torch, which an existing federation does not need
    from perfit.memory import check_memory, memory_need
    from perfit.models import model_skeleton
    from perfit.quantization import check_quantization

    model = model_skeleton(source)
    space = expand(model, spec.expanded_lora)[1]
    for name in spec.tiers_in_use():
        training = spec.of_tier(name).training
        quantization = check_quantization(source, training.quantization)
        if (memory := spec.tiers[name].training_memory) is None:
            continue
        key, available = memory
        rank = max(spec.rank_of(client) for client in spec.clients if client.tier == name)
        need = memory_need(
            model,
            space,
            training,
            trained=max(map(np.count_nonzero, trained_in_turn(spec, space, space.plain_mask(rank)))),
            vectors=len({*spec.algorithm.downloads, *spec.algorithm.uploads}) - 1 + bool(spec.algorithm.correction),
            search=spec.search if rank < space.rank else None,
            quantization=quantization,
        )
        check_memory(f"tiers.{name}.{key}", available, need)
    return space


def _check_same(spec: ClusterSpec, stored: bytes, uri: str) -> None:
    difference = spec.difference(parse_federation(stored.decode(), f"{uri}/spec.yaml"))
    if difference:
        raise PerfitError(
            f"the name {spec.name!r} is already used by another federation at {uri}: {difference}",
            "choose another name, or continue with the file that the federation was created with",
        )
