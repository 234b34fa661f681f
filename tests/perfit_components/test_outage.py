"""A store that goes away: no task loses what it has, nothing is trained twice, and no commit is taken for another's."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from perfit.errors import PerfitError
from perfit_components.steps.context import FederationContext, base_of, store_patience
from perfit_storage import FederationStore, Head, RoundPlace

from ..faults.s3_proxy import FaultyS3, faulty
from .running import Site


@pytest.fixture
def proxy(s3_server, monkeypatch) -> Iterator[FaultyS3]:
    """A proxy before the S3 server, which the tasks of this test use."""
    monkeypatch.setenv("PERFIT_STORE_PATIENCE_S", "60")
    with faulty(s3_server) as (proxy, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def site(make_site, s3_server, proxy) -> Site:
    """A federation of one client behind the proxy."""
    return Site(make_site(clients={"ann": {}}).spec, f"{s3_server.store_uri}/{uuid.uuid4()}")


def test_an_outage_in_any_task_loses_nothing(site, proxy):
    def outage_at(path: str, task):
        before = proxy.counts["down"]
        proxy.behaviour.down_at = path
        result = task()
        assert proxy.counts["down"] - before > 4, "more than a pool repeats by itself"
        return result

    outage_at("spec.yaml", site.prepare)
    site.planned(1)
    output = outage_at("rounds/1/updates/ann.safetensors", lambda: site.train_client("ann"))
    assert output["status"] == "trained", output
    summary = outage_at("rounds/1/global.safetensors", lambda: site.aggregate(1))
    assert [record.client for record in summary.trained] == ["ann"]


def test_a_commit_whose_answer_was_lost_counts_though_the_next_round_came_before_its_repetition(site, proxy, s3_server):
    site.prepare().train(1)
    direct = FederationStore.open(site.store_uri, site.spec.name, s3_server.environment)

    def next_round() -> None:
        deadline = time.monotonic() + 60
        while not proxy.behaviour.down and time.monotonic() < deadline:
            time.sleep(0.02)
        head = direct.read_head()
        first = FederationContext.of(direct).summary_of(base_of(head))
        summary = first.model_copy(update={"round": 2, "base": base_of(head)})
        assert direct.advance_head(
            head, Head(2, head.adapter, None, direct.put_summary(RoundPlace(2), summary.to_json()))
        )
        proxy.behaviour.down = False

    proxy.behaviour.down_at, proxy.behaviour.down_after, proxy.behaviour.down_s = "head.json", True, 60
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(next_round)
        summary = site.aggregate(1)
        other.result()
    assert direct.read_head().round == 2
    assert summary == site.summary(1)


@pytest.mark.parametrize("text", ["five", "-1", "1e3", "nan"])
def test_a_patience_that_is_no_number_is_refused(monkeypatch, text: str):
    monkeypatch.setenv("PERFIT_STORE_PATIENCE_S", text)
    with pytest.raises(PerfitError, match="PERFIT_STORE_PATIENCE_S is"):
        store_patience()


def test_patience_is_five_minutes_by_default(monkeypatch):
    monkeypatch.delenv("PERFIT_STORE_PATIENCE_S", raising=False)
    assert store_patience() == 300
    monkeypatch.setenv("PERFIT_STORE_PATIENCE_S", "0")
    assert store_patience() == 0
