"""Messages: one text per value, and the refusal of everything else."""

from __future__ import annotations

import json

import pytest

from perfit.protocol import (
    MAX_COUNT,
    MAX_REASON,
    Base,
    Blob,
    ClientStatus,
    MessageError,
    Participant,
    Perplexity,
    Plan,
    RoundSummary,
    UpdateRecord,
    cut,
    parse_outcome,
)

SHA = "0" * 64
BASE = Base(round=1, adapter=Blob(key="rounds/1/adapter", digest=SHA))
PLAN = Plan(
    federation="toy",
    round=2,
    base=BASE,
    participants=(
        Participant(
            client="ann", tier="big", rank=2, mask_digest=SHA, download=Blob(key="rounds/2/downloads/ann", digest=SHA)
        ),
        Participant(client="bob", tier="small", rank=1),
    ),
    exchanged=Blob(key="rounds/2/exchanged", digest=SHA),
)
RECORD = UpdateRecord(
    client="ann",
    tier="big",
    rank=2,
    round=2,
    budget=6,
    shared=4,
    samples=10,
    held_out_records=2,
    skipped_records=0,
    truncated_records=1,
    losses=(2.5, 0.1),
    perplexity=Perplexity(round_0=9.5, before=8.0, after=1.0),
    mask_digest=SHA,
    bytes_up=1000,
    bytes_down=1000,
    update=Blob(key="rounds/2/updates/ann", digest=SHA),
)
STATUS = ClientStatus(client="bob", tier="small", rank=1, round=2, status="failed", reason="größer\n  fix: none")
SUMMARY = RoundSummary(
    federation="toy",
    method="fedit",
    round=2,
    base=BASE,
    minimum_clients=1,
    positions=6,
    positions_held=6,
    positions_shared=3,
    clients=(RECORD, STATUS),
)


def changed(message, **fields) -> bytes:
    """The text of a message in which some keys have other values."""
    return json.dumps({**json.loads(message.to_json()), **fields}).encode()


@pytest.mark.parametrize("message", [PLAN, RECORD, STATUS, SUMMARY, BASE], ids=lambda message: type(message).__name__)
def test_parse_and_to_json_are_each_others_inverse(message):
    text = message.to_json()
    assert type(message).parse(text) == message
    assert type(message).parse(text).to_json() == text


def test_a_text_by_hand():
    assert PLAN.participants[1].to_json() == (
        b'{\n "client": "bob",\n "download": null,\n "mask_digest": null,\n "rank": 1,\n "tier": "small"\n}\n'
    )


def test_the_order_of_keys_in_what_is_read_does_not_matter():
    backwards = json.dumps(dict(reversed(json.loads(STATUS.to_json()).items()))).encode()
    assert parse_outcome(backwards).to_json() == STATUS.to_json()


def test_an_outcome_is_a_record_or_a_status():
    assert parse_outcome(RECORD.to_json()) == RECORD
    assert parse_outcome(STATUS.to_json()) == STATUS
    assert SUMMARY.trained == (RECORD,)
    assert SUMMARY.lost == (STATUS,)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "EOF"),
        (b"null", "object"),
        (b"[]", "object"),
        (b"\xff", "Invalid JSON"),
        (b"[" * 8_000, "recursion limit"),
        (b'{"status":' * 4_000, "recursion limit"),
        (b'{"round":' + b"9" * 5_000 + b"}", "out of range"),
        (STATUS.to_json()[:-3], "EOF"),
        (STATUS.to_json() + b"{}", "trailing"),
        (changed(STATUS, reason="\ud800"), "Invalid JSON"),
        (changed(STATUS, status="lost"), "does not match any of the expected tags"),
        (changed(STATUS, status=[]), "does not match any of the expected tags"),
    ],
)
def test_invalid_bytes_are_rejected(data, problem):
    with pytest.raises(MessageError, match=problem):
        parse_outcome(data)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"extra": 1}, "trained.extra"),
        ({"samples": "10"}, "trained.samples"),
        ({"samples": 10.0}, "trained.samples"),
        ({"samples": True}, "trained.samples"),
        ({"samples": None}, "trained.samples"),
        ({"samples": 0}, "trained.samples"),
        ({"samples": 10**9 + 1}, "trained.samples"),
        ({"held_out_records": 10**400}, "trained.held_out_records"),
        ({"bytes_up": MAX_COUNT + 1}, "trained.bytes_up"),
        ({"bytes_up": -1}, "trained.bytes_up"),
        ({"client": 7}, "trained.client"),
        ({"client": "a" * 301}, "trained.client"),
        ({"losses": []}, "trained.losses"),
        ({"losses": ["1.5"]}, "trained.losses.0"),
        ({"losses": [1, float("nan")]}, "trained.losses.1"),
        ({"losses": [1, float("inf")]}, "trained.losses.1"),
        ({"losses": [10**400]}, "trained.losses.0"),
        ({"losses": {"0": 1.5}}, "trained.losses"),
        ({"losses": [0.5] * 100_001}, "trained.losses"),
        ({"perplexity": {"round_0": 9, "before": 9, "after": 0.5}}, "trained.perplexity.after"),
        ({"perplexity": {"round_0": 9, "before": 9}}, "trained.perplexity.after"),
        ({"mask_digest": "0" * 63}, "trained.mask_digest"),
        ({"mask_digest": SHA + "\n"}, "trained.mask_digest"),
        ({"update": {"key": "k", "digest": "A" * 64}}, "trained.update.digest"),
        ({"update": {"key": "k", "digest": SHA, "size": 1}}, "trained.update.size"),
    ],
)
def test_a_record_with_a_wrong_value_is_refused_and_the_key_named(fields, where):
    with pytest.raises(MessageError) as caught:
        parse_outcome(changed(RECORD, **fields))
    assert str(caught.value).startswith(f"{where}: ")


