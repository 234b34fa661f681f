"""The messages of a round, in JSON: what the server and the clients write for each other.

Both sides use this module. Parsing is strict (no unknown keys, no conversion of types) and limits the size; only the
parsed value is used afterwards, never the original bytes. A value has exactly one text, so that a step that runs twice
writes the same bytes.
"""

from __future__ import annotations

import functools
import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    FiniteFloat,
    Strict,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import from_json

MAX_REASON = 2000
"""Characters of a client's reason that are kept."""
MAX_COUNT = 2**53
"""The largest integer in a message: up to here every JSON reader, and a float, represents integers exactly."""
MAX_OUTCOME_BYTES = 2**22
"""Maximum size of a client's message; a record has about 20 bytes per loss."""
MAX_OUTCOME_COMMAS = 2**17
"""A record has one per loss."""
MAX_OUTCOME_MARKS = 2**13
"""Maximum number of colons and opening brackets in a client's message; its reason may consist of them."""


def cut(reason: str) -> str:
    """Cut a reason to ``MAX_REASON`` characters, and replace its control characters, except line breaks, by spaces."""
    clean = "".join(c if c.isprintable() or c == "\n" else " " for c in reason)
    return clean if len(clean) <= MAX_REASON else clean[: MAX_REASON - 1] + "…"


Text = Annotated[str, StringConstraints(max_length=300)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PositiveInt = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_COUNT)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
PerplexityValue = Annotated[FiniteFloat, Field(ge=1)]
Reason = Annotated[str, StringConstraints(max_length=MAX_REASON), AfterValidator(cut)]


class MessageError(ValueError):
    """The bytes are not a valid message."""


class Message(BaseModel):
    """A message; ``parse`` and ``to_json`` are inverse to each other."""

    max_bytes: ClassVar[int] = MAX_OUTCOME_BYTES
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a message.

        Raises:
            MessageError: It is too large or not valid.
        """
        return _parse(cls, data, cls.max_bytes)

    def to_json(self) -> bytes:
        """Return the text of the message, keys sorted."""
        tree = self.model_dump(mode="json")
        return (json.dumps(tree, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


class Blob(Message):
    """An object in the store: its key in the federation's directory, and the BLAKE3 of its bytes."""

    key: Text
    digest: Digest


class Branch(Message):
    """The rounds from ``first_round`` on, run after the federation had been rolled back to the round before it."""

    number: PositiveInt
    first_round: PositiveInt

    @property
    def origin(self) -> str:
        """How it came about, in words. From round 1 on it may also be of a federation that was founded again."""
        how = f"rolled back to round {self.first_round - 1}" if self.first_round > 1 else "begun again"
        return f"{how} (branch {self.number})"


class Base(Message):
    """What a round starts from: the head of the federation when it was planned.

    Args:
        round: The round that produced it.
        adapter: The vectors of which clients receive their part.
        state: The server's other vectors; None if the method has none.
        summary: The summary of that round; None before the first.
        branches: Those of the federation, in order; none if it was never rolled back.
    """

    round: NonNegativeInt
    adapter: Blob
    state: Blob | None = None
    summary: Blob | None = None
    branches: tuple[Branch, ...] = ()


class Participant(Message):
    """A client that takes part in a round.

    Args:
        client: Its id.
        tier: Tier of its machine.
        rank: Its rank.
        mask_digest: Hash of its architecture; None if the server does not know it yet.
        download: What it downloads; None if it exchanges nothing, or the server does not know its architecture.
    """

    client: Text
    tier: Text
    rank: PositiveInt
    mask_digest: Digest | None = None
    download: Blob | None = None


class Plan(Message):
    """Who takes part in a round, and what it starts from; written once, about 400 bytes per participant.

    Args:
        federation: Its name.
        round: From 1.
        base: What the round starts from.
        participants: Who takes part.
        exchanged: The positions that enough of the participants share; None if no architecture is known.
    """

    max_bytes: ClassVar[int] = 2**26
    federation: Text
    round: PositiveInt
    base: Base
    participants: tuple[Participant, ...]
    exchanged: Blob | None = None


class Perplexity(Message):
    """Held-out perplexity under the initial values, and before and after a round's tuning."""

    round_0: PerplexityValue
    before: PerplexityValue
    after: PerplexityValue


Weight = Annotated[FiniteFloat, Field(ge=0, le=1)]


