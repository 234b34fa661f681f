"""Creating a federation: once, completely, and never over another one."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest

import perfit.client
import perfit.models
from perfit.adapter_file import AdapterFile
from perfit.cluster_spec import Cluster
from perfit.errors import PerfitError
from perfit.model_files import describe_files
from perfit_components.steps.prepare import prepare
from perfit_storage import (
    Branch,
    FederationStore,
    RoundPlace,
    StoreUnreachable,
    UnsafeStore,
    federation_names,
    open_store,
)

from ..faults.s3_proxy import Behaviour, faulty
from ..perfit.tiny import save_gguf
from .running import Site, files, make_spec

CREATED = {
    "spec.yaml",
    "model.json",
    "head.json",
    "rounds/0/global.safetensors",
    "rounds/0/state.probe.safetensors",
    "rounds/1/plan.json",
}
OF_PLAIN_RANKS = {"rounds/1/exchanged.safetensors", "rounds/1/ranks/1.safetensors", "rounds/1/ranks/2.safetensors"}
"""What the first plan of a method without a search leaves besides, for clients of the ranks 1 and 2."""


def vectors(file: AdapterFile) -> dict[str, np.ndarray]:
    """All vectors of a file about every position."""
    return file.named_vectors(np.ones(file.space.size, dtype=bool))


def changed(site: Site, **update) -> str:
    """The site's federation file with other values at its top."""
    return site.spec.model_copy(update=update).to_yaml()


def test_a_federation_starts_at_round_1_with_the_initial_values(make_site):
    site = make_site()
    prepared = prepare(site.spec.to_yaml(), site.store_uri)
    assert (prepared.uri, prepared.round) == (site.uri, 1)
    assert prepared.participants == [["perfit-tiny-ann", "perfit-tiny-bob"]]
    assert set(files(site.root)) == CREATED
    file = AdapterFile.parse(files(site.root)["rounds/0/global.safetensors"])
    header = file.header
    assert (header.federation, header.round, header.client, header.rank) == ("tiny", 0, None, 4)
    assert set(vectors(file)) == {"values"}
    assert (vectors(file)["values"] == file.space.initial_values(site.spec.training.seed)).all()


def test_vectors_that_clients_do_not_read_are_in_a_file_of_their_own(make_site):
    site = make_site(method={"name": "fedadam"}).prepare()
    stored = files(site.root)
    assert set(stored) == CREATED | OF_PLAIN_RANKS | {"rounds/0/state.safetensors"}
    assert set(vectors(AdapterFile.parse(stored["rounds/0/global.safetensors"]))) == {"values"}
    assert set(vectors(AdapterFile.parse(stored["rounds/0/state.safetensors"]))) == {"first_moment", "second_moment"}
    assert site.store.read_head().state.key == "rounds/0/state.safetensors"


def test_vectors_that_clients_read_are_in_the_global_file(make_site):
    site = make_site(method={"name": "scaffold"}).prepare()
    assert set(files(site.root)) == CREATED | OF_PLAIN_RANKS
    assert set(vectors(AdapterFile.parse(files(site.root)["rounds/0/global.safetensors"]))) == {"values", "control"}


def test_preparing_twice_changes_no_byte(make_site):
    site = make_site().prepare()
    before = files(site.root)
    assert prepare(site.spec.to_yaml(), site.store_uri).round == 1
    assert files(site.root) == before


def test_a_start_that_was_cut_off_is_finished(make_site):
    site = make_site().prepare()
    before = files(site.root)
    for lost in ([], ["rounds/0/global.safetensors"], ["spec.yaml", "model.json"]):
        lost += ["head.json", "rounds/1/plan.json"]
        for key in lost:
            (site.root / key).unlink()
        site.prepare()
        assert files(site.root) == before


def test_a_federation_goes_on_where_its_head_is(trained):
    trained.aggregate(1)
    assert prepare(trained.spec.to_yaml(), trained.store_uri).round == 2


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


FIXED = [
    ("training", "seed", 1, 0),
    ("training", "learning_rate", 0.02, 0.01),
    ("method", "metric", "gradient", "taylor"),
    ("lora", "alpha", 8.0, 4.0),
    ("data", "bad_records", "skip", "refuse"),
]


@pytest.mark.parametrize(("section", "key", "value", "stored"), FIXED)
def test_a_name_in_use_by_another_federation(trained, section, key, value, stored):
    site = trained
    before = files(site.root)
    other = getattr(site.spec, section).model_copy(update={key: value})
    with pytest.raises(PerfitError) as caught:
        prepare(changed(site, **{section: other}), site.store_uri)
    assert caught.value.problem == (
        f"the name 'tiny' is already used by another federation at {site.uri}: "
        f"{section}.{key} is {value!r} here and {stored!r} there"
    )
    assert caught.value.fix == (
        "choose another name, continue with the file that the federation was created with, or delete that federation: "
        "perfit delete tiny"
    )
    assert files(site.root) == before


