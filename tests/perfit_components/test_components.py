"""The components' own functions, called as a container calls them."""

from __future__ import annotations

import json

from kfp import dsl

from perfit_components.aggregate_round import aggregate_round
from perfit_components.close_search import close_search
from perfit_components.merge_statuses import merge_statuses
from perfit_components.plan_round import plan_round
from perfit_components.prepare_federation import prepare_federation
from perfit_components.report_round import report_round
from perfit_components.search_client import search_client
from perfit_components.train_client import train_client

from .running import TWO_TIERS, files


def test_a_round_through_the_components(make_site, tmp_path):
    site = make_site(**TWO_TIERS)
    federation, next_round = prepare_federation.python_func(site.spec.to_yaml(), site.store_uri)
    assert (federation, next_round) == (site.uri, 1)

    clients = {tier: plan_round.python_func(federation, 0, tier) for tier in ("strong", "weak")}
    assert clients["weak"] == [{"id": "bob", "secret": "perfit-tiny-bob", "volume": ""}]
    searched = [[search_client.python_func(federation, c["id"]) for c in clients[tier]] for tier in clients]
    assert searched[0] == [{"client": "ann", "status": "searched", "reason": ""}]
    assert close_search.python_func(federation, merge_statuses.python_func(*searched)) == federation

    planned = [plan_round.python_func(federation, 1, tier) for tier in ("strong", "weak")]
    trained = [[train_client.python_func(federation, 1, c["id"]) for c in tier] for tier in planned]
    statuses = merge_statuses.python_func(*trained)
    assert statuses == [{"client": client, "status": "trained", "reason": ""} for client in ("ann", "bob")]
    assert aggregate_round.python_func(federation, 1, statuses) == federation
    assert site.store.read_head().round == 1

    page = dsl.HTML(name="page", uri=str(tmp_path / "page.html"))
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"))
    assert report_round.python_func(federation, 1, page, metrics) is None
    html = (tmp_path / "page.html").read_bytes()
    assert html.lower().startswith(b"<!doctype html>")
    assert html == files(site.root)["rounds/1/report.html"]
    records = json.loads(files(site.root)["rounds/1/summary.json"])["clients"]
    assert metrics.metadata["clients_delivered"] == 2
    assert metrics.metadata["bytes_up"] == sum(record["bytes_up"] for record in records)
    assert all(type(value) is float for value in metrics.metadata.values())
