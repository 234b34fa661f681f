"""The components' own functions, called as a container calls them."""

from __future__ import annotations

import json

from kfp import dsl

from perfit_components.aggregate import aggregate
from perfit_components.client import client
from perfit_components.prepare import prepare

from .running import TWO_TIERS, files

TIERS = ["strong", "weak"]


def tune(federation: str, round: int, name: str, tmp_path) -> tuple[dict[str, str], dict[str, float]]:
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / f"{name}-{round}"))
    return client.python_func(federation, round, name, 1, metrics), metrics.metadata


def close(federation: str, round: int, tmp_path, *, plan_next: bool):
    page = dsl.HTML(name="page", uri=str(tmp_path / f"page-{round}.html"))
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / f"metrics-{round}"))
    participants = aggregate.python_func(federation, round, TIERS, plan_next, page, metrics)
    return participants, (tmp_path / f"page-{round}.html").read_bytes(), metrics.metadata


def test_two_rounds_through_the_components(make_site, tmp_path):
    site = make_site(**TWO_TIERS)
    federation, number, served, *tiers = prepare.python_func(site.spec.to_yaml(), site.store_uri, TIERS, [])
    assert (federation, number, served) == (site.uri, 1, 0)
    assert tiers == [["perfit-tiny-ann"], ["perfit-tiny-bob"], *[[]] * 6]

    statuses, logged = zip(*(tune(federation, 1, name, tmp_path) for tier in tiers for name in tier), strict=True)
    assert list(statuses) == [{"client": client, "status": "trained", "reason": ""} for client in ("ann", "bob")]
    participants, html, metrics = close(federation, 1, tmp_path, plan_next=True)
    assert list(participants) == tiers
    assert site.store.read_head().round == 1
    assert html.lower().startswith(b"<!doctype html>")
    assert html == files(site.root)["rounds/1/report.html"]
    records = json.loads(files(site.root)["rounds/1/summary.json"])["clients"]
    assert metrics["clients_delivered"] == 2
    assert [of["perplexity_after"] for of in logged] == [record["perplexity"]["after"] for record in records]
    assert [of["loss_last"] for of in logged] == [record["losses"][-1] for record in records]
    assert [of["bytes_up"] for of in logged] == [record["bytes_up"] for record in records]
    assert all(type(value) is float for of in logged for value in of.values())
    assert metrics["bytes_up"] == sum(record["bytes_up"] for record in records)
    assert all(type(value) is float for value in metrics.values())

    for name in (*participants[0], *participants[1]):
        assert tune(federation, 2, name, tmp_path)[0]["status"] == "trained"
    output, metrics = tune(federation, 2, "perfit-tiny-nobody", tmp_path)
    assert (output["status"], metrics) == ("failed", {})
    participants, _, _ = close(federation, 2, tmp_path, plan_next=False)
    assert list(participants) == [[]] * 8
    assert "rounds/3/plan.json" not in files(site.root)

    _, number, served, *tiers = prepare.python_func(site.spec.to_yaml(), site.store_uri, TIERS, [], round=1)
    assert (number, served, tiers) == (1, 0, [[]] * 8)  # round 1 is committed and needs nobody