def test_a_client_of_another_rank(trained):
    site = trained
    ann, bob, _ = site.spec.clients
    with pytest.raises(PerfitError, match="rank of client bob is 2 here and 1 there"):
        prepare(changed(site, clients=(ann, bob.model_copy(update={"rank": 2}))), site.store_uri)


# Until a client has begun to tune, a federation may be founded again


def with_seed(site: Site, seed: int) -> Site:
    """The same name in the same store, in a file with another seed."""
    training = site.spec.training.model_copy(update={"seed": seed})
    return Site(site.spec.model_copy(update={"training": training}), site.store_uri)


def with_exchange(site: Site, dtype: str) -> Site:
    """The same name in the same store, in a file with another type on the wire."""
    exchange = site.spec.exchange.model_copy(update={"dtype": dtype})
    return Site(site.spec.model_copy(update={"exchange": exchange}), site.store_uri)


def compared(site: Site) -> dict[str, bytes]:
    """What a federation is founded with: its vectors by name of the head, its file, its model."""
    head, stored = site.store.read_head(), files(site.root)
    return {
        "adapter": stored[head.adapter.key],
        "state": stored[head.state.key] if head.state else b"",
        **{name: stored[name] for name in ("spec.yaml", "model.json")},
    }


@pytest.mark.parametrize(("section", "key", "value", "stored"), [*FIXED, ("exchange", "dtype", "bfloat16", "float32")])
def test_the_file_may_change_while_no_client_has_a_mask(make_site, section, key, value, stored):
    site = make_site().prepare()
    changed_section = getattr(site.spec, section).model_copy(update={key: value})
    spec = site.spec.model_copy(update={section: changed_section})
    again, anew = Site(spec, site.store_uri).prepare(), Site(spec, f"{site.store_uri}/elsewhere").prepare()
    assert again.store.read_head().place(1) == RoundPlace(1, 1)
    assert compared(again) == compared(anew)


def test_a_federation_that_was_founded_again_runs_as_if_it_had_been_the_first(make_site):
    site = make_site(method={"name": "fedit"}).prepare()  # whose first plan has downloads
    other = with_exchange(site, "int8").prepare()
    anew = Site(other.spec, f"{site.store_uri}/elsewhere").prepare()
    for each in (other, anew):
        each.run_round(1)
    assert files(other.root)[other.store.read_head().adapter.key] == files(anew.root)["rounds/1/global.safetensors"]
    with pytest.raises(PerfitError, match="the name 'tiny' is already used by another federation"):
        site.prepare()


def test_the_model_and_the_method_may_change_too(make_site, gguf):
    make_site(method={"name": "fedadam"}).prepare()
    other = make_site(model=gguf, name="tiny").prepare()
    assert other.store.read_head().state is None
    assert other.context.model().model == gguf
    other.run_round(1)


def test_a_federation_without_clients_that_began_is_founded_again_and_again(make_site):
    site = make_site().prepare()
    before = compared(site)
    other = Site(
        site.spec.model_copy(update={"training": site.spec.training.model_copy(update={"seed": 1})}), site.store_uri
    )
    for branch, each in enumerate((other, site, other, site), start=1):
        each.prepare()
        each.prepare()
        assert each.store.read_head().branches == (Branch(branch, 1),)
    assert compared(site) == before


def test_a_client_of_the_file_before_leaves_no_mask(make_site, monkeypatch):
    site = make_site().prepare()
    site.planned(1)
    other = Site(
        site.spec.model_copy(update={"training": site.spec.training.model_copy(update={"seed": 1})}), site.store_uri
    )
    found = perfit.client.find_architecture

    def found_again_meanwhile(*arguments, **options):
        other.prepare()
        return found(*arguments, **options)

    monkeypatch.setattr(perfit.client, "find_architecture", found_again_meanwhile)
    assert site.train_client("ann")["status"] == "failed"
    assert not site.store.has_masks()
    monkeypatch.undo()
    assert [outcome.status for outcome in other.run_round(1).clients] == ["trained", "trained"]


def test_a_run_that_founds_while_another_has_founded_and_begun_goes_on_with_it(make_site, monkeypatch):
    site = make_site()
    other, prepare_model = Site(site.spec, site.store_uri), perfit.models.prepare_model

    def founded_meanwhile(*arguments):
        monkeypatch.undo()
        other.prepare().run_round(1)
        return prepare_model(*arguments)

    monkeypatch.setattr(perfit.models, "prepare_model", founded_meanwhile)
    site.prepare()
    assert site.store.read_head().round == 1
    assert [outcome.status for outcome in site.run_round(2).clients] == ["trained", "trained"]


