"""Updates that somebody tampered with are refused, named in the summary, and left out of the mean."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from perfit.adapter import SparseAdapter, mask_hash
from perfit.adapter_file import AdapterHeader, dump_mask, dump_values, load_dense, load_mask, load_values
from perfit.aggregation import Contribution, aggregate
from perfit.space import LoraSpace

from .running import Site, files


class Eve:
    """What client eve left in round 1, and how she may change it."""

    def __init__(self, site: Site):
        self.root, self.spec = site.root, site.spec
        self.record_path = self.root / "rounds/1/updates/eve.json"
        self.update_path = self.root / "rounds/1/updates/eve.safetensors"
        self.record: dict[str, Any] = json.loads(self.record_path.read_text())
        _, self.space, self.mask = load_mask((self.root / f"masks/eve-{self.record['mask_sha256']}").read_bytes())
        self.header, self.adapter = load_values(self.update_path.read_bytes(), self.mask)

    def says(self, **fields: Any) -> None:
        """Write another record."""
        self.record_path.write_text(json.dumps(self.record | fields))

    def sends(self, header: AdapterHeader, values: np.ndarray, **fields: Any) -> None:
        """Write a whole update of other content, with a record that fits its bytes."""
        self.sends_bytes(dump_values(header, SparseAdapter(self.space, self.mask, values)), **fields)

    def sends_bytes(self, data: bytes, **fields: Any) -> None:
        self.update_path.write_bytes(data)
        self.says(bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), **fields)


def flip_a_byte(eve: Eve) -> None:
    data = bytearray(eve.update_path.read_bytes())
    data[-1] ^= 1
    eve.update_path.write_bytes(data)


def cut_off(eve: Eve) -> None:
    eve.update_path.write_bytes(eve.update_path.read_bytes()[:-4])


def no_update(eve: Eve) -> None:
    eve.update_path.unlink()


def other_bytes(eve: Eve) -> None:
    eve.sends_bytes(b"not an adapter")


def other_header(**fields: Any) -> Callable[[Eve], None]:
    return lambda eve: eve.sends(replace(eve.header, **fields), eve.adapter.values)


def one_value(value: float) -> Callable[[Eve], None]:
    def tamper(eve: Eve) -> None:
        values = eve.adapter.values.copy()
        values[7] = value
        eve.sends(eve.header, values)

    return tamper


def update_of_bob(eve: Eve) -> None:
    eve.sends_bytes((eve.root / "rounds/1/updates/bob.safetensors").read_bytes())


def record_of_bob(eve: Eve) -> None:
    shutil.copy(eve.root / "rounds/1/updates/bob.json", eve.record_path)


def architecture_of_bob(eve: Eve) -> None:
    """Bob's mask, which is of a smaller budget, and an update that fits it."""
    bob = json.loads((eve.root / "rounds/1/updates/bob.json").read_text())
    sha256 = bob["mask_sha256"]
    _, _, eve.mask = load_mask(
        shutil.copy(eve.root / f"masks/bob-{sha256}", eve.root / f"masks/eve-{sha256}").read_bytes()
    )
    eve.sends(eve.header, eve.adapter.values[: np.count_nonzero(eve.mask)], mask_sha256=sha256)


def all_positions(eve: Eve) -> None:
    """A mask above the budget, and an update that fits it."""
    eve.mask = np.ones(eve.space.size, dtype=bool)
    sha256 = mask_hash(eve.space, eve.mask)
    (eve.root / f"masks/eve-{sha256}").write_bytes(dump_mask(eve.header, eve.space, eve.mask))
    eve.sends(eve.header, np.zeros(eve.space.size, dtype=np.float32), mask_sha256=sha256)


def another_space(eve: Eve) -> None:
    a, b = eve.space.matrices[:2]
    eve.space = LoraSpace(eve.space.rank, (a, b))
    eve.mask = eve.space.plain_mask(2)
    sha256 = mask_hash(eve.space, eve.mask)
    (eve.root / f"masks/eve-{sha256}").write_bytes(dump_mask(eve.header, eve.space, eve.mask))
    eve.sends(eve.header, np.zeros(np.count_nonzero(eve.mask), dtype=np.float32), mask_sha256=sha256)


def without(key: str) -> Callable[[Eve], None]:
    def tamper(eve: Eve) -> None:
        del eve.record[key]
        eve.says()

    return tamper


def text(content: str) -> Callable[[Eve], None]:
    return lambda eve: eve.record_path.write_text(content)


def says(**fields: Any) -> Callable[[Eve], None]:
    return lambda eve: eve.says(**fields)


