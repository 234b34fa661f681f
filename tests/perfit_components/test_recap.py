"""What Prepare says of earlier rounds: who was lost and why, who is late; the run goes on."""

from __future__ import annotations

import pytest

from perfit_components.steps.prepare import NEXT_ROUND, prepare

from .running import THREE, Site


@pytest.fixture
def site(make_site) -> Site:
    """Three clients of which two may be lost; round 1 is planned."""
    site = make_site(**THREE, rounds=2, participation={"minimum_clients": 1}).prepare()
    site.planned(1)
    return site


def said(site: Site, capsys) -> list[str]:
    """Prepare the next round, as a schedule does; return what it says."""
    capsys.readouterr()
    prepared = prepare(site.spec.to_yaml(), site.store_uri, round=NEXT_ROUND)
    assert prepared.round == site.store.read_head().round + 1
    assert [len(names) for names in prepared.participants] == [3]
    return capsys.readouterr().out.splitlines()


def test_the_first_run_has_nothing_to_say(make_site, capsys):
    assert said(make_site(**THREE), capsys) == []


def test_the_next_run_says_whose_pod_died_and_goes_on(site, capsys):
    """As when a client's pod is killed: it leaves no record, the aggregator runs after all, the run is a failed one."""
    site.train_client("ann")
    site.data("bob").unlink()
    site.train_client("bob")
    site.aggregate(1)
    lines = said(site, capsys)
    assert lines[0] == "round 1 is committed: 1 of 3 clients delivered"
    assert lines[1].startswith("  bob (failed): ")
    assert "  eve (missing): its task left no record: it did not start, or its pod died" in lines


def test_the_next_run_names_who_was_late(site, capsys):
    """A run that was ended at its deadline: nobody aggregated."""
    site.train_client("ann")
    assert said(site, capsys) == [
        "round 1 was begun by an earlier run: 1 of 3 clients have delivered",
        "  no record yet: bob, eve",
    ]
