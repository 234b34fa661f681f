"""What a client says of a round, in the JSON beside its update."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt

Value = Annotated[FiniteFloat, Field(ge=1)]


class Perplexity(BaseModel):
    """Held-out perplexity under the initial adapter, and before and after a round's tuning."""

    model_config = ConfigDict(extra="forbid")

    round_0: Value
    before: Value
    after: Value


class TrainedRecord(BaseModel):
    """The record of a client that delivered; the store adds ``key``, ``bytes`` and ``sha256`` of the update."""

    model_config = ConfigDict(extra="forbid")

    client: str
    status: Literal["trained"] = "trained"
    reason: None = None
    round: PositiveInt
    tier: str
    rank: PositiveInt
    budget: PositiveInt
    samples: PositiveInt = Field(le=10**9)
    held_out_records: PositiveInt
    skipped_records: NonNegativeInt
    truncated_records: NonNegativeInt
    losses: list[FiniteFloat] = Field(min_length=1, max_length=100_000)
    perplexity: Perplexity
    mask_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes_up: NonNegativeInt
    bytes_down: NonNegativeInt
    key: str | None = None
    bytes: NonNegativeInt | None = None
    sha256: str | None = None
