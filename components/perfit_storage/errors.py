"""What can go wrong in a store, each with what to do about it."""

from __future__ import annotations


class StoreError(RuntimeError):
    """The store cannot do what was asked.

    Args:
        problem: What is wrong, with the URI or value at fault. Never holds a secret.
        fix: What to do next.
    """

    def __init__(self, problem: str, fix: str):
        self.problem = problem
        self.fix = fix
        super().__init__(f"{problem}\n  fix: {fix}")

    def __reduce__(self):
        return type(self), (self.problem, self.fix)


class ObjectNotFound(StoreError):
    """There is no object with this key."""


class StoreUnreachable(StoreError):
    """The store did not answer, or what answered is not such a store."""


class AccessDenied(StoreError):
    """The store knows the request and refuses it."""


class CorruptObject(StoreError):
    """An object's bytes are not those that its record names."""
