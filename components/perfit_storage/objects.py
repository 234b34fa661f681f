"""The interface of object stores, which every kind of store implements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from perfit_storage.errors import InvalidKey, ObjectTooLarge, StoreError

T = TypeVar("T")

RESERVED_PREFIX = ".perfit-"
"""Names with this prefix are the store's own (temporary files, locks), never keys."""
MAX_KEY_BYTES = 1024
"""S3's own limit for a key."""
MAX_LISTED = 100_000
"""Maximum number of entries of a listing: what others may fill must not fill this process's memory."""

PIECE_BYTES = 2**18
"""Bytes of an object that are read at once: they stay in a core's second cache while they are hashed and copied."""
Data = bytes | memoryview
"""An object's content: bytes, or any memory of one dimension that does not change meanwhile."""
Fill = Callable[[memoryview], int]
"""Fills the beginning of a buffer with an object's next bytes, and returns their number: 0 at the object's end."""
Write = Callable[[int, memoryview], None]
"""Takes a piece of an object, and where in the object it begins; the piece is valid during the call."""

UNREADABLE_FIX = "have this object's writer write it again as a plain one, or delete it"


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

    Writes are atomic: a reader gets all of the old content or all of the new. Each method may be called again after a
    failure. All raise ``StoreError`` or one of its subclasses.
    """

    @property
    def uri(self) -> str:
        """The store's URI, without a trailing slash."""
        ...

    def get(self, key: str, limit: int | None = None) -> StoredObject:
        """Returns the object with its bytes as they were written: nothing is decoded.

        Args:
            key: The object's key.
            limit: Maximum number of bytes that the caller accepts; None for any number.

        Raises:
            ObjectNotFound: There is no such object.
            ObjectTooLarge: It has more than ``limit`` bytes. If its stated size exceeds the limit, nothing is read; if
                the stated size is too low, at most ``limit + 1`` bytes are read.
            UnreadableObject: It exists, but the store or file system cannot or will not return it.
        """
        ...

    def copy(self, key: str, write: Write, limit: int) -> int:
        """Passes the object's bytes to ``write``, as ``get`` would return them, piece by piece and in order.

        After an answer that broke off, it begins again with the first piece. Raises as ``get``.

        Returns:
            The object's size.
        """
        ...

    def stream(self, key: str, limit: int) -> AbstractContextManager[Fill]:
        """Opens the object to be read on demand, beside others. Raises as ``get``, where it is opened and where it is
        read; an answer that breaks off is not asked for again.
        """
        ...

    def put(self, key: str, data: Data) -> None:
        """Writes the object, replacing an existing one."""
        ...

    def create(self, key: str, data: Data) -> bool:
        """Writes the object if there is none.

        Returns:
            Whether the key now holds exactly these bytes. An equal object that already existed counts as written: this
            call may have written it, in a first attempt whose answer was lost.
        """
        ...

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """Writes the object if it still has the given version (compare-and-set).

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

    def modified(self, key: str) -> float:
        """Returns when the object was written, in seconds since 1970 by its clock. Raises ``ObjectNotFound``."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Yields, sorted, the keys that begin with this string, which need not be a directory.

        Raises ``StoreError`` if there are more than ``MAX_LISTED``.
        """
        ...

    def directories(self, prefix: str) -> Iterator[str]:
        """Yields, sorted, the names of the directories below this one, whose name ends in a slash, without their files.

        Raises ``StoreError`` if it has more than ``MAX_LISTED`` entries.
        """
        ...

    def delete(self, key: str) -> None:
        """Removes the object, if there is one."""
        ...

    def reconnect(self) -> None:
        """Makes the next call use a new connection, if the store has connections."""
        ...

    def sweep(self, prefix: str) -> int:
        """Removes files that killed writers left under this prefix at least a day ago; returns how many."""
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


def bounded(entries: Iterable[T], where: str) -> Iterator[T]:
    """Yields the entries of a listing; raises ``StoreError`` if there are more than ``MAX_LISTED``."""
    for number, entry in enumerate(entries):
        if number == MAX_LISTED:
            raise StoreError(f"{where} holds more than {MAX_LISTED:,} objects", "delete what does not belong there")
        yield entry


def too_large(problem: str, limit: int) -> ObjectTooLarge:
    """Returns the error for an object with more bytes than its reader accepts."""
    return ObjectTooLarge(f"{problem}: it has more than {limit:,} bytes", UNREADABLE_FIX)