def test_a_number_beyond_all_floats_is_refused():
    text = RECORD.to_json().replace(b"2.5", b"1e999")
    with pytest.raises(MessageError, match=r"losses\.0: .*finite"):
        parse_outcome(text)


def test_a_whole_number_is_a_float_and_the_largest_count_is_kept():
    record = parse_outcome(changed(RECORD, losses=[2], bytes_up=MAX_COUNT))
    assert (record.losses, record.bytes_up) == ((2.0,), 2**53)


@pytest.mark.parametrize(("kind", "mebibytes"), [(ClientStatus, 4), (UpdateRecord, 4), (Plan, 64)])
def test_a_message_that_is_too_large_is_not_even_parsed(kind, mebibytes):
    problem = f"it has {mebibytes * 2**20 + 1:,} bytes, at most {mebibytes * 2**20:,} are allowed"
    with pytest.raises(MessageError) as caught:
        kind.parse(b"[" * (mebibytes * 2**20 + 1))
    assert str(caught.value) == problem


@pytest.mark.parametrize("value", [b"0,", b'"",', b"[],", b"{},", b"[", b'{"a":', b'"a":0,'])
def test_an_outcome_of_more_values_than_any_record_is_not_even_parsed(value):
    with pytest.raises(MessageError, match="more values than any record"):
        parse_outcome(b'{"status": "trained", "losses": [' + value * 140_000)


def test_the_longest_record_is_read():
    record = RECORD.model_copy(update={"losses": (1 / 3,) * 100_000})
    assert parse_outcome(record.to_json()) == record
    status = STATUS.model_copy(update={"reason": "[{:," * (MAX_REASON // 4)})
    assert parse_outcome(status.to_json()) == status


def test_an_outcome_that_is_too_large_is_not_even_parsed():
    with pytest.raises(MessageError, match="are allowed"):
        parse_outcome(b" " * 2**22 + STATUS.to_json())


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("problem\n  fix: größer", "problem\n  fix: größer"),
        ("\x1b[31mred\x07", " [31mred "),
        ("a\tb\r\nc\x00", "a b \nc "),
        ("\u202egnp.exe\ud800", " gnp.exe "),
        ("a" * MAX_REASON, "a" * MAX_REASON),
        ("a" * (MAX_REASON + 1), "a" * (MAX_REASON - 1) + "…"),
    ],
)
def test_a_reason_is_cut_and_has_no_control_characters(reason, expected):
    assert cut(reason) == expected
    assert cut(expected) == expected


def test_a_clients_own_reason_has_none_once_it_is_read():
    assert parse_outcome(changed(STATUS, reason="\x1b[2J gone\nhere")).reason == " [2J gone\nhere"
    with pytest.raises(MessageError, match=r"failed\.reason"):
        parse_outcome(changed(STATUS, reason="a" * (MAX_REASON + 1)))


def test_a_message_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        STATUS.reason = "other"
