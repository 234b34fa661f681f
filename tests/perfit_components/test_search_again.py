"""Searching again: the masks of later rounds, and what crosses and is kept under them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from perfit.adapter import mask_hash
from perfit.adapter_file import AdapterFile, dump_mask
from perfit.protocol import ClientStatus, Plan
from perfit_components.steps.plan import plan_round

from .running import THREE, Site, files

EVERY_ROUND = {**THREE, "rounds": 3, "method": {"search_every": 1, "search_from": "global"}}


def plan(site: Site, place: str) -> Plan:
    return Plan.parse((site.root / f"rounds/{place}/plan.json").read_bytes())


def mask(site: Site, client: str, sha256: str) -> np.ndarray:
    return AdapterFile.parse(site.store.get_mask(client, sha256)).mask


def test_the_next_plan_is_made_for_the_new_masks(make_site):
    site = make_site(**EVERY_ROUND).run()
    for number in (1, 2):
        records = {record.client: record for record in site.summary(number).trained}
        planned = {p.client: p.mask_sha256 for p in plan(site, str(number + 1)).participants}
        later = {record.client: record.mask_sha256 for record in site.summary(number + 1).trained}
        assert planned == later == {client: record.next_mask_sha256 for client, record in records.items()}
        assert site.summary(number).architectures == planned
        masks = {client: mask(site, client, sha256) for client, sha256 in planned.items()}
        contested = np.sum([*masks.values()], axis=0) >= 2
        for client, held in masks.items():
            assert np.any(held != mask(site, client, records[client].mask_sha256))
            file = AdapterFile.parse(files(site.root)[f"rounds/{number + 1}/downloads/{client}.safetensors"])
            assert (file.transfer(held, ["values"], "float32").positions == (held & contested)).all()


def test_masks_change_only_when_it_is_time(make_site):
    site = make_site(**{**EVERY_ROUND, "method": {"search_every": 2}}).run()
    following = [[record.next_mask_sha256 is not None for record in site.summary(n).trained] for n in (1, 2, 3)]
    assert following == [[False] * 3, [True] * 3, [False] * 3]
    for client in ("ann", "bob", "eve"):
        held = [{r.client: r.mask_sha256 for r in site.summary(number).trained}[client] for number in (1, 2, 3)]
        assert held[0] == held[1] != held[2]
        assert len(site.store.find_masks(client)) == 2
        # The mask counts in the round in which it was found.
        sizes = [len(site.store.get_mask(client, sha256)) for sha256 in (held[0], held[2])]
        for number, size in zip((1, 2), sizes, strict=True):
            record = next(r for r in site.summary(number).trained if r.client == client)
            update = len(files(site.root)[f"rounds/{number}/updates/{client}.safetensors"])
            assert record.bytes_up == update + size


@pytest.mark.parametrize("lost", ["record", "pointer and record", "all"])
def test_a_repeated_attempt_leaves_the_same_files(make_site, lost):
    site = make_site(**EVERY_ROUND).prepare()
    site.train_client("eve")
    before = files(site.root)
    paths = [site.root / "rounds/1/updates/eve.json"]
    if lost != "record":
        paths.append(site.root / "clients/eve/search/1.txt")
    if lost == "all":
        paths += (site.root / "masks/eve").iterdir()
    for path in paths:
        path.unlink()
    site.train_client("eve")
    assert files(site.root) == before


def test_who_does_not_count_keeps_its_mask(make_site):
    site = make_site(**EVERY_ROUND).prepare()
    site.run_round(1)
    site.train(2)
    (site.root / "rounds/2/updates/eve.json").unlink()
    summary = site.aggregate(2)
    assert [status.client for status in summary.lost] == ["eve"]
    known = site.summary(1).architectures["eve"]
    assert summary.architectures["eve"] == known
    assert {r.client: r.mask_sha256 for r in site.run_round(3).trained}["eve"] == known


def test_rounds_after_a_rollback_give_the_same_values(make_site):
    site = make_site(**EVERY_ROUND).run()
    first = files(site.root)
    site.roll_back(1)
    for number in (2, 3):
        site.run_round(number)
        # They start from what was kept under the masks of round 1, not from the files of the rounds left behind.
        key = f"rounds/{number}{{}}/global.safetensors"
        assert files(site.root)[key.format(".1")] == first[key.format("")]


def test_a_client_that_never_counted_begins_with_its_first_mask(make_site):
    site = make_site(**EVERY_ROUND).prepare()
    site.train(1)
    first = json.loads((site.root / "rounds/1/updates/eve.json").read_text())
    assert len(site.store.find_masks("eve")) == 2
    (site.root / "rounds/1/updates/eve.json").unlink()
    site.aggregate(1)
    assert {p.client: p.mask_sha256 for p in plan_round(site.context, 2).participants}["eve"] is None
    assert {r.client: r.mask_sha256 for r in site.run_round(2).trained}["eve"] == first["mask_sha256"]


def change(**fields: object) -> Callable[[Site], None]:
    """A record that says something else."""

    def tamper(site: Site) -> None:
        path = site.root / "rounds/1/updates/eve.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return tamper


def half_a_mask(site: Site) -> None:
    """A next mask of a smaller budget."""
    record = json.loads((site.root / "rounds/1/updates/eve.json").read_text())
    file = AdapterFile.parse(site.store.get_mask("eve", record["next_mask_sha256"]))
    held = file.mask.copy()
    held[np.flatnonzero(held)[::2]] = False
    sha256 = mask_hash(file.space, held)
    header = replace(file.header, budget=int(np.count_nonzero(held)), mask_sha256=sha256)
    site.store.put_mask("eve", sha256, dump_mask(header, file.space, held))
    change(next_mask_sha256=sha256)(site)


def bits_of_another(site: Site) -> None:
    """A next mask whose bits are not those of its hash."""
    record = json.loads((site.root / "rounds/1/updates/eve.json").read_text())
    path = site.root / f"masks/eve/{record['next_mask_sha256']}"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("every", "tamper", "reason"),
    [
        (1, change(next_mask_sha256=None), "next_mask_sha256 None, but clients search again"),
        (2, change(next_mask_sha256="0" * 64), "but clients do not search again after this round"),
        (1, change(next_mask_sha256="0" * 64), "there is no .*masks/eve/0000"),
        (1, half_a_mask, "its mask says budget"),
        (1, bits_of_another, "the mask does not have the header's budget and hash"),
    ],
    ids=["none", "too early", "missing", "smaller", "other bits"],
)
def test_a_next_mask_that_does_not_follow_the_plan_is_refused(make_site, every, tamper, reason):
    site = make_site(**{**EVERY_ROUND, "method": {"search_every": every}}).prepare()
    site.train(1)
    tamper(site)
    summary = site.aggregate(1)
    (refused,) = summary.lost
    assert isinstance(refused, ClientStatus)
    assert (refused.client, refused.status) == ("eve", "refused")
    assert re.search(reason, refused.reason)
    assert "eve" not in summary.architectures
