"""Founding a federation: once, whole, and never over another one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from perfit.adapter_file import load_dense
from perfit.errors import PerfitError
from perfit_components.steps.prepare import prepare
from perfit_storage import StoreUnreachable

from .running import Site, files, make_spec


def changed(site: Site, **update) -> str:
    """The site's federation file with other values at its top."""
    return site.spec.model_copy(update=update).to_yaml()


def test_a_federation_starts_at_round_1_with_the_initial_values(make_site):
    site = make_site()
    prepared = prepare(site.spec.to_yaml(), site.store_uri)
    assert (prepared.uri, prepared.next_round) == (site.uri, 1)
    assert set(files(site.root)) == {"spec.yaml", "head.json", "rounds/0/global.safetensors"}
    header, adapter = load_dense(files(site.root)["rounds/0/global.safetensors"])
    assert (header.federation, header.round, header.client, header.rank) == ("tiny", 0, None, 4)
    assert (adapter.values == adapter.space.initial_values(site.spec.training.seed)).all()


def test_preparing_twice_changes_no_byte(make_site):
    site = make_site().prepare()
    before = files(site.root)
    assert prepare(site.spec.to_yaml(), site.store_uri).next_round == 1
    assert files(site.root) == before


def test_a_start_that_was_cut_off_is_finished(make_site):
    site = make_site().prepare()
    before = files(site.root)
    for lost in (["head.json"], ["head.json", "rounds/0/global.safetensors"]):
        for key in lost:
            (site.root / key).unlink()
        site.prepare()
        assert files(site.root) == before


def test_a_federation_goes_on_where_its_head_is(trained):
    trained.aggregate(1)
    assert prepare(trained.spec.to_yaml(), trained.store_uri).next_round == 2


def test_rounds_participation_tiers_and_clients_may_change(make_site, tiny_llama):
    site = make_site().prepare()
    other = make_spec(
        tiny_llama,
        site.root / "elsewhere",
        rounds=7,
        participation={"fraction": 0.5},
        tiers={"default": {"memory": "8Gi"}, "new": {}},
        clients={"bob": {"rank": 1, "tier": "new"}, "zoe": {}},
        store="s3://elsewhere",
    )
    prepare(other.to_yaml(), site.store_uri)
    assert files(site.root)["spec.yaml"].decode() == other.to_yaml()


@pytest.mark.parametrize(
    ("section", "key", "value", "there"),
    [
        ("training", "seed", 1, 0),
        ("training", "learning_rate", 0.02, 0.01),
        ("method", "metric", "gradient", "taylor"),
        ("lora", "alpha", 8.0, 4.0),
        ("data", "bad_records", "skip", "refuse"),
    ],
)
def test_a_name_in_use_by_another_federation(make_site, section, key, value, there):
    site = make_site().prepare()
    before = files(site.root)
    other = getattr(site.spec, section).model_copy(update={key: value})
    with pytest.raises(PerfitError) as caught:
        prepare(changed(site, **{section: other}), site.store_uri)
    assert caught.value.problem == (
        f"the name 'tiny' is already used by another federation at {site.uri}: "
        f"{section}.{key} is {value!r} here and {there!r} there"
    )
    assert caught.value.fix == "choose another name, or go on with the file that the federation was founded with"
    assert files(site.root) == before


def test_a_client_of_another_rank(make_site):
    site = make_site().prepare()
    ann, bob = site.spec.clients
    with pytest.raises(PerfitError, match="rank of client bob is 2 here and 1 there"):
        prepare(changed(site, clients=(ann, bob.model_copy(update={"rank": 2}))), site.store_uri)


@pytest.mark.parametrize(
    ("sections", "problem", "fix"),
    [
        (
            {"lora": {"target_modules": ["q_porj"]}},
            "lora.target_modules: the model has no linear module 'q_porj'",
            "use all-linear, or some of: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj",
        ),
        (
            {"model": "/no/such/model"},
            "model: /no/such/model does not exist",
            "give a hub id, a directory or a .gguf file",
        ),
    ],
)
def test_what_the_model_lacks_is_named_and_nothing_written(make_site, sections, problem, fix):
    site = make_site(**sections)
    with pytest.raises(PerfitError) as caught:
        site.prepare()
    assert (caught.value.problem, caught.value.fix) == (problem, fix)
    assert not site.root.exists()


def test_a_wrong_key_is_named_by_its_line_and_nothing_written(make_site):
    site = make_site()
    text = site.spec.to_yaml().replace("rounds: 1", "round: 1")
    line = text.splitlines().index("round: 1") + 1
    with pytest.raises(PerfitError) as caught:
        prepare(text, site.store_uri)
    assert caught.value.problem == f"federation:{line}: round: unknown key; did you mean 'rounds'?"
    assert not site.root.exists()


def test_a_store_that_cannot_be_reached(make_site, unreachable_s3):
    with pytest.raises(StoreUnreachable, match="check AWS_ENDPOINT_URL"):
        prepare(make_site().spec.to_yaml(), unreachable_s3)


def test_another_method_has_a_name_of_its_own(make_site):
    site = make_site().prepare()
    before = files(site.root)
    assert prepare(site.spec.to_yaml(), site.store_uri, "perfit").uri == site.uri
    assert prepare(site.spec.to_yaml(), site.store_uri, "fedit").uri == f"{site.uri}-fedit"
    assert files(site.root) == before
    header, _ = load_dense(site.root.with_name("tiny-fedit").joinpath("rounds/0/global.safetensors").read_bytes())
    assert (header.federation, header.expansion) == ("tiny-fedit", 1)


def test_two_founders_at_once(make_site):
    site = make_site()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: prepare(site.spec.to_yaml(), site.store_uri), range(4)))
    assert {prepared.next_round for prepared in found} == {1}
    assert set(files(site.root)) == {"spec.yaml", "head.json", "rounds/0/global.safetensors"}
