"""The side of a client that is no task of a pipeline: a process of its owner's, which waits in the store for rounds.

It needs the client's key to the store alone, and reads what any client reads: the federation file, the head, the plan
of the round after it, its own record. What it trains, and what it writes, is what a task of the client would.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from perfit.cluster_spec import ClusterClient
from perfit.errors import PerfitError
from perfit.protocol import MessageError, Outcome, UpdateRecord, cut, parse_outcome
from perfit_components.remote_round import Task
from perfit_components.steps.client import record_failure
from perfit_components.steps.context import FederationContext
from perfit_components.steps.failure import Failure
from perfit_components.steps.owner import NotAgreed, Owner, check_terms
from perfit_components.steps.polling import Pace
from perfit_storage import ObjectNotFound, RoundPlace, StoreUnreachable

DELIVERED, FAILED, TIMED_OUT = 0, 3, 4
"""Exit codes: all rounds that were asked for are delivered; one of them failed; none began in time."""
_FIRST_RETRY_S, _LONGEST_RETRY_S = 60.0, 3600.0
_DIED = (
    "the process that trains it was ended by signal {signal}{why}\n"
    "  fix: lower training.batch_size or training.sequence_length, or give the client's process more memory"
)


@dataclass(frozen=True)
class Limits:
    """How long a client takes part.

    Args:
        rounds: End after so many rounds that it delivered, or failed; None to go on.
        timeout: End if no round begins for it within so many seconds; None to wait.
        poll: Seconds between two looks into the store, at most.
    """

    rounds: int | None = None
    timeout: float | None = None
    poll: float = 60.0


@dataclass(frozen=True)
class Seen:
    """What the store holds for a client at a moment.

    Args:
        text: What it waits for, or does.
        place: Of a planned round that it takes part in; None if there is none.
        name: The client's name in the cluster.
        outcome: Its record of that round; None if there is none.
        finished: Whether all rounds of the federation file are committed.
    """

    text: str
    place: RoundPlace | None = None
    name: str = ""
    outcome: Outcome | None = None
    finished: bool = False

    @property
    def is_delivered(self) -> bool:
        """Whether the client has done its part of the round."""
        return isinstance(self.outcome, UpdateRecord)


@dataclass
class RemoteClient:
    """Takes part in a federation's rounds.

    Args:
        uri: URI of the federation.
        client: The client's id.
        owner: What its owner gives it.
        threads: CPU threads of a training; 0 for torch's own choice.
        limits: How long it takes part.
        sleep: Wait so many seconds.
        clock: Seconds since any point in time.
    """

    uri: str
    client: str
    owner: Owner
    threads: int = 0
    limits: Limits = Limits()
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _ended: dict[RoundPlace, int] = field(default_factory=dict, init=False)
    _failed: RoundPlace | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)
    _again: float = field(default=0.0, init=False)
    _said: str = field(default="", init=False)

    def run(self) -> int:
        """Wait for rounds and take part in them, until the limits say that it is enough.

        Returns:
            An exit code of this module.

        Raises:
            PerfitError: The federation has no such client, or not a remote one; the owner did not agree to its terms,
                or the store refuses the key.
        """
        pace, since = Pace(longest=self.limits.poll), self.clock()
        while True:
            seen = self._look()
            if self._say(seen.text):
                pace.changed()
            is_open = seen.place and not seen.is_delivered and not self._pauses(seen.place)
            if is_open and not self._is_enough(seen):
                self._train(seen)
                since = self.clock()
                pace.changed()
                continue
            if seen.is_delivered:
                self._ended[seen.place] = DELIVERED
            if self._is_enough(seen):
                return max(self._ended.values(), default=DELIVERED)
            if self.limits.timeout is not None and self.clock() - since >= self.limits.timeout:
                self._say(f"no round began within {self.limits.timeout:g} s")
                return TIMED_OUT
            self.sleep(pace.pause())

    def find(self) -> tuple[FederationContext, ClusterClient]:
        """Return the federation and the client's entry, as they are now.

        Raises:
            PerfitError: As :meth:`run`; or the store cannot be reached.
        """
        context = FederationContext.open(self.uri)
        return context, self._client(context)

    def _look(self) -> Seen:
        """Read what there is for the client now; an outage of the store is nothing new."""
        try:
            context = FederationContext.open(self.uri)
            return self._seen(context, self._client(context))
        except StoreUnreachable as error:
            return Seen(f"waiting for the store: {error.problem}")
        except ObjectNotFound as error:
            return Seen(f"waiting for the federation: {error.problem}")

    def _seen(self, context: FederationContext, client: ClusterClient) -> Seen:
        spec, head = context.spec, context.store.read_head()
        number, name = head.round + 1, spec.secret_of(client)
        place = head.place(number)
        plan = context.find_plan(place)
        if plan is None:
            finished = head.round >= spec.rounds
            done = f"; all {spec.rounds} rounds of the federation file are committed" if finished else ""
            return Seen(f"waiting for round {number}{done}", finished=finished)
        if all(participant.client != client.id for participant in plan.participants):
            return Seen(f"round {number} is without {client.id}; waiting for the next")
        seen = Seen(f"round {number} waits for {client.id}", place, name, self._outcome(context, place))
        if seen.is_delivered:
            return replace(seen, text=f"round {number}: {client.id} delivered; waiting for its end")
        try:
            check_terms(spec, client, self.owner, context.store)
        except NotAgreed as error:
            record_failure(self.uri, number, name, Failure(cut(str(error))))
            raise
        return seen

    def _client(self, context: FederationContext) -> ClusterClient:
        client = context.spec.clients_by_id.get(self.client)
        if client is None:
            raise PerfitError(
                f"{context.store.uri}/spec.yaml has no client {self.client!r}",
                f"give --id one of: {', '.join(context.spec.clients_by_id)}; or let it be added there",
            )
        if not context.spec.is_remote(client):
            raise PerfitError(
                f"client {self.client!r} is of tier {client.tier!r}, whose clients are pods of the federation's runs",
                f"set tiers.{client.tier}.runner to remote in the federation file, and submit it again",
            )
        return client

    def _outcome(self, context: FederationContext, place: RoundPlace) -> Outcome | None:
        data = context.store.read_record(place, self.client)
        try:
            return None if data is None else parse_outcome(data)
        except MessageError:  # what cannot be read is replaced
            return None

    def _train(self, seen: Seen) -> None:
        """Run the round's process. A failure is tried again later, as long as the round is open."""
        task = Task(self.uri, seen.place.number, seen.name, self.threads, self.owner)
        code = task.run()
        try:
            outcome = self._record(seen, code)
        except StoreUnreachable:  # what became of it is seen when the store is back
            return
        if isinstance(outcome, UpdateRecord):
            self._ended[seen.place] = DELIVERED
            return
        self._ended[seen.place] = FAILED
        self._failures = self._failures + 1 if self._failed == seen.place else 1
        self._failed = seen.place
        retry = min(_FIRST_RETRY_S * 2 ** (self._failures - 1), _LONGEST_RETRY_S)
        self._again = self.clock() + retry
        self._say(f"round {seen.place.number} has no update of {self.client}; it is tried again in {retry:.0f} s")

    def _record(self, seen: Seen, code: int) -> Outcome | None:
        """Return what the process left; write why there is nothing, if it was killed."""
        outcome = self._outcome(FederationContext.open(self.uri), seen.place)
        if code < 0 and not isinstance(outcome, UpdateRecord):
            is_memory = -code == signal.SIGKILL
            why = ", as Linux does where memory runs out" if is_memory else ""
            failure = Failure(_DIED.format(signal=-code, why=why), "out_of_memory" if is_memory else "failed")
            record_failure(self.uri, seen.place.number, seen.name, failure)
        return outcome

    def _pauses(self, place: RoundPlace) -> bool:
        """Whether a round failed, and is not to be tried again yet."""
        return self._failed == place and self.clock() < self._again

    def _is_enough(self, seen: Seen) -> bool:
        if self.limits.rounds is None:
            return False
        return len(self._ended) >= self.limits.rounds or seen.finished

    def _say(self, text: str) -> bool:
        """Say what is new; return whether it is."""
        if text == self._said:
            return False
        self._said = text
        print(text, flush=True)
        return True
