"""A round of more clients than a run can serve: several runs in turn, the last of which commits it."""

from __future__ import annotations

import pytest

from perfit.errors import PerfitError
from perfit_components.steps.aggregate import close_round
from perfit_components.steps.client import train
from perfit_components.steps.plan import next_part, plan_round
from perfit_components.steps.prepare import Prepared, prepare
from perfit_storage import CorruptObject, RoundPlace

from .running import THREE, Site, files


@pytest.fixture
def site(make_site) -> Site:
    return make_site(**THREE, rounds=2)


def begin(site: Site, at_most: int = 2, round: int = 1) -> Prepared:
    return prepare(site.spec.to_yaml(), site.store_uri, round=round, tiers=["default"], at_most=at_most)


def run(site: Site, at_most: int = 2, round: int = 1) -> list[str]:
    """A whole run; return the names of the clients that it served."""
    prepared = begin(site, at_most, round)
    (names,) = prepared.participants
    for name in names:
        train(prepared.uri, prepared.round, name, threads=1)
    close_round(prepared.uri, prepared.round, served=prepared.served)
    return names


def test_two_runs_of_two_clients_leave_what_one_run_of_three_leaves(site, tmp_path):
    parts = [run(site), run(site), run(site, round=2), run(site, round=2)]
    assert [len(names) for names in parts] == [2, 1, 2, 1]
    assert site.store.read_head().round == 2

    whole = Site(site.spec, (tmp_path / "whole").as_uri())
    for round in (1, 2):
        run(whole, at_most=0, round=round)
    served = {f"rounds/{round}/served.json": b"0\n" for round in (1, 2)}
    assert files(site.root) == {**files(whole.root), **served}


def test_the_head_does_not_move_before_the_last_part(site, capsys):
    prepared = begin(site)
    assert prepared.served == 2
    run(site)
    assert site.store.read_head().round == 0
    assert "round 1: 2 of 3 participants served; the next run goes on" in capsys.readouterr().out
    assert begin(site).served == 3


def test_a_run_that_was_ended_before_its_aggregation_is_repeated(site):
    first = begin(site)
    assert begin(site) == first


def test_an_aggregation_that_runs_twice_counts_once(site):
    prepared = begin(site)
    once = close_round(prepared.uri, 1, served=prepared.served)
    before = files(site.root)
    assert close_round(prepared.uri, 1, served=prepared.served) == once
    assert files(site.root) == before
    assert "2 of 3 participants" in once.report.html


def test_a_client_whose_pod_died_does_not_hold_up_the_others(site):
    begin(site)
    close_round(site.uri, 1, served=2)  # nobody trained
    (names,) = begin(site).participants
    assert names == [site.name(plan_round(site.context, 1).participants[2].client)]


def test_a_round_short_of_its_quorum_begins_again(make_site):
    site = make_site(**THREE, participation={"minimum_clients": 3})
    for _ in range(2):
        prepared = begin(site)
    close_round(site.uri, 1, served=2)
    prepared = begin(site)
    with pytest.raises(PerfitError, match="round 1 is not committed: 0 of 3 clients"):
        close_round(site.uri, 1, served=prepared.served)
    assert begin(site).served == 2
    run(site)
    run(site)
    assert site.store.read_head().round == 1


def test_a_committed_round_needs_nobody(site):
    run(site, at_most=0)
    assert begin(site).participants == [[]]
    assert close_round(site.uri, 1, served=2) == close_round(site.uri, 1)


def test_a_damaged_count_is_named(site):
    begin(site)
    (site.root / "rounds/1").mkdir(exist_ok=True)
    (site.root / "rounds/1/served.json").write_text("many\n")
    with pytest.raises(CorruptObject, match=r"rounds/1/served.json is no number"):
        next_part(site.context, 1, 2)


def test_rounds_after_a_rollback_are_counted_anew(site):
    run(site, at_most=0)
    run(site, round=2)
    assert site.store.read_served(RoundPlace(2)) == 2
    site.roll_back(0)
    assert begin(site).served == 2
    assert site.store.read_served(site.store.read_head().place(1)) == 0