class Killed(BaseException):
    """The process ends."""


@pytest.mark.parametrize("first_again", [True, False], ids=["then the first file", "then the second"])
@pytest.mark.parametrize("call", range(5))
def test_an_interrupted_founding_is_finished_by_the_next(make_site, monkeypatch, call, first_again):
    """Killed before or after each write of a second founding."""
    site = make_site().prepare()
    other = Site(
        site.spec.model_copy(update={"training": site.spec.training.model_copy(update={"seed": 1})}), site.store_uri
    )
    writes = 0

    def killing(write):
        def wrapped(*arguments, **options):
            nonlocal writes
            if writes == call:
                raise Killed
            writes += 1
            return write(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("put_global", "found_again", "write_model", "write_spec"):
            patch.setattr(FederationStore, name, killing(getattr(FederationStore, name)))
        with pytest.raises(Killed) if call < 4 else nullcontext():
            other.prepare()
    last = site if first_again else other
    last.prepare()
    assert compared(last) == compared(Site(last.spec, f"{site.store_uri}/elsewhere").prepare())
    assert last.planned(1) == ["ann", "bob"]


@pytest.mark.parametrize("left", ["spec.yaml", "model.json", "rounds/0/global.safetensors"])
def test_a_founding_that_failed_does_not_use_up_the_name(make_site, left):
    site = make_site().prepare()
    for key in files(site.root):
        if key != left:
            (site.root / key).unlink()
    assert federation_names(open_store(site.store_uri)) == []
    other = Site(
        site.spec.model_copy(update={"training": site.spec.training.model_copy(update={"seed": 1})}), site.store_uri
    )
    other.prepare()
    assert compared(other) == compared(Site(other.spec, f"{site.store_uri}/elsewhere").prepare())


def test_two_founders_of_one_name(make_site):
    """One wins; the other is told, and nothing of it counts."""
    site = make_site()
    sites = [with_seed(site, seed) for seed in range(4)]

    def attempt(each: Site) -> str:
        try:
            return each.prepare().uri
        except PerfitError as error:
            return error.problem

    with ThreadPoolExecutor(4) as pool:
        for ended in pool.map(attempt, sites):
            assert ended == site.uri or "meanwhile" in ended
    for each in sites:  # whoever comes last
        each.prepare()
        assert compared(each) == compared(Site(each.spec, f"{site.store_uri}/elsewhere").prepare())


def test_what_rounds_left_without_a_head_is_no_beginning(trained):
    (trained.root / "head.json").unlink()
    before = files(trained.root)
    with pytest.raises(PerfitError, match=r"but no head: .*\n.*perfit delete tiny"):
        trained.prepare()
    assert files(trained.root) == before


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


def test_a_tier_with_clients_that_cannot_hold_a_training_is_named_and_nothing_written(make_site):
    # The process alone takes 700 MiB. A tier without clients is not checked, nor accelerators of unknown memory.
    tiers = {
        "roomy": {"memory": "1Gi"},
        "weak": {"memory": "699Mi"},
        "gpu": {"memory": "3Gi", "accelerator": {}},
    }
    clients = {"ann": {"tier": "roomy"}, "bob": {"tier": "gpu"}}
    make_site(tiers=tiers, clients=clients, name="two").prepare()
    site = make_site(tiers=tiers, clients={**clients, "eve": {"tier": "weak"}})
    with pytest.raises(PerfitError, match=r"^tiers\.weak\.memory: 0\.68 GiB cannot hold"):
        site.prepare()
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
    started = time.monotonic()
    with pytest.raises(StoreUnreachable, match="check AWS_ENDPOINT_URL"):
        prepare(make_site().spec.to_yaml(), unreachable_s3)
    assert time.monotonic() - started < 30, "a store that has not answered once is not waited for"


@pytest.mark.parametrize("behaviour", [Behaviour(conditions="dropped"), Behaviour(etag=lambda etag: f"W/{etag}")])
def test_nothing_is_founded_in_a_store_that_lets_two_win(make_site, s3_server, monkeypatch, behaviour):
    uri = f"{s3_server.store_uri}/{uuid.uuid4()}"
    with faulty(s3_server, behaviour) as (_, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UnsafeStore, match=r"If-None-Match|weak ETag"):
            prepare(make_site().spec.to_yaml(), uri)
    assert federation_names(open_store(uri, s3_server.environment)) == []


def test_another_method_has_a_directory_of_its_own(make_site):
    site = make_site().prepare()
    before = files(site.root)
    assert prepare(site.spec.to_yaml(), site.store_uri, "perfit").uri == site.uri
    assert prepare(site.spec.to_yaml(), site.store_uri, "fedit").uri == f"{site.uri}.fedit"
    assert files(site.root) == before
    file = site.root.with_name("tiny.fedit").joinpath("rounds/0/global.safetensors").read_bytes()
    header = AdapterFile.parse(file).header
    assert (header.federation, header.expansion) == ("tiny", 1)


def test_concurrent_preparations(make_site):
    site = make_site()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: prepare(site.spec.to_yaml(), site.store_uri), range(4)))
    assert {prepared.round for prepared in results} == {1}
    assert set(files(site.root)) == CREATED


