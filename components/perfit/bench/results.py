"""What is measured of a federation by round, and the results of a cell, as its file holds them."""

from __future__ import annotations

from pydantic import Field

from perfit.bench.spec import Job
from perfit.sections import Section


class AnswerScores(Section):
    """How a client's greedy answers match its held-out records: means over ``records`` of them."""

    records: int
    exact_match: float
    rouge_l: float


class RecordCounts(Section):
    """A client's records, those that the sequence length and ``data.bad_records`` leave.

    Args:
        train: Trained on, by a method that sets none of its own aside.
        held_out: Those that perplexity is of.
        held_out_tokens: Their response tokens.
        skipped: Left out.
    """

    train: int
    held_out: int
    held_out_tokens: int
    skipped: int


class RoundResult(Section):
    """A round, by client.

    Args:
        personal: Held-out perplexity under the client's personal adapter, which is that of its last round; under the
            base model if it has taken part in none.
        shared: Held-out perplexity under what the client would start the next round from; none if it is not known.
        bytes_up: Of the files that a participant's task would write for the server.
        bytes_down: Of the file that it would read.
        seconds: Wall time of a participant's work: the round's, divided evenly among them; none if not measured.
    """

    personal: dict[str, float]
    shared: dict[str, float]
    bytes_up: dict[str, int]
    bytes_down: dict[str, int]
    seconds: dict[str, float]


class Measurements(Section):
    """What was measured of a federation.

    Args:
        failure: Why it has no result: a training diverged, or a search was refused.
        records: By client; may be none.
        trainable: Trainable parameters by client.
        start: Held-out perplexity before the first round, by client.
        rounds: The rounds.
        validation: Perplexity on validation records under the last personal adapter, by client; may be none.
        answers: By client; none if none were asked for, or all of a client's held-out records were truncated.
        peak_memory: Bytes, of the process or, if there is a GPU, on that; None where it cannot be read.
    """

    failure: str | None = None
    records: dict[str, RecordCounts] = Field(default_factory=dict)
    trainable: dict[str, int] = Field(default_factory=dict)
    start: dict[str, float] = Field(default_factory=dict)
    rounds: tuple[RoundResult, ...] = ()
    validation: dict[str, float] = Field(default_factory=dict)
    answers: dict[str, AnswerScores] = Field(default_factory=dict)
    peak_memory: int | None = None


class CellResult(Measurements):
    """A cell that has run.

    Args:
        job: What was run.
        environment: Versions, threads and device.
    """

    job: Job
    environment: str
