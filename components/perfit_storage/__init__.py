"""Object stores, a federation's layout in a store, and the rules for committing a round."""

from perfit_storage.bench import BenchStore
from perfit_storage.errors import (
    AccessDenied,
    CorruptObject,
    InvalidKey,
    ObjectNotFound,
    ObjectTooLarge,
    StoreError,
    StoreUnreachable,
    UnreadableObject,
    UnsafeStore,
)
from perfit_storage.head import Blob, Branch, Head, RoundPlace
from perfit_storage.layout import FederationStore, federation_names
from perfit_storage.objects import ObjectStore, StoredObject
from perfit_storage.uris import open_store

__all__ = [
    "AccessDenied",
    "BenchStore",
    "Blob",
    "Branch",
    "CorruptObject",
    "FederationStore",
    "Head",
    "InvalidKey",
    "ObjectNotFound",
    "ObjectStore",
    "ObjectTooLarge",
    "RoundPlace",
    "StoreError",
    "StoreUnreachable",
    "StoredObject",
    "UnreadableObject",
    "UnsafeStore",
    "federation_names",
    "open_store",
]
