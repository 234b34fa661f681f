"""Files that a user names, and what is said where they cannot be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perfit.errors import PerfitError
from perfit_storage.files import write_atomically

_SPACE = "free some space, or give a place on another volume"
_RIGHTS = "give a place that this user may write to"
_PLACE = "give a path in a directory that exists"
_FIXES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOENT: _PLACE,
    errno.ENOTDIR: _PLACE,
    errno.EISDIR: "give the name of a file",
}


def fix_of(error: OSError) -> str:
    """Return what to do about an error of the file system."""
    return _FIXES.get(error.errno, "give another place, or look at the state of this one")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the file system in the context into one that names what was to be written.

    Raises:
        PerfitError: It cannot be written.
    """
    try:
        yield
    except FileExistsError as error:  # by a directory that was to be made
        raise PerfitError(f"{path} cannot be written: {os.strerror(errno.ENOTDIR)}", _PLACE) from error
    except OSError as error:
        raise PerfitError(f"{path} cannot be written: {error.strerror or error}", fix_of(error)) from error


def write_file(path: Path, data: bytes) -> None:
    """Write a file that a user named: atomically, or into what is there if that is a link, a pipe or a device.

    Raises:
        PerfitError: It cannot be written; an existing file is unchanged.
    """
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(data)
        else:
            write_atomically(path, data)
