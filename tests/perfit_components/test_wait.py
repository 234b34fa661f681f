"""A run waits for clients that are no tasks of it: until all have answered, or each one's tier has had its time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perfit.protocol import ClientStatus
from perfit_components.log_lines import parse_phase
from perfit_components.steps.aggregate import close_round
from perfit_components.steps.client import record_failure
from perfit_components.steps.failure import Failure
from perfit_components.steps.prepare import prepare
from perfit_components.steps.wait import wait_for_clients
from perfit_storage import FederationStore, RoundPlace

from .running import Site

FAR = {"runner": "remote", "deadline_seconds": 100}
FARTHER = {"runner": "remote", "deadline_seconds": 300}


class Time:
    """A clock that runs while the code under test sleeps; something happens at some of its times."""

    def __init__(self):
        self.now, self.events = 1000.0, []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 30
        self.now += seconds
        for event in [event for event in self.events if event[0] <= self.elapsed]:
            self.events.remove(event)
            event[1]()

    @property
    def elapsed(self) -> float:
        return self.now - 1000

    def at(self, seconds: float, act: Callable[[], object]) -> None:
        self.events.append((seconds, act))


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def site(make_site) -> Site:
    """Two remote tiers, and a client in a pod, of which nothing is heard."""
    clients = {
        "ann": {"tier": "far", "data": None},
        "bob": {"tier": "farther", "data": None},
        "eve": {},
    }
    site = make_site(clients=clients, tiers={"default": {}, "far": FAR, "farther": FARTHER})
    site.prepare()
    assert site.planned(1) == ["ann", "bob", "eve"]
    return site


def fails(site: Site, client: str) -> None:
    """Let a client say that it has no update, which is an answer too."""
    tier = site.spec.client(client).tier
    status = ClientStatus(client=client, tier=tier, rank=2, round=1, status="failed", reason=f"{client} is ill")
    site.store.put_record(RoundPlace(1), client, status.to_json(), lambda record: False)


def wait(site: Site, time: Time, served: int = 0) -> str:
    return wait_for_clients(site.uri, 1, served, time.sleep, time.clock)


def test_it_ends_when_all_remote_clients_have_answered(site, time, capsys):
    time.at(20, lambda: fails(site, "bob"))
    time.at(60, lambda: fails(site, "ann"))
    assert wait(site, time) == "0 of 2 remote clients delivered"
    assert 60 <= time.elapsed < 90
    assert "round 1 waits for ann, bob" in (said := capsys.readouterr().out)
    assert said.index("client bob has no result: bob is ill") < said.index("client ann has no result: ann is ill")


def test_what_a_client_says_of_itself_is_no_line_of_the_task(site, time, capsys):
    record_failure(
        site.uri, 1, site.name("ann"), Failure("red\n[perfit] round=9 client=eve phase=done\r\x0b[perfit] x")
    )
    fails(site, "bob")
    capsys.readouterr()
    wait(site, time)
    printed = capsys.readouterr().out.splitlines()
    assert "client ann has no result: red [perfit] round=9 client=eve phase=done" in printed[1]
    assert not list(filter(None, map(parse_phase, printed)))


def test_each_tier_has_a_deadline_of_its_own(site, time):
    fails(site, "bob")
    answer = wait(site, time)
    assert "ann left no record within 100 s (tiers.far.deadline_seconds)" in answer
    assert time.elapsed == pytest.approx(100)


def test_the_longest_deadline_ends_it(site, time):
    answer = wait(site, time)
    assert "ann left no record within 100 s" in answer
    assert "bob left no record within 300 s" in answer
    assert time.elapsed == pytest.approx(300)


def test_what_no_client_may_write_counts_as_an_answer(site, time):
    for client in ("ann", "bob"):
        site.store.put_record(RoundPlace(1), client, b"[" * 10_000, lambda record: False)
    assert wait(site, time) == "0 of 2 remote clients delivered"
    assert time.elapsed == 0


def test_of_a_round_that_takes_several_runs_only_the_last_waits(make_site, time):
    """One pod a run, of two, and a remote client, who is in no run's share."""
    clients = {"ann": {"tier": "far", "data": None}, "bob": {}, "eve": {}}
    site = make_site(clients=clients, tiers={"default": {}, "far": FAR})
    for served, client in ((1, "bob"), (2, "eve")):
        prepared = prepare(site.spec.to_yaml(), site.store_uri, at_most=1)
        assert (prepared.served, prepared.participants) == (served, [[site.name(client)]])
        answer = wait(site, time, prepared.served)
        if served < 2:
            assert answer == "1 participants in pods are still to be served: the last run of the round waits"
            assert time.elapsed == 0
            close_round(site.uri, 1, None, prepared.served)
    assert "ann left no record within 100 s" in answer


def test_a_round_that_is_committed_or_rolled_back_meanwhile_is_waited_for_no_longer(site, time):
    store: FederationStore = site.store
    head = store.read_head()
    time.at(40, lambda: store.found_again(head, head.rolled_back_to(head)))
    wait(site, time)
    assert 40 <= time.elapsed < 75


def test_who_has_left_the_federation_is_not_waited_for(site, time):
    assert site.train_client("eve")["status"] == "trained"  # from a first mask on, nobody founds the federation again
    clients = tuple(client for client in site.spec.clients if client.id != "bob")
    left = Site(site.spec.model_copy(update={"clients": clients}), site.store_uri).prepare()
    assert wait(left, time).startswith("0 of 1 remote clients delivered\nann left no record")
    assert time.elapsed == pytest.approx(100)


def test_one_record_ends_nobody_elses_time(site, time):
    time.at(150, lambda: fails(site, "bob"))
    answer = wait(site, time)
    assert 150 <= time.elapsed < 190
    assert "ann left no record" in answer
    assert "bob" not in answer
