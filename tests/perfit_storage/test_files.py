from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfit_storage import StoreError, StoreUnreachable, open_store
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

HOLD = """
import sys, time
from perfit_storage.files import FileStore
from pathlib import Path
with FileStore(Path(sys.argv[1]))._lock():
    print("holds", flush=True)
    time.sleep(60)
"""


def test_racing_processes_lose_no_update(tmp_path: Path):
    store = open_store(tmp_path.as_uri())
    store.put("counter", b"0")
    children = [subprocess.Popen([sys.executable, "-c", INCREMENT, tmp_path]) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert store.get("counter").data.split()[0] == b"60"


def test_a_lock_that_is_not_given_back_is_an_outage_that_names_its_holder(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("perfit_storage.files._LOCK_TIMEOUT_S", 0.2)
    store = open_store(tmp_path.as_uri())
    store.put("a", b"1")
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"holds\n"
        holder.send_signal(signal.SIGSTOP)
        name = f"process {holder.pid} on {socket.gethostname()} has held its lock for 0.2 s"
        for write in (lambda: store.put("a", b"2"), lambda: store.delete("a")):
            with pytest.raises(StoreUnreachable, match=name):
                write()
        assert store.get("a").data == b"1"
        holder.kill()
    store.put("a", b"2")


def test_a_lock_file_that_somebody_else_wrote_is_not_quoted(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("perfit_storage.files._LOCK_TIMEOUT_S", 0.0)
    store = open_store(tmp_path.as_uri())
    with open(tmp_path / ".perfit-lock", "wb") as file:
        file.write(b"1 \x1b[31mhost\n" * 1000)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreUnreachable, match="another process has held its lock"):
            store.put("a", b"1")


def test_a_lock_that_is_a_link_to_an_object_changes_nothing(tmp_path: Path):
    store = open_store(tmp_path.as_uri())
    store.create("a", b"1")
    (tmp_path / ".perfit-lock").hardlink_to(tmp_path / "a")
    store.put("b", b"2")
    assert store.get("a").data == b"1"


def test_links_are_listed_but_not_followed(tmp_path: Path):
    store = open_store(tmp_path.as_uri())
    store.put("a/b", b"1")
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    assert list(store.list("")) == ["a/b", "a/circle"]
    assert list(store.directories("a/")) == []


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


def test_what_killed_writers_left_is_swept_after_a_day(tmp_path: Path):
    store = open_store((tmp_path / "store").as_uri())
    assert store.sweep("") == 0
    assert not (tmp_path / "store").exists()
    for key in ("a/b", "a/c/d", "other/e"):
        store.put(key, b"1")
    old, new = f".perfit-{'0' * 32}", f".perfit-{'1' * 32}"
    for directory in ("a", "a/c", "other"):
        for name in (old, new, ".perfit-lock", "object"):
            (tmp_path / "store" / directory / name).write_bytes(b"half")
            if name != new:
                os.utime(tmp_path / "store" / directory / name, (0, 0))
    assert store.sweep("a/") == 2
    assert not (tmp_path / "store" / "a" / "c" / old).exists()
    assert store.sweep("") == 1
    assert store.sweep("") == 0
    for directory in ("a", "a/c", "other"):
        assert {new, ".perfit-lock", "object"} <= {path.name for path in (tmp_path / "store" / directory).iterdir()}
    assert list(store.list("")) == ["a/b", "a/c/d", "a/c/object", "a/object", "other/e", "other/object"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the names of open directories")
def test_new_directories_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced, fsync = [], os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    store = open_store((tmp_path / "new" / "store").as_uri())
    store.create("a/b/c", b"1")
    directories = [path for path in synced if not path.rpartition("/")[2].startswith(".perfit-")]
    assert directories == [".", "new", "new/store", "new/store/a", "new/store/a/b"]
    synced.clear()
    store.put("a/b/d", b"1")
    assert len(synced) == 2, "the file and its directory"
