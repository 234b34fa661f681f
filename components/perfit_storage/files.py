"""A store in a directory that processes, or pods on one volume, share; and the atomic writing of one file."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import random
import re
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import IO

from perfit_storage.errors import (
    AccessDenied,
    ObjectNotFound,
    ObjectTooLarge,
    StoreError,
    StoreUnreachable,
    UnreadableObject,
)
from perfit_storage.objects import (
    PIECE_BYTES,
    RESERVED_PREFIX,
    UNREADABLE_FIX,
    Data,
    Fill,
    StoredObject,
    Write,
    bounded,
    check_key,
    check_prefix,
    too_large,
)

_Errors = type[OSError] | tuple[type[OSError], ...]
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_UNREADABLE = {errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG}
"""Errors from opening a link, a socket, and a name that no file can have."""
_STALE_S = 24 * 3600
_LOCK_TIMEOUT_S = 60.0
"""The lock is held for as long as a file is renamed and its directory synced."""
_HOLDER = re.compile(rb"([0-9]{1,10}) ([\w.-]{1,64})\n")
_HOLDER_BYTES = 100
_TEMPORARY = re.compile(rf"{re.escape(RESERVED_PREFIX)}[0-9a-f]{{32}}")
_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY


class FileStore:
    """An ``ObjectStore`` in a directory of a local or shared file system.

    The file system must support hard links and ``flock``. The first write creates the directory. Objects are regular
    files; links, pipes and devices that others left on the volume are never followed or opened.
    """

    def __init__(self, root: Path):
        self._root = root

    @property
    def uri(self) -> str:
        """The directory as a file URI."""
        return self._root.as_uri()

    def get(self, key: str, limit: int | None = None) -> StoredObject:
        """See ``ObjectStore.get``."""
        check_key(key)
        with self._errors("read", key, absent=_ABSENT):
            data = self._read(key, limit)
        return _StoredFile(data)

    def copy(self, key: str, write: Write, limit: int) -> int:
        """See ``ObjectStore.copy``."""
        check_key(key)
        with self._errors("read", key, absent=_ABSENT), self._opened(key) as file:
            self._check_size(key, file, limit)
            buffer, start = memoryview(bytearray(PIECE_BYTES)), 0
            while count := file.readinto(buffer):
                if start + count > limit:
                    raise too_large(f"cannot read {self.uri}/{key}", limit)
                write(start, buffer[:count])
                start += count
        return start

    @contextmanager
    def stream(self, key: str, limit: int) -> Iterator[Fill]:
        """See ``ObjectStore.stream``."""
        check_key(key)
        with self._errors("read", key, absent=_ABSENT), self._opened(key, buffering=0) as file:
            self._check_size(key, file, limit)
            yield file.readinto

    def put(self, key: str, data: Data) -> None:
        """See ``ObjectStore.put``."""
        path = self._path(key)
        with self._errors("write", key), self._temporary(path, data) as temporary, self._lock():
            _move(temporary, path)

    def create(self, key: str, data: Data) -> bool:
        """See ``ObjectStore.create``."""
        path = self._path(key)
        with self._errors("create", key), self._temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return self._holds(key, data)
            _sync_directory(path.parent)
        return True

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """See ``ObjectStore.replace``."""
        path = self._path(key)
        with self._errors("replace", key), self._temporary(path, data) as temporary, self._lock():
            try:
                current = self._read(key, None)
            except _ABSENT:
                return False
            if _version(current) != version:
                return current == data
            _move(temporary, path)
        return True

    def exists(self, key: str) -> bool:
        """See ``ObjectStore.exists``."""
        try:
            self.size(key)
        except ObjectNotFound:
            return False
        return True

    def size(self, key: str) -> int:
        """See ``ObjectStore.size``."""
        return self._status(key).st_size

    def modified(self, key: str) -> float:
        """See ``ObjectStore.modified``."""
        return self._status(key).st_mtime

    def list(self, prefix: str) -> Iterator[str]:
        """See ``ObjectStore.list``."""
        start = self._root / check_prefix(prefix).rpartition("/")[0]
        with self._errors("list", prefix):
            entries = bounded(_walk(start, _ABSENT), f"{self.uri}/{prefix}")
            paths = [Path(entry.path) for entry in entries if not entry.is_dir(follow_symlinks=False)]
        keys = (path.relative_to(self._root).as_posix() for path in paths if not path.name.startswith(RESERVED_PREFIX))
        return iter(sorted(key for key in keys if key.startswith(prefix)))

    def directories(self, prefix: str) -> Iterator[str]:
        """See ``ObjectStore.directories``."""
        with self._errors("list", prefix):
            entries = bounded(_scan(self._root / check_prefix(prefix), _ABSENT), f"{self.uri}/{prefix}")
            return iter(sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False)))

    def delete(self, key: str) -> None:
        """See ``ObjectStore.delete``."""
        path = self._path(key)
        with self._errors("delete", key):
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                with self._lock():
                    path.unlink(missing_ok=True)

    def reconnect(self) -> None:
        """See ``ObjectStore.reconnect``."""

    def sweep(self, prefix: str) -> int:
        """See ``ObjectStore.sweep``. Skips what this user may not read or remove."""
        start, latest = self._root / check_prefix(prefix).rpartition("/")[0], time.time() - _STALE_S
        temporary = (entry.path for entry in _walk(start, OSError) if _TEMPORARY.fullmatch(entry.name))
        return sum(_removed(Path(path), latest) for path in temporary)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextmanager
    def _directory(self, key: str) -> Iterator[tuple[int, str]]:
        """Yields a descriptor of the key's directory, and the name in it. No link below the root is followed."""
        *parents, name = key.split("/")
        directory = os.open(self._root, _DIRECTORY)
        try:
            for parent in parents:
                if stat.S_ISLNK(os.stat(parent, dir_fd=directory, follow_symlinks=False).st_mode):
                    raise OSError(errno.ELOOP, "a directory of its path is a link")
                child = os.open(parent, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                os.close(directory)
                directory = child
            yield directory, name
        finally:
            os.close(directory)

    def _read(self, key: str, limit: int | None) -> bytes:
        with self._opened(key) as file:
            self._check_size(key, file, limit)
            if limit is None:
                return file.read()
            data = file.read(limit + 1)
            if len(data) > limit:
                raise too_large(f"cannot read {self.uri}/{key}", limit)
            return data

    @contextmanager
    def _opened(self, key: str, buffering: int = -1) -> Iterator[IO[bytes]]:
        # Non-blocking, or a pipe without a writer would block; no difference for a regular file.
        def opener(name: str, flags: int) -> int:
            return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)

        with self._directory(key) as (directory, name), open(name, "rb", buffering, opener=opener) as file:
            yield file

    def _check_size(self, key: str, file: IO[bytes], limit: int | None) -> None:
        status = self._checked(key, os.fstat(file.fileno()))
        if status.st_size > (math.inf if limit is None else limit):
            raise too_large(f"cannot read {self.uri}/{key}", limit)

    def _status(self, key: str) -> os.stat_result:
        check_key(key)
        with self._errors("look up", key, absent=_ABSENT), self._directory(key) as (directory, name):
            return self._checked(key, os.stat(name, dir_fd=directory, follow_symlinks=False))

    def _checked(self, key: str, status: os.stat_result) -> os.stat_result:
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableObject(f"cannot read {self.uri}/{key}: it is not a regular file", UNREADABLE_FIX)
        return status

    @contextmanager
    def _temporary(self, path: Path, data: Data) -> Iterator[Path]:
        self._make_directory(path.parent)
        with _temporary_file(path.parent, data, 0o666) as temporary:
            yield temporary

    def _make_directory(self, directory: Path) -> None:
        """Creates a directory of the store, and its parents, so that their names survive a power failure."""
        ancestors = [directory, *directory.parents]
        if any(path.is_symlink() for path in ancestors[: ancestors.index(self._root)]):
            raise OSError(errno.ELOOP, "a directory of its path is a link")
        for path in reversed(list(takewhile(lambda path: not path.is_dir(), ancestors))):
            path.mkdir(exist_ok=True)
            _sync_directory(path.parent)

    def _holds(self, key: str, data: Data) -> bool:
        try:
            return self.get(key, limit=len(data)).data == data
        except (ObjectNotFound, ObjectTooLarge):
            return False

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Excludes every other put, replace and delete, so that a replace compares with what it then replaces.

        The lock ends with its process; who holds it is written in the file.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(self._root / f"{RESERVED_PREFIX}lock", flags, 0o666), "r+b", buffering=0) as file:
            deadline = time.monotonic() + _LOCK_TIMEOUT_S
            while not _is_locked(file):
                if time.monotonic() > deadline:
                    raise self._lock_error(file)
                time.sleep(random.uniform(0, 0.02))
            if os.fstat(file.fileno()).st_nlink == 1:  # Else it is somebody's link to another file.
                file.truncate(file.write(f"{os.getpid()} {socket.gethostname()}\n".encode()))
            yield

    def _lock_error(self, file: IO[bytes]) -> StoreUnreachable:
        holder = _HOLDER.fullmatch(file.read(_HOLDER_BYTES))
        who = f"process {int(holder[1])} on {holder[2].decode()}" if holder else "another process"
        return StoreUnreachable(
            f"cannot write to {self.uri}: {who} has held its lock for {_LOCK_TIMEOUT_S:g} s, most likely because it is "
            "stopped or its volume hangs",
            "let that process go on, or end it (its lock ends with it), and run again",
        )

    @contextmanager
    def _errors(self, action: str, key: str, absent: _Errors = ()) -> Iterator[None]:
        problem = f"cannot {action} {self.uri}/{key}"
        try:
            yield
        except absent as error:
            raise ObjectNotFound(f"{problem}: there is no such object", "check the store URI") from error
        except PermissionError as error:
            raise AccessDenied(f"{problem}: {error.strerror}", "let this user read and write the directory") from error
        except OSError as error:
            if error.errno in _UNREADABLE:
                raise UnreadableObject(f"{problem}: {error.strerror}", UNREADABLE_FIX) from error
            raise StoreError(
                f"{problem}: {error.strerror}", "check the directory, its volume and the free space"
            ) from error


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes a file atomically: a reader sees all of the old content or all of the new.

    Args:
        path: The file, in a directory that exists; an existing file is replaced.
        data: Its content.
        mode: Permissions, to which the process's umask applies.

    Raises:
        OSError: The file cannot be written; an existing file is unchanged.
    """
    with _temporary_file(path.parent, data, mode) as temporary:
        _move(temporary, path)


def _is_locked(file: IO[bytes]) -> bool:
    """Takes a file's lock, if nobody else holds it; returns whether it is held by this call now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _StoredFile(StoredObject):
    """A file's content, whose version is computed only where it is asked for: hashing takes longer than reading."""

    def __init__(self, data: bytes):
        object.__setattr__(self, "data", data)

    @property
    def version(self) -> str:
        """The content's hash."""
        return _version(self.data)


def _version(data: bytes) -> str:
    """Versions compare by content, as S3's entity tags do."""
    return hashlib.sha256(data).hexdigest()


def _removed(path: Path, latest: float) -> bool:
    """Removes a file that was written no later than this; returns whether this call removed it."""
    try:
        if path.lstat().st_mtime > latest:
            return False
        path.unlink()
    except OSError:  # Another user's, or just removed.
        return False
    return True


def _walk(directory: Path, ignored: _Errors) -> Iterator[os.DirEntry[str]]:
    """Yields what is below a directory, one at a time. No link is followed, so there is no circle."""
    waiting: list[Path | str] = [directory]
    while waiting:
        for entry in _scan(waiting.pop(), ignored):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            yield entry


def _scan(directory: Path | str, ignored: _Errors) -> Iterator[os.DirEntry[str]]:
    """Yields a directory's entries; none if it cannot be opened, for one of the ignored reasons."""
    try:
        entries = os.scandir(directory)
    except ignored:
        return
    with entries:
        yield from entries


@contextmanager
def _temporary_file(directory: Path, data: Data, mode: int) -> Iterator[Path]:
    """Yields a temporary file with these bytes, synced to disk."""
    temporary = directory / f"{RESERVED_PREFIX}{uuid.uuid4().hex}"
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _move(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Makes a new name in the directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
