"""The plan of a round: drawn once, by tier, on the head of the round before."""

from __future__ import annotations

import json

import pytest

from perfit.errors import PerfitError
from perfit.participation import draw_participants
from perfit_components.steps.plan import plan
from perfit_storage import ObjectNotFound

from .running import Site, files

TEN = {
    "tiers": {"strong": {}, "weak": {}},
    "participation": {"fraction": 0.5, "minimum_clients": 2},
    "clients": {
        **{f"s{i}": {"tier": "strong", "volume": f"claim-{i}"} for i in range(6)},
        **{f"w{i}": {"tier": "weak", "rank": 1, "secret": f"keys-{i}"} for i in range(4)},
    },
}


@pytest.fixture
def site(make_site) -> Site:
    return make_site(**TEN).prepare()


def test_the_search_is_for_all_clients_and_writes_nothing(site):
    before = files(site.root)
    assert plan(site.uri, 0, "weak") == [{"id": f"w{i}", "secret": f"keys-{i}", "volume": ""} for i in range(4)]
    assert plan(site.uri, 0, "strong") == [
        {"id": f"s{i}", "secret": f"perfit-tiny-s{i}", "volume": f"claim-{i}"} for i in range(6)
    ]
    assert files(site.root) == before


def test_a_round_takes_the_fraction_of_every_tier(site):
    strong, weak = plan(site.uri, 1, "strong"), plan(site.uri, 1, "weak")
    assert (len(strong), len(weak)) == (3, 2)
    drawn = [client.id for client in draw_participants(site.spec, 1)]
    assert [item["id"] for item in strong + weak] == drawn
    stored = json.loads(files(site.root)["rounds/1/plan.json"])
    assert stored == {
        "federation": "tiny",
        "round": 1,
        "base": json.loads(files(site.root)["head.json"]),
        "participants": [
            {"id": id, "tier": {"s": "strong", "w": "weak"}[id[0]], "rank": {"s": 2, "w": 1}[id[0]]} for id in drawn
        ],
    }


def test_the_first_plan_holds(site):
    first = plan(site.uri, 1, "strong")
    before = files(site.root)["rounds/1/plan.json"]
    changed = site.spec.model_copy(
        update={"participation": site.spec.participation.model_copy(update={"fraction": 1.0})}
    )
    Site(changed, site.store_uri).prepare()
    assert plan(site.uri, 1, "strong") == first
    assert files(site.root)["rounds/1/plan.json"] == before


def test_a_tier_without_clients(site):
    assert plan(site.uri, 1, "no such tier") == []


def test_a_round_whose_predecessor_is_not_committed(site):
    before = files(site.root)
    with pytest.raises(PerfitError) as caught:
        plan(site.uri, 2, "strong")
    assert caught.value.problem == "round 2 of 'tiny' cannot start: the head is at round 0"
    assert caught.value.fix.startswith("run round 1 first")
    assert files(site.root) == before


def test_a_committed_round_keeps_its_plan(trained):
    planned = trained.planned(1)
    trained.aggregate(1)
    before = files(trained.root)
    assert trained.planned(1) == planned
    assert files(trained.root) == before


def test_a_federation_that_is_not_there(site):
    with pytest.raises(ObjectNotFound, match=r"no federation 'other' in .*\n.*the store has: tiny"):
        plan(site.uri.replace("/tiny", "/other"), 1, "strong")


def test_a_uri_that_names_no_federation(site):
    with pytest.raises(PerfitError, match="give <store URI>/federations/<name>"):
        plan(site.store_uri, 1, "strong")
