"""Two aggregations of a round at once, and two runs of a federation: each round is committed once, nothing is torn.

Of what a losing aggregation wrote, global vectors and summaries that no head names may stay, named by their hash.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..perfit_components.running import Site
from .invariants import Reader, committed, delivered, different, lost, torn
from .steps import Case, Federation, Host
from .totals import EFFORT, SEED, TOTALS

AGGREGATIONS = 3
EVE = "rounds/1/updates/eve.json"
LONGEST_S = 0.3
HASH = re.compile(rb"\.[0-9a-f]{64}(?=\.)")


@pytest.fixture(params=["file", "s3"])
def new_federation(request, site, s3_server, tmp_path) -> Callable[[], Federation]:
    def new(number: int) -> Federation:
        if request.param == "s3":
            return Federation.on_s3(site.spec, s3_server)
        return Federation(site.spec, (tmp_path / str(number)).as_uri())

    return new


@pytest.fixture(scope="session")
def trained(cases) -> Case:
    """The first aggregation of three updates."""
    return next(case for case in cases if case.step[0] == "aggregate")


@pytest.fixture(scope="session")
def without_eve(site, trained, hosts, tmp_path_factory) -> dict[str, bytes]:
    """What it leaves of two, and eve's record."""
    before = {key: data for key, data in trained.before.items() if key != EVE}
    federation = Federation(site.spec, tmp_path_factory.mktemp("without").as_uri()).write(before)
    with hosts.one() as host:
        assert host.run(federation.order(*trained.step)) == 0, host.output
    return federation.contents() | {EVE: trained.before[EVE]}


def settled(federation: Federation) -> dict[str, bytes]:
    """The objects without those of losers, under their usual names."""
    head, plain = federation.store.read_head(), {}
    named = {blob.key for blob in (head.adapter, head.state, head.summary) if blob}
    for key, data in federation.contents().items():
        usual = HASH.sub(b"", key.encode()).decode()
        is_blob = re.match(rf"rounds/{head.round}/(global|state|summary)\.", key)
        if not is_blob or key in named:
            plain[usual] = HASH.sub(b"", data) if key.endswith(("head.json", "plan.json")) else data
    return plain


def end_well(host: Host, order: dict) -> None:
    """Wait for a step; one that lost to the other is run again."""
    if host.wait() != 0:
        assert "another run committed the round with other values" in host.output
        TOTALS.count("faults injected")
        host.run_to_the_end(order)


@pytest.mark.parametrize("late", [False, True], ids=["same updates", "one comes late"])
def test_two_aggregations_at_once(new_federation, trained, without_eve, hosts, late):
    for number in range(AGGREGATIONS * EFFORT):
        chance = random.Random(f"{SEED} {number}")
        federation = new_federation(number).write(trained.before)
        if late:
            federation.objects.delete(EVE)
        there, order = delivered(federation), federation.order(*trained.step)
        with hosts.one() as first, hosts.one() as second, Reader(federation):
            first.start(order)
            time.sleep(chance.uniform(0, LONGEST_S))
            federation.objects.put(EVE, trained.before[EVE])
            time.sleep(chance.uniform(0, LONGEST_S))
            second.start(order)
            end_well(first, order)
            end_well(second, order)
        (summary,) = committed(federation).values()
        if late and "eve" not in {record.client for record in summary.trained}:
            found, expected = settled(federation), without_eve
        else:
            found, expected = settled(federation) if late else federation.contents(), trained.after
        TOTALS.never("differing objects", different(found, expected))
        TOTALS.never("torn reads", torn(federation))
        TOTALS.never("updates lost", lost(federation, there))
        TOTALS.count("trials")
        TOTALS.count("rounds committed")


class Run:
    """All steps of a federation in order, each until it ends well; some clients may never start."""

    def __init__(self, federation: Federation, host: Host, absent: set[str], aggregated: dict[int, list]):
        self._federation, self._host, self._absent, self._aggregated = federation, host, absent, aggregated

    def go(self, chance: random.Random) -> None:
        self.step("prepare")
        for round in range(1, self._federation.spec.rounds + 1):
            for client in self._federation.spec.clients_by_id:
                time.sleep(chance.uniform(0, LONGEST_S))
                if client not in self._absent:
                    self.step("client", round, client)
            self._aggregated.setdefault(round, [key for key in delivered(self._federation) if key[0] == round])
            self.step("aggregate", round)

    def step(self, *step) -> None:
        order = self._federation.order(*step)
        self._host.start(order)
        end_well(self._host, order)


def replayed(site: Site, federation: Federation, directory: Path) -> list[int]:
    """Commit the rounds again, undisturbed, of the same updates; return those that differ."""
    site, differ = Site(site.spec, directory.as_uri()).prepare(), []
    contents, again = federation.contents(), Federation(site.spec, directory.as_uri())
    for round, summary in sorted(committed(federation).items()):
        site.planned(round)
        clients = {record.client for record in summary.trained}
        again.write({key: data for key, data in contents.items() if key.startswith("masks/")})
        updates = {key: data for key, data in contents.items() if key.startswith(f"rounds/{round}/updates/")}
        again.write({key: data for key, data in updates.items() if Path(key).name.partition(".")[0] in clients})
        if site.aggregate(round).clients != summary.clients:
            differ.append(round)
    head, other = federation.store.read_head(), again.store.read_head()
    return differ if head.adapter.digest == other.adapter.digest else [*differ, head.round]


def test_two_runs_at_once(new_federation, site, cases, hosts, tmp_path):
    """In every second trial, one of the runs is without a client, and does not wait for the other's."""
    for number in range(EFFORT):
        federation, aggregated = new_federation(number), {}
        absent = {"eve"} if (number + federation.store_uri.startswith("s3:")) % 2 else set()
        with hosts.one() as first, hosts.one() as second, Reader(federation), ThreadPoolExecutor(2) as pool:
            runs = [Run(federation, first, absent, aggregated), Run(federation, second, set(), aggregated)]
            seeds = [random.Random(f"{SEED} {number} {run}") for run in range(2)]
            list(pool.map(Run.go, runs, seeds))
        if not absent:
            TOTALS.never("differing objects", different(federation.contents(), cases[-1].after))
        TOTALS.never("differing objects", replayed(site, federation, tmp_path / f"again-{number}"))
        TOTALS.never("torn reads", torn(federation))
        TOTALS.never("updates lost", lost(federation, [key for keys in aggregated.values() for key in keys]))
        TOTALS.count("trials")
        TOTALS.count("rounds committed", len(committed(federation)))
        assert federation.store.read_head().round == site.spec.rounds
