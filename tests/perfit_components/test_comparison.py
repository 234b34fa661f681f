"""Federations compared from their stores: the figures of their records, beside each other."""

from __future__ import annotations

import numpy as np
import pytest

from perfit.bench.statistics import bootstrap, gain
from perfit.errors import PerfitError
from perfit_components.steps.comparison import compare_federations
from perfit_report.bench_page import bench_markdown, render_bench
from perfit_report.bench_tables import clients_csv

from .running import THREE, Site

SECTIONS = {"rounds": 2}  # of ann and bob


@pytest.fixture
def make_federation(make_site):
    """A function that runs a federation of a name of its own."""

    def make(name: str, method: str, seed: int = 0, **sections) -> Site:
        own = {"name": name, "method": {"name": method}, "training": {"seed": seed}}
        return make_site(**{**SECTIONS, **own, **sections})

    return make


def figures(site: Site, name: str, number: int) -> list[float]:
    """Perplexities or bytes of a round's records, in the order of the clients' ids."""
    records = sorted(site.summary(number).trained, key=lambda record: record.client)
    return [getattr(record.perplexity, name, None) or getattr(record, name) for record in records]


def test_figures_and_differences_are_those_of_the_records(make_federation):
    sites = {
        (method, seed): make_federation(f"{method}-{seed}", method, seed).run()
        for method in ("perfit", "local")
        for seed in (0, 1)
    }
    comparison = compare_federations([site.context for site in sites.values()])
    assert (comparison.seeds, comparison.rounds, comparison.baselines) == ((0, 1), 2, ("local",))
    assert [method.label for method in comparison.methods] == ["perfit", "local"]
    after = {m: np.array([figures(sites[m, seed], "after", 2) for seed in (0, 1)]) for m in ("perfit", "local")}
    for method in comparison.methods:
        (point,) = method.points
        np.testing.assert_array_equal(point.personal, after[method.label])
        # What they started the last round from; with local that is what they had after the round before.
        np.testing.assert_array_equal(point.shared, [figures(sites[method.label, s], "before", 2) for s in (0, 1)])
        sent = [sum(sum(figures(sites[method.label, s], "bytes_up", n)) for n in (1, 2)) for s in (0, 1)]
        assert point.total("bytes_up") == np.mean(sent)
        assert point.trainable == pytest.approx(np.mean([224 * rank for rank in (2, 1)]))
        assert point.client_seconds is None
    perfit, local = comparison.methods
    assert perfit.differences == {"local": bootstrap(after["perfit"] - after["local"], keeps_clients=True)}
    assert perfit.gains == {"local": gain(after["perfit"], after["local"], keeps_clients=True)}
    assert local.differences == local.gains == {}
    markdown = bench_markdown(comparison)
    assert f"| perfit | - | {after['perfit'].mean():.2f} |" in markdown
    assert markdown.count("<svg") == 0
    assert render_bench(comparison).count("<svg") == 3
    assert len(clients_csv(comparison).splitlines()) == 1 + 2 * 2 * 2 * 2


def test_a_client_that_is_not_sampled_counts_with_its_last_adapter(make_federation):
    site = make_federation("part", "fedit", **THREE, participation={"fraction": 0.5}).run()
    (method,) = compare_federations([site.context]).methods
    delivered = {record.client: record for n in (1, 2) for record in site.summary(n).trained}
    personal = method.points[0].cells[0].rounds[-1].personal
    assert personal == {client: record.perplexity.after for client, record in delivered.items()}
    assert method.points[0].cells[0].rounds[-1].shared == {}


def test_what_differs_in_options_is_told_by_its_directory(make_federation):
    fast, slow = (
        make_federation(name, "fedit", training={"learning_rate": rate}, rounds=rounds)
        for name, rate, rounds in (("fast", 0.01, 2), ("slow", 0.001, 1))
    )
    comparison = compare_federations([fast.run().context, slow.run().context], ["slow"])
    assert [method.label for method in comparison.methods] == ["fast", "slow"]
    # Both count up to the only round of the shorter one.
    assert comparison.rounds == 1
    assert comparison.methods[0].points[0].cells[0].rounds[-1].personal == dict(
        zip(("ann", "bob"), figures(fast, "after", 1), strict=True)
    )


def test_what_cannot_be_compared(make_federation, tmp_path):
    one = make_federation("one", "fedit", rounds=1).run()
    other = make_federation("other", "local", seed=1, rounds=1).run()
    halves = make_federation("halves", "local", rounds=1, data={"held_out_fraction": 0.5}).run()
    alone = make_federation("alone", "local", rounds=1, clients={"ann": {}}).run()
    empty = make_federation("empty", "local").prepare()
    bob = make_federation("bob", "local", rounds=1, clients={"bob": {"rank": 1}}).run()

    def refused(*sites: Site, baselines=None) -> str:
        with pytest.raises(PerfitError) as raised:
            compare_federations([site.context for site in sites], baselines)
        assert raised.value.fix
        return raised.value.problem

    assert "local has the seeds [1], fedit [0]" in refused(one, other)
    assert refused(one, one).endswith("another method has too (fedit)")
    assert "no method is called 'perfit'" in refused(one, baselines=["perfit"])
    assert "'ann' was evaluated on other records in" in refused(one, halves)
    assert "(1 and 3 of them" in refused(one, halves)
    assert "no client has delivered in all" in refused(alone, bob)
    assert "has no committed round" in refused(empty)
