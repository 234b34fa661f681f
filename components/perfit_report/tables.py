"""The rows of the report's tables: clients, failures and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfit.protocol import ClientStatus, RoundSummary, UpdateRecord
from perfit.space import LoraSpace
from perfit.spec import FederationSpec
from perfit_report.summaries import records_by_client

NOT_SAMPLED = "not sampled"

_REASON_CHARACTERS = 300
_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class ClientRow:
    """A client, described by the last round in which it delivered.

    Args:
        number: From 1; gives the client its colour.
        client: Its id.
        tier: Of its machine.
        rank: Its own.
        budget: Parameters of a plain LoRA of its rank.
        latest: Its last record; None if it never delivered.
        bytes_up: Sent in all rounds.
        bytes_down: Received in all rounds.
        status: In the last round: that of its record, or ``NOT_SAMPLED``.
        reason: Why it did not deliver in the last round.
    """

    number: int
    client: str
    tier: str
    rank: int
    budget: int
    latest: UpdateRecord | None
    bytes_up: int
    bytes_down: int
    status: str
    reason: str | None

    @property
    def change(self) -> float | None:
        """Perplexity after the last tuning over that of round 0, minus 1."""
        return self.latest and self.latest.perplexity.after / self.latest.perplexity.round_0 - 1

    @property
    def has_parts(self) -> bool:
        """Whether part of what the client holds is frozen (not trained), or was not exchanged."""
        return self.latest is not None and not self.budget == self.latest.budget == self.latest.shared


@dataclass(frozen=True)
class Failure:
    """Participants of a round that did not deliver, for one and the same reason.

    Args:
        round: From 1.
        status: What became of them.
        reason: Cut to a few lines.
        clients: Their ids.
        participants: How many clients took part in the round.
    """

    round: int
    status: str
    reason: str
    clients: tuple[str, ...]
    participants: int


@dataclass(frozen=True)
class Traffic:
    """Bytes of a round.

    Args:
        round: From 1; None for the sum over rounds.
        delivered: How many clients delivered; the bytes are theirs.
        up: Sent.
        down: Received.
        dense: What plain LoRAs of their ranks would take in float32, each way.
    """

    round: int | None
    delivered: int
    up: int
    down: int
    dense: int


def client_rows(spec: FederationSpec, summaries: Sequence[RoundSummary], space: LoraSpace) -> list[ClientRow]:
    """Return a row for each client of the federation file, then for those that took part and have since left it."""
    described = {client.id: (client.tier, spec.rank_of(client)) for client in spec.clients}
    for summary in summaries:
        described |= {outcome.client: (outcome.tier, outcome.rank) for outcome in summary.clients}
    last_round = {outcome.client: outcome for outcome in summaries[-1].clients} if summaries else {}
    records = records_by_client(summaries)
    return [
        _client_row(number, name, *described[name], records.get(name, {}), last_round.get(name), space)
        for number, name in enumerate(described, 1)
    ]


def _client_row(
    number: int,
    client: str,
    tier: str,
    rank: int,
    records: Mapping[int, UpdateRecord],
    outcome: UpdateRecord | ClientStatus | None,
    space: LoraSpace,
) -> ClientRow:
    return ClientRow(
        number=number,
        client=client,
        tier=tier,
        rank=rank,
        budget=space.budget(rank),
        latest=records[max(records)] if records else None,
        bytes_up=sum(record.bytes_up for record in records.values()),
        bytes_down=sum(record.bytes_down for record in records.values()),
        status=outcome.status if outcome else NOT_SAMPLED,
        reason=outcome.reason if isinstance(outcome, ClientStatus) else None,
    )


def failures(summaries: Sequence[RoundSummary]) -> list[Failure]:
    """Group the participants that did not deliver by round, latest first, status and reason."""
    clients: dict[tuple[int, str, str], list[str]] = {}
    for summary in reversed(summaries):
        for status in summary.lost:
            clients.setdefault((summary.round, status.status, cut(status.reason)), []).append(status.client)
    participants = {summary.round: len(summary.clients) for summary in summaries}
    return [Failure(*key, tuple(names), participants[key[0]]) for key, names in clients.items()]


def traffic(summaries: Sequence[RoundSummary], space: LoraSpace) -> list[Traffic]:
    """Return the bytes of each round."""
    return [
        Traffic(
            round=summary.round,
            delivered=len(summary.trained),
            up=sum(record.bytes_up for record in summary.trained),
            down=sum(record.bytes_down for record in summary.trained),
            dense=sum(_FLOAT32_BYTES * space.budget(record.rank) for record in summary.trained),
        )
        for summary in summaries
    ]


def total(rows: Sequence[Traffic]) -> Traffic:
    """Return the sum over rounds."""
    return Traffic(None, *(sum(getattr(row, key) for row in rows) for key in ("delivered", "up", "down", "dense")))


def cut(reason: str) -> str:
    """Return a reason of at most a few lines."""
    return reason if len(reason) <= _REASON_CHARACTERS else f"{reason[:_REASON_CHARACTERS]}…"
