"""Partitions: sizes by hand, every record once, and the files that are written."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from perfit.errors import PerfitError
from perfit.partition import by_category, by_user, dirichlet, iid, write_partition
from perfit.records import Record, read_records

FOUR = ["a"] * 4 + ["b"] * 6 + ["c"] * 5 + ["d"] * 8
RECORDS = [Record(i + 1, {"instruction": f"{i}?", "response": "Grüße", "year": i}) for i in range(10)]


def assert_partition(parts: list[np.ndarray], n: int) -> None:
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert all(np.all(np.diff(part) > 0) for part in parts)


def counts(parts: list[np.ndarray], labels: list[str]) -> list[dict[str, int]]:
    """How many records of each category each client has."""
    return [
        {c: int(k) for c, k in zip(*np.unique(np.array(labels)[part], return_counts=True), strict=True)}
        for part in parts
    ]


SCHEMES = [
    lambda seed: iid(23, 4, seed),
    lambda seed: by_category(FOUR, 4, seed, categories_per_client=2),
    lambda seed: dirichlet(FOUR, 4, 0.5, seed),
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_record_once_and_by_the_seed(scheme):
    first, again, other = scheme(0), scheme(0), scheme(1)
    assert_partition(first, 23)
    assert [p.tolist() for p in first] == [p.tolist() for p in again] != [p.tolist() for p in other]


def test_iid_sizes():
    assert [len(part) for part in iid(11, 4, seed=0)] == [3, 3, 3, 2]


def test_whole_categories():
    assert counts(by_category(FOUR, 4, seed=0), FOUR) == [{"a": 4}, {"b": 6}, {"c": 5}, {"d": 8}]
    assert counts(by_category(FOUR, 2, seed=0, categories_per_client=2), FOUR) == [
        {"a": 4, "b": 6},
        {"c": 5, "d": 8},
    ]


def test_neighbours_share_categories_on_the_ring():
    parts = by_category(FOUR, 4, seed=0, categories_per_client=2)
    # Client 3 closes the ring and holds d and a; the first holder of c gets the odd record.
    assert counts(parts, FOUR) == [{"a": 2, "b": 3}, {"b": 3, "c": 3}, {"c": 2, "d": 4}, {"a": 2, "d": 4}]


def test_one_own_category_and_one_shared_with_each_neighbour():
    labels = [letter for letter in "abcdefgh" for _ in range(2)]
    parts = by_category(labels, 4, seed=0, categories_per_client=3)
    assert [sorted(c.items()) for c in counts(parts, labels)] == [
        [("a", 1), ("b", 2), ("c", 1)],
        [("c", 1), ("d", 2), ("e", 1)],
        [("e", 1), ("f", 2), ("g", 1)],
        [("a", 1), ("g", 1), ("h", 2)],
    ]


def test_more_clients_than_categories():
    assert counts(by_category(["x"] * 4 + ["y"] * 5, 4, seed=0), ["x"] * 4 + ["y"] * 5) == [
        {"x": 2}, {"x": 2}, {"y": 3}, {"y": 2}
    ]  # fmt: skip


def test_one_client_has_everything():
    for parts in (
        iid(23, 1, 0),
        by_category(FOUR, 1, 0, categories_per_client=4),
        dirichlet(FOUR, 1, 0.5, 0),
    ):
        assert_partition(parts, 23)


def test_large_alpha_gives_equal_shares_and_small_alpha_one_holder():
    labels = ["a"] * 400 + ["b"] * 400
    assert counts(dirichlet(labels, 4, 1e8, seed=0), labels) == [{"a": 100, "b": 100}] * 4
    skewed = counts(dirichlet(labels, 4, 1e-4, seed=0), labels)
    assert sorted(n for c in skewed for n in c.values() if n > 1) in ([398, 400], [399, 399])


@pytest.mark.parametrize("minimum", [1, 5])
def test_dirichlet_minimum(minimum):
    for seed in range(20):
        parts = dirichlet(FOUR[:20], 4, 0.01, seed, minimum)
        assert_partition(parts, 20)
        assert min(len(part) for part in parts) >= minimum


@pytest.mark.parametrize(
    ("split", "problem"),
    [
        (lambda: iid(3, 4, 0), "3 records: too few for 4 clients"),
        (lambda: iid(3, 0, 0), "0 clients"),
        (lambda: by_category(FOUR, 3, 0), "1 categories per client do not fit 3 clients and 4 categories"),
        (lambda: by_category(FOUR, 4, 0, 5), "5 categories per client do not fit"),
        (lambda: by_category(["x"] * 9 + ["y"], 4, 0), "category 'y': 1 record(s) for 2 clients"),
        (
            lambda: by_category(["x", None, "y", ""], 2, 0),
            "record 2: no category (missing in 2 of 4 records)",
        ),
        (lambda: dirichlet(FOUR, 4, 0.0, 0), "alpha 0.0"),
        (lambda: dirichlet(FOUR, 4, float("nan"), 0), "alpha nan"),
        (lambda: dirichlet(FOUR, 4, 1.0, 0, minimum=6), "23 records: too few for 4 clients of at least 6"),
    ],
)
def test_impossible_partitions(split, problem):
    with pytest.raises(PerfitError) as raised:
        split()
    assert problem in raised.value.problem


def test_written_files_hold_every_record_once(tmp_path):
    parts = [np.arange(0, 5), np.arange(5, 10)]

    clients = write_partition(RECORDS, parts, ["clinic-1", "b"], tmp_path / "new" / "data", 0.4, seed=0)

    assert clients[0] == {
        "id": "clinic-1",
        "data": str(tmp_path / "new/data/clinic-1.train.jsonl"),
        "held_out": str(tmp_path / "new/data/clinic-1.held-out.jsonl"),
    }
    for client, part in zip(clients, parts, strict=True):
        train, held_out = (read_records(client[key]) for key in ("data", "held_out"))
        assert (len(train), len(held_out)) == (3, 2)
        years = sorted(record.fields["year"] for record in train + held_out)
        assert years == part.tolist()
        assert all(record.fields == RECORDS[record.fields["year"]].fields for record in train + held_out)
    assert len(list((tmp_path / "new/data").iterdir())) == 4
    assert "Grüße" in Path(clients[0]["data"]).read_text(encoding="utf-8")


def test_files_that_are_there_are_kept_unless_told(tmp_path):
    parts = [np.arange(10)]
    write_partition(RECORDS, parts, ["a"], tmp_path, 0.5, seed=0)
    before = (tmp_path / "a.train.jsonl").read_text()

    with pytest.raises(PerfitError, match=r"already holds a\.train\.jsonl, a\.held-out\.jsonl"):
        write_partition(RECORDS, parts, ["a"], tmp_path, 0.5, seed=1)
    assert (tmp_path / "a.train.jsonl").read_text() == before

    write_partition(RECORDS, parts, ["a"], tmp_path, 0.5, seed=1, overwrite=True)
    assert (tmp_path / "a.train.jsonl").read_text() != before


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "../a", "a/b", "a\n", "a" * 64])
def test_unsafe_client_ids(tmp_path, name):
    with pytest.raises(PerfitError, match="not a safe name"):
        write_partition(RECORDS, [np.arange(10)], [name], tmp_path, 0.5, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("records", "names", "problem"),
    [
        (RECORDS, ["a", "a"], "client id 'a': given more than once"),
        (RECORDS[:3], ["a", "b"], "client b: 1 usable record(s)"),
        ([*RECORDS[:3], Record(4, {"b": b""})], ["a", "b"], "line 4: cannot be written as JSON"),
        ([*RECORDS[:3], Record(4, {}, "not a JSON object")], ["a", "b"], "line 4: cannot be written"),
    ],
)
def test_bad_partitions_write_nothing(tmp_path, records, names, problem):
    parts = [np.arange(2), np.arange(2, len(records))] if len(records) < 10 else [np.arange(5), np.arange(5, 10)]
    with pytest.raises(PerfitError) as raised:
        write_partition(records, parts, names, tmp_path / "data", 0.5, seed=0)
    assert problem in raised.value.problem
    assert not (tmp_path / "data").exists()


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PerfitError, match="cannot be written"):
        write_partition(RECORDS, [np.arange(10)], ["a"], tmp_path / "file" / "data", 0.5, seed=0)


def test_a_disk_that_fills_up_leaves_no_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(PerfitError, match=r"cannot be written: .*File too large"):
            write_partition(RECORDS, [np.arange(2), np.arange(2, 10)], ["a", "b"], tmp_path, 0.5, seed=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


USERS = ["bo", "al", "bo", "cy", "al", "bo", "di", "di"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, [[1, 4], [0, 2, 5], [6, 7]]),  # al, bo, di
        ({"minimum": 1}, [[1, 4], [0, 2, 5], [3], [6, 7]]),
        ({"minimum": 3}, [[0, 2, 5]]),
        ({"clients": 2}, [[1, 4], [0, 2, 5]]),  # bo has the most; of al and di, who have as many, the first
    ],
)
def test_a_client_for_each_user(options, parts):
    assert [part.tolist() for part in by_user(USERS, **options)] == parts


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"clients": 4}, "3 of 4 users have at least 2 records, 4 are needed"),
        ({"minimum": 4}, "0 of 4 users have at least 4 records, 1 are needed"),
    ],
)
def test_too_few_users(options, problem):
    with pytest.raises(PerfitError) as raised:
        by_user(USERS, **options)
    assert raised.value.problem == problem
