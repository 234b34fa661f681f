"""Reading what others wrote: raw, no longer than asked for, and the fault of one object is no outage."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from perfit_storage import (
    AccessDenied,
    Blob,
    CorruptObject,
    FederationStore,
    ObjectNotFound,
    ObjectTooLarge,
    RoundPlace,
    StoreUnreachable,
    UnreadableObject,
    open_store,
)
from perfit_storage.s3 import S3Settings

from .hostile import BOMB, OWN_KEY
from .s3_proxy import ANNOUNCE, ENDLESS, FLIP, TRUNCATE, Behaviour, faulty

LIMIT = 2**20
READ = """
import resource, sys
from perfit_storage import open_store
store = open_store(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = store.get("bomb", limit=int(sys.argv[2])).data
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(data), before // 1024, after // 1024)
"""


@pytest.fixture
def uri(s3_server) -> str:
    return f"{s3_server.store_uri}/{uuid.uuid4()}"


def upload(server, uri: str, key: str, data: bytes, headers: dict[str, str]) -> None:
    """Writes an object with headers that perfit never sends."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client = S3Settings.from_environment(server.environment).connect()
    client._put_object(bucket, f"{prefix}/{key}", data, headers)


def test_what_is_compressed_twice_stays_as_it_is(s3_server, uri: str):
    upload(s3_server, uri, "bomb", BOMB, {"Content-Encoding": "gzip, gzip"})
    command = [sys.executable, "-c", READ, uri, str(LIMIT)]
    result = subprocess.run(command, env=os.environ | s3_server.environment, capture_output=True, text=True, check=True)
    size, before, after = map(int, result.stdout.split())
    print(f"a bomb of {len(BOMB)} bytes: peak memory {before} MiB before reading it, {after} MiB after")
    assert size == len(BOMB)
    assert after - before < 20


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "deflate", "zstd", "br", "nonsense"])
def test_an_encoding_that_is_claimed_is_not_believed(s3_server, uri: str, encoding: str):
    upload(s3_server, uri, "a", b"plain", {"Content-Encoding": encoding})
    store = open_store(uri, s3_server.environment)
    assert store.get("a").data == store.get("a", limit=5).data == b"plain"
    with faulty(s3_server, Behaviour(encoding=encoding)) as (_, environment):
        assert open_store(uri, environment).get("a", limit=5).data == b"plain"


def test_too_large_is_known_before_a_byte_is_read(s3_server, uri: str):
    store = open_store(uri, s3_server.environment)
    store.put("a", b"x" * 100)
    with faulty(s3_server, Behaviour(plan=[ANNOUNCE])) as (_, environment):
        start = time.monotonic()
        with pytest.raises(ObjectTooLarge, match="more than 1,000,000 bytes"):
            open_store(uri, environment).get("a", limit=1_000_000)
        assert time.monotonic() - start < 1.5, "it waited for the body"


def test_a_body_without_a_length_is_read_to_the_limit_alone(s3_server, uri: str):
    open_store(uri, s3_server.environment).put("a", b"x")
    with faulty(s3_server, Behaviour(plan=[ENDLESS])) as (proxy, environment):
        with pytest.raises(ObjectTooLarge):
            open_store(uri, environment).get("a", limit=100_000)
        time.sleep(0.2)
        assert proxy.sent < 20_000_000, "what fits into the buffers between"


def test_a_bounded_read_that_breaks_off_is_repeated(s3_server, uri: str):
    data = bytes(range(256)) * 4_000
    open_store(uri, s3_server.environment).put("a", data)
    with faulty(s3_server, Behaviour(plan=[TRUNCATE] * 2)) as (_, environment):
        assert open_store(uri, environment).get("a", limit=len(data)).data == data
    with (
        faulty(s3_server, Behaviour(plan=[TRUNCATE] * 3)) as (_, environment),
        pytest.raises(StoreUnreachable),
    ):
        open_store(uri, environment).get("a", limit=len(data))


@pytest.mark.parametrize(
    "headers",
    [
        OWN_KEY,
        {f"x-amz-meta-{number}": "v" for number in range(150)},
        {"x-amz-meta-long": "v" * 70_000},
    ],
    ids=["key", "many", "long"],
)
def test_an_object_that_cannot_be_read_is_no_outage(s3_server, uri: str, headers: dict[str, str]):
    upload(s3_server, uri, "a", b"x", headers)
    store = open_store(uri, s3_server.environment)
    with pytest.raises(UnreadableObject) as caught:
        store.get("a", limit=1)
    assert "write it again" in caught.value.fix
    store.put("b", b"y")
    assert store.get("b").data == b"y"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((418, "text/html", b"<html>"), UnreadableObject),
        ((400, "application/xml", b"<Error><Code>InvalidArgument</Code></Error>"), UnreadableObject),
        ((403, "application/xml", b"<Error><Code>InvalidObjectState</Code></Error>"), UnreadableObject),
        ((404, "application/xml", b"<Error><Code>NoSuchKey</Code></Error>"), ObjectNotFound),
        ((403, "application/xml", b"<Error><Code>AccessDenied</Code></Error>"), AccessDenied),
        ((403, "text/html", b"<html>"), AccessDenied),
        ((429, "text/html", b"<html>"), StoreUnreachable),
        ((502, "text/html", b"<html>"), StoreUnreachable),
        ((507, "application/xml", b"<Error><Code>Full</Code></Error>"), StoreUnreachable),
        ((400, "application/xml", b"<Error><Code>RequestTimeout</Code></Error>"), StoreUnreachable),
        ((400, "application/xml", b"<Error><Co"), StoreUnreachable),
        ((400, "text/html", b"\xff\xfe"), StoreUnreachable),
    ],
)
def test_whose_fault_an_answer_is(s3_server, uri: str, answer, kind: type[Exception]):
    with faulty(s3_server, Behaviour(answer=answer)) as (_, environment):
        store = open_store(uri, environment)
        with pytest.raises(kind) as caught:
            store.get("a", limit=10)
        assert type(caught.value) is kind


