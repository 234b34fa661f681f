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
OWN_CGROUPS = Path("/proc/self/cgroup")
"""In which cgroups the process is: without a container, that of a service, say, below the root that one sees."""
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
    texts = [file.read_text().strip() for file in (*CGROUP_LIMITS, *_files_of_own()) if file.exists()]
    limits = [int(text) for text in texts if text.isdecimal() and int(text) < _NO_LIMIT]
    return max(min(limits) - max(_RESERVE, min(limits) // 20), 0) if limits else None


def _files_of_own() -> Iterator[Path]:
    """The limits of the process's cgroup and of those around it, below the root."""
    for line in OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)
        for file in CGROUP_LIMITS if controllers in ("", "memory") else ():
            for group in (path, *map(str, Path(path).parents)):
                if group != "/":
                    yield file.parent / group.lstrip("/") / file.name
