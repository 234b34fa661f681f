"""A client that its owner runs: what it waits for, what it refuses, and how it ends. It trains in test_remote.py."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress

import psutil
import pytest

from perfit.errors import PerfitError
from perfit.protocol import ClientStatus, parse_outcome
from perfit.spec import Training
from perfit_components.remote_client import DELIVERED, FAILED, TIMED_OUT, Limits, RemoteClient
from perfit_components.steps.owner import Owner, keep_terms, terms_digest, terms_of
from perfit_storage import RoundPlace

from .running import Site

FIRST = RoundPlace(1)


@pytest.fixture
def site(make_site) -> Site:
    """A remote client, and one in a pod, of a federation that nobody has prepared."""
    clients = {"ann": {"tier": "far", "data": None}, "bob": {}}
    return make_site(clients=clients, tiers={"default": {}, "far": {"runner": "remote"}})


class Waiting:
    """Time that runs only while a client sleeps."""

    def __init__(self):
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def remote(site: Site, client: str = "ann", digest: str | None = None, **limits) -> RemoteClient:
    time = Waiting()
    owner = Owner(str(site.spec.clients[1].data), digest=digest)
    return RemoteClient(site.uri, client, owner, 1, Limits(**limits), time.sleep, lambda: time.now)


def digest_of(site: Site) -> str:
    return terms_digest(terms_of(site.spec, site.spec.client("ann")))


def trains_longer(site: Site) -> Site:
    """What a server writes that wants more of its clients than was agreed."""
    training = Training.model_validate({**site.spec.training.model_dump(), "steps": 500})
    changed = Site(site.spec.model_copy(update={"training": training}), site.store_uri)
    assert site.store.write_spec(changed.spec.to_yaml().encode(), site.store.read_spec())
    return changed


def test_it_waits_for_a_federation_and_for_a_round_and_says_so_once(site, capsys):
    assert remote(site, timeout=600).run() == TIMED_OUT
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("waiting for the federation: there is no federation 'tiny'")
    assert last == "no round began within 600 s"
    site.prepare()
    (site.root / "rounds/1/plan.json").unlink()
    capsys.readouterr()
    assert remote(site, timeout=600).run() == TIMED_OUT
    assert capsys.readouterr().out.splitlines() == ["waiting for round 1", "no round began within 600 s"]


def test_a_store_that_is_down_is_waited_for(site, unreachable_s3, capsys):
    client = RemoteClient(f"{unreachable_s3}/federations/tiny", "ann", Owner("x.jsonl"), limits=Limits(timeout=90))
    time = Waiting()
    client.sleep, client.clock = time.sleep, lambda: time.now
    assert client.run() == TIMED_OUT
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("waiting for the store: ")
    assert said[1:] == ["no round began within 90 s"]


@pytest.mark.parametrize(("client", "problem"), [("eve", "has no client 'eve'"), ("bob", "is of tier 'default'")])
def test_a_client_that_is_not_remote_is_refused(site, client, problem):
    site.prepare()
    with pytest.raises(PerfitError, match=problem):
        remote(site, client).run()


@pytest.mark.parametrize("noted", [False, True])
def test_terms_that_the_owner_did_not_agree_to_are_refused_and_the_server_is_told(site, noted):
    """By a digest, or by those that it took part under before."""
    site.prepare()
    digest = digest_of(site)
    if noted:
        keep_terms(site.spec, site.spec.client("ann"), site.store)
    changed = trains_longer(site)
    with pytest.raises(PerfitError, match=r"has not agreed to what .*/spec\.yaml says now") as refused:
        remote(site, digest=None if noted else digest, timeout=5).run()
    assert ("training.steps is 500 here and 2 there" in refused.value.problem) == noted
    assert digest_of(changed) in refused.value.fix
    status = parse_outcome(site.store.read_record(FIRST, "ann"))
    assert isinstance(status, ClientStatus)
    assert "has not agreed" in status.reason


def test_what_concerns_no_client_may_change(site):
    more = site.spec.model_copy(update={"rounds": 9, "clients": site.spec.clients[:1]})
    assert digest_of(Site(more, site.store_uri)) == digest_of(site)
    assert digest_of(Site(site.spec.model_copy(update={"model": "other/model"}), site.store_uri)) != digest_of(site)


def test_a_next_round_that_is_planned_at_once_is_not_begun(site):
    """As by a server that is faster than the client's next look into the store."""
    site.prepare().planned(1)
    client = remote(site, rounds=1)

    def commit_what_is_there() -> float:  # the first thing that the client does after a training
        if site.store.read_head().round == 0 and site.store.find_records(FIRST):
            site.aggregate(1)
            site.planned(2)
        return 0.0

    client.clock = commit_what_is_there
    assert client.run() == DELIVERED
    assert [record.client for record in site.summary(1).trained] == ["ann"]
    assert not site.store.find_records(RoundPlace(2))


def test_a_round_that_it_delivered_is_done(trained, capsys):
    """Also by an earlier process, which was ended before it could say so."""
    tiers = {"default": trained.spec.tiers["default"].model_copy(update={"runner": "remote"})}
    clients = tuple(client.model_copy(update={"data": None}) for client in trained.spec.clients)
    spec = trained.spec.model_copy(update={"tiers": tiers, "clients": clients})
    assert trained.store.write_spec(spec.to_yaml().encode(), trained.store.read_spec())
    assert remote(trained, rounds=1).run() == DELIVERED
    assert "round 1: ann delivered; waiting for its end" in capsys.readouterr().out


def test_a_training_that_is_killed_is_a_failure_with_a_reason(site):
    site.prepare()
    client, ended = remote(site, rounds=1), []
    running = threading.Thread(target=lambda: ended.append(client.run()), daemon=True)
    running.start()
    child = wait_for_child()
    child.send_signal(signal.SIGKILL)
    running.join(60)
    assert ended == [FAILED]
    status = parse_outcome(site.store.read_record(FIRST, "ann"))
    assert status.status == "out_of_memory"
    assert "was ended by signal 9, as Linux does where memory runs out" in status.reason


def wait_for_child() -> psutil.Process:
    """The process of a round, as soon as there is one."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                if any("remote_round" in part for part in child.cmdline()):
                    return child
        time.sleep(0.02)
    pytest.fail("no process of a round began within a minute")
