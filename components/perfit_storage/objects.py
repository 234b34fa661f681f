"""Objects under keys: the contract that every kind of store keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from perfit_storage.errors import StoreError

RESERVED_PREFIX = ".perfit-"
"""Names that begin so are the store's own (temporary files, locks), never keys."""


@dataclass(frozen=True)
class StoredObject:
    """An object as it was at one moment.

    Attributes:
        data: The whole content.
        version: Opaque token of this content, for ``ObjectStore.replace``.
    """

    data: bytes
    version: str


class ObjectStore(Protocol):
    """Whole objects under relative POSIX keys.

    Writes are atomic: a reader gets an object whole, as it was before or after. Each method may be called
    again after a failure. All raise ``StoreError`` or one of its subclasses.
    """

    @property
    def uri(self) -> str:
        """Where the store is, without a trailing slash."""
        ...

    def get(self, key: str) -> StoredObject:
        """Returns the object. Raises ``ObjectNotFound``."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Writes the object, over whatever was there."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Writes the object if there is none.

        Returns:
            Whether the key now holds exactly these bytes. An equal object that was already there counts as
            written: it may be this very call's, sent again because its first answer was lost.
        """
        ...

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Writes the object if it still is the given version (compare-and-set).

        Returns:
            Whether the key now holds exactly these bytes, as for ``create``.
        """
        ...

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        ...

    def size(self, key: str) -> int:
        """Returns the object's size in bytes. Raises ``ObjectNotFound``."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Yields, sorted, the keys that begin with this string (not: that lie in this directory)."""
        ...

    def delete(self, key: str) -> None:
        """Removes the object, if there is one."""
        ...


def check_key(key: str) -> str:
    """Returns the key if it is a relative POSIX path in normal form; raises ``StoreError`` if not."""
    segments_fit = all(
        segment not in {"", ".", ".."} and not segment.startswith(RESERVED_PREFIX) for segment in key.split("/")
    )
    if not segments_fit or "\\" in key or not key.isprintable():
        raise StoreError(
            f"{key!r} cannot be the key of an object",
            "use a relative path such as rounds/1/plan.json: no '..', no empty segment, no backslash, "
            f"no control character, no name that begins with {RESERVED_PREFIX}",
        )
    return key


def check_prefix(prefix: str) -> str:
    """Returns the prefix if keys can begin with it; raises ``StoreError`` if not."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix
