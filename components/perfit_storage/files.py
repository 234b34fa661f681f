"""Objects as files in a directory that processes, or pods on one volume, share; and writing one file atomically."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perfit_storage.errors import AccessDenied, ObjectNotFound, StoreError
from perfit_storage.objects import RESERVED_PREFIX, StoredObject, check_key, check_prefix

_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class FileStore:
    """An ``ObjectStore`` in a directory of a local or shared file system.

    The file system must have hard links and ``flock``. The directory is made with the first write.
    """

    def __init__(self, root: Path):
        self._root = root

    @property
    def uri(self) -> str:
        """The directory as a file URI."""
        return self._root.as_uri()

    def get(self, key: str) -> StoredObject:
        """See ``ObjectStore.get``."""
        path = self._path(key)
        with self._errors("read", key, absent=_ABSENT):
            data = path.read_bytes()
        return StoredObject(data, _version(data))

    def put(self, key: str, data: bytes) -> None:
        """See ``ObjectStore.put``."""
        path = self._path(key)
        with self._errors("write", key), self._draft(path, data) as draft, self._lock():
            _move(draft, path)

    def create(self, key: str, data: bytes) -> bool:
        """See ``ObjectStore.create``."""
        path = self._path(key)
        with self._errors("create", key), self._draft(path, data) as draft:
            try:
                os.link(draft, path)
            except FileExistsError:
                return self._holds(key, data)
            _sync_directory(path.parent)
        return True

    def replace(self, key: str, data: bytes, version: str) -> bool:
        """See ``ObjectStore.replace``."""
        path = self._path(key)
        with self._errors("replace", key), self._draft(path, data) as draft, self._lock():
            try:
                current = path.read_bytes()
            except _ABSENT:
                return False
            if _version(current) != version:
                return current == data
            _move(draft, path)
        return True

    def exists(self, key: str) -> bool:
        """See ``ObjectStore.exists``."""
        path = self._path(key)
        with self._errors("look up", key):
            return path.is_file()

    def size(self, key: str) -> int:
        """See ``ObjectStore.size``."""
        path = self._path(key)
        with self._errors("look up", key, absent=_ABSENT):
            if path.is_dir():
                raise IsADirectoryError
            return path.stat().st_size

    def list(self, prefix: str) -> Iterator[str]:
        """See ``ObjectStore.list``."""
        start = self._root / check_prefix(prefix).rpartition("/")[0]
        with self._errors("list", prefix):
            keys = [
                Path(directory, name).relative_to(self._root).as_posix()
                for directory, _, names in os.walk(start, onerror=_raise_unless_absent)
                for name in names
                if not name.startswith(RESERVED_PREFIX)
            ]
        return iter(sorted(key for key in keys if key.startswith(prefix)))

    def delete(self, key: str) -> None:
        """See ``ObjectStore.delete``."""
        path = self._path(key)
        with self._errors("delete", key):
            if path.is_file():
                with self._lock():
                    path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextmanager
    def _draft(self, path: Path, data: bytes) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _written_beside(path, data, 0o666) as draft:
            yield draft

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.get(key).data == data
        except ObjectNotFound:
            return False

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keeps every other put, replace and delete out, so that a replace compares with what it replaces."""
        with open(self._root / f"{RESERVED_PREFIX}lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _errors(self, action: str, key: str, absent: tuple[type[OSError], ...] = ()) -> Iterator[None]:
        problem = f"cannot {action} {self.uri}/{key}"
        try:
            yield
        except absent as error:
            raise ObjectNotFound(f"{problem}: there is no such object", "check the store URI") from error
        except PermissionError as error:
            raise AccessDenied(f"{problem}: {error.strerror}", "let this user read and write the directory") from error
        except OSError as error:
            raise StoreError(
                f"{problem}: {error.strerror}", "check the directory, its volume and the space left there"
            ) from error


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes a file so that a reader sees it whole, as it was before or after.

    Args:
        path: In a directory that exists; a file that is there is replaced.
        data: Its content.
        mode: Permissions, less those that the process's umask takes away.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    with _written_beside(path, data, mode) as draft:
        _move(draft, path)


def _version(data: bytes) -> str:
    """Versions compare by content, as S3's entity tags do."""
    return hashlib.sha256(data).hexdigest()


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, _ABSENT):
        raise error


@contextmanager
def _written_beside(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    """Yields a temporary file of these bytes, on disk, in the directory where they are to appear."""
    draft = path.parent / f"{RESERVED_PREFIX}{uuid.uuid4().hex}"
    try:
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _move(draft: Path, path: Path) -> None:
    os.replace(draft, path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Makes a new name in the directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
