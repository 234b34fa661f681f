"""The messages of a round: what server and clients write down for each other, in JSON.

Both sides import this module alone. Reading is strict (no unknown keys, no number for a text) and bounded in size, and
what is kept is the parsed value, never the bytes as they came. One value has one text, so that a step that runs twice
writes the same bytes.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

MAX_REASON = 2000
"""Characters of a client's reason that are kept."""
MAX_COUNT = 2**53
"""The largest whole number in a message: up to here every reader of JSON, and a float, has it exactly."""
MAX_OUTCOME_BYTES = 2**22
"""How large a client's message may be; a record has about 20 bytes a loss."""


def cut(reason: str) -> str:
    """Return a reason of at most ``MAX_REASON`` characters, without control characters but line breaks."""
    clean = "".join(c if c.isprintable() or c == "\n" else " " for c in reason)
    return clean if len(clean) <= MAX_REASON else clean[: MAX_REASON - 1] + "…"


Text = Annotated[str, StringConstraints(max_length=300)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PositiveInt = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_COUNT)]
PerplexityValue = Annotated[FiniteFloat, Field(ge=1)]
Reason = Annotated[str, StringConstraints(max_length=MAX_REASON), AfterValidator(cut)]


class MessageError(ValueError):
    """The bytes are not such a message."""


class Message(BaseModel):
    """A message; ``parse`` and ``to_json`` are each other's inverse."""

    max_bytes: ClassVar[int] = MAX_OUTCOME_BYTES
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a message.

        Raises:
            MessageError: It is too large, or not such a message.
        """
        return _parse(cls, data, cls.max_bytes)

    def to_json(self) -> bytes:
        """Return the text of the message, keys sorted."""
        tree = self.model_dump(mode="json")
        return (json.dumps(tree, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


class Blob(Message):
    """An object in the store: its key in the federation's directory, and what its bytes must be."""

    key: Text
    sha256: Sha256


class Base(Message):
    """What a round starts from: the head of the federation when it was planned.

    Args:
        round: The round that made it.
        adapter: The vectors that clients read.
        state: The vectors that are the server's own; None where the method has none.
        summary: The summary of that round; None before the first.
    """

    round: NonNegativeInt
    adapter: Blob
    state: Blob | None = None
    summary: Blob | None = None


class Participant(Message):
    """A client that takes part in a round."""

    client: Text
    tier: Text
    rank: PositiveInt


class Plan(Message):
    """Who takes part in a round, and what it starts from; written once. It has about 100 bytes a participant."""

    max_bytes: ClassVar[int] = 2**26
    federation: Text
    round: PositiveInt
    base: Base
    participants: tuple[Participant, ...]


class Perplexity(Message):
    """Held-out perplexity under the initial values, and before and after a round's tuning."""

    round_0: PerplexityValue
    before: PerplexityValue
    after: PerplexityValue


class UpdateRecord(Message):
    """What a client that delivered says of its round.

    Args:
        client: Its id.
        tier: Of its machine.
        rank: Its own.
        round: From 1.
        status: Always trained.
        budget: Values that it trained.
        shared: Of these, how many it shared.
        samples: Training records.
        held_out_records: Records that it was evaluated on.
        skipped_records: Records that could not be used.
        truncated_records: Records that were cut to the sequence length.
        losses: Of every step, nats per response token.
        perplexity: On the held-out records.
        mask_sha256: Of its architecture.
        bytes_up: What it uploaded for others to read.
        bytes_down: What it downloaded.
        update: Its update in the store; None where nothing is shared.
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
    losses: tuple[FiniteFloat, ...] = Field(min_length=1, max_length=100_000)
    perplexity: Perplexity
    mask_sha256: Sha256
    bytes_up: NonNegativeInt
    bytes_down: NonNegativeInt
    update: Blob | None = None


class ClientStatus(Message):
    """Why a participant of a round has no update that counts.

    Args:
        client: Its id.
        tier: Of its machine.
        rank: Its own.
        round: From 1.
        status: failed by its own account; missing without one; refused by the aggregator.
        reason: Problem and fix.
    """

    client: Text
    tier: Text
    rank: PositiveInt
    round: PositiveInt
    status: Literal["failed", "missing", "refused"]
    reason: Reason


Outcome = Annotated[UpdateRecord | ClientStatus, Field(discriminator="status")]


class Limited(Message):
    """An update that counted for less than it said.

    Args:
        client: Whose.
        samples: That its record says.
        weight: That it had in the mean.
        factors: What its change in a vector was multiplied by, by the vector's name.
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
        positions_held: How many of them some client that delivered holds.
        clients: What became of each participant, in the order of the plan.
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
    clients: tuple[Outcome, ...]
    limited: tuple[Limited, ...] = ()

    @property
    def trained(self) -> tuple[UpdateRecord, ...]:
        """The records of the clients that delivered."""
        return tuple(outcome for outcome in self.clients if isinstance(outcome, UpdateRecord))

    @property
    def lost(self) -> tuple[ClientStatus, ...]:
        """The participants without an update that counts."""
        return tuple(outcome for outcome in self.clients if isinstance(outcome, ClientStatus))


def parse_outcome(data: bytes) -> UpdateRecord | ClientStatus:
    """Read what a client wrote of a round.

    Raises:
        MessageError: It is too large, or neither of the two.
    """
    return _parse(Outcome, data, MAX_OUTCOME_BYTES)


def _parse(kind: Any, data: bytes, max_bytes: int) -> Any:
    if len(data) > max_bytes:
        raise MessageError(f"it has {len(data):,} bytes, {max_bytes:,} are the most")
    try:
        return TypeAdapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise MessageError(f"{where}: {first['msg']}" if where else first["msg"]) from None
