"""Write a federation's file and its initial adapter, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import yaml

from perfit.adapter import SparseAdapter
from perfit.adapter_file import dump_values
from perfit.errors import PerfitError
from perfit.federation_file import parse_federation
from perfit.spec import Federation
from perfit_components.steps.opening import global_header, model_cache
from perfit_components.steps.plan import client_secret
from perfit_storage import FederationStore, ObjectNotFound

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """Where the federation is, and the round that comes next."""

    uri: str
    next_round: int


AS_IN_FILE = "as in the file"


def prepare(federation_file: str, store_uri: str, method: str = AS_IN_FILE) -> Prepared:
    """Found a federation, or find it again.

    Everything is checked before anything is written. A federation that exists may change its rounds, participation,
    tiers and clients; see :meth:`perfit.spec.Federation.difference`.

    Args:
        federation_file: The text of the federation file.
        store_uri: Where federations are kept.
        method: One of the methods, to run the file's federation by another one; its name then ends in the method's.

    Raises:
        PerfitError: The file is wrong, or its name is in use by another federation.
        StoreError: The store cannot be reached or written.
    """
    spec = _by_method(parse_federation(federation_file), method)
    store = FederationStore.open(store_uri, spec.name)
    text, stored, head = spec.to_yaml().encode(), _found(store.read_spec), _found(store.read_head)
    if stored is not None:
        _check_same(spec, stored, store.uri)
    if stored != text or head is None:
        initial = _initial_adapter(spec)
        if not store.write_spec(text, stored):
            raise PerfitError(
                f"{store.uri}/spec.yaml was changed by somebody else meanwhile", "look at it, then run again"
            )
        if head is None:
            store.create_head(store.put_global(0, initial))
    return Prepared(store.uri, store.read_head().round + 1)


def _by_method(spec: Federation, method: str) -> Federation:
    if method in (AS_IN_FILE, spec.method.name):
        return spec
    tree = spec.model_dump(mode="json")
    for entry, client in zip(tree["clients"], spec.clients, strict=True):
        entry["secret"] = client_secret(spec, client)  # the keys go by the name that was deployed
    tree["name"] = f"{spec.name}-{method}"
    tree["method"]["name"] = method
    return parse_federation(yaml.safe_dump(tree), "federation file with another method")


def _found(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except ObjectNotFound:
        return None


def _initial_adapter(spec: Federation) -> bytes:
    from perfit.client import inspect_model

    space = inspect_model(spec, model_cache())
    adapter = SparseAdapter(space, np.ones(space.size, dtype=bool), space.initial_values(spec.training.seed))
    return dump_values(global_header(spec, 0), adapter)


def _check_same(spec: Federation, stored: bytes, uri: str) -> None:
    difference = spec.difference(parse_federation(stored.decode(), f"{uri}/spec.yaml"))
    if difference:
        raise PerfitError(
            f"the name {spec.name!r} is already used by another federation at {uri}: {difference}",
            "choose another name, or go on with the file that the federation was founded with",
        )
