"""The updates of a round: what a client sends, and a local file in which the server keeps them while it averages."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from perfit.errors import PerfitError


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


class UpdateSpool:
    """Updates in a temporary file, read back block by block of positions, over all clients at once.

    Memory does not depend on the number of clients. The file has as many bytes as the values, and a bit for each
    position and client.

    Args:
        size: Number of positions N.
    """

    def __init__(self, size: int):
        self._size = size
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the spool
        self._end = 0
        self._entries: dict[str, tuple[int, dict[str, int]]] = {}
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, client: str, update: Update) -> None:
        """Write an update.

        Raises:
            PerfitError: The disk is full, or cannot be written.
            ValueError: The client has one already.
        """
        if client in self._entries:
            raise ValueError(f"{client!r} has an update already")
        mask = self._write(np.packbits(update.positions))
        self._entries[client] = mask, {name: self._write(vector) for name, vector in update.vectors.items()}

    def blocks(self, name: str, length: int) -> Iterator[tuple[slice, Iterator[tuple[str, np.ndarray, np.ndarray]]]]:
        """Read a vector of all updates, block by block.

        Args:
            name: The vector's.
            length: Number of positions in a block, a multiple of eight.

        Yields:
            The positions of the block, and each client's part in the order of the clients' ids: the client, which of
            these positions it shares (int64, counted from the block's first), and its values there (float32). Read all
            parts before the next block.
        """
        at = {client: vectors[name] for client, (_, vectors) in self._entries.items()}

        def parts(block: slice) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
            count = block.stop - block.start
            for client in sorted(at):
                bits = self._read(self._entries[client][0] + block.start // 8, -(-count // 8), np.uint8)
                shared = np.flatnonzero(np.unpackbits(bits, count=count).view(bool))
                values = self._read(at[client], shared.size, np.float32)
                at[client] += values.nbytes
                yield client, shared, values

        for start in range(0, self._size, length):
            block = slice(start, min(start + length, self._size))
            yield block, parts(block)

    def read(self, client: str, name: str, positions: slice) -> tuple[np.ndarray, np.ndarray]:
        """Read one update in a range of positions.

        Returns:
            Which of these positions the client shares (int64, counted from the range's first), and its values there
            (float32).
        """
        mask, vectors = self._entries[client]
        packed = self._read(mask, -(-positions.stop // 8), np.uint8)
        byte, bit = divmod(positions.start, 8)
        bits = np.unpackbits(packed[byte:], count=positions.stop - 8 * byte).view(bool)
        before = np.bitwise_count(packed[:byte]).sum(dtype=np.int64) + np.count_nonzero(bits[:bit])
        shared = np.flatnonzero(bits[bit:])
        return shared, self._read(vectors[name] + 4 * int(before), shared.size, np.float32)

    def _write(self, array: np.ndarray) -> int:
        start, self._end = self._end, self._end + array.nbytes
        try:
            self._file.write(np.ascontiguousarray(array))
            self._file.flush()
        except OSError as error:
            raise PerfitError(
                f"the updates of this round cannot be kept in {tempfile.gettempdir()}: {error.strerror}",
                f"make room there, or let TMPDIR name another directory; {self._end:,} bytes are needed so far, after "
                f"{len(self._entries)} updates",
            ) from error
        return start

    def _read(self, start: int, count: int, dtype: type) -> np.ndarray:
        self._file.seek(start)
        return np.frombuffer(self._file.read(count * np.dtype(dtype).itemsize), dtype)
