"""A step may be killed at any moment: run again, it leaves what it would have left undisturbed, byte for byte."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import pytest

from .invariants import Reader, check, torn
from .s3_proxy import AFTER, BEFORE, faulty
from .steps import KILLED, Case, Federation, Host, Hosts
from .totals import EFFORT, SEED, TOTALS

T = TypeVar("T")
Request = tuple[str, str, int]
"""Method, key, and how many of a step's requests with both there are, with this one."""
STEPS = ["prepare", "client", "aggregate"]
CHANGES_IN_CI = 6
LONGEST_S = 0.8


class Requests:
    """Watches a proxy: notes the requests of a step, and kills it before or after one of them is passed on."""

    def __init__(self, federation: Federation, kill: Callable[[], None], at: tuple[str, Request] | None):
        self.seen: list[Request] = []
        self._prefix, self._kill, self._at = federation.uri.removeprefix("s3:/"), kill, at
        self._times, self._lock, self.killed = Counter(), threading.Lock(), False

    def __call__(self, moment: str, method: str, path: str) -> bool:
        key = path.removeprefix(self._prefix)
        with self._lock:
            self._times[moment, method, key] += 1
            request = (method, key, self._times[moment, method, key])
            if moment == BEFORE:
                self.seen.append(request)
        if (moment, request) != self._at:
            return False
        self.killed = True
        self._kill()
        return True


def first(cases: Sequence[Case], step: str) -> Case:
    return next(case for case in cases if case.step[0] == step)


def in_parallel(trial: Callable[[T], object], arguments: Iterable[T]) -> None:
    with ThreadPoolExecutor(Hosts.NUMBER) as pool:
        list(pool.map(trial, arguments))


def finish(host: Host, federation: Federation, case: Case) -> None:
    """Run a step again until it ends well, and check what it has left."""
    TOTALS.never("torn reads", torn(federation))
    host.run_to_the_end(federation.order(*case.step))
    check(federation, case.after)


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_request(site, cases, hosts, s3_server, step):
    case = first(cases, step)

    def trial(at: tuple[str, Request] | None) -> list[Request]:
        federation = Federation.on_s3(site.spec, s3_server).write(case.before)
        with hosts.one() as host, faulty(s3_server) as (proxy, environment):
            proxy.behaviour.watch = requests = Requests(federation, host.kill, at)
            code = host.run(replace(federation, environment=environment).order(*case.step))
            assert code == (KILLED if requests.killed else 0), host.output
            TOTALS.count("faults injected", requests.killed)
            finish(host, federation, case)
        return requests.seen

    requests = trial(None)
    if EFFORT > 1:
        kills = [(moment, request) for request in requests for moment in (BEFORE, AFTER)]
    else:
        kills = [(AFTER, request) for request in requests if request[0] == "PUT" and request[2] == 1]
    in_parallel(trial, kills)


@pytest.mark.parametrize("step", STEPS)
def test_killed_before_each_change_of_files(site, cases, hosts, tmp_path, step):
    case = first(cases, step)

    def trial(last: int) -> int:
        """Returns how many changes the step made before it was killed, or ended: not every attempt makes as many."""
        federation = Federation(site.spec, (tmp_path / f"store-{last}").as_uri()).write(case.before)
        with hosts.one() as host:
            code = host.run(federation.order(*case.step), last)
            assert code in (0, KILLED), host.output
            changes = int(host.output.split()[-1]) if code == 0 else last - 1
            TOTALS.count("faults injected", code == KILLED)
            finish(host, federation, case)
        assert changes < last
        return changes

    changes = trial(10**6)
    in_parallel(trial, range(1, changes + 1, 1 if EFFORT > 1 else max(1, changes // CHANGES_IN_CI)))


def test_killed_at_random_instants(site, cases, hosts, s3_server, tmp_path):
    """Every step of a federation, up to three times, while somebody reads."""

    def trial(number: int) -> None:
        chance = random.Random(f"{SEED} {number}")
        federation = Federation(site.spec, (tmp_path / str(number)).as_uri())
        if number % 2:
            federation = Federation.on_s3(site.spec, s3_server)
        with hosts.one() as host, Reader(federation):
            for case in cases:
                kill_at_random(host, federation.order(*case.step), chance)
                host.run_to_the_end(federation.order(*case.step))
        check(federation, cases[-1].after)

    in_parallel(trial, range(2 * EFFORT))


def kill_at_random(host: Host, order: dict, chance: random.Random) -> None:
    for _ in range(chance.randrange(4)):
        host.start(order)
        time.sleep(chance.uniform(0, LONGEST_S))
        host.kill()
        TOTALS.count("faults injected", host.wait() == KILLED)
