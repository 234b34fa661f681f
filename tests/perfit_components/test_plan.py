"""The plan of a round: sampled once, by tier, at the head of the round before; and the items of the loops."""

from __future__ import annotations

import json

import pytest

from perfit.errors import PerfitError
from perfit.sampling import sample_clients
from perfit_components.steps.context import FederationContext
from perfit_components.steps.plan import participants, plan_round
from perfit_storage import ObjectNotFound, RoundPlace

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


def sampled(site: Site, round: int = 1) -> list[str]:
    spec = site.spec
    return [c.id for c in sample_clients(spec.clients, spec.participation, spec.training.seed, round)]


def test_a_round_takes_the_fraction_of_every_tier(site):
    plan = plan_round(site.context, 1)
    ids = [participant.client for participant in plan.participants]
    assert ids == sampled(site)
    assert [id[0] for id in ids] == list("ssswww"[:5])
    stored = json.loads(files(site.root)["rounds/1/plan.json"])
    head = json.loads(files(site.root)["head.json"])
    unknown = {"mask_digest": None, "download": None}
    assert stored == {
        "federation": "tiny",
        "round": 1,
        "base": {key: head[key] for key in ("round", "adapter", "state", "summary", "branches")},
        "participants": [
            {"client": id, "tier": {"s": "strong", "w": "weak"}[id[0]], "rank": {"s": 2, "w": 1}[id[0]], **unknown}
            for id in ids
        ],
        "exchanged": None,
    }


def test_loops_get_names_and_the_claims_that_have_other_names(site):
    strong, weak = participants(site.context, 1, ["strong", "weak"])
    ids = sampled(site)
    assert weak == [f"keys-{id[1]}" for id in ids if id[0] == "w"]
    assert strong == [{"secret": f"perfit-tiny-{id}", "volume": f"claim-{id[1]}"} for id in ids if id[0] == "s"]


def test_a_claim_with_the_secrets_name_is_not_listed(make_site):
    clients = {"ann": {"volume": "perfit-tiny-ann"}, "bob": {"volume": "keys", "secret": "keys"}}
    site = make_site(clients=clients).prepare()
    assert participants(site.context, 1, ["default"]) == [["perfit-tiny-ann", "keys"]]


def begun(site: Site) -> None:
    """Have a client find its architecture: until then a federation may be founded again, with another plan."""
    site.store.put_mask(site.spec.clients[0].id, "0" * 64, b"a mask")


def test_the_first_plan_holds(site):
    first = plan_round(site.context, 1)
    before = files(site.root)["rounds/1/plan.json"]
    begun(site)
    participation = site.spec.participation.model_copy(update={"fraction": 1.0})
    Site(site.spec.model_copy(update={"participation": participation}), site.store_uri).prepare()
    assert plan_round(site.context, 1) == first
    assert files(site.root)["rounds/1/plan.json"] == before


def test_a_tier_without_clients_is_an_empty_loop(site):
    assert participants(site.context, 1, ["idle", "strong", "weak"])[0] == []


def test_a_tier_that_the_compiled_pipeline_lacks(site):
    with pytest.raises(PerfitError, match=r"of tier 'weak', which the compiled pipeline does not have\n.*compile"):
        participants(site.context, 1, ["strong"])


def test_a_client_that_has_left_is_not_run(site):
    first = plan_round(site.context, 1).participants[0].client
    begun(site)
    staying = tuple(client for client in site.spec.clients if client.id != first)
    smaller = Site(site.spec.model_copy(update={"clients": staying}), site.store_uri).prepare()
    names = [item["secret"] for item in participants(smaller.context, 1, ["strong", "weak"])[0]]
    assert len(names) == 2
    assert f"perfit-tiny-{first}" not in names


def test_a_round_whose_predecessor_is_not_committed(site):
    before = files(site.root)
    with pytest.raises(PerfitError) as caught:
        plan_round(site.context, 2)
    assert caught.value.problem == "round 2 of 'tiny' cannot start: the head is at round 0"
    assert caught.value.fix.startswith("run round 1 first")
    assert files(site.root) == before


def test_a_committed_round_keeps_its_plan_and_needs_nobody(trained):
    planned = plan_round(trained.context, 1)
    trained.aggregate(1)
    before = files(trained.root)
    assert plan_round(trained.context, 1) == planned
    assert participants(trained.context, 1, ["default"]) == [[]]
    assert files(trained.root) == before


def test_a_damaged_plan_is_named(trained):
    (trained.root / "rounds/1/plan.json").write_text('{"federation": "tiny", "round": "1"}')
    with pytest.raises(PerfitError, match=r"rounds/1/plan.json: round: Input should be a valid integer\n.*backup"):
        trained.context.plan(RoundPlace(1))


def test_an_unknown_federation(site):
    with pytest.raises(ObjectNotFound, match=r"no federation 'other' in .*\n.*the store has: tiny"):
        FederationContext.open(site.uri.replace("/tiny", "/other"))


def test_a_uri_that_names_no_federation(site):
    with pytest.raises(PerfitError, match="give <store URI>/federations/<name>"):
        FederationContext.open(site.store_uri)
