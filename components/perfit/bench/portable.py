"""Cells that run on other machines: jobs that name records by their hash, and results that others wrote."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from perfit.bench.results import CellResult, RoundResult
from perfit.bench.spec import Job
from perfit.errors import PerfitError
from perfit.spec import Client

MAX_RECORDS_BYTES = 2**30
"""Of a file of a client's records."""
MAX_JOB_BYTES = 2**24
"""Of a job as JSON."""
_MAX_COUNT = 2**63
_MAX_TEXT = 2000
_ENTRY_BYTES = 160
"""Of a client's number in a result: its id of up to 63 characters, the number, spaces."""
_FILES = ("data", "held_out")
"""The keys of a client with its files."""
_RECORDS = re.compile(r"(?P<sha256>[0-9a-f]{64})\.jsonl")


class InvalidResult(PerfitError):
    """What another machine wrote is no result of the job that it was sent."""


def file_sha256(path: str | Path) -> str:
    """Return the hash of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combined_sha256(digests: Iterable[str]) -> str:
    """Return the hash of several files by the hash of each, in order."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def portable(job: Job, digests: Mapping[str, str]) -> Job:
    """Return a job that names each file of records by its hash in place of its path: ``<SHA-256>.jsonl``.

    Args:
        job: Of a cell of this machine.
        digests: Hash of each file, by its path.
    """
    return _renamed(job, lambda client, key: f"{digests[getattr(client, key)]}.jsonl")


def unpacked(job: Job, directory: Path) -> tuple[Job, dict[Path, str]]:
    """Return a portable job with its files in a directory, under the clients' names, and the hash of each file."""
    here = _renamed(job, lambda client, key: str(directory / f"{client.id}.{key}.jsonl"))
    names = zip(map(Path, records_of(here)), records_of(job), strict=True)
    return here, {path: name.removesuffix(".jsonl") for path, name in names}


def records_of(job: Job) -> list[str]:
    """Return the paths or names of a job's files, in the order of their combined hash."""
    return [getattr(client, key) for client in job.spec.clients for key in _FILES]


def read_job(data: bytes, short_hash: str) -> Job:
    """Read a portable job.

    Args:
        data: The job as JSON.
        short_hash: Its :attr:`Job.short_hash`.

    Raises:
        PerfitError: It is no job, or another one: another version of PerFIT wrote it, or somebody changed it.
    """
    try:
        job = Job.model_validate_json(data)
    except ValidationError as error:
        raise _foreign(f"it is not a job of this version: {_first(error)}") from error
    names = [_RECORDS.fullmatch(file or "") for file in records_of(job)]
    if job.short_hash != short_hash or None in names:
        raise _foreign("its name is that of another job")
    if combined_sha256(name["sha256"] for name in names) != job.records_sha256:
        raise _foreign("its records are not those that its results depend on")
    return job


def read_result(data: bytes, job: Job) -> CellResult:
    """Read the result of a job that another machine has run.

    Args:
        data: The result as JSON.
        job: The portable job that was sent.

    Returns:
        A result whose clients, rounds and numbers are such as :func:`perfit.bench.cell.run_cell` may return.

    Raises:
        InvalidResult: It is none, or of another job.
    """
    sent = job.model_dump_json().encode()
    problem = "it is longer than a result of this job can be"
    if len(data) <= result_bytes(job) and _marks(data) <= _marks(sent) + 8 * job.spec.rounds + 3 * _clients(job) + 256:
        try:
            result = CellResult.model_validate_json(data)
        except ValidationError as error:
            raise _refused(_first(error)) from error
        problem = "it is of another job" if result.job.model_dump_json().encode() != sent else _problem(result)
    if problem:
        raise _refused(problem)
    return result


def result_bytes(job: Job) -> int:
    """Return how many bytes a result of a job has at most."""
    entries = _clients(job) * (5 * job.spec.rounds + 8)
    return len(job.model_dump_json().encode()) + 4 * _MAX_TEXT + entries * _ENTRY_BYTES


def _renamed(job: Job, name: Callable[[Client, str], str]) -> Job:
    clients = tuple(client.model_copy(update={key: name(client, key) for key in _FILES}) for client in job.spec.clients)
    return job.model_copy(update={"spec": job.spec.model_copy(update={"clients": clients})})


def _clients(job: Job) -> int:
    return len(job.spec.clients)


def _marks(data: bytes) -> int:
    """How many lists and objects JSON text may hold: each takes far more memory than text."""
    return data.count(b"[") + data.count(b"{")


def _problem(result: CellResult) -> str | None:
    """What of a result no cell of its job can have."""
    job, clients = result.job, [client.id for client in result.job.spec.clients]
    texts = [result.environment, *([] if result.failure is None else [result.failure])]
    if not all(0 < len(text) <= _MAX_TEXT and text.isprintable() for text in texts):
        return "a text in it is no line, or too long"
    if result.failure is not None:
        bare = CellResult(job=job, environment=result.environment, failure=result.failure)
        return None if result == bare else "it has both a failure and what was measured"
    if len(result.rounds) != job.spec.rounds:
        return f"it has {len(result.rounds)} rounds, not {job.spec.rounds}"
    of_all = [result.start, result.validation, *(by for r in result.rounds for by in (r.personal, r.shared))]
    if any(list(by_client) != clients for by_client in of_all):
        return "a perplexity in it is missing, or of somebody who is no client"
    of_some = [result.records, result.trainable, result.answers, *(r.bytes_up for r in result.rounds)]
    alike = all(r.bytes_up.keys() == r.bytes_down.keys() == r.seconds.keys() and r.seconds for r in result.rounds)
    if not alike or not result.trainable or any(by_client.keys() - set(clients) for by_client in of_some):
        return "a count in it is missing, or of somebody who is no client"
    perplexities = (value for by_client in of_all for value in by_client.values())
    if not all(value > 0 for value in perplexities) or not all(0 <= n < _MAX_COUNT for n in _counts(result)):
        return "a number in it is out of range"
    return None


def _counts(result: CellResult) -> Iterator[float]:
    yield from result.trainable.values()
    yield result.peak_memory or 0
    for records in result.records.values():
        yield from (records.train, records.held_out, records.held_out_tokens, records.skipped)
    for score in result.answers.values():
        yield from (score.records, score.exact_match, score.rouge_l)
    for round in result.rounds:
        yield from _counts_of_round(round)


def _counts_of_round(round: RoundResult) -> Iterator[float]:
    for by_client in (round.bytes_up, round.bytes_down, round.seconds):
        yield from by_client.values()


def _first(error: ValidationError) -> str:
    """The first problem, without the value: another party wrote it."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, found['loc']))[:100]}: {found['msg'][:200]}"


def _foreign(problem: str) -> PerfitError:
    return PerfitError(problem, "use an image of the same version as the command perfit bench; then run that again")


def _refused(problem: str) -> InvalidResult:
    return InvalidResult(problem, "look at who may write to the store; delete it, and run the same command again")
