"""The layout and the rules of commit, in stores of both kinds."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest

from perfit_storage import (
    CorruptObject,
    FederationStore,
    Head,
    ObjectNotFound,
    ObjectStore,
    StoreError,
    federation_names,
)

MASK = "ab" * 32


@pytest.fixture
def federation(store: ObjectStore) -> FederationStore:
    return FederationStore(store, "demo")


def test_layout(store: ObjectStore, federation: FederationStore):
    federation.write_spec(b"name: demo\n", expected=None)
    federation.create_head(federation.put_global(0, b"zero"))
    federation.put_mask("anna", MASK, b"mask")
    federation.create_plan(1, {"participants": ["anna"]})
    federation.put_update(1, "anna", {"status": "trained"}, b"update")
    federation.put_update(1, "ben", {"status": "trained"}, b"private", private=True)
    federation.put_summary(1, {"clients": 2})
    federation.put_report(1, b"<html>")
    federation.put_client_file("anna", "adapter/adapter_config.json", b"{}")
    assert federation.uri == f"{store.uri}/federations/demo"
    assert list(store.list("")) == [
        "federations/demo/clients/anna/adapter/adapter_config.json",
        "federations/demo/clients/ben/rounds/1.safetensors",
        "federations/demo/head.json",
        f"federations/demo/masks/anna-{MASK}",
        "federations/demo/rounds/0/global.safetensors",
        "federations/demo/rounds/1/plan.json",
        "federations/demo/rounds/1/report.html",
        "federations/demo/rounds/1/summary.json",
        "federations/demo/rounds/1/updates/anna.json",
        "federations/demo/rounds/1/updates/anna.safetensors",
        "federations/demo/rounds/1/updates/ben.json",
        "federations/demo/spec.yaml",
    ]
    assert store.get("federations/demo/rounds/1/plan.json").data == (b'{\n "participants": [\n  "anna"\n ]\n}\n')


def test_spec_is_created_once_and_then_compared(federation: FederationStore):
    assert federation.write_spec(b"v1", expected=None)
    assert federation.write_spec(b"v1", expected=None)
    assert not federation.write_spec(b"v2", expected=None)
    assert not federation.write_spec(b"v2", expected=b"v0")
    assert federation.write_spec(b"v2", expected=b"v1")
    assert federation.write_spec(b"v2", expected=b"v1")
    assert federation.read_spec() == b"v2"


def test_spec_of_an_unknown_federation(store: ObjectStore, federation: FederationStore):
    with pytest.raises(ObjectNotFound, match="no federation yet"):
        federation.read_spec()
    assert not federation.write_spec(b"v2", expected=b"v1")
    for name in ("two", "one"):
        FederationStore(store, name).write_spec(b"", expected=None)
    assert federation_names(store) == ["one", "two"]
    with pytest.raises(ObjectNotFound, match="no federation 'demo'") as caught:
        federation.read_spec()
    assert "one, two" in caught.value.fix


def test_head_moves_one_round_at_a_time(federation: FederationStore):
    heads = [federation.put_global(round, f"global {round}".encode()) for round in range(3)]
    with pytest.raises(ObjectNotFound, match=r"head\.json"):
        federation.read_head()
    assert federation.create_head(heads[0])
    assert not federation.create_head(heads[1])
    assert federation.advance_head(heads[0], heads[1])
    assert federation.advance_head(heads[0], heads[1]), "a retry after success"
    assert federation.read_head() == heads[1] == Head(1, "rounds/1/global.safetensors", heads[1].sha256)
    assert federation.read_global(heads[1]) == b"global 1"
    assert federation.advance_head(heads[1], heads[2])
    assert not federation.advance_head(heads[0], heads[1])
    for old, new in ((heads[0], heads[2]), (heads[1], heads[1]), (heads[2], heads[1])):
        with pytest.raises(ValueError, match="cannot move from round"):
            federation.advance_head(old, new)


def test_racing_committers_move_the_head_once_and_lose_no_bytes(federation: FederationStore):
    start = federation.put_global(0, b"zero")
    federation.create_head(start)

    def commit(data: bytes) -> bool:
        return federation.advance_head(start, federation.put_global(1, data))

    contents = [b"from run A", b"from run B", b"from run C"]
    with ThreadPoolExecutor(3) as pool:
        moved = list(pool.map(commit, contents))
    assert moved.count(True) == 1
    assert federation.read_global(federation.read_head()) == contents[moved.index(True)]


def test_plan_is_the_first_one(federation: FederationStore):
    assert federation.create_plan(1, {"seeds": (1, 2)}) == {"seeds": [1, 2]}
    assert federation.create_plan(1, {"seeds": [3]}) == {"seeds": [1, 2]}
    assert federation.read_plan(1) == {"seeds": [1, 2]}
    with pytest.raises(ObjectNotFound, match="plan round 2 first"):
        federation.read_plan(2)


def test_masks_belong_to_one_client(federation: FederationStore):
    other = "cd" * 32
    federation.put_mask("a", other, b"1")
    federation.put_mask("a", MASK, b"2")
    federation.put_mask("a-b", MASK, b"3")
    assert federation.find_masks("a") == [MASK, other]
    assert federation.find_masks("a-b") == [MASK]
    assert federation.find_masks("b") == []
    assert federation.get_mask("a-b", MASK) == b"3"
    federation.put_mask("a", MASK, b"2")
    with pytest.raises(CorruptObject, match="other bytes"):
        federation.put_mask("a", MASK, b"another")
    with pytest.raises(ObjectNotFound, match="search of client 'b'"):
        federation.get_mask("b", MASK)
    with pytest.raises(StoreError, match="not a SHA-256"):
        federation.get_mask("b", "../../spec.yaml")


def test_record_says_what_the_update_is(federation: FederationStore):
    assert federation.read_record(1, "anna") is None
    record = federation.put_update(1, "anna", {"status": "trained", "samples": 3}, b"update")
    assert record == {
        "status": "trained",
        "samples": 3,
        "key": "rounds/1/updates/anna.safetensors",
        "bytes": 6,
        "sha256": sha256(b"update").hexdigest(),
    }
    assert federation.read_record(1, "anna") == record
    assert federation.read_update(record) == b"update"


def test_a_trained_record_is_final(federation: FederationStore):
    failed = federation.put_update(1, "anna", {"status": "failed", "reason": "out of memory"}, None)
    assert (failed["key"], failed["bytes"], failed["sha256"]) == (None, None, None)
    with pytest.raises(ObjectNotFound, match="no update"):
        federation.read_update(failed)
    trained = federation.put_update(1, "anna", {"status": "trained", "samples": 3}, b"update")
    for late in (("failed", None), ("trained", b"other")):
        assert federation.put_update(1, "anna", {"status": late[0]}, late[1]) == trained
    assert federation.read_record(1, "anna") == trained
    assert federation.read_update(trained) == b"update"


def test_an_update_without_record_is_not_overwritten(store: ObjectStore, federation: FederationStore):
    """Another attempt may be about to record it; each record names its own bytes."""
    store.put("federations/demo/rounds/1/updates/anna.safetensors", b"of an attempt that ended there")
    record = federation.put_update(1, "anna", {"status": "trained"}, b"update")
    assert record["key"] == f"rounds/1/updates/anna.{sha256(b'update').hexdigest()}.safetensors"
    assert federation.read_update(record) == b"update"


def test_racing_attempts_of_a_client_leave_one_whole_update(federation: FederationStore):
    def attempt(number: int) -> dict:
        data = None if number == 0 else f"attempt {number}".encode()
        status = "failed" if data is None else "trained"
        return federation.put_update(1, "anna", {"status": status, "attempt": number}, data)

    with ThreadPoolExecutor(4) as pool:
        returned = list(pool.map(attempt, range(4)))
    record = federation.read_record(1, "anna")
    assert record["status"] == "trained"
    assert all(answer == record for answer in returned[1:])
    assert federation.read_update(record) == f"attempt {record['attempt']}".encode()


def test_corrupt_objects_are_found(store: ObjectStore, federation: FederationStore):
    head = federation.put_global(1, b"global")
    record = federation.put_update(1, "anna", {"status": "trained"}, b"update")
    store.put(f"federations/demo/{head.key}", b"Global")
    store.put(f"federations/demo/{record['key']}", b"Update")
    with pytest.raises(CorruptObject, match=r"global\.safetensors has sha256"):
        federation.read_global(head)
    with pytest.raises(CorruptObject, match=r"anna\.safetensors has sha256"):
        federation.read_update(record)
    for text in (b"{", b"[]", b'{"round": 1}'):
        store.put("federations/demo/head.json", text)
        with pytest.raises(CorruptObject, match=r"head\.json"):
            federation.read_head()


def test_a_record_cannot_lead_out_of_the_federation(store: ObjectStore, federation: FederationStore):
    store.put("secret", b"of another")
    with pytest.raises(StoreError, match="cannot be the key"):
        federation.read_update({"key": "../../secret", "sha256": sha256(b"of another").hexdigest()})


def test_summaries_are_in_the_order_of_rounds(federation: FederationStore):
    assert federation.summaries() == []
    assert federation.read_summary(1) is None
    for round in (10, 9, 1):
        federation.put_summary(round, {"round": round})
    assert [summary["round"] for summary in federation.summaries()] == [1, 9, 10]
    federation.put_summary(9, {"round": 9, "again": True})
    assert federation.read_summary(9) == {"round": 9, "again": True}


def test_json_has_no_nan(federation: FederationStore):
    with pytest.raises(ValueError, match="JSON"):
        federation.put_summary(1, {"loss": float("nan")})
    assert federation.read_summary(1) is None


def test_reports_and_client_files(federation: FederationStore):
    federation.put_report(1, b"<html>")
    assert federation.read_report(1) == b"<html>"
    with pytest.raises(ObjectNotFound, match="run round 2 first"):
        federation.read_report(2)
    federation.put_client_file("a", "adapter/b.json", b"b")
    federation.put_client_file("a", "a.json", b"a")
    federation.put_client_file("a-b", "c.json", b"c")
    assert federation.list_client_files("a") == ["a.json", "adapter/b.json"]
    assert federation.get_client_file("a", "adapter/b.json") == b"b"
    for name in ("", "../b/x"):
        with pytest.raises(StoreError, match="cannot be the key"):
            federation.get_client_file("a", name)


@pytest.mark.parametrize("name", ["", "A", "a b", "a/b", "..", "-a", "a-", "a.b", "a_b", "ä", "a\n", "x" * 64])
def test_unsafe_names_are_refused(store: ObjectStore, name: str):
    with pytest.raises(StoreError, match="cannot be a federation name"):
        FederationStore(store, name)
    federation = FederationStore(store, "demo")
    for act in (
        lambda: federation.put_mask(name, MASK, b""),
        lambda: federation.find_masks(name),
        lambda: federation.put_update(1, name, {}, None),
        lambda: federation.read_record(1, name),
        lambda: federation.put_client_file(name, "file", b""),
    ):
        with pytest.raises(StoreError, match="cannot be a client id"):
            act()
    assert list(store.list("")) == []


def test_safe_names(federation: FederationStore):
    for name in ("a", "7", "a-1", "a--b", "x" * 63):
        federation.put_update(1, name, {"status": "failed"}, None)
        assert json.dumps(federation.read_record(1, name)["status"]) == '"failed"'


def test_open_by_uri(s3_server):
    federation = FederationStore.open(s3_server.store_uri, "demo", s3_server.environment)
    assert federation.uri == f"{s3_server.store_uri}/federations/demo"
