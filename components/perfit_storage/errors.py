"""Errors of a store, each with a fix.

Code that reads what others wrote distinguishes three kinds: ``UnreadableObject`` is caused by that one object,
``StoreUnreachable`` is an outage and says nothing about any object, and the others are caused by the store or its
settings.
"""

from __future__ import annotations

from perfit.errors import PerfitError


class StoreError(PerfitError):
    """The store cannot do what was asked. The message never contains a secret."""


class ObjectNotFound(StoreError):
    """There is no object with this key."""


class StoreUnreachable(StoreError):
    """The store did not answer, or the server that answered is not a store of this kind."""


class AccessDenied(StoreError):
    """The store refuses the request."""


class UnsafeStore(StoreError):
    """The store does not honour conditional writes: two writers could both win."""


class UnreadableObject(StoreError):
    """One object cannot be read, whatever the store does: other objects are not affected, and a retry does not help."""


class ObjectTooLarge(UnreadableObject):
    """An object has more bytes than its reader accepts."""


class CorruptObject(UnreadableObject):
    """An object's bytes do not have the recorded hash, or cannot be parsed."""


class InvalidKey(UnreadableObject):
    """No object can have this key."""
