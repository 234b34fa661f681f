"""No write that was acknowledged is lost, none counts twice, and an outage of minutes loses no update."""

from __future__ import annotations

import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count

import pytest

from perfit_storage import (
    AccessDenied,
    Blob,
    FederationStore,
    Head,
    ObjectNotFound,
    RoundPlace,
    StoreUnreachable,
    open_store,
)
from perfit_storage.patience import with_patience

from .s3_proxy import BUSY, FLIP_UPLOAD, KINDS, LOSE, REPEAT, RESET, Behaviour, faulty
from .totals import EFFORT, SEED

SECONDS = 5.0 * EFFORT
PATIENCE_S = 60


@pytest.fixture
def uri(s3_server) -> str:
    return f"{s3_server.store_uri}/{uuid.uuid4()}"


def final(record: bytes) -> bool:
    return True


def test_an_outage_at_upload_loses_no_update(s3_server, uri: str):
    with faulty(s3_server) as (proxy, environment):
        federation = FederationStore.open(uri, "demo", environment, patience_s=PATIENCE_S)
        assert federation.read_record(RoundPlace(1), "anna") is None
        proxy.behaviour.down = True
        threading.Timer(4, lambda: setattr(proxy.behaviour, "down", False)).start()
        blob = federation.put_update(RoundPlace(1), "anna", b"update")
        assert federation.put_record(RoundPlace(1), "anna", b"trained", final) == b"trained"
    federation = FederationStore.open(uri, "demo", s3_server.environment)
    assert federation.read_record(RoundPlace(1), "anna") == b"trained"
    assert federation.read_blob(blob) == b"update"


def test_patience_ends(s3_server, uri: str):
    with faulty(s3_server) as (proxy, environment):
        store = with_patience(open_store(uri, environment), 3)
        store.put("a", b"1")
        proxy.behaviour.down = True
        start = time.monotonic()
        with pytest.raises(StoreUnreachable):
            store.put("a", b"2")
        assert 3 <= time.monotonic() - start < 10


def test_a_store_that_never_answered_is_not_waited_for(s3_server, uri: str):
    with faulty(s3_server, Behaviour(down=True)) as (_, environment):
        start = time.monotonic()
        with pytest.raises(StoreUnreachable):
            FederationStore.open(uri, "demo", environment, patience_s=PATIENCE_S).read_spec()
        assert time.monotonic() - start < 10


def test_only_outages_are_waited_for(s3_server, uri: str):
    store = with_patience(open_store(uri, s3_server.environment), PATIENCE_S)
    wrong = with_patience(open_store(uri, s3_server.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}), PATIENCE_S)
    start = time.monotonic()
    with pytest.raises(ObjectNotFound):
        store.get("a")
    for _ in range(2):
        with pytest.raises(AccessDenied):
            wrong.put("a", b"")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("fault", [LOSE, REPEAT, RESET, BUSY])
def test_a_conditional_write_that_needed_many_attempts_has_one_winner(s3_server, uri: str, fault: str):
    """More of them than a connection pool repeats by itself."""
    with faulty(s3_server) as (proxy, environment):
        store, other = with_patience(open_store(uri, environment), PATIENCE_S), open_store(uri, s3_server.environment)
        assert not store.exists("a")
        proxy.behaviour.plan = [fault] * 5
        assert store.create("a", b"ours")
        assert not other.create("a", b"theirs")
        version = store.get("a").version
        proxy.behaviour.plan = [fault] * 5
        assert store.replace("a", b"ours again", version)
        assert not other.replace("a", b"theirs", version)
        assert not store.create("a", b"later")
        assert other.get("a").data == b"ours again"


def test_lost_answers_do_not_change_what_a_federation_decides_by_comparing(s3_server, uri: str):
    first, second = (Head(round, Blob(f"rounds/{round}/global.safetensors", "0" * 64)) for round in (0, 1))
    other = FederationStore.open(uri, "demo", s3_server.environment)
    assert other.create_head(first)
    assert other.write_spec(b"v1", expected=None)
    assert other.put_record(RoundPlace(1), "anna", b"failed", final) == b"failed"
    with faulty(s3_server) as (proxy, environment):
        federation = FederationStore.open(uri, "demo", environment, patience_s=PATIENCE_S)
        read_first = [""]
        for write in (
            lambda: federation.advance_head(first, second),
            lambda: federation.write_spec(b"v2", expected=b"v1"),
            lambda: federation.put_record(RoundPlace(1), "anna", b"trained", lambda record: False) == b"trained",
        ):
            proxy.behaviour.plan = [*read_first, *[LOSE] * 5]
            assert write()
        assert proxy.counts[LOSE] == 15
    assert (other.read_head(), other.read_spec(), other.read_record(RoundPlace(1), "anna")) == (
        second,
        b"v2",
        b"trained",
    )


def test_bytes_that_changed_on_the_way_up_are_sent_again(s3_server, uri: str):
    data = random.Random(0).randbytes(100_000)
    with faulty(s3_server) as (proxy, environment):
        store = with_patience(open_store(uri, environment), PATIENCE_S)
        assert not store.exists("a")
        for write in (store.put, store.create):
            key = write.__name__
            proxy.behaviour.plan = [FLIP_UPLOAD]
            write(key, data)
            assert open_store(uri, s3_server.environment).get(key).data == data
        assert proxy.counts[FLIP_UPLOAD] == 2


def test_faults_at_random_lose_and_double_nothing(s3_server, uri: str):
    """Four writers append to one log and write objects of their own."""
    deadline = time.monotonic() + SECONDS
    open_store(uri, s3_server.environment).put("log", b"")
    with faulty(s3_server, Behaviour(share=0.2), SEED) as (proxy, environment):

        def write(writer: int) -> tuple[list[str], dict[str, bytes]]:
            store = with_patience(open_store(uri, environment), PATIENCE_S)
            chance, appended, written = random.Random(f"{SEED} {writer}"), [], {}
            while time.monotonic() < deadline:
                with suppress(StoreUnreachable):  # Four faults in a row, before the first answer.
                    store.exists("log")
                    break
            for number in count():
                if time.monotonic() > deadline:
                    return appended, written
                found, mark = store.get("log"), f"{writer}/{number}"
                if store.replace("log", found.data + f"{mark}\n".encode(), found.version):
                    appended.append(mark)
                data = chance.randbytes(chance.choice([0, 100, 50_000]))
                assert store.create(mark, data)
                written[mark] = data

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(write, range(4)))
    plain = open_store(uri, s3_server.environment)
    log = plain.get("log").data.decode().split()
    assert len(log) == len(set(log))
    assert {mark for appended, _ in results for mark in appended} <= set(log)
    written = {key: data for _, objects in results for key, data in objects.items()}
    assert {key: plain.get(key).data for key in plain.list("") if key != "log"} == written
    faults = {kind: proxy.counts[kind] for kind in KINDS}
    print(f"{proxy.counts['requests']} requests, faults: {faults}; {len(written)} objects and {len(log)} lines")
    assert sum(faults.values()) > 10
