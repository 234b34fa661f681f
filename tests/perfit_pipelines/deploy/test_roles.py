from __future__ import annotations

import string

import pytest

from perfit.errors import PerfitError
from perfit.federation_file import load_federation
from perfit_pipelines.deploy.roles import Key, choose_keys, roles_of


@pytest.fixture
def roles(place):
    return roles_of(load_federation(place / "federation.yaml"), "s3://perfit")


def test_every_role_has_a_secret_and_an_access_key_of_its_own(roles):
    assert [(role.name, role.secret, role.access_key) for role in roles] == [
        ("server", "perfitserver-tiny", "perfitserver-tiny"),
        ("ann", "perfit-tiny-ann", "tiny.ann"),
        ("bob", "perfit-tiny-bob", "tiny.bob"),
    ]


def test_keys_are_made_once(roles):
    first = choose_keys(roles, {})
    assert choose_keys(roles, first) == first
    secrets = [key.secret_key for key in first.values()]
    assert len(set(secrets)) == 3
    assert all(len(secret) == 40 and set(secret) <= set(string.ascii_letters + string.digits) for secret in secrets)
    assert not any(secret in repr(first) for secret in secrets)


@pytest.mark.parametrize(
    ("rotate", "renewed"),
    [
        ("bob", {"perfit-tiny-bob"}),
        ("server", {"perfitserver-tiny"}),
        ("all", {"perfitserver-tiny", "perfit-tiny-ann", "perfit-tiny-bob"}),
    ],
)
def test_rotation_replaces_the_secret_and_keeps_the_name(roles, rotate, renewed):
    before = choose_keys(roles, {"perfit-tiny-ann": Key("given-by-someone", "old")})
    after = choose_keys(roles, before, rotate)
    assert {name for name in after if after[name].secret_key != before[name].secret_key} == renewed
    assert [key.access_key for key in after.values()] == ["perfitserver-tiny", "given-by-someone", "tiny.bob"]


def test_rotation_of_nobody(roles):
    with pytest.raises(PerfitError, match=r"no client 'eve'(?s:.*)server, ann, bob"):
        choose_keys(roles, {}, "eve")
