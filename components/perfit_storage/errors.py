"""What can go wrong in a store, each with what to do about it."""

from __future__ import annotations

from perfit.errors import PerfitError


class StoreError(PerfitError):
    """The store cannot do what was asked. Never holds a secret."""


class ObjectNotFound(StoreError):
    """There is no object with this key."""


class StoreUnreachable(StoreError):
    """The store did not answer, or what answered is not such a store."""


class AccessDenied(StoreError):
    """The store knows the request and refuses it."""


class CorruptObject(StoreError):
    """An object's bytes are not those that its record names."""
