"""What can go wrong in a store, each with what to do about it.

Whoever reads what others wrote tells three kinds apart: ``UnreadableObject`` is the fault of that one object,
``StoreUnreachable`` an outage, which says nothing about any object, and the rest the store's or its settings'.
"""

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


class UnsafeStore(StoreError):
    """The store does not keep the conditions of a write: two writers could both win."""


class UnreadableObject(StoreError):
    """One object cannot be read, by its own fault: no other object is worse for it, and no second try will help."""


class ObjectTooLarge(UnreadableObject):
    """An object has more bytes than its reader takes. None of them was read."""


class CorruptObject(UnreadableObject):
    """An object's bytes are not those that its record names."""


class InvalidKey(UnreadableObject):
    """No object can have this key."""