CASES = {
    "flipped byte": (flip_a_byte, "but its record says"),
    "cut off": (cut_off, "but its record says"),
    "no update": (no_update, "there is no"),
    "not an adapter": (other_bytes, "not an adapter file"),
    "other round": (other_header(round=2), "its update says round 2, the plan 1"),
    "other client": (other_header(client="ann"), "its update says client 'ann', the plan 'eve'"),
    "other federation": (other_header(federation="big"), "its update says federation 'big', the plan 'tiny'"),
    "other model": (other_header(base_model="some/model"), "its update says base_model 'some/model', the plan"),
    "other rank": (other_header(rank=1), "its update says rank 1, the plan 2"),
    "other expansion": (other_header(expansion=4), "its update says expansion 4, the plan 2"),
    "nan": (one_value(np.nan), "1 values are not finite"),
    "infinite": (one_value(np.inf), "1 values are not finite"),
    "bob's update": (update_of_bob, "not on the one given"),
    "bob's record": (record_of_bob, "its record says client 'bob', the plan 'eve'"),
    "below the budget": (architecture_of_bob, "its mask holds 224 positions, its rank gives 448"),
    "above the budget": (all_positions, "its mask holds 896 positions, its rank gives 448"),
    "other shapes": (another_space, "its mask stands in another space"),
    "unknown mask": (says(mask_sha256="0" * 64), "run the search of client 'eve' again"),
    "mask that is a path": (says(mask_sha256="../" * 21 + "x"), "its record is malformed: ('mask_sha256',)"),
    "no samples": (says(samples=0), "its record is malformed: ('samples',)"),
    "negative samples": (says(samples=-3), "its record is malformed: ('samples',)"),
    "samples beyond all bounds": (says(samples=10**400), "its record is malformed: ('samples',)"),
    "samples that outweigh all": (says(samples=10**308), "its record is malformed: ('samples',)"),
    "loss as text": (says(losses=["low"]), "its record is malformed: ('losses', 0)"),
    "unknown key": (says(note="hello"), "its record is malformed: ('note',)"),
    "no perplexity": (without("perplexity"), "its record is malformed: ('perplexity',)"),
    "record of bob's words": (says(client="bob"), "its record"),
    "record of another round": (says(round=2), "its record"),
    "record of another rank": (says(rank=1), "its record"),
    "record of another budget": (says(budget=1), "its record"),
    "record of another tier": (says(tier="gpu"), "its record"),
    "key above the federation": (says(key="../big/rounds/1/updates/eve.safetensors"), "its record names"),
    "key of the client's own part": (says(key="clients/eve/adapter/adapter_model.safetensors"), "its record names"),
    "key of bob's update": (says(key="rounds/1/updates/bob.safetensors"), "its record names"),
    "empty key": (says(key=""), "its record names"),
    "no key": (says(key=None), "its record names"),
    "no JSON": (text("{"), "is not JSON"),
    "no UTF-8": (lambda eve: eve.record_path.write_bytes(b'{"a": "\xff"}'), "is not JSON"),
    "no object": (text("[]"), "is not a JSON object"),
    "no record": (text("{}"), "None"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_tampered_update_is_refused_named_and_left_out(trained, case):
    tamper, reason = CASES[case]
    tamper(Eve(trained))
    others = [outcome["client"] for outcome in trained.aggregate(1)["clients"] if outcome["status"] == "trained"]
    outcome = trained.store.read_summary(1)["clients"][2]
    assert (outcome["client"], outcome["rank"], outcome["tier"]) == ("eve", 2, "default")
    assert outcome["status"] == ("failed" if case == "no record" else "refused")
    assert reason in outcome["reason"]
    assert others == ["ann", "bob"]
    committed = load_dense(trained.store.read_global(trained.store.read_head()))[1].values
    assert (committed == mean_of_ann_and_bob(trained)).all()


def mean_of_ann_and_bob(site: Site) -> np.ndarray:
    stored = files(site.root)
    start = load_dense(stored["rounds/0/global.safetensors"])[1].values
    contributions = []
    for client in ("ann", "bob"):
        record = json.loads(stored[f"rounds/1/updates/{client}.json"])
        mask = load_mask(stored[f"masks/{client}-{record['mask_sha256']}"])[2]
        adapter = load_values(stored[f"rounds/1/updates/{client}.safetensors"], mask)[1]
        contributions.append(Contribution(adapter, record["samples"]))
    return aggregate(start, contributions)


@pytest.mark.parametrize("method", ["fedit", "local"])
def test_a_record_of_another_round_or_client_is_refused_where_all_masks_are_alike(make_site, method):
    site = make_site(method={"name": method}, clients={"ann": {}, "bob": {}}, rounds=2).run()
    updates = site.root / "rounds/2/updates"
    (site.root / "rounds/2/summary.json").unlink()
    for source in (site.root / "rounds/1/updates/bob.json", updates / "ann.json"):
        shutil.copy(source, updates / "bob.json")
        outcome = site.aggregate(2)["clients"][1]
        assert (outcome["client"], outcome["status"]) == ("bob", "refused")
        (site.root / "rounds/2/summary.json").unlink(missing_ok=True)
