"""Who takes part in a round."""

from __future__ import annotations

from collections import Counter

import pytest

from perfit.sampling import sample_clients
from perfit.spec import FederationSpec


def spec_of(fraction: float, minimum: int = 1, seed: int = 0, **tiers: int) -> FederationSpec:
    """A federation of the given number of clients in each tier."""
    return FederationSpec.model_validate(
        {
            "name": "f",
            "model": "m",
            "training": {"seed": seed},
            "participation": {"fraction": fraction, "minimum_clients": minimum},
            "clients": [
                {"id": f"{tier}-{i}", "data": "d.jsonl", "tier": tier} for tier in tiers for i in range(tiers[tier])
            ],
        }
    )


def sampled(spec: FederationSpec, round: int = 1) -> list[str]:
    return [client.id for client in sample_clients(spec.clients, spec.participation, spec.training.seed, round)]


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(1.0, (10, 3, 1)), (0.5, (5, 2, 1)), (0.3, (3, 1, 1)), (0.31, (4, 1, 1)), (0.01, (1, 1, 1))],
)
def test_the_fraction_of_every_tier_rounded_up(fraction, expected):
    counts = Counter(id.split("-")[0] for id in sampled(spec_of(fraction, big=10, mid=3, one=1)))
    assert (counts["big"], counts["mid"], counts["one"]) == expected


@pytest.mark.parametrize(("fraction", "clients", "expected"), [(0.28, 25, 7), (0.56, 25, 14), (0.07, 100, 7)])
def test_a_fraction_that_binary_cannot_hold(fraction, clients, expected):
    assert len(sampled(spec_of(fraction, big=clients))) == expected


def test_the_quorum_is_filled_up():
    assert len(sampled(spec_of(0.1, big=10, small=2))) == 2
    for minimum in range(2, 13):
        ids = sampled(spec_of(0.1, minimum, big=10, small=2))
        assert len(ids) == len(set(ids)) == minimum
        assert any(id.startswith("small") for id in ids)


def test_a_quorum_below_the_fraction_changes_nothing():
    assert sampled(spec_of(0.5, 3, big=10)) == sampled(spec_of(0.5, 1, big=10))


def test_clients_are_in_the_order_of_the_file():
    spec = spec_of(0.5, big=10, small=4)
    order = [client.id for client in spec.clients]
    ids = sampled(spec)
    assert ids == sorted(ids, key=order.index)


def test_the_sample_follows_seed_and_round():
    spec = spec_of(0.3, big=20)
    assert sampled(spec, 1) == sampled(spec, 1)
    assert sampled(spec, 1) != sampled(spec, 2)
    assert sampled(spec, 1) != sampled(spec_of(0.3, seed=1, big=20), 1)


def test_in_the_long_run_everybody_takes_part_as_often():
    spec = spec_of(0.25, big=8, small=4)
    counts = Counter(id for round in range(1, 401) for id in sampled(spec, round))
    assert set(counts) == {client.id for client in spec.clients}
    # 100 times each in the mean; the standard deviation is sqrt(400 * 1/4 * 3/4) = 8.7.
    assert all(abs(count - 100) < 35 for count in counts.values())
