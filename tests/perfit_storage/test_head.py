"""The head's text: one for each head, and an error with a fix for anything else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from perfit_storage import Blob, Branch, CorruptObject, Head, RoundPlace, StoreError
from perfit_storage.head import dump_head, parse_head

ADAPTER, STATE = Blob("rounds/3/global.safetensors", "ab" * 32), Blob("rounds/3/state.safetensors", "cd" * 32)
WHERE = "file:///store/federations/demo/head.json"


@pytest.mark.parametrize(
    "head",
    [
        Head(3, ADAPTER),
        Head(3, ADAPTER, STATE),
        Head(3, ADAPTER, None, STATE),
        Head(3, ADAPTER, branches=(Branch(1, 2), Branch(4, 3))),
    ],
)
def test_a_head_comes_back(head: Head):
    assert parse_head(WHERE, dump_head(head)) == head


def test_the_text_of_a_head():
    assert json.loads(dump_head(Head(3, ADAPTER))) == {
        "format": 3,
        "round": 3,
        "adapter": {"key": "rounds/3/global.safetensors", "digest": "ab" * 32},
        "state": None,
        "summary": None,
        "branches": [],
    }
    assert dump_head(Head(3, ADAPTER, STATE)).startswith(b'{\n "adapter": {\n  "digest": "abab')


def test_a_head_of_perfit_0_1():
    with pytest.raises(StoreError) as caught:
        parse_head(WHERE, b'{\n "key": "rounds/2/global.safetensors",\n "round": 2,\n "sha256": "ab"\n}\n')
    assert type(caught.value) is StoreError, "nothing is corrupt"
    assert caught.value.problem == (
        f"{WHERE} belongs to a federation created by perfit 0.1, whose files this version cannot read"
    )
    assert caught.value.fix == (
        "give the federation another name to start again, or continue with perfit 0.1; its adapters are PEFT "
        "directories under clients/<id>/adapter and load without perfit"
    )


@pytest.mark.parametrize("format", [2, 4])
def test_a_head_of_another_version(format):
    text = json.dumps({**json.loads(dump_head(Head(3, ADAPTER))), "format": format, "shards": 2})
    with pytest.raises(StoreError, match="was written by another version of perfit") as caught:
        parse_head(WHERE, text.encode())
    assert caught.value.fix.startswith("use that version, or give the federation another name")


def changed(**fields: object) -> bytes:
    return json.dumps({**json.loads(dump_head(Head(3, ADAPTER, STATE))), **fields}).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"3",
        b"null",
        b'"format"',
        b"{}",
        b'{"round": 1}',
        b'{"format": 3}',
        b'{"format": 3, "round": 1}',
        changed(adapter=None),
        changed(adapter="rounds/3/global.safetensors"),
        changed(adapter={"key": "rounds/3/global.safetensors"}),
        changed(adapter={"key": "k", "digest": "00", "size": 3}),
        changed(state=3),
        changed(colour="blue"),
        changed(round="3"),
        changed(round=True),
        changed(round=-1),
        changed(branches=None),
        changed(branches=[3]),
        changed(branches=[{"number": 1}]),
        changed(branches=[{"number": 1, "first_round": "2"}]),
        changed(branches=[{"number": True, "first_round": 2}]),
        changed(branches=[{"number": 0, "first_round": 2}]),
        changed(branches=[{"number": 1, "first_round": 0}]),
        changed(branches=[{"number": 2, "first_round": 2}, {"number": 1, "first_round": 3}]),
        changed(branches=[{"number": 1, "first_round": 2}, {"number": 2, "first_round": 2}]),
    ],
    ids=repr,
)
def test_invalid_heads(text: bytes):
    with pytest.raises(CorruptObject, match=f"{WHERE} is not a head") as caught:
        parse_head(WHERE, text)
    assert caught.value.fix == "restore it from a backup"


def test_a_round_that_is_run_again_has_another_place():
    """Rolled back from 7 to 4, from 6 to 2, from 5 to 3, and from 4 to 3."""
    head, places = Head(7, ADAPTER), []
    for old_round, round in ((7, 4), (6, 2), (5, 3), (4, 3)):
        head = replace(head, round=old_round).rolled_back_to(Head(round, ADAPTER))
        places.append([str(head.place(number)) for number in range(2, 7)])
    assert places == [
        ["2", "3", "4", "5.1", "6.1"],
        ["2", "3.2", "4.2", "5.2", "6.2"],
        ["2", "3.2", "4.3", "5.3", "6.3"],
        ["2", "3.2", "4.4", "5.4", "6.4"],
    ]
    assert head.branches == (Branch(2, 3), Branch(4, 4))
    assert (head.place(3), head.place(2)) == (RoundPlace(3, 2), RoundPlace(2))
