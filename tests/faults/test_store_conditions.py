"""A store that does not keep the conditions of a write is found out before a federation is founded in it."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perfit_storage import FederationStore, ObjectStore, RoundPlace, UnsafeStore, open_store

from .s3_proxy import Behaviour, faulty

SCRATCH = "federations/demo/rounds/0/state.probe.safetensors"


def weak(etag: str) -> str:
    return f"W/{etag}"


def missing(etag: str) -> None:
    return None


def renamed(etag: str) -> str:
    """As proxies do that compress."""
    return f'{etag[:-1]}-gzip"'


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, s3_server, tmp_path: Path) -> ObjectStore:
    if request.param == "file":
        return open_store((tmp_path / "store").as_uri())
    return open_store(f"{s3_server.store_uri}/{uuid.uuid4()}", s3_server.environment)


def test_a_sound_store_is_taken_and_keeps_one_small_object(store: ObjectStore):
    federation = FederationStore(store, "demo")
    start = time.monotonic()
    federation.check_conditions()
    federation.check_conditions()
    print(f"two probes of {store.uri} took {time.monotonic() - start:.1f} s")
    assert list(store.list("")) == [SCRATCH]
    assert store.size(SCRATCH) < 100


def test_probes_do_not_disturb_each_other(store: ObjectStore):
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(FederationStore(store, "demo").check_conditions) for _ in range(4)]:
            future.result()


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("conditions", ["dropped", "unlocked"])
def test_a_store_that_lets_two_win_is_refused(s3_server, conditions: str, there: bool):
    uri = f"{s3_server.store_uri}/{uuid.uuid4()}"
    if there:
        FederationStore.open(uri, "demo", s3_server.environment).check_conditions()
    with (
        faulty(s3_server, Behaviour(conditions=conditions)) as (_, environment),
        pytest.raises(UnsafeStore, match=r"If-(None-)?Match") as caught,
    ):
        FederationStore.open(uri, "demo", environment).check_conditions()
    assert "SeaweedFS 4.18 or newer" in caught.value.fix


@pytest.mark.parametrize(
    ("etag", "finding"), [(weak, "the weak ETag W/"), (missing, "no ETag"), (renamed, "nobody could replace")]
)
def test_a_store_whose_etags_are_of_no_use_is_refused(s3_server, etag, finding: str):
    uri = f"{s3_server.store_uri}/{uuid.uuid4()}"
    with (
        faulty(s3_server, Behaviour(etag=etag)) as (_, environment),
        pytest.raises(UnsafeStore, match=finding) as caught,
    ):
        FederationStore.open(uri, "demo", environment).check_conditions()
    assert "proxy" in caught.value.fix or "proxies" in caught.value.fix


@pytest.mark.parametrize("etag", [weak, missing, renamed])
def test_a_record_is_written_or_refused_but_never_for_ever(s3_server, etag):
    uri = f"{s3_server.store_uri}/{uuid.uuid4()}"
    with faulty(s3_server, Behaviour(etag=etag)) as (_, environment):
        federation = FederationStore.open(uri, "demo", environment)
        assert federation.put_record(RoundPlace(1), "anna", b"failed", lambda record: False) == b"failed"
        with pytest.raises(UnsafeStore, match=r"ETag|another than just read"):
            federation.put_record(RoundPlace(1), "anna", b"failed again", lambda record: False)
        assert federation.read_record(RoundPlace(1), "anna") == b"failed"
