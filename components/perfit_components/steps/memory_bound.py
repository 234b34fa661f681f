"""Keeps a client's memory below its cgroup's limit, on the CPU.

A process that exceeds its cgroup's limit is killed and can report nothing. Below it, Linux's RLIMIT_DATA lets the
allocation fail instead, which the library raises as an error that is caught and becomes the client's record.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""The limit of a container's own cgroup, in version 2 and in version 1."""
_NO_LIMIT = 2**60
"""From here on a limit is how version 1 writes that there is none."""
_RESERVE = 128 * 2**20
"""For what counts for the cgroup and not for the limit: KFP's launcher, the kernel's own memory, files in /dev/shm."""


@contextmanager
def bounded_memory() -> Iterator[int | None]:
    """Within the context, let allocations fail a little below the limit of this process's cgroup.

    RLIMIT_DATA counts what is allocated and not shared (the heap, anonymous mappings, threads' stacks), written to or
    not. Arrow's own allocator would take 1 GiB of it at once and write to little: the system's takes its place, if
    Arrow is not imported yet.

    Yields:
        The bound in bytes; None where there is no limit, or a stricter bound already.
    """
    bound = _bound()
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if bound is None or (before != resource.RLIM_INFINITY and before <= bound):
        yield None
        return
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    try:
        yield bound
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def _bound() -> int | None:
    for file in CGROUP_LIMITS:
        if file.exists() and (text := file.read_text().strip()).isdecimal() and int(text) < _NO_LIMIT:
            return max(int(text) - max(_RESERVE, int(text) // 20), 0)
    return None
