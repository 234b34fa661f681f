from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfit_storage import StoreError, open_store
from perfit_storage.files import write_atomically

# The padding makes the comparison take long enough for processes to overlap in it.
INCREMENT = """
import os, sys
from perfit_storage.files import FileStore
from pathlib import Path
store = FileStore(Path(sys.argv[1]))
for turn in range(20):
    while True:
        stored = store.get("counter")
        count = int(stored.data.split()[0]) + 1
        if store.replace("counter", f"{count} {os.getpid()}".ljust(500_000).encode(), stored.version):
            break
"""


def test_racing_processes_lose_no_update(tmp_path: Path):
    store = open_store(tmp_path.as_uri())
    store.put("counter", b"0")
    children = [subprocess.Popen([sys.executable, "-c", INCREMENT, tmp_path]) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert store.get("counter").data.split()[0] == b"60"


def test_only_objects_are_left_and_listed(tmp_path: Path):
    store = open_store(tmp_path.as_uri())
    store.put("a/b", b"1")
    assert not store.create("a/b", b"2")
    assert not store.replace("a/b", b"3", "another version")
    assert list(store.list("")) == ["a/b"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_an_object_where_a_directory_should_be(tmp_path: Path):
    store = open_store(tmp_path.as_uri())
    store.put("a", b"")
    with pytest.raises(StoreError, match="cannot write"):
        store.put("a/b", b"")
    store.put("c/d", b"")
    with pytest.raises(StoreError, match="cannot write"):
        store.put("c", b"")


def test_nothing_is_written_by_opening(tmp_path: Path):
    store = open_store((tmp_path / "new").as_uri())
    assert list(store.list("")) == []
    store.delete("a")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_file_is_written_whole_with_its_mode(tmp_path: Path):
    file = tmp_path / "file"
    write_atomically(file, b"old", mode=0o600)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path):
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "directory", b"")
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]
