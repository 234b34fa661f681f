"""A temporary file whose content is read as arrays, so that what a round collects may be larger than the memory."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterable

import numpy as np

from perfit.errors import PerfitError

ReadBytes = Callable[[int, np.ndarray], None]
"""(at, into): fills in the bytes (uint8) of an array from byte ``at`` on."""


class ScratchError(PerfitError):
    """The disk is full, or cannot be written: no client's fault."""


class Scratch:
    """A temporary file of this process alone, seen as read-only arrays.

    Its pages belong to the system, which writes them to the disk when memory is short. Threads may write, read and
    release at the same time.

    Args:
        capacity: Bytes that may be reserved. What is not written takes neither memory nor disk.
    """

    def __init__(self, capacity: int):
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as the arrays
        capacity += mmap.PAGESIZE
        os.ftruncate(self._file.fileno(), capacity)
        self._map = mmap.mmap(self._file.fileno(), capacity, prot=mmap.PROT_READ)
        self._end, self._lock = 0, threading.Lock()
        self._ahead: dict[int, int] = {}

    def reserve(self, size: int, ahead: int = 0) -> int:
        """Return where so many bytes may be written: a multiple of the size of a page.

        Args:
            size: Number of bytes.
            ahead: Number of bytes that :meth:`join` may put before them.
        """
        with self._lock:
            start = self._end + _pages(ahead)
            self._end = start + _pages(size)
            self._ahead[start] = ahead
        if start + size > len(self._map):
            raise ValueError(f"{size:,} bytes do not fit behind the {start:,} of {len(self._map):,} that are reserved")
        return start

    def write(self, start: int, data: memoryview | bytes) -> None:
        """Write bytes.

        Raises:
            ScratchError: The disk is full, or cannot be written.
        """
        rest = memoryview(data)
        try:
            while rest:
                written = os.pwrite(self._file.fileno(), rest, start)
                rest, start = rest[written:], start + written
        except OSError as error:
            raise ScratchError(
                f"the files of this round cannot be kept in {tempfile.gettempdir()}: {error.strerror}",
                f"make room there, or let TMPDIR name another directory; {self._end:,} bytes are needed so far",
            ) from error

    def view(self, start: int, size: int) -> np.ndarray:
        """Return bytes that were written: uint8, shape (size,)."""
        return np.frombuffer(self._map, np.uint8, size, start)

    def reader(self, array: np.ndarray) -> ReadBytes:
        """Return what reads bytes of a contiguous array, those of the file without mapping its pages.

        It raises ``ScratchError`` if the disk cannot be read.
        """
        data = array.view(np.uint8)
        start = self._start_of(memoryview(data))
        if not 0 <= start < len(self._map):
            return reader(array)

        def read(at: int, into: np.ndarray) -> None:
            try:
                count = os.preadv(self._file.fileno(), [into], start + at)
            except OSError as error:
                raise _unreadable(error.strerror) from error
            if count < into.nbytes:
                raise _unreadable("it ends too early")

        return read

    def keep(self, array: np.ndarray) -> np.ndarray:
        """Return an array with the content of a contiguous one, which lies in the file.

        Raises:
            ScratchError: As :meth:`write`.
        """
        start = self.reserve(array.nbytes)
        self.write(start, memoryview(array).cast("B"))
        return self.view(start, array.nbytes).view(array.dtype)

    def join(self, parts: Iterable[np.ndarray]) -> memoryview:
        """Return one file's content, made of contiguous parts; one of the file with room ahead is not copied.

        Raises:
            ScratchError: As :meth:`write`.
        """
        parts = [memoryview(part.reshape(-1)).cast("B") for part in parts]
        size = sum(part.nbytes for part in parts)
        kept = self._start_of(parts[-1])
        if len(parts) == 2 and parts[0].nbytes <= self._ahead.get(kept, -1):
            start = at = kept - parts[0].nbytes
            del parts[1]  # it is in its place
        else:
            start = at = self.reserve(size)
        for part in parts:
            self.write(at, part)
            at += part.nbytes
        return memoryview(self.view(start, size))

    def _start_of(self, data: memoryview) -> int:
        """Return where in the file data is, if it is a view of the file; otherwise a place outside."""
        return _address(data) - _address(self._map)

    def release(self) -> None:
        """Take the pages out of this process's memory, until an array is looked at again."""
        self._map.madvise(mmap.MADV_DONTNEED)


def _unreadable(why: str) -> ScratchError:
    place = tempfile.gettempdir()
    return ScratchError(f"the files of this round cannot be read from {place}: {why}", "run the round again")


def reader(array: np.ndarray) -> ReadBytes:
    """Return what reads bytes of a contiguous array in memory."""
    data = array.view(np.uint8)

    def read(at: int, into: np.ndarray) -> None:
        into[:] = data[at : at + into.size]

    return read


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _address(data: memoryview | mmap.mmap) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data if len(data) else -1
