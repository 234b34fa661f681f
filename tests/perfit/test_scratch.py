"""The temporary file of a round's updates."""

from __future__ import annotations

import resource
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.scratch import Scratch, ScratchError


def resident(scratch: Scratch) -> int:
    """Bytes of a scratch file that this process has in memory."""
    lines = Path("/proc/self/smaps").read_text().split("\n")
    at = next(number for number, line in enumerate(lines) if f" {len(scratch._map) >> 10} kB" in line)
    return int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1]) * 1024


def test_arrays_come_back_and_cannot_be_changed():
    scratch = Scratch(3 * 4096)
    arrays = [np.arange(5, dtype=np.float32), np.arange(4096, dtype=np.uint8), np.zeros(0, np.float32)]
    kept = [scratch.keep(array) for array in arrays]
    for array, copy in zip(arrays, kept, strict=True):
        assert_array_equal(copy, array)
        assert copy.dtype == array.dtype
        with pytest.raises(ValueError, match="read-only"):
            copy[:] = 0


def test_what_is_written_again_counts():
    scratch = Scratch(100)
    start = scratch.reserve(100)
    scratch.write(start, b"first")
    scratch.write(start, b"again")
    assert scratch.view(start, 5).tobytes() == b"again"


def test_more_than_the_capacity():
    scratch = Scratch(4096)
    scratch.keep(np.zeros(4096, np.uint8))
    with pytest.raises(ValueError, match="8,192 bytes do not fit behind the 4,096"):
        scratch.reserve(8192)


def test_what_is_released_leaves_the_memory_and_can_be_read():
    scratch = Scratch(2**24)
    kept = scratch.keep(np.ones(2**24, np.uint8))
    assert kept.sum() == 2**24
    assert resident(scratch) >= 2**24
    scratch.release()
    assert resident(scratch) == 0
    assert kept.sum() == 2**24


def test_parts_are_joined_and_one_with_room_ahead_stays_where_it_is():
    scratch, vector = Scratch(2**16), np.arange(3000, dtype=np.float32)
    start = scratch.reserve(vector.nbytes, ahead=100)
    scratch.write(start, memoryview(vector).cast("B"))
    kept = scratch.view(start, vector.nbytes)
    header, end = np.frombuffer(b"header", np.uint8), scratch.reserve(0)
    assert bytes(scratch.join([header, kept])) == b"header" + vector.tobytes()
    assert scratch.reserve(0) == end
    long = np.zeros(101, np.uint8)
    for parts in ([long, kept], [header, long, kept], [header, vector.view(np.uint8)]):
        assert bytes(scratch.join(parts)) == b"".join(part.tobytes() for part in parts)


def test_a_disk_that_is_full_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    scratch = Scratch(400_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ScratchError, match=f"cannot be kept in {tmp_path}: File too large") as caught:
            scratch.keep(np.zeros(100_000, np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "let TMPDIR name another directory" in caught.value.fix
    assert list(tmp_path.iterdir()) == []
