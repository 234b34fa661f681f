"""The layout and the rules of commit, in stores of both kinds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
from blake3 import blake3

from perfit_storage import (
    Blob,
    Branch,
    CorruptObject,
    FederationStore,
    Head,
    ObjectNotFound,
    ObjectStore,
    ObjectTooLarge,
    RoundPlace,
    StoreError,
    federation_names,
)

SPEC = b"name: demo\n"
MASK = "ab" * 32
FOUNDING, FIRST = RoundPlace(0), RoundPlace(1)
HEAD = Head(0, Blob("rounds/0/global.safetensors", "cd" * 32))


def always(record: bytes) -> bool:
    return True


def never(record: bytes) -> bool:
    return False


def head(federation: FederationStore, round: int, content: bytes) -> Head:
    """The head of a round whose global adapter has this content."""
    return Head(round, federation.put_global(RoundPlace(round), content))


@pytest.fixture
def federation(store: ObjectStore) -> FederationStore:
    return FederationStore(store, "demo")


def fill(federation: FederationStore) -> None:
    """Write one of everything that a federation of two clients has after a round."""
    federation.write_spec(SPEC, expected=None)
    federation.create_head(
        Head(0, federation.put_global(FOUNDING, b"zero"), federation.put_state(FOUNDING, b"moments"))
    )
    federation.put_mask("anna", MASK, b"mask")
    federation.create_plan(FIRST, b"the plan")
    federation.put_update(FIRST, "anna", b"update")
    federation.put_record(FIRST, "anna", b"of anna", always)
    federation.put_record(FIRST, "ben", b"of ben", always)
    federation.put_summary(FIRST, b"the summary")
    federation.put_report(FIRST, b"<html>")
    federation.put_client_file("anna", "adapter/adapter_config.json", b"{}")
    federation.put_client_file("ben", "state/1.safetensors", b"private")
    federation.put_file(SPEC)


def test_layout(store: ObjectStore, federation: FederationStore):
    fill(federation)
    assert federation.uri == f"{store.uri}/federations/demo"
    assert list(store.list("")) == [
        "federations/demo/clients/anna/adapter/adapter_config.json",
        "federations/demo/clients/ben/state/1.safetensors",
        f"federations/demo/files/{blake3(SPEC).hexdigest()}.yaml",
        "federations/demo/head.json",
        f"federations/demo/masks/anna/{MASK}",
        "federations/demo/rounds/0/global.safetensors",
        "federations/demo/rounds/0/state.safetensors",
        "federations/demo/rounds/1/plan.json",
        "federations/demo/rounds/1/report.html",
        "federations/demo/rounds/1/summary.json",
        "federations/demo/rounds/1/updates/anna.json",
        "federations/demo/rounds/1/updates/anna.safetensors",
        "federations/demo/rounds/1/updates/ben.json",
        "federations/demo/spec.yaml",
    ]
    assert store.get("federations/demo/rounds/1/plan.json").data == b"the plan"


def test_spec_is_created_once_and_then_compared(federation: FederationStore):
    assert federation.write_spec(b"v1", expected=None)
    assert federation.write_spec(b"v1", expected=None)
    assert not federation.write_spec(b"v2", expected=None)
    assert not federation.write_spec(b"v2", expected=b"v0")
    assert federation.write_spec(b"v2", expected=b"v1")
    assert federation.write_spec(b"v2", expected=b"v1")
    assert federation.read_spec() == b"v2"


def test_the_models_files_are_written_once(federation: FederationStore):
    assert federation.read_model() is None
    assert federation.write_model(b"these", expected=None)
    assert federation.write_model(b"these", expected=None)
    assert not federation.write_model(b"others", expected=None)
    assert not federation.write_model(b"others", expected=b"more")
    assert federation.read_model() == b"these"
    assert federation.write_model(b"others", expected=b"these")
    assert federation.write_model(b"others", expected=b"these")
    assert federation.read_model() == b"others"


def test_spec_of_an_unknown_federation(store: ObjectStore, federation: FederationStore):
    with pytest.raises(ObjectNotFound, match="no federation yet"):
        federation.read_spec()
    assert not federation.write_spec(b"v2", expected=b"v1")
    for name in ("two", "one"):
        FederationStore(store, name).write_spec(b"", expected=None)
    assert federation_names(store) == [], "a file alone is no federation"
    for name in ("two", "one"):
        FederationStore(store, name).create_head(HEAD)
    assert federation_names(store) == ["one", "two"]
    with pytest.raises(ObjectNotFound, match="no federation 'demo'") as caught:
        federation.read_spec()
    assert "one, two" in caught.value.fix


def test_head_moves_one_round_at_a_time(federation: FederationStore):
    heads = [head(federation, round, f"global {round}".encode()) for round in range(3)]
    with pytest.raises(ObjectNotFound, match=r"head\.json"):
        federation.read_head()
    assert federation.create_head(heads[0])
    assert not federation.create_head(heads[1])
    assert federation.advance_head(heads[0], heads[1])
    assert federation.advance_head(heads[0], heads[1]), "a retry after success"
    assert federation.read_head() == heads[1]
    assert heads[1] == Head(1, Blob("rounds/1/global.safetensors", blake3(b"global 1").hexdigest()))
    assert federation.read_blob(heads[1].adapter) == b"global 1"
    assert federation.advance_head(heads[1], heads[2])
    assert not federation.advance_head(heads[0], heads[1])
    for old, new in ((heads[0], heads[2]), (heads[1], heads[1]), (heads[2], heads[1])):
        with pytest.raises(ValueError, match="cannot move from round"):
            federation.advance_head(old, new)


def test_a_rollback_opens_a_branch(federation: FederationStore):
    heads = [head(federation, round, b"%d" % round) for round in range(3)]
    federation.create_head(heads[0])
    for old, new in pairwise(heads):
        federation.advance_head(old, new)
    back = heads[2].rolled_back_to(heads[0])
    assert back == Head(0, heads[0].adapter, branches=(Branch(1, 1),))
    assert federation.roll_back_head(heads[2], back)
    assert federation.roll_back_head(heads[2], back), "a retry after success"
    assert federation.read_head() == back
    assert not federation.advance_head(heads[2], head(federation, 3, b"3")), "planned before the rollback"
    assert not federation.roll_back_head(heads[2], heads[2].rolled_back_to(heads[1])), "another was first"

    again = replace(back, round=1, adapter=federation.put_global(back.place(1), b"1 again"))
    assert again.adapter.key == "rounds/1.1/global.safetensors"
    assert federation.advance_head(back, again)
    assert federation.read_blob(heads[1].adapter) == b"1"


def test_a_head_is_not_rolled_back_to_another_that_it_leads_to(federation: FederationStore):
    first, second = (head(federation, round, b"%d" % round) for round in (1, 2))
    back = second.rolled_back_to(first)
    for old, new in (
        (second, first),
        (second, replace(first, branches=(Branch(1, 3),))),
        (second, replace(first, branches=(Branch(2, 2),))),
        (second, second.rolled_back_to(second)),
        (first, first.rolled_back_to(second)),
        (back, back.rolled_back_to(back)),
    ):
        with pytest.raises(ValueError, match="cannot be rolled back to"):
            federation.roll_back_head(old, new)
    for old, new in ((first, replace(second, branches=(Branch(1, 2),))), (back, second)):
        with pytest.raises(ValueError, match="cannot move from round"):
            federation.advance_head(old, new)


def test_a_federation_that_is_founded_again_is_on_a_branch(federation: FederationStore):
    first, second = (Head(0, federation.put_global(FOUNDING, content)) for content in (b"first", b"second"))
    federation.create_head(first)
    again = first.rolled_back_to(second)
    assert federation.found_again(first, again)
    assert federation.found_again(first, again), "a retry after success"
    assert federation.read_head() == Head(0, second.adapter, branches=(Branch(1, 1),))
    assert not federation.found_again(first, first.rolled_back_to(first)), "another was first"
    assert federation.found_again(again, again.rolled_back_to(first))
    assert federation.read_head().place(1) == RoundPlace(1, 2)
    later = replace(first, round=1)
    for old, new in ((first, second), (later, later.rolled_back_to(second)), (first, first.rolled_back_to(later))):
        with pytest.raises(ValueError, match="cannot become"):
            federation.found_again(old, new)


def test_deleting_leaves_nothing_of_a_federation_and_everything_of_others(store, federation: FederationStore):
    other = FederationStore(store, "demo.fedit")
    assert federation.is_empty()
    for each in (federation, other):
        fill(each)
        assert each.has_masks()
        assert each.has_rounds()
    before = list(store.list("federations/demo."))
    *_, removed = federation.delete()
    assert removed == len(before) - 1, "the head is not counted"
    assert list(store.list("federations/demo/")) == []
    assert federation.is_empty()
    assert not federation.has_masks()
    assert not federation.has_rounds()
    assert list(store.list("federations/demo.")) == before
    assert federation_names(store) == ["demo.fedit"]


@pytest.mark.parametrize("after", range(6))
def test_a_deletion_that_was_interrupted_is_seen_and_finished(store, federation: FederationStore, after: int):
    fill(federation)
    deletion = federation.delete()
    for _ in range(after):
        next(deletion, None)
    if 0 < after < 4:
        assert federation_names(store) == []
        assert federation.has_masks()
        assert not federation.is_empty()
    list(federation.delete())
    assert federation.is_empty()


def test_of_a_rollback_and_a_commit_at_once_one_wins(federation: FederationStore):
    heads = [head(federation, round, b"%d" % round) for round in range(3)]
    federation.create_head(heads[0])
    federation.advance_head(heads[0], heads[1])
    back = heads[1].rolled_back_to(heads[0])
    moves = [lambda: federation.advance_head(heads[1], heads[2]), lambda: federation.roll_back_head(heads[1], back)]
    with ThreadPoolExecutor(2) as pool:
        moved = list(pool.map(lambda move: move(), moves))
    assert sorted(moved) == [False, True]
    assert federation.read_head() == (back if moved[1] else heads[2])


def test_racing_committers_move_the_head_once_and_lose_no_bytes(federation: FederationStore):
    start = head(federation, 0, b"zero")
    federation.create_head(start)

    def commit(data: bytes) -> bool:
        end = Head(1, federation.put_global(FIRST, data), federation.put_state(FIRST, b"state " + data))
        return federation.advance_head(start, end)

    contents = [b"from run A", b"from run B", b"from run C"]
    with ThreadPoolExecutor(3) as pool:
        moved = list(pool.map(commit, contents))
    assert moved.count(True) == 1
    winner, now = contents[moved.index(True)], federation.read_head()
    assert federation.read_blob(now.adapter) == winner
    assert federation.read_blob(now.state) == b"state " + winner


def test_plan_is_the_first_one(federation: FederationStore):
    assert federation.create_plan(FIRST, b"first") == b"first"
    assert federation.create_plan(FIRST, b"second") == b"first"
    assert federation.read_plan(FIRST) == b"first"
    with pytest.raises(ObjectNotFound, match="plan round 2 first"):
        federation.read_plan(RoundPlace(2))


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
    with pytest.raises(StoreError, match="not a digest"):
        federation.get_mask("b", "../../spec.yaml")


def test_an_update_is_found_by_what_its_record_names(federation: FederationStore):
    assert federation.read_record(FIRST, "anna") is None
    blob = federation.put_update(FIRST, "anna", b"update")
    assert blob == Blob("rounds/1/updates/anna.safetensors", blake3(b"update").hexdigest())
    assert federation.read_record(FIRST, "anna") is None, "an update alone counts for nothing"
    assert federation.put_record(FIRST, "anna", b"trained on 3", always) == b"trained on 3"
    assert federation.read_record(FIRST, "anna") == b"trained on 3"
    assert federation.read_blob(blob) == b"update"


def is_trained(record: bytes) -> bool:
    return record.startswith(b"trained")


def test_a_record_gives_way_until_one_is_final(federation: FederationStore):
    for record in (b"failed: out of memory", b"failed: no such file", b"trained on 3"):
        assert federation.put_record(FIRST, "anna", record, is_trained) == record
        assert federation.read_record(FIRST, "anna") == record
    for late in (b"failed: too late", b"trained on 4"):
        assert federation.put_record(FIRST, "anna", late, is_trained) == b"trained on 3"
    assert federation.read_record(FIRST, "anna") == b"trained on 3"


def test_an_update_without_record_is_not_overwritten(store: ObjectStore, federation: FederationStore):
    """Another attempt may be about to record it; each record names its own bytes."""
    store.put("federations/demo/rounds/1/updates/anna.safetensors", b"of an attempt that ended there")
    blob = federation.put_update(FIRST, "anna", b"update")
    assert blob.key == f"rounds/1/updates/anna.{blake3(b'update').hexdigest()}.safetensors"
    assert federation.read_blob(blob) == b"update"
    assert store.get("federations/demo/rounds/1/updates/anna.safetensors").data == b"of an attempt that ended there"


@pytest.mark.parametrize("put", [FederationStore.put_global, FederationStore.put_state])
def test_an_earlier_attempts_vectors_are_not_overwritten(federation: FederationStore, put: Callable[..., Blob]):
    first, again, second = put(federation, 1, b"first"), put(federation, 1, b"first"), put(federation, 1, b"second")
    assert first == again
    assert second.key == first.key.replace(".safetensors", f".{blake3(b'second').hexdigest()}.safetensors")
    assert [federation.read_blob(blob) for blob in (first, second)] == [b"first", b"second"]


def test_racing_attempts_of_a_client_leave_one_whole_update(federation: FederationStore):
    def attempt(number: int) -> tuple[bytes, Blob | None]:
        if number == 0:
            return federation.put_record(FIRST, "anna", b"failed", is_trained), None
        blob = federation.put_update(FIRST, "anna", f"attempt {number}".encode())
        return federation.put_record(FIRST, "anna", f"trained in attempt {number}".encode(), is_trained), blob

    with ThreadPoolExecutor(4) as pool:
        returned = list(pool.map(attempt, range(4)))
    record = federation.read_record(FIRST, "anna")
    assert is_trained(record)
    assert all(answer == record for answer, _ in returned[1:])
    winner = int(record.split()[-1])
    assert federation.read_blob(returned[winner][1]) == f"attempt {winner}".encode()


def test_corrupt_objects_are_found(store: ObjectStore, federation: FederationStore):
    for blob in (federation.put_global(FIRST, b"global"), federation.put_update(FIRST, "anna", b"update")):
        store.put(f"federations/demo/{blob.key}", b"Another")
        with pytest.raises(CorruptObject, match=rf"{blob.key} has digest [0-9a-f]+, but its record says {blob.digest}"):
            federation.read_blob(blob)
        with pytest.raises(CorruptObject, match=rf"{blob.key} has digest [0-9a-f]+, but its record says {blob.digest}"):
            copied(federation, blob)
    for text in (b"{", b"[]", b'{"round": 1}'):
        store.put("federations/demo/head.json", text)
        with pytest.raises(CorruptObject, match=r"federations/demo/head\.json is not a head"):
            federation.read_head()


def copied(federation: FederationStore, blob: Blob, limit: int = 10**7) -> bytes:
    pieces = bytearray(limit)

    def write(start: int, piece: memoryview) -> None:
        pieces[start : start + len(piece)] = piece

    size = federation.copy_blob(blob, write, limit)
    return bytes(pieces[:size])


def test_a_blob_comes_piece_by_piece(federation: FederationStore):
    for data in (b"", b"update", bytes(range(256)) * 4097):
        blob = federation.put_update(FIRST, "anna", data)
        assert copied(federation, blob) == copied(federation, blob, len(data)) == data
    with pytest.raises(ObjectTooLarge):
        copied(federation, blob, len(data) - 1)
    with pytest.raises(ObjectNotFound, match=r"there is no .*/rounds/1/updates/bob"):
        copied(federation, Blob("rounds/1/updates/bob.safetensors", blob.digest))


def test_a_federation_of_perfit_0_1_is_refused_with_what_to_do(store: ObjectStore, federation: FederationStore):
    store.put("federations/demo/head.json", b'{"key": "rounds/0/global.safetensors", "round": 0, "sha256": "00"}')
    for act in (
        federation.read_head,
        lambda: federation.advance_head(Head(0, Blob("k", "00")), Head(1, Blob("l", "11"))),
    ):
        with pytest.raises(
            StoreError, match=r"demo/head\.json belongs to a federation created by perfit 0\.1"
        ) as caught:
            act()
        assert caught.value.fix.startswith("give the federation another name")


def test_a_record_cannot_lead_out_of_the_federation(store: ObjectStore, federation: FederationStore):
    store.put("secret", b"of another")
    with pytest.raises(StoreError, match="cannot be the key"):
        federation.read_blob(Blob("../../secret", blake3(b"of another").hexdigest()))


def test_a_summary_is_never_overwritten(federation: FederationStore):
    first, again = (federation.put_summary(RoundPlace(9), text) for text in (b"round 9", b"round 9 otherwise"))
    assert first.key == "rounds/9/summary.json"
    assert again.key == f"rounds/9/summary.{blake3(b'round 9 otherwise').hexdigest()}.json"
    assert federation.put_summary(RoundPlace(9), b"round 9") == first
    assert [federation.read_blob(blob) for blob in (first, again)] == [b"round 9", b"round 9 otherwise"]
    assert federation.has_blob(first.key)
    assert not federation.has_blob("rounds/8/summary.json")


def test_reports_and_client_files(federation: FederationStore):
    federation.put_report(FIRST, b"<html>")
    assert federation.read_report(FIRST) == b"<html>"
    with pytest.raises(ObjectNotFound, match="run round 2 first"):
        federation.read_report(RoundPlace(2))
    federation.put_client_file("a", "adapter/b.json", b"b")
    federation.put_client_file("a", "a.json", b"a")
    federation.put_client_file("a-b", "c.json", b"c")
    assert federation.list_client_files("a") == ["a.json", "adapter/b.json"]
    assert federation.get_client_file("a", "adapter/b.json") == b"b"
    for name in ("a.json", "none.json"):
        federation.empty_client_file("a", name)
    assert federation.list_client_files("a") == ["a.json", "adapter/b.json"]
    assert federation.get_client_file("a", "a.json") == b""
    for name in ("", "../b/x"):
        with pytest.raises(StoreError, match="cannot be the key"):
            federation.get_client_file("a", name)


UNSAFE = ["", "A", "a b", "a/b", "..", "-a", "a-", "a.", ".b", "a.b.c", "a..b", "a_b", "ä", "a\n", "x" * 64]


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_names_of_federations_are_refused(store: ObjectStore, name: str):
    with pytest.raises(StoreError, match="cannot be a federation name"):
        FederationStore(store, name)


def test_a_run_by_another_method_has_a_directory_of_its_own(store: ObjectStore):
    for name in ("demo", "demo.fedit"):
        federation = FederationStore(store, name)
        assert federation.uri == f"{store.uri}/federations/{name}"
        federation.write_spec(name.encode(), expected=None)
        federation.create_head(HEAD)
    assert federation_names(store) == ["demo", "demo.fedit"]
    assert FederationStore(store, "demo").read_spec() == b"demo"


@pytest.mark.parametrize("name", [*UNSAFE, "a.b"])
def test_unsafe_ids_of_clients_are_refused(store: ObjectStore, name: str):
    federation = FederationStore(store, "demo")
    for act in (
        lambda: federation.put_mask(name, MASK, b""),
        lambda: federation.find_masks(name),
        lambda: federation.put_update(FIRST, name, b""),
        lambda: federation.put_record(FIRST, name, b"", never),
        lambda: federation.read_record(FIRST, name),
        lambda: federation.put_client_file(name, "file", b""),
    ):
        with pytest.raises(StoreError, match="cannot be a client id"):
            act()
    assert list(store.list("")) == []


def test_safe_names(federation: FederationStore):
    for name in ("a", "7", "a-1", "a--b", "x" * 63):
        federation.put_record(FIRST, name, b"failed", never)
        assert federation.read_record(FIRST, name) == b"failed"


def test_open_by_uri(s3_server):
    federation = FederationStore.open(s3_server.store_uri, "demo", s3_server.environment)
    assert federation.uri == f"{s3_server.store_uri}/federations/demo"