# The files of the model


@pytest.fixture
def gguf(tiny_llama, tmp_path, monkeypatch) -> str:
    """The tiny Llama as a GGUF file, and an empty cache for its conversion."""
    monkeypatch.setenv("PERFIT_CACHE", str(tmp_path / "cache"))
    return save_gguf(tiny_llama, tmp_path / "tiny.gguf")


def test_the_files_of_the_model_are_recorded(make_site, gguf, tmp_path):
    site = make_site(model=gguf).prepare()
    (converted,) = (tmp_path / "cache").iterdir()
    assert site.context.model() == describe_files(gguf, converted)
    assert {file.name for file in site.context.model().files} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_cache_that_was_emptied_is_filled_again(make_site, gguf, tmp_path):
    site = make_site(model=gguf).prepare()
    before = files(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    site.prepare()
    assert files(tmp_path / "cache") == before
    shutil.rmtree(tmp_path / "cache")
    prepare(
        changed(site, cluster=Cluster(model_cache=None)), site.store_uri
    )  # another file: its tiers are checked anew
    shutil.rmtree(tmp_path / "cache")
    prepare(changed(site, cluster=Cluster(model_cache=None)), site.store_uri)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_was_changed_is_not_believed(make_site, gguf, tmp_path):
    site = make_site(model=gguf).prepare()
    before = files(site.root)
    (config,) = (tmp_path / "cache").glob("*/config.json")
    config.write_text(config.read_text().replace("silu", "gelu"))
    with pytest.raises(PerfitError, match=r"config\.json has other bytes than when the federation was founded"):
        prepare(changed(site, rounds=9), site.store_uri)
    assert files(site.root) == before


def test_a_federation_without_a_record_of_its_model_gets_one(make_site):
    site = make_site().prepare()
    before = files(site.root)
    (site.root / "model.json").unlink()
    with pytest.raises(PerfitError, match=r"model\.json is missing.*\n.*prepare the federation again"):
        site.context.model()
    site.prepare()
    assert files(site.root) == before


def test_a_founder_with_other_files_of_the_model(make_site, tiny_llama, tmp_path):
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    site = make_site(model=str(model)).prepare()
    for key in ("head.json", "rounds/1/plan.json"):
        (site.root / key).unlink()
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    with pytest.raises(PerfitError, match=r"config\.json has other bytes than when the federation was founded"):
        site.prepare()
    assert not (site.root / "head.json").exists()


def test_a_damaged_record_of_the_model(make_site):
    site = make_site().prepare()
    (site.root / "model.json").write_text("{}")
    with pytest.raises(PerfitError, match=r"model\.json: .*\n.*backup"):
        site.prepare()


# The compiled pipeline


def test_a_run_over_committed_rounds_has_nobody_to_wait_for(trained):
    trained.aggregate(1)
    prepared = prepare(trained.spec.to_yaml(), trained.store_uri, round=1, tiers=["default"], claim_tiers=[])
    assert (prepared.round, prepared.participants) == (1, [[]])


@pytest.mark.parametrize(
    ("tiers", "claim_tiers", "problem"),
    [
        (["default", "office"], [], "has a loop for tier 'office', which has no client in the federation file"),
        (["office"], [], "tier 'default' has clients, but the compiled pipeline does not have it"),
        (["default"], ["default"], "tier 'default': the names of its volume claims have changed since"),
    ],
)
def test_a_file_that_the_compiled_pipeline_does_not_fit(make_site, tiers, claim_tiers, problem):
    site = make_site()
    with pytest.raises(PerfitError, match=rf"{problem}.*\n.*compile it again"):
        prepare(site.spec.to_yaml(), site.store_uri, tiers=tiers, claim_tiers=claim_tiers)
    assert not site.root.exists()


# Federations of version 0.1


def test_a_federation_of_version_0_1_is_refused_with_what_to_do(make_site):
    site = make_site().prepare()
    blob = site.store.read_head().adapter
    old = {"round": 0, "key": blob.key, "sha256": blob.digest}
    (site.root / "head.json").write_text(json.dumps(old))
    before = files(site.root)
    for act in (site.prepare, lambda: site.context):
        with pytest.raises(PerfitError, match=r"created by perfit 0\.1.*\n  fix: give the federation another name"):
            act()
    assert files(site.root) == before
