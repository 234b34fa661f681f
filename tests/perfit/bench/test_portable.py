"""Jobs and results that pass between machines: what is sent, and what of what comes back is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from perfit.bench.plan import plan_cells
from perfit.bench.portable import (
    InvalidResult,
    file_sha256,
    portable,
    read_job,
    read_result,
    records_of,
    result_bytes,
    unpacked,
)
from perfit.bench.spec import Job
from perfit.errors import PerfitError

from .helpers import result_of, write_bench

NESTED = b"[" * 3000


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """A job of this machine, of two clients and two rounds."""
    directory = tmp_path_factory.mktemp("bench")
    file = write_bench(directory, "owner/model", methods={"fedit": {}}, rounds=2)
    (cell,) = plan_cells(file, directory / "scratch")[1]
    return cell.job


@pytest.fixture(scope="module")
def sent(job) -> Job:
    return portable(job, {file: file_sha256(file) for file in records_of(job)})


@pytest.fixture
def tree(sent) -> dict[str, Any]:
    return json.loads(json.dumps(result_of(sent)))


def test_a_job_names_records_by_hash_and_keeps_its_own(job, sent, tmp_path):
    assert str(tmp_path.parent) not in sent.model_dump_json()
    assert sent.sha256 == job.sha256
    read = read_job(sent.model_dump_json().encode(), job.short_hash)
    assert read == sent
    there, files = unpacked(read, tmp_path)
    assert records_of(there) == [str(file) for file in files]
    assert list(files.values()) == [file_sha256(file) for file in records_of(job)]
    assert [file.name for file in files][:2] == ["client-1.data.jsonl", "client-1.held_out.jsonl"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tree: tree.update(threads=7), "that of another job"),
        (lambda tree: tree["spec"]["clients"][0].update(data=f"{'0' * 64}.jsonl"), "its records are not those"),
        (lambda tree: tree["spec"]["clients"][0].update(data="/etc/passwd.jsonl"), "that of another job"),
        (lambda tree: tree.update(new=1), "not a job of this version: new"),
    ],
)
def test_a_job_that_was_changed_is_not_run(sent, change, problem):
    tree = json.loads(sent.model_dump_json())
    change(tree)
    with pytest.raises(PerfitError, match=problem):
        read_job(json.dumps(tree).encode(), sent.short_hash)


def test_an_honest_result_is_read_and_so_is_a_failure(sent, tree):
    assert read_result(json.dumps(tree).encode(), sent).rounds[1].personal["client-2"] == 5.0
    failed = {"job": tree["job"], "environment": "torch 0", "failure": "the loss is nan"}
    assert read_result(json.dumps(failed).encode(), sent).failure == "the loss is nan"


def reversed_(by_client: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(by_client.items()))


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another job": (lambda r: r["job"].update(threads=7), "it is of another job"),
    "another method": (lambda r: r["job"]["spec"]["method"].update(name="local"), "it is of another job"),
    "a key": (lambda r: r.update(note="x"), "note: Extra inputs"),
    "a text for a number": (lambda r: r["start"].update({"client-1": "low"}), "start.client-1"),
    "infinity": (lambda r: r["start"].update({"client-1": 1e999}), "start.client-1"),
    "a round too few": (lambda r: r["rounds"].pop(), "it has 1 rounds, not 2"),
    "a client too few": (lambda r: r["rounds"][0]["personal"].pop("client-1"), "a perplexity in it is missing"),
    "other clients' order": (lambda r: r.update(start=reversed_(r["start"])), "a perplexity in it is missing"),
    "somebody": (lambda r: r["trainable"].update(eve=1), "of somebody who is no client"),
    "somebody's records": (lambda r: r["records"].update(eve=r["records"]["client-1"]), "of somebody who is no client"),
    "records below 0": (lambda r: r["records"]["client-2"].update(skipped=-1), "out of range"),
    "nobody trained": (lambda r: r.update(trainable={}), "a count in it is missing"),
    "no seconds": (lambda r: r["rounds"][1].update(seconds={}), "a count in it is missing"),
    "a perplexity of 0": (lambda r: r["rounds"][0]["personal"].update({"client-1": 0}), "out of range"),
    "bytes below 0": (lambda r: r["rounds"][0]["bytes_up"].update({"client-1": -1}), "out of range"),
    "memory without end": (lambda r: r.update(peak_memory=2**70), "out of range"),
    "a failure beside rounds": (lambda r: r.update(failure="late"), "both a failure and what was measured"),
    "a failure that says nothing": (lambda r: r.update(failure=""), "a text in it is no line"),
    "a terminal's code": (lambda r: r.update(environment="torch\x1b[2J"), "a text in it is no line"),
    "too much": (lambda r: r.update(environment="x" * 100_000), "it is longer than a result"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_result_is_refused(sent, tree, name):
    change, problem = FORGED[name]
    change(tree)
    with pytest.raises(InvalidResult, match=problem):
        read_result(json.dumps(tree).encode(), sent)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", NESTED, b'{"job":' + NESTED], ids=range(5))
def test_what_is_no_result_is_refused(sent, data):
    assert len(data) <= result_bytes(sent)
    with pytest.raises(InvalidResult):
        read_result(data, sent)
