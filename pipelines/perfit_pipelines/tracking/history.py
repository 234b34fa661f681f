"""What is tracked of a federation: its settings, and the metrics of its committed rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perfit.protocol import RoundSummary
from perfit_components.steps.context import FederationContext
from perfit_components.steps.report import round_times
from perfit_report import RoundTimes, client_metrics, scalar_metrics, settings


@dataclass(frozen=True)
class TrackedRound:
    """A committed round.

    Args:
        number: From 1.
        digest: Of its summary, which holds that of the round before: two histories of one digest are one up to here.
        times: When it was planned and committed.
        metrics: Of the federation, by name.
        clients: Of each client that delivered, by id.
    """

    number: int
    digest: str
    times: RoundTimes
    metrics: Mapping[str, float]
    clients: Mapping[str, Mapping[str, float]]

    @property
    def milliseconds(self) -> int:
        """When it was committed, since 1970."""
        return round(1000 * self.times.committed)


@dataclass(frozen=True)
class History:
    """The committed rounds of a federation, at least one.

    Args:
        name: Of the federation.
        store: Its URI.
        branch: 0, or how often it was rolled back.
        is_complete: Whether all rounds that its file asks for are committed.
        settings: Of the federation file, by dotted key, and versions of libraries, as texts.
        rounds: In order.
    """

    name: str
    store: str
    branch: int
    is_complete: bool
    settings: Mapping[str, str]
    rounds: tuple[TrackedRound, ...]

    @property
    def identity(self) -> str:
        """The same for every history that begins with the same first round, wherever its store is."""
        return self.rounds[0].digest

    @property
    def clients(self) -> list[str]:
        """Who has delivered, in the order of the first time."""
        return list(dict.fromkeys(client for round in self.rounds for client in round.clients))

    def of_client(self, client: str) -> list[tuple[TrackedRound, Mapping[str, float]]]:
        """Return the rounds in which a client delivered, and its metrics in each."""
        return [(round, round.clients[client]) for round in self.rounds if client in round.clients]


def read_history(context: FederationContext, versions: Mapping[str, str] | None = None) -> History | None:
    """Read the committed rounds of a federation, None if there are none.

    Args:
        context: The federation.
        versions: Of the libraries that its clients train with, where they are known.

    Raises:
        PerfitError: The store cannot be reached, or something of the rounds is lost or damaged.
    """
    summaries = context.summaries()
    if not summaries:
        return None
    last = context.base_after(summaries[-1].round)
    digests = [after.summary.digest for after in (*(summary.base for summary in summaries[1:]), last)]
    texts = {key: _text(value) for key, value in settings(context.spec).items()}
    rounds = map(_round, summaries, digests, round_times(context, summaries))
    return History(
        name=context.store.name,
        store=context.store.uri,
        branch=max((branch.number for branch in last.branches), default=0),
        is_complete=last.round >= context.spec.rounds,
        settings=texts | {f"version.{library}": version for library, version in (versions or {}).items()},
        rounds=tuple(rounds),
    )


def _round(summary: RoundSummary, digest: str, times: RoundTimes) -> TrackedRound:
    metrics = scalar_metrics(summary)
    del metrics["round"]  # it is the step
    clients = {record.client: client_metrics(record) for record in summary.trained}
    return TrackedRound(summary.round, digest, times, metrics, clients)


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
