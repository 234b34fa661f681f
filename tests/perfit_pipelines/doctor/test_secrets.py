from __future__ import annotations

import pytest

from .conftest import FEDERATION, NAMESPACE


@pytest.mark.parametrize("key", ["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"])
def test_a_secret_without_a_key(site, key):
    site.add_keys("perfit-tiny-bob", "bob", **{key: "\n"})
    assert site.only("fail", "Secrets")["finding"].endswith(f"lacks {key}")


def test_the_secret_that_the_federation_file_names(site):
    clients = [{"id": "ann", "data": "o/d:train", "tier": "gpu", "volume": "ann-data", "secret": "anns-own"}]
    site.write(clients=clients)
    assert "there is no Secret anns-own" in site.only("fail", "Secrets")["finding"]
    site.add_keys("anns-own", "ann")
    assert site.findings() == []


def test_two_clients_with_one_key(site):
    site.add_keys("perfit-tiny-bob", "ann")
    found = site.findings()
    assert "perfit-tiny-ann and perfit-tiny-bob hold the same access key" in found[0]["finding"]
    assert "may not read clients/bob/perfit-doctor" in found[1]["finding"], "the store says so too"


def test_a_remote_client_needs_no_secret_and_should_have_none(site):
    """Its key would be open to every run of the namespace."""
    clients = [{"id": "ann", "data": "o/d:train", "tier": "gpu", "volume": "ann-data"}, {"id": "bob", "tier": "far"}]
    site.write(clients=clients, tiers={**FEDERATION["tiers"], "far": {"runner": "remote"}})
    assert "client bob is remote, but its key is in namespace" in site.only("warn", "Secrets")["finding"]
    site.remove("Secret", "perfit-tiny-bob", NAMESPACE)
    assert site.findings() == []
    site.write(clients=clients[1:], tiers={"far": {"runner": "remote"}})
    assert site.findings() == [], "of a federation of remote clients alone, the server's tasks are checked"
