"""A client whose store goes away when it has trained: nothing is trained twice, nothing is lost."""

from __future__ import annotations

import uuid

import pytest

from perfit.errors import PerfitError
from perfit_components.steps.context import store_patience

from ..faults.s3_proxy import faulty
from .running import Site


def test_an_outage_at_upload_loses_no_update(make_site, s3_server, monkeypatch):
    uri = f"{s3_server.store_uri}/{uuid.uuid4()}"
    monkeypatch.setenv("PERFIT_STORE_PATIENCE_S", "60")
    with faulty(s3_server) as (proxy, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        site = Site(make_site(clients={"ann": {}}).spec, uri).prepare()
        site.planned(1)
        proxy.behaviour.down_at = "rounds/1/updates/ann.safetensors"
        output = site.train_client("ann")
        assert proxy.counts["down"] > 4, "more than a pool repeats by itself"
        assert output["status"] == "trained", output
        assert [record.client for record in site.aggregate(1).trained] == ["ann"]


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
