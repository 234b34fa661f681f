"""The updates of a round: what a client sends, and a local file in which the server keeps them while it averages."""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from perfit.errors import PerfitError

_BUFFER_VALUES = 2**21
"""Values of all clients that are read at once, about."""
_CHUNKS = 16
"""Ranges of positions that can be read independently of each other, at most."""


@dataclass(frozen=True)
class Update:
    """What a client sends to the server.

    Args:
        positions: bool, shape (N,): the shared positions.
        vectors: float32, shape (number of shared positions,), by name.
        samples: Number of the client's training records: its weight.

    Raises:
        ValueError: There are no samples, or a vector has another dtype or shape.
    """

    positions: np.ndarray
    vectors: Mapping[str, np.ndarray]
    samples: int

    def __post_init__(self):
        count = (int(np.count_nonzero(self.positions)),)
        if self.samples < 1:
            raise ValueError(f"an update of {self.samples} samples has no weight")
        for name, vector in self.vectors.items():
            if vector.dtype != np.float32 or vector.shape != count:
                raise ValueError(f"{name} is {vector.dtype}{vector.shape}, want float32{count}")

    @cached_property
    def mask(self) -> np.ndarray:
        """The shared positions as ``np.packbits`` packs them: uint8, shape (ceil(N / 8),)."""
        return np.packbits(self.positions)


@dataclass(frozen=True)
class Block:
    """What a round's updates have at a range of positions; a row for each client, in the order of their ids.

    Args:
        positions: The range, of P positions.
        masks: The clients' packed masks, uint8, shape (clients, ceil(P / 8)).
        values: float32: each client's values at the set bits of its mask; empty if only masks were read.
        starts: int64, shape (clients,): where a client's values begin in ``values``.
    """

    positions: slice
    masks: np.ndarray
    values: np.ndarray
    starts: np.ndarray

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield, for each client, which of these positions it shares (int64, from the block's first), and its values.

        Positions are numbers, not a mask: indexing with a boolean array takes seven times as long.
        """
        count = self.positions.stop - self.positions.start
        for mask, start in zip(self.masks, self.starts.tolist(), strict=True):
            positions = np.flatnonzero(np.unpackbits(mask, count=count).view(bool))
            yield positions, self.values[start : start + positions.size]


@dataclass(frozen=True)
class _Entry:
    """Where an update is in the file.

    Args:
        mask: Where its packed mask begins.
        vectors: Where its vectors begin, by name.
        before: How many of the update's values precede each chunk of positions.
    """

    mask: int
    vectors: Mapping[str, int]
    before: list[int]


class UpdateSpool:
    """Updates in a temporary file, read back block by block of positions, over all clients at once.

    Memory does not depend on the number of clients. The file has as many bytes as the values, and a bit for each
    position and client. Threads may add updates and read chunks at the same time.

    Args:
        size: Number of positions N.
    """

    def __init__(self, size: int):
        length = -(-size // (8 * _CHUNKS)) * 8
        self.chunks = [slice(start, min(start + length, size)) for start in range(0, size, length)]
        """Ranges of positions, which together are all."""
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with the spool
        self._end = 0
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, self._file.close)

    @property
    def clients(self) -> list[str]:
        """The clients with an update, in the order in which they are read."""
        return sorted(self._entries)

    def add(self, client: str, update: Update) -> None:
        """Write an update.

        Raises:
            PerfitError: The disk is full, or cannot be written.
            ValueError: The client has one already.
        """
        arrays = {"": update.mask, **update.vectors}
        bits = np.bitwise_count(update.mask)
        counts = [bits[chunk.start // 8 : -(-chunk.stop // 8)].sum(dtype=np.int64) for chunk in self.chunks]
        with self._lock:
            if client in self._entries:
                raise ValueError(f"{client!r} has an update already")
            starts = {}
            for name, array in arrays.items():
                starts[name] = self._end
                self._end += array.nbytes
            mask = starts.pop("")
            self._entries[client] = _Entry(mask, starts, [0, *np.cumsum(counts).tolist()])
        for name, array in arrays.items():
            self._write(array, starts.get(name, mask))

    def blocks(self, chunk: slice, name: str | None) -> Iterator[Block]:
        """Read a chunk, block by block.

        Args:
            chunk: One of ``chunks``.
            name: The vector to read, or None for masks alone.

        Yields:
            Blocks whose arrays are valid until the next one is asked for.
        """
        entries = [self._entries[client] for client in self.clients]
        before = [entry.before[self.chunks.index(chunk)] for entry in entries]
        cursors = [entry.vectors[name] + 4 * count for entry, count in zip(entries, before, strict=True) if name]
        length = max(64, _BUFFER_VALUES // max(1, len(entries)) // 64 * 64)
        buffer = np.empty(min(length, chunk.stop - chunk.start) * len(entries) if name else 0, np.float32)
        for start in range(chunk.start, chunk.stop, length):
            stop = min(start + length, chunk.stop)
            masks = np.empty((len(entries), -(-(stop - start) // 8)), np.uint8)
            for row, entry in zip(masks, entries, strict=True):
                self._read(row, entry.mask + start // 8)
            if not name:
                yield Block(slice(start, stop), masks, buffer, np.zeros(len(entries), np.int64))
                continue
            ends = np.cumsum(np.bitwise_count(masks).sum(axis=1, dtype=np.int64))
            begin = 0
            for row, end in enumerate(ends.tolist()):
                self._read(buffer[begin:end], cursors[row])
                cursors[row] += 4 * (end - begin)
                begin = end
            yield Block(slice(start, stop), masks, buffer, np.concatenate([[0], ends[:-1]]))

    def read(self, client: str, name: str, positions: slice) -> tuple[np.ndarray, np.ndarray]:
        """Read one update in a range of positions.

        Returns:
            Which of these positions the client shares (int64, counted from the range's first), and its values there
            (float32).
        """
        entry, packed = self._entries[client], np.empty(-(-positions.stop // 8), np.uint8)
        self._read(packed, entry.mask)
        byte, bit = divmod(positions.start, 8)
        bits = np.unpackbits(packed[byte:], count=positions.stop - 8 * byte).view(bool)
        before = np.bitwise_count(packed[:byte]).sum(dtype=np.int64) + np.count_nonzero(bits[:bit])
        shared = np.flatnonzero(bits[bit:])
        values = np.empty(shared.size, np.float32)
        self._read(values, entry.vectors[name] + 4 * int(before))
        return shared, values

    def _write(self, array: np.ndarray, start: int) -> None:
        data = memoryview(np.ascontiguousarray(array)).cast("B")
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, start)
                data, start = data[written:], start + written
        except OSError as error:
            raise PerfitError(
                f"the updates of this round cannot be kept in {tempfile.gettempdir()}: {error.strerror}",
                f"make room there, or let TMPDIR name another directory; {self._end:,} bytes are needed so far, for "
                f"{len(self._entries)} updates",
            ) from error

    def _read(self, array: np.ndarray, start: int) -> None:
        if os.preadv(self._file.fileno(), [array], start) != array.nbytes:
            raise OSError("the temporary file of the updates is shorter than what was written")
