"""Objects under keys: the contract that every kind of store keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from perfit_storage.errors import InvalidKey, ObjectTooLarge

RESERVED_PREFIX = ".perfit-"
"""Names that begin so are the store's own (temporary files, locks), never keys."""
MAX_KEY_BYTES = 1024
"""S3's own bound on a key."""

UNREADABLE_FIX = "let whoever wrote this object write it again as a plain one, or delete it"


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

    def get(self, key: str, limit: int | None = None) -> StoredObject:
        """Returns the object, its bytes as they were written: nothing is decoded.

        Args:
            key: Of the object.
            limit: The most bytes that the caller takes; None for any number.

        Raises:
            ObjectNotFound: There is none.
            ObjectTooLarge: It has more than ``limit`` bytes. Its own statement of its size is believed, so that
                nothing is read then; if it understates, no more than ``limit + 1`` bytes are.
            UnreadableObject: It is there, and this store or file system cannot or will not hand it out.
        """
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

    def reconnect(self) -> None:
        """Lets the next call go over a new connection, where there are connections."""
        ...

    def sweep(self, prefix: str) -> int:
        """Removes what writers that were killed left under this prefix, a day ago or longer; returns how many."""
        ...


def check_key(key: str) -> str:
    """Returns the key if it is a relative POSIX path in normal form; raises ``InvalidKey`` if not."""
    segments_fit = all(
        segment not in {"", ".", ".."} and not segment.startswith(RESERVED_PREFIX) for segment in key.split("/")
    )
    if not segments_fit or "\\" in key or not key.isprintable() or len(key.encode()) > MAX_KEY_BYTES:
        shown = key if len(key) <= 100 else f"{key[:100]}…"
        raise InvalidKey(
            f"{shown!r} cannot be the key of an object",
            "use a relative path such as rounds/1/plan.json: no '..', no empty segment, no backslash, no control "
            f"character, no name that begins with {RESERVED_PREFIX}, at most {MAX_KEY_BYTES} bytes",
        )
    return key


def check_prefix(prefix: str) -> str:
    """Returns the prefix if keys can begin with it; raises ``InvalidKey`` if not."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def too_large(problem: str, limit: int) -> ObjectTooLarge:
    """Returns the error for an object of more bytes than its reader takes."""
    return ObjectTooLarge(f"{problem}: it has more than {limit:,} bytes", UNREADABLE_FIX)
