"""Bytes at URIs, a federation's layout in the store, and the rules by which a round is committed."""

from perfit_storage.errors import AccessDenied, CorruptObject, ObjectNotFound, StoreError, StoreUnreachable
from perfit_storage.federation import FederationStore, Head, federation_names
from perfit_storage.objects import ObjectStore, StoredObject, open_store

__all__ = [
    "AccessDenied",
    "CorruptObject",
    "FederationStore",
    "Head",
    "ObjectNotFound",
    "ObjectStore",
    "StoreError",
    "StoreUnreachable",
    "StoredObject",
    "federation_names",
    "open_store",
]
