"""The interface of a store, against real files and a real S3 server."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from perfit_storage import ObjectNotFound, ObjectStore, ObjectTooLarge, StoreError


def test_put_then_get(store: ObjectStore):
    store.put("a/b.bin", b"first")
    store.put("a/b.bin", b"second")
    assert store.get("a/b.bin").data == b"second"
    assert store.exists("a/b.bin")
    assert store.size("a/b.bin") == 6


def test_when_an_object_was_written(store: ObjectStore):
    before = time.time()
    store.put("a/b.bin", b"first")
    assert before - 1.1 < store.modified("a/b.bin") < time.time() + 0.1  # S3 knows whole seconds
    with pytest.raises(ObjectNotFound, match=f"{store.uri}/a/c.bin"):
        store.modified("a/c.bin")


@pytest.mark.parametrize("size", [0, 20_000_000])
def test_empty_and_large_objects(store: ObjectStore, size: int):
    data = random.Random(size).randbytes(size)
    store.put("put", data)
    assert store.create("created", data)
    assert store.get("put").data == store.get("created").data == data
    assert store.size("put") == size


@pytest.mark.parametrize("key", ["a b", "a+b", "ü/ñ", "100%20", "x#y?z=1&w", "~tilde", ".hidden", "a:b"])
def test_unusual_keys(store: ObjectStore, key: str):
    store.put(key, key.encode())
    assert store.get(key).data == key.encode()
    assert list(store.list("")) == [key]


@pytest.mark.parametrize(
    "key", ["", "/abs", "a/", "a//b", "../up", "a/../b", "./a", "a\\b", "a\nb", "a\x00", ".perfit-lock"]
)
def test_refused_keys(store: ObjectStore, key: str):
    for act in (store.get, store.exists, store.size, store.delete):
        with pytest.raises(StoreError, match="cannot be the key"):
            act(key)
    for act in (store.put, store.create):
        with pytest.raises(StoreError, match="cannot be the key"):
            act(key, b"")
    with pytest.raises(StoreError, match="cannot be the key"):
        store.replace(key, b"", "version")
    assert list(store.list("")) == []


def test_absent_object(store: ObjectStore):
    store.put("directory/object", b"")
    for key in ("none", "directory", "directory/none"):
        assert not store.exists(key)
        with pytest.raises(ObjectNotFound, match=f"{store.uri}/{key}"):
            store.get(key)
        with pytest.raises(ObjectNotFound, match=f"{store.uri}/{key}"):
            store.size(key)


def test_delete_may_run_twice(store: ObjectStore):
    store.put("a", b"1")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")
    assert store.create("a", b"2")


def test_list_is_sorted_and_takes_any_prefix(store: ObjectStore):
    keys = ["a-b/x", "a/x", "a/y/z", "a/y1", "b"]
    for key in reversed(keys):
        store.put(key, b"")
    assert list(store.list("")) == keys
    assert list(store.list("a")) == ["a-b/x", "a/x", "a/y/z", "a/y1"]
    assert list(store.list("a/")) == ["a/x", "a/y/z", "a/y1"]
    assert list(store.list("a/y")) == ["a/y/z", "a/y1"]
    assert list(store.list("none/")) == []
    with pytest.raises(StoreError, match="cannot be the key"):
        store.list("../")


def test_directories_are_listed_without_what_is_below(store: ObjectStore):
    for key in ("a/2/x", "a/10/y/z", "a/file", "ab/x"):
        store.put(key, b"")
    assert list(store.directories("a/")) == ["10", "2"]
    assert list(store.directories("")) == ["a", "ab"]
    assert list(store.directories("none/")) == []


def test_a_listing_is_bounded(store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("perfit_storage.objects.MAX_LISTED", 3)
    for number in range(3):
        store.put(f"a/{number}", b"")
    assert len(list(store.list("a/"))) == 3
    store.put("a/3", b"")
    for read in (store.list, store.directories):
        with pytest.raises(StoreError, match="/a/ holds more than 3 objects"):
            list(read("a/"))
    store.delete("a/3")


def test_create_only_once_but_may_be_repeated(store: ObjectStore):
    assert store.create("a", b"ours")
    assert store.create("a", b"ours")
    assert not store.create("a", b"theirs")
    assert store.get("a").data == b"ours"


def test_replace_only_the_version_that_was_read(store: ObjectStore):
    store.put("a", b"1")
    first = store.get("a").version
    assert store.replace("a", b"2", first)
    assert store.replace("a", b"2", first), "a repeated request whose first answer was lost"
    assert not store.replace("a", b"3", first)
    assert store.get("a").data == b"2"
    store.delete("a")
    assert not store.replace("a", b"3", first)
    assert not store.exists("a")


def test_racing_creates_have_one_winner(store: ObjectStore):
    contents = [f"writer {number}".encode() for number in range(6)]
    with ThreadPoolExecutor(len(contents)) as pool:
        won = list(pool.map(lambda data: store.create("a", data), contents))
    assert won.count(True) == 1
    assert store.get("a").data == contents[won.index(True)]


def test_racing_replaces_lose_no_update(store: ObjectStore):
    store.put("counter", b"0")

    def increment() -> None:
        while True:
            stored = store.get("counter")
            # The writer's own mark keeps two equal counts apart.
            count = int(stored.data.split()[0]) + 1
            if store.replace("counter", f"{count} {random.random()}".encode(), stored.version):
                return

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(increment) for _ in range(12)]:
            future.result()
    assert store.get("counter").data.split()[0] == b"12"


def test_readers_see_whole_objects(store: ObjectStore):
    size = 1_000_000
    store.put("a", bytes(size))

    def overwrite(value: int) -> None:
        for _ in range(5):
            store.put("a", bytes([value]) * size)

    def read() -> set[tuple[int, int]]:
        seen = (store.get("a").data for _ in range(10))
        return {(len(data), len(set(data))) for data in seen}

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(overwrite, value) for value in (1, 2, 3)]
        readers = [pool.submit(read) for _ in range(3)]
        for writer in writers:
            writer.result()
        assert {kind for reader in readers for kind in reader.result()} == {(size, 1)}


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_an_object_of_more_bytes_than_the_limit_is_refused(store: ObjectStore, size: int):
    store.put("a", b"x" * size)
    assert len(store.get("a", limit=size).data) == len(store.get("a", limit=size + 1).data) == size
    if size:
        with pytest.raises(ObjectTooLarge, match=f"more than {size - 1:,} bytes"):
            store.get("a", limit=size - 1)
        assert not store.create("a", b"")
    with pytest.raises(ObjectNotFound):
        store.get("b", limit=size)


def test_an_object_is_read_on_demand(store: ObjectStore):
    data = random.randbytes(300_000)
    store.put("a", data)
    with store.stream("a", limit=len(data)) as fill, store.stream("a", limit=10**6) as other:
        pieces, buffer = [], memoryview(bytearray(70_000))
        while count := fill(buffer):
            pieces.append(bytes(buffer[:count]))
            assert other(buffer[:1]) == 1
        assert b"".join(pieces) == data
    with pytest.raises(ObjectTooLarge), store.stream("a", limit=len(data) - 1):
        pass
    with pytest.raises(ObjectNotFound), store.stream("b", limit=1):
        pass