def test_a_flipped_bit_is_read_again_over_another_connection(s3_server, uri: str):
    federation = FederationStore.open(uri, "demo", s3_server.environment)
    blob = federation.put_update(RoundPlace(1), "anna", b"update" * 1000)
    with faulty(s3_server, Behaviour(plan=[FLIP])) as (proxy, environment):
        assert FederationStore.open(uri, "demo", environment).read_blob(blob, limit=6000) == b"update" * 1000
        assert proxy.counts["connections"] == 2
    with faulty(s3_server, Behaviour(plan=[FLIP] * 2)) as (_, environment), pytest.raises(CorruptObject):
        FederationStore.open(uri, "demo", environment).read_blob(blob)


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_every_reader_of_what_clients_write_takes_a_limit(s3_server, uri: str, tmp_path: Path, kind: str):
    mask = "ab" * 32
    federation = FederationStore.open(uri if kind == "s3" else tmp_path.as_uri(), "demo", s3_server.environment)
    blob = federation.put_update(RoundPlace(1), "anna", b"12345")
    federation.put_record(RoundPlace(1), "anna", b"12345", lambda record: True)
    federation.put_mask("anna", mask, b"12345")
    federation.put_client_file("anna", "file", b"12345")
    for read in (
        lambda limit: federation.read_blob(blob, limit=limit),
        lambda limit: federation.read_record(RoundPlace(1), "anna", limit=limit),
        lambda limit: federation.get_mask("anna", mask, limit=limit),
        lambda limit: federation.get_client_file("anna", "file", limit=limit),
    ):
        assert read(5) == b"12345"
        with pytest.raises(ObjectTooLarge):
            read(4)


BAD_KEYS = ["../../secret", "a//b", "a/../b", "a\x00b", "\ud800", "a" * 2000, "/a", ".perfit-lock"]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_cannot_be_is_the_fault_of_who_named_it(tmp_path: Path, key: str):
    federation = FederationStore.open(tmp_path.as_uri(), "demo")
    with pytest.raises(UnreadableObject) as caught:
        federation.read_blob(Blob(key, "00" * 32), limit=1)
    assert len(str(caught.value)) < 600


# Files that are none: whoever shares the volume can make them.


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def make_device_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # A socket's path may be no longer than 108 bytes.
        server.bind(path.name)


@pytest.mark.parametrize("make", [make_loop, make_link, make_device_link, os.mkfifo, make_socket])
def test_no_link_pipe_or_device_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make):
    monkeypatch.chdir(tmp_path)
    store = open_store(tmp_path.as_uri())
    store.put("a/b", b"1")
    version = store.get("a/b").version
    make(tmp_path / "a" / "c")
    for act in (
        lambda: store.get("a/c"),
        lambda: store.get("a/c", limit=1),
        lambda: store.size("a/c"),
        lambda: store.exists("a/c"),
        lambda: store.create("a/c", b"2"),
        lambda: store.replace("a/c", b"2", version),
    ):
        with pytest.raises(UnreadableObject, match="a/c"):
            act()
    assert list(store.list("a/b")) == ["a/b"]
    store.put("a/c", b"3")
    assert store.get("a/c").data == b"3"
    (tmp_path / "a" / "c").unlink()
    make(tmp_path / "a" / "c")
    store.delete("a/c")
    assert store.create("a/c", b"4")


def test_a_directory_that_is_a_link_leads_nowhere(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b").write_bytes(b"secret")
    store = open_store((tmp_path / "store").as_uri())
    store.put("a", b"1")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnreadableObject):
        store.get("link/b")
    for act in (lambda: store.put("link/c", b""), lambda: store.create("link/d/e", b"")):
        with pytest.raises(UnreadableObject, match="is a link"):
            act()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["b"]


def test_the_store_itself_may_be_a_link(tmp_path: Path):
    (tmp_path / "volume").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "volume")
    store = open_store((tmp_path / "store").as_uri())
    store.put("a/b", b"1")
    assert store.get("a/b", limit=1).data == b"1"


def test_a_name_that_is_too_long_for_a_file(tmp_path: Path):
    store = open_store(tmp_path.as_uri())
    store.put("a", b"")
    with pytest.raises(UnreadableObject):
        store.get("x" * 300)
