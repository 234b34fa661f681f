"""What a bench measures of a round is what the pipeline's steps record."""

from __future__ import annotations

from pathlib import Path

import pytest

from perfit.bench.measure import round_result
from perfit.simulation import Simulation

from .running import THREE


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"method": {"name": "fedit"}, "exchange": {"dtype": "int8", "top": 0.5}},
        {"method": {"name": "local"}},
        {"participation": {"fraction": 0.5}, "exchange": {"masks_first": True}},
        {"method": {"search_every": 1, "search_from": "global"}},
    ],
    ids=["perfit", "fedit in int8", "local", "partly, masks first", "searching again"],
)
def test_bytes_and_perplexities_are_those_of_the_steps(make_site, sections):
    site = make_site(**THREE, rounds=3, **sections).run()
    simulation = Simulation.load(site.spec, Path("no-cache-needed"))
    after, shared = simulation.start(), {}
    base = {client.id: 300.0 for client in site.spec.clients}
    for number in range(1, site.spec.rounds + 1):
        before, after = after, simulation.next_round(after)
        measured = round_result(simulation, before, after, base, seconds=6.0)
        trained = {record.client: record for record in site.summary(number).trained}
        assert measured.bytes_up == {client: record.bytes_up for client, record in trained.items()}
        assert measured.bytes_down == {client: record.bytes_down for client, record in trained.items()}
        assert sum(measured.seconds.values()) == pytest.approx(6.0)
        for client, record in trained.items():
            assert measured.personal[client] == record.perplexity.after
            # What all would start from, if all take part in the next round.
            if site.spec.participation.fraction == 1 and number > 1:
                assert shared[client] == pytest.approx(record.perplexity.before, rel=1e-6)
        shared = measured.shared
