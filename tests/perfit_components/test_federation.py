"""The steps over a store write what the simulation computes, byte for byte, for every method."""

from __future__ import annotations

import pytest
from numpy.testing import assert_allclose

from perfit.errors import PerfitError
from perfit.methods import METHODS
from perfit.protocol import parse_outcome
from perfit.simulation import Simulation

from .running import TWO_TIERS, files, in_memory

HALF_OF_THREE = {
    "participation": {"fraction": 0.5},
    "clients": {
        "ann": {"tier": "strong"},
        "bob": {"tier": "weak", "rank": 1},
        "eve": {"tier": "weak"},
    },
    "rounds": 3,
}
CASES = {
    **{name: {"method": {"name": name}} for name in METHODS},
    "perfit-bfloat16": {"exchange": {"dtype": "bfloat16"}},
    "perfit-int8": {"exchange": {"dtype": "int8"}, "rounds": 3},
    "perfit-largest": {"exchange": {"top": 0.25, "dtype": "int8"}, "rounds": 3},
    "perfit-everything": {"exchange": {"holders": 1}},
    "perfit-masks-first": {"exchange": {"masks_first": True}, "rounds": 3},
    "perfit-search-again": {"method": {"search_every": 1, "search_from": "global"}, "rounds": 3},
    "perfit-common-again": {
        "method": {"metric": "common", "search_every": 2},
        "exchange": {"dtype": "int8"},
        "rounds": 3,
    },
    "perfit-local-again": {"method": {"name": "perfit-local", "search_every": 1}, "rounds": 3},
    "perfit-participation-again": HALF_OF_THREE | {"method": {"search_every": 1, "search_from": "global"}},
    "perfit-unlike-tiers": {
        "tiers": {"strong": {}, "weak": {"training": {"batch_size": 1, "gradient_checkpointing": True}}},
    },
    "local-bfloat16": {"exchange": {"dtype": "bfloat16"}, "method": {"name": "local"}},
    "scaffold-float16": {"exchange": {"dtype": "float16"}, "method": {"name": "scaffold"}},
    "scaffold-int8": {"exchange": {"dtype": "int8"}, "method": {"name": "scaffold"}},
    "fedsa-lora-bfloat16": {"exchange": {"dtype": "bfloat16"}, "method": {"name": "fedsa-lora"}},
    "perfit-participation": HALF_OF_THREE,
    "local-participation": HALF_OF_THREE | {"method": {"name": "local"}},
    "scaffold-participation": HALF_OF_THREE | {"method": {"name": "scaffold"}},
    "fedadam-participation": HALF_OF_THREE | {"method": {"name": "fedadam"}},
    "flexlora-int8": {"exchange": {"dtype": "int8", "holders": 1}, "method": {"name": "flexlora"}},
    "rolora-int8": {"exchange": {"dtype": "int8"}, "method": {"name": "rolora"}, "rounds": 3},
    "rolora-largest": {"exchange": {"top": 0.25}, "method": {"name": "rolora"}},
    "rolora-participation": HALF_OF_THREE | {"method": {"name": "rolora"}},
}


@pytest.mark.parametrize("case", CASES)
def test_the_steps_leave_what_the_simulation_gives(make_site, case):
    site = make_site(**{**TWO_TIERS, **CASES[case]}).run()
    stored = files(site.root)
    expected = in_memory(site.spec)
    assert {key: stored.get(key) for key in expected} == expected
    last = [key for key in stored if f"/{site.spec.rounds}/" in key or f"state/{site.spec.rounds}." in key]
    vectors = {key for key in last if key.endswith(".safetensors")} - {
        f"rounds/{site.spec.rounds}/exchanged.safetensors"
    }
    assert vectors <= set(expected)


def test_a_weak_tier_may_hold_the_model_in_fewer_bits(make_site, tmp_path):
    plain, quantised = TWO_TIERS, {**TWO_TIERS, "tiers": {"strong": {}, "weak": {"training": {"quantization": "int8"}}}}
    sites = [make_site(**sections, name=name).run() for name, sections in (("plain", plain), ("int8", quantised))]
    strong, weak = (
        [parse_outcome(files(site.root)[f"rounds/1/updates/{client}.json"]).losses for site in sites]
        for client in ("ann", "bob")
    )
    assert strong[0] == strong[1]
    assert weak[0] != weak[1]
    assert_allclose(weak[0], weak[1], rtol=0.05)
    with pytest.raises(PerfitError, match=r"^tiers\.weak\.training\.quantization: a simulation has one model"):
        Simulation.load(sites[1].spec, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_in_two_stores_leave_the_same_files(make_site, tmp_path, method):
    site = make_site(**TWO_TIERS, method={"name": method}).run()
    again = type(site)(site.spec, (tmp_path / "store-2").as_uri()).run()
    assert files(again.root) == files(site.root)
