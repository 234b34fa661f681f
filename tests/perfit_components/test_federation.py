"""Two backends, one answer: the steps over a store leave what the federation in memory gives, byte for byte."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"method": {"name": "fedit"}},
        {"method": {"name": "local"}},
        {"wire_dtype": "bfloat16"},
        {"wire_dtype": "bfloat16", "method": {"name": "local"}},
        HALF_OF_THREE,
        HALF_OF_THREE | {"method": {"name": "local"}},
    ],
    ids=["perfit", "fedit", "local", "bfloat16", "local-bfloat16", "participation", "local-participation"],
)
def test_the_steps_leave_what_the_federation_in_memory_gives(make_site, sections):
    site = make_site(**{**TWO_TIERS, **sections}).run()
    stored = files(site.root)
    expected = in_memory(site.spec)
    assert {key: stored.get(key) for key in expected} == expected


def test_two_runs_in_two_stores_leave_the_same_files(make_site, tmp_path):
    site = make_site(**TWO_TIERS).run()
    again = type(site)(site.spec, (tmp_path / "store-2").as_uri()).run()
    assert files(again.root) == files(site.root)