class UpdateRecord(Message):
    """The record of a client that delivered in a round.

    Args:
        client: Its id.
        tier: Tier of its machine.
        rank: Its rank.
        round: From 1.
        status: Always trained.
        budget: Number of values that it trained.
        shared: Number of these that it exchanged with the server in this round.
        samples: Number of training records.
        held_out_records: Number of records that it was evaluated on.
        skipped_records: Number of records that could not be used.
        truncated_records: Number of records that were cut to the sequence length.
        losses: Loss of every step, nats per response token.
        perplexity: Perplexity on the held-out records.
        own_weight: The weight of its own last values in what it started from; None if its method does not choose it.
        tuned_weight: The weight of the tuned values in what it ended with; None if its method does not choose it.
        mask_digest: Hash of its architecture.
        next_mask_digest: Hash of the one that it has from the next round on; None if it did not search again.
        bytes_up: Bytes of its update and, in the round in which it found them, of its masks; with their headers.
        bytes_down: Bytes of its download, with its header.
        update: Its update in the store; None if nothing is exchanged.
    """

    client: Text
    tier: Text
    rank: PositiveInt
    round: PositiveInt
    status: Literal["trained"] = "trained"
    budget: PositiveInt
    shared: NonNegativeInt
    samples: Annotated[int, Field(ge=1, le=10**9)]
    held_out_records: PositiveInt
    skipped_records: NonNegativeInt
    truncated_records: NonNegativeInt
    # A JSON array is a list, which is strictly no tuple.
    losses: Annotated[tuple[FiniteFloat, ...], Strict(False), FailFast()] = Field(min_length=1, max_length=100_000)
    perplexity: Perplexity
    own_weight: Weight | None = None
    tuned_weight: Weight | None = None
    mask_digest: Digest
    next_mask_digest: Digest | None = None
    bytes_up: NonNegativeInt
    bytes_down: NonNegativeInt
    update: Blob | None = None


class ClientStatus(Message):
    """Why a participant of a round did not deliver.

    Args:
        client: Its id.
        tier: Tier of its machine.
        rank: Its rank.
        round: From 1.
        status: failed or out_of_memory (as it reported), missing (it left no record) or refused (by the aggregator).
        reason: Problem and fix.
    """

    client: Text
    tier: Text
    rank: PositiveInt
    round: PositiveInt
    status: Literal["failed", "out_of_memory", "missing", "refused"]
    reason: Reason

    @property
    def text(self) -> str:
        """Who, what became of it, and why."""
        return f"{self.client} ({self.status.replace('_', ' ')}): {self.reason}"


Outcome = Annotated[UpdateRecord | ClientStatus, Field(discriminator="status")]


class Limited(Message):
    """An update that counted for less than it would without limits.

    Args:
        client: Id of its client.
        samples: Number of samples in its record.
        weight: Its weight in the mean.
        factors: Factors of its changes, by the vector's name.
    """

    client: Text
    samples: PositiveInt
    weight: PositiveInt
    factors: dict[Text, Annotated[float, Field(ge=0, le=1)]]


class RoundSummary(Message):
    """How a round ended.

    Args:
        federation: Its name.
        method: Name of the method.
        round: From 1.
        base: What it started from.
        minimum_clients: The quorum when it was committed.
        positions: Size N of the expanded space.
        positions_held: How many positions are held by at least one client that delivered.
        positions_shared: How many were averaged, because enough clients that delivered share them.
        architectures: Hash of the architecture of each client that has delivered so far, if clients search.
        clients: The outcome of each participant, in the order of the plan.
        rule: What was taken of the values of a position's holders.
        positions_by_mean: At how many of the shared positions that was the mean, for want of holders or by the rule.
        change: Root mean square of the change of the global values, over the shared positions; 0 if there are none.
        changes: The same of each update, before limits, by client.
        limited: Updates whose weight was capped or whose change was clipped.
    """

    max_bytes: ClassVar[int] = 2**28
    federation: Text
    method: Text
    round: PositiveInt
    base: Base
    minimum_clients: PositiveInt
    positions: PositiveInt
    positions_held: NonNegativeInt
    positions_shared: NonNegativeInt
    architectures: dict[Text, Digest] = Field(default_factory=dict)
    clients: tuple[Outcome, ...]
    rule: Text = "mean"
    positions_by_mean: NonNegativeInt = 0
    change: NonNegativeFloat = 0.0
    changes: dict[Text, NonNegativeFloat] = Field(default_factory=dict)
    limited: tuple[Limited, ...] = ()

    @property
    def trained(self) -> tuple[UpdateRecord, ...]:
        """The records of the clients that delivered."""
        return tuple(outcome for outcome in self.clients if isinstance(outcome, UpdateRecord))

    @property
    def lost(self) -> tuple[ClientStatus, ...]:
        """The participants that did not deliver."""
        return tuple(outcome for outcome in self.clients if isinstance(outcome, ClientStatus))


def parse_outcome(data: bytes) -> UpdateRecord | ClientStatus:
    """Parse what a client wrote about a round.

    Raises:
        MessageError: It is too large, or neither a record nor a status.
    """
    _check_size(data, MAX_OUTCOME_BYTES)
    if data.count(b",") > MAX_OUTCOME_COMMAS or sum(map(data.count, (b":", b"[", b"{"))) > MAX_OUTCOME_MARKS:
        raise MessageError("it has more values than any record")
    try:
        # Not validate_json: each of its errors holds a copy of the value that it is about.
        return _adapter(Outcome).validate_python(from_json(data))
    except ValueError as error:
        raise _message_error(error) from None


_adapter = functools.cache(TypeAdapter)  # making one takes longer than parsing a record


def _parse(kind: Any, data: bytes, max_bytes: int) -> Any:
    _check_size(data, max_bytes)
    try:
        return _adapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        raise _message_error(error) from None


def _check_size(data: bytes, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise MessageError(f"it has {len(data):,} bytes, at most {max_bytes:,} are allowed")


def _message_error(error: ValueError) -> MessageError:
    if not isinstance(error, ValidationError):
        return MessageError(f"Invalid JSON: {error}")
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return MessageError(f"{where}: {first['msg']}" if where else first["msg"])
