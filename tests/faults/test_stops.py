"""A client's task that is told to stop, or takes too long, leaves a record and ends well; the next attempt delivers."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from perfit.protocol import parse_outcome
from perfit_storage import RoundPlace

from ..perfit_components.running import Site

CODE = """
import sys
from perfit_components.steps.client import train
print(train(sys.argv[1], 1, sys.argv[2], threads=1), flush=True)
"""
LONG = {"steps": 10_000}


@contextmanager
def task(site: Site) -> Iterator[subprocess.Popen]:
    """A client's task, as its pod runs it."""
    command = [sys.executable, "-c", CODE, site.uri, site.name("ann")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def planned(make_site, **sections) -> Site:
    site = make_site(clients={"ann": {}}, method={"name": "fedit"}, **sections).prepare()
    assert site.planned(1) == ["ann"]
    return site


def test_sigterm_ends_a_training_with_a_record_and_exit_code_0(make_site):
    site = planned(make_site, training=LONG)
    with task(site) as process:
        assert any("step=3/" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert "'status': 'failed'" in out
    outcome = parse_outcome(site.store.read_record(RoundPlace(1), "ann"))
    assert outcome.reason.startswith("the task was told to stop (its pod was deleted, evicted or preempted)")


def test_a_client_that_takes_too_long_has_failed_the_round(make_site):
    site = planned(make_site, training=LONG, participation={"client_deadline_seconds": 3})
    with task(site) as process:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert "'status': 'failed'" in out
    outcome = parse_outcome(site.store.read_record(RoundPlace(1), "ann"))
    assert outcome.reason.startswith("the client took longer than participation.client_deadline_seconds")


def test_what_was_stopped_is_done_by_the_next_attempt(make_site):
    site = planned(make_site, training={"steps": 300})
    with task(site) as process:
        assert any("step=3/" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert site.train_client("ann")["status"] == "trained"
    assert site.aggregate(1).trained[0].client == "ann"


def test_handlers_are_as_before_afterwards(make_site):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    site = planned(make_site, participation={"client_deadline_seconds": 600})
    assert site.train_client("ann")["status"] == "trained"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)) == before
    assert signal.alarm(0) == 0
