"""What crosses in a round: positions that enough clients share, in the type on the wire, and nobody else's values."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from perfit.adapter_file import AdapterFile, dump_transfer
from perfit.errors import PerfitError
from perfit.exchange import Packed, Transfer, pack
from perfit.protocol import Blob, Plan
from perfit_components.steps.collect import one_by_one, side_by_side
from perfit_components.steps.contribution import RoundReader
from perfit_components.steps.plan import plan_round
from perfit_storage import RoundPlace

from .running import THREE, Site, files

CLIENTS = ("ann", "bob", "eve")
DTYPES = ("float32", "bfloat16", "float16", "int8")


def after_one_round(make_site, **sections) -> Site:
    """Three clients of unequal rank after round 1, with round 2 planned."""
    site = make_site(**{**THREE, "rounds": 2, **sections}).prepare()
    site.run_round(1)
    site.planned(2)
    return site


def masks_of(site: Site) -> dict[str, np.ndarray]:
    return {client: site.mask_file(client).mask for client in CLIENTS}


def contested(site: Site, holders: int = 2) -> np.ndarray:
    return np.sum([*masks_of(site).values()], axis=0) >= holders


def plan_of(site: Site, round: int) -> Plan:
    return Plan.parse(files(site.root)[f"rounds/{round}/plan.json"])


def crossed(site: Site, key: str, frame: np.ndarray) -> Transfer:
    """A file of what crossed."""
    return AdapterFile.parse(files(site.root)[key]).transfer(frame, ["values"], site.spec.exchange.dtype)


def server_values(site: Site, round: int) -> np.ndarray:
    file = AdapterFile.parse(files(site.root)[f"rounds/{round}/global.safetensors"])
    return file.vectors(np.ones(file.space.size, dtype=bool), ["values"])["values"]


def forge_update(site: Site, positions: np.ndarray, values: Packed, **record: Any) -> None:
    """Let eve upload these values in round 2, with a record that names their bytes and says this."""
    path = site.root / "rounds/2/updates/eve.safetensors"
    file = AdapterFile.parse(path.read_bytes())
    data = dump_transfer(file.header, positions, Transfer(positions, {"values": values}))
    path.write_bytes(data)
    record_path = path.with_suffix(".json")
    stored = json.loads(record_path.read_text())
    stored["update"]["digest"] = blake3(data).hexdigest()
    record_path.write_text(json.dumps(stored | record))


@pytest.mark.parametrize("holders", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_client_downloads_and_uploads_what_enough_clients_hold(make_site, dtype, holders):
    site = after_one_round(make_site, exchange={"dtype": dtype, "holders": holders})
    site.train(2)
    values = server_values(site, 1)
    for client, mask in masks_of(site).items():
        exchanged = mask & contested(site, holders)
        assert holders == 1 or 0 < np.count_nonzero(exchanged) < np.count_nonzero(mask)
        download = crossed(site, f"rounds/2/downloads/{client}.safetensors", mask)
        assert (download.positions == exchanged).all()
        error = {"float32": 0, "bfloat16": 2**-8, "float16": 2**-10, "int8": 1 / 100}[dtype]
        np.testing.assert_allclose(
            download.unpack()["values"], values[exchanged], rtol=error, atol=error * np.abs(values).max()
        )
        upload = crossed(site, f"rounds/2/updates/{client}.safetensors", exchanged)
        assert (upload.positions == exchanged).all()
    reader = RoundReader.of(site.context, site.context.plan(RoundPlace(2)))
    together, alone = side_by_side(reader, {}), one_by_one(reader, {})
    means = [tally.cohort.average("values", reader.base.vectors["values"]) for tally in (together, alone)]
    assert means[0].tobytes() == means[1].tobytes() != values.tobytes()
    assert (together.cohort.holders == alone.cohort.holders).all()
    assert together.cohort.measures == alone.cohort.measures
    assert (together.held, together.outcomes) == (alone.held, alone.outcomes)


def test_what_crosses_is_counted_with_masks_and_headers(make_site):
    site = after_one_round(make_site, exchange={"dtype": "int8"})
    site.run_round(2)
    stored = files(site.root)
    for round in (1, 2):
        for record in site.summary(round).trained:
            mask = stored[f"masks/{record.client}/{record.mask_digest}"] if round == 1 else b""
            update = stored[f"rounds/{round}/updates/{record.client}.safetensors"]
            down = stored.get(f"rounds/{round}/downloads/{record.client}.safetensors", b"")
            assert (record.bytes_up, record.bytes_down) == (len(mask) + len(update), len(down))
            exchanged = site.mask_file(record.client).mask & (contested(site) | (round == 1))
            assert record.shared == np.count_nonzero(exchanged)


def test_values_of_one_holder_reach_nobody(make_site):
    site = after_one_round(make_site)
    site.run_round(2)
    solo = ~contested(site)
    initial = site.mask_file("ann").space.initial_values(site.spec.training.seed)
    for round in (0, 1, 2):
        assert (server_values(site, round)[solo] == initial[solo]).all()
    # What a client downloads has bits for its own positions alone.
    for client, mask in masks_of(site).items():
        bits = AdapterFile.parse(files(site.root)[f"rounds/2/downloads/{client}.safetensors"]).tensors["positions"]
        assert bits.size == -(-np.count_nonzero(mask) // 8)


def test_a_client_goes_on_from_its_own_values_where_nothing_is_exchanged(make_site):
    site = after_one_round(make_site)
    mask, solo = masks_of(site)["ann"], ~contested(site)
    kept = AdapterFile.parse(files(site.root)["clients/ann/state/1.safetensors"]).vectors(mask, ["values"])["values"]
    site.train_client("ann", 2)
    after = AdapterFile.parse(files(site.root)["clients/ann/state/2.safetensors"]).vectors(mask, ["values"])["values"]
    # Two steps of AdamW move a value by at most twice the learning rate.
    steps = 2 * site.spec.training.learning_rate * site.spec.training.steps
    assert np.abs(after - kept)[solo[mask]].max() <= steps
    assert np.abs(kept)[solo[mask]].max() > 0


def test_masks_go_first_where_the_file_says_so(make_site):
    site = make_site(**THREE, rounds=2, exchange={"masks_first": True}).prepare()
    first = site.run_round(1)
    assert [(record.shared, record.update, record.bytes_down) for record in first.trained] == [(0, None, 0)] * 3
    assert not [key for key in files(site.root) if key.startswith("rounds/1/updates/") and "safetensors" in key]
    second = site.run_round(2)
    for record in second.trained:
        assert record.shared == np.count_nonzero(masks_of(site)[record.client] & contested(site))
    assert second.change > first.change == 0


def test_who_joins_later_trains_alone_in_its_first_round(make_site):
    site = make_site(clients={"ann": {}, "bob": {"rank": 1}}, rounds=3).prepare()
    site.run_round(1)
    more = make_site(**THREE, rounds=3).spec
    joined = Site(site.spec.model_copy(update={"clients": more.clients}), site.store_uri).prepare()
    alone = {record.client: record for record in joined.run_round(2).trained}
    assert (alone["eve"].shared, alone["eve"].update, alone["eve"].bytes_down) == (0, None, 0)
    assert alone["ann"].shared > 0
    assert plan_of(joined, 2).participants[2].mask_digest is None
    together = {record.client: record for record in joined.run_round(3).trained}
    assert together["eve"].shared == np.count_nonzero(masks_of(joined)["eve"] & contested(joined)) > 0
    assert together["ann"].shared > alone["ann"].shared, "ann's positions have one more possible holder"


def test_who_leaves_is_not_counted_from_the_next_plan_on(make_site):
    site = make_site(**THREE, rounds=3).prepare()
    before = {record.client: record.shared for record in (site.run_round(1), site.run_round(2))[1].trained}
    left = Site(site.spec.model_copy(update={"clients": site.spec.clients[:2]}), site.store_uri).prepare()
    after = {record.client: record.shared for record in left.run_round(3).trained}
    masks = masks_of(site)
    assert after == dict.fromkeys(("ann", "bob"), np.count_nonzero(masks["ann"] & masks["bob"]))
    assert after["ann"] < before["ann"]


def test_where_fewer_deliver_than_a_position_needs_it_keeps_its_value(make_site):
    site = after_one_round(make_site, participation={"minimum_clients": 1})
    site.train_client("ann", 2)
    assert site.aggregate(2).positions_shared == 0
    assert (server_values(site, 1) == server_values(site, 2)).all()


def test_a_mask_that_its_client_has_changed_makes_it_unknown_and_stops_nobody(make_site):
    site = make_site(**THREE, rounds=2).prepare()
    site.run_round(1)
    mask = site.root / "masks/eve" / site.store.find_masks("eve")[0]
    mask.write_bytes(mask.read_bytes()[:-1] + b"\x01")
    assert [p.mask_digest is None for p in plan_round(site.context, 2).participants] == [False, False, True]
    outcomes = site.run_round(2).clients
    assert [outcome.status for outcome in outcomes] == ["trained", "trained", "failed"]
    assert "restore it from a backup" in outcomes[2].reason


def test_a_mask_that_changes_after_the_plan_stops_its_client_alone(make_site):
    site = after_one_round(make_site)
    site.train(2)
    mask = site.root / "masks/eve" / site.store.find_masks("eve")[0]
    mask.write_bytes(b"")
    counted = site.aggregate(2)
    assert [outcome.status for outcome in counted.clients] == ["trained", "trained", "refused"]
    assert counted.positions_shared == np.count_nonzero(masks_of_two(site))


def masks_of_two(site: Site) -> np.ndarray:
    return site.mask_file("ann").mask & site.mask_file("bob").mask


@pytest.mark.parametrize("lies", [True, False])
def test_an_update_at_other_positions_than_planned_is_refused(make_site, lies):
    site = after_one_round(make_site)
    site.train(2)
    mask = masks_of(site)["eve"]
    exchanged, count = mask & contested(site), int(np.count_nonzero(mask))
    shared = count if not lies else int(np.count_nonzero(exchanged))
    forge_update(site, mask, Packed(np.zeros(count, np.float32)), shared=shared)
    refused = site.aggregate(2).clients[2]
    assert refused.status == "refused"
    assert ("values of float32 for" if lies else f"its record says shared {count}") in refused.reason


@pytest.mark.parametrize(
    ("dtype", "problem"), [("float32", "values of bfloat16 for"), ("int8", "holds 1 tensors besides values")]
)
def test_an_update_of_another_type_than_agreed_is_refused(make_site, dtype, problem):
    site = after_one_round(make_site, exchange={"dtype": "bfloat16"})
    site.train(2)
    exchanged = masks_of(site)["eve"] & contested(site)
    forge_update(site, exchanged, pack(np.zeros(np.count_nonzero(exchanged), np.float32), dtype, seed=0))
    refused = site.aggregate(2).clients[2]
    assert refused.status == "refused"
    assert problem in refused.reason


@pytest.mark.parametrize("scale", [np.nan, np.inf, 1e38])
def test_a_scale_beyond_all_bounds_is_refused(make_site, scale):
    site = after_one_round(make_site, exchange={"dtype": "int8"})
    site.train(2)
    exchanged = masks_of(site)["eve"] & contested(site)
    values = pack(np.ones(np.count_nonzero(exchanged), np.float32), "int8", seed=0)
    forge_update(site, exchanged, Packed(values.values, np.full_like(values.scales, scale)))
    refused = site.aggregate(2).clients[2]
    assert refused.status == "refused"
    assert "are not finite" in refused.reason or "no LoRA does" in refused.reason


def test_the_largest_changes_alone_are_uploaded(make_site):
    site = after_one_round(make_site, exchange={"top": 0.25})
    site.run_round(2)
    for client, mask in masks_of(site).items():
        exchanged = mask & contested(site)
        upload = crossed(site, f"rounds/2/updates/{client}.safetensors", exchanged)
        assert np.count_nonzero(upload.positions) == round(np.count_nonzero(exchanged) / 4)


def test_more_changes_than_agreed_are_refused(make_site):
    site = after_one_round(make_site, exchange={"top": 0.25})
    site.train(2)
    exchanged = masks_of(site)["eve"] & contested(site)
    forge_update(site, exchanged, Packed(np.zeros(np.count_nonzero(exchanged), np.float32)))
    refused = site.aggregate(2).clients[2]
    assert (refused.status, refused.reason[:15]) == ("refused", "its update has ")


@pytest.mark.parametrize("lost", ["exchanged.safetensors", "downloads/bob.safetensors"])
def test_what_a_plan_names_is_made_again_if_it_is_lost(make_site, lost):
    site = after_one_round(make_site)
    before = files(site.root)
    (site.root / "rounds/2" / lost).unlink()
    site.planned(2)
    assert files(site.root) == before


def test_what_cannot_be_made_again_is_said(make_site):
    site = after_one_round(make_site)
    (site.root / "rounds/2/downloads/bob.safetensors").unlink()
    (site.root / "masks/bob" / site.store.find_masks("bob")[0]).write_bytes(b"")
    with pytest.raises(PerfitError, match=r"rounds/2: some of what clients download is missing.*\n.*backup"):
        site.planned(2)


def test_a_damaged_download_fails_its_client_alone(make_site):
    site = after_one_round(make_site)
    path = site.root / "rounds/2/downloads/bob.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    outcomes = site.run_round(2).clients
    assert [outcome.status for outcome in outcomes] == ["trained", "failed", "trained"]
    assert "has digest" in outcomes[1].reason


def test_a_download_of_another_round_is_no_download(make_site):
    site = after_one_round(make_site, rounds=3)
    old = files(site.root)["rounds/2/downloads/bob.safetensors"]
    site.run_round(2)
    site.planned(3)
    plan = plan_of(site, 3)
    (site.root / "rounds/3/downloads/bob.safetensors").write_bytes(old)
    bob = plan.participants[1]
    forged = replace_download(plan, bob.client, blake3(old).hexdigest())
    (site.root / "rounds/3/plan.json").write_bytes(forged.to_json())
    assert "its header is" in site.train_client("bob", 3)["reason"]


def replace_download(plan: Plan, client: str, digest: str) -> Plan:
    """The plan, with another hash of what a client downloads."""
    entries = [
        p.model_copy(update={"download": Blob(key=p.download.key, digest=digest)}) if p.client == client else p
        for p in plan.participants
    ]
    return plan.model_copy(update={"participants": tuple(entries)})


def test_clients_of_a_rank_download_one_object_where_nobody_searches(make_site):
    site = make_site(**THREE, method={"name": "fedit"}).prepare()
    keys = [participant.download.key for participant in plan_of(site, 1).participants]
    assert keys == ["rounds/1/ranks/2.safetensors", "rounds/1/ranks/1.safetensors", "rounds/1/ranks/2.safetensors"]
    assert AdapterFile.parse(files(site.root)[keys[0]]).header.client is None
    assert [status["status"] for status in site.train(1)] == ["trained"] * 3


ROLORA = {"method": {"name": "rolora"}, "exchange": {"dtype": "bfloat16"}}


def test_what_is_trained_in_turn_is_downloaded_in_each_round_and_uploaded_in_its_own(make_site):
    site = after_one_round(make_site, **ROLORA)
    site.run_round(2)
    a = site.mask_file("ann").space.a_mask
    for round, turn in [(1, ~a), (2, a)]:
        for record in site.summary(round).trained:
            mask = masks_of(site)[record.client]
            assert record.budget == record.shared == np.count_nonzero(mask & turn)
            crossed(site, f"rounds/{round}/updates/{record.client}.safetensors", mask & turn)
        download = crossed(site, f"rounds/{round}/ranks/2.safetensors", masks_of(site)["ann"])
        assert download.positions.all()
        before, after = server_values(site, round - 1), server_values(site, round)
        assert (after[~turn] == before[~turn]).all()
        assert (after[turn] != before[turn]).any()


@pytest.mark.parametrize("lies", [True, False])
def test_an_update_out_of_turn_is_refused(make_site, lies):
    site = after_one_round(make_site, **ROLORA)
    site.train(2)
    mask = masks_of(site)["eve"]
    turn = mask & site.mask_file("eve").space.a_mask
    count = int(np.count_nonzero(mask & ~turn))
    budget = int(np.count_nonzero(turn)) if lies else count
    forge_update(site, mask & ~turn, pack(np.zeros(count, np.float32), "bfloat16", 0), budget=budget, shared=budget)
    refused = site.aggregate(2).clients[2]
    assert refused.status == "refused"
    assert ("values of bfloat16 for" if lies else f"its record says budget {count}") in refused.reason
