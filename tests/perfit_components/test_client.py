"""A client's task: it searches once, tunes once per round, and records a failure instead of failing."""

from __future__ import annotations

import json
import shutil
import uuid

import numpy as np
import pytest
import torch
from blake3 import blake3
from safetensors.numpy import load_file, save_file

from perfit.adapter_file import AdapterFile
from perfit.protocol import ClientStatus, parse_outcome
from perfit_components.steps.client import train
from perfit_storage import RoundPlace, open_store

from ..perfit.tiny import save_gguf
from .running import RECORDS, THREE, Site, files


def test_a_clients_first_round_leaves_a_mask_of_its_budget(make_site):
    site = make_site().prepare()
    for client, rank in [("ann", 2), ("bob", 1)]:
        site.train_client(client)
        (digest,) = site.store.find_masks(client)
        file = AdapterFile.parse(files(site.root)[f"masks/{client}/{digest}"])
        assert (file.header.client, file.header.round, file.header.rank) == (client, 1, rank)
        assert file.header.mask_digest == digest
        assert np.count_nonzero(file.mask) == file.space.budget(rank)


def test_a_second_search_gives_the_same_mask(make_site):
    site = make_site().prepare()
    site.train_client("bob")
    before = files(site.root)
    for path in [*(site.root / "masks/bob").iterdir(), site.root / "rounds/1/updates/bob.json"]:
        path.unlink()
    site.train_client("bob")
    assert files(site.root) == before


def test_the_files_of_a_round(trained):
    stored = files(trained.root)
    record = parse_outcome(stored["rounds/1/updates/bob.json"])
    update = stored["rounds/1/updates/bob.safetensors"]
    mask_file, file = trained.mask_file("bob"), AdapterFile.parse(update)
    mask, header = mask_file.mask, file.header
    assert (header.federation, header.round, header.client, header.rank, header.expansion) == ("tiny", 1, "bob", 1, 2)
    budget = mask_file.space.budget(1)
    assert file.vectors(mask, ["values"])["values"].size == record.budget == record.shared == header.budget == budget
    assert (record.samples, record.held_out_records) == (RECORDS["bob"] - 1, 1)
    assert record.update.digest == blake3(update).hexdigest()
    assert record.bytes_up == len(update) + len(stored[f"masks/bob/{record.mask_digest}"])
    assert record.bytes_down == 0, "before the server knows its mask, it starts from the initial values"
    assert record.perplexity.before == pytest.approx(json.loads(stored["clients/bob/baseline.json"])["perplexity"])
    assert len(record.losses) == trained.spec.training.steps
    assert {key for key in stored if key.startswith("clients/bob/")} == {
        "clients/bob/baseline.json",
        "clients/bob/adapter/adapter_config.json",
        "clients/bob/adapter/adapter_model.safetensors",
        "clients/bob/state/1.safetensors",
    }


@pytest.mark.parametrize(
    ("method", "kept"),
    [*((name, {"values"}) for name in ("local", "fedsa-lora", "perfit")), ("scaffold", {"control", "values"})],
)
def test_what_a_method_keeps_lies_in_the_clients_own_part(make_site, method, kept):
    site = make_site(method={"name": method}, rounds=2).run()
    stored = files(site.root)
    for round in (1, 2):
        file = AdapterFile.parse(stored[f"clients/ann/state/{round}.safetensors"])
        assert {name.partition("/")[0] for name in file.tensors} == kept
        assert (file.header.client, file.header.round) == ("ann", round)
    shared = sorted(key for key in stored if "updates/ann" in key and key.endswith(".safetensors"))
    assert shared == ([] if method == "local" else [f"rounds/{round}/updates/ann.safetensors" for round in (1, 2)])


def test_a_second_training_trains_nothing(trained, capsys):
    before = files(trained.root)
    assert trained.train_client("ann") == {"client": "ann", "status": "trained", "reason": ""}
    assert files(trained.root) == before
    assert "step=" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "lost",
    [
        ["rounds/1/updates/ann.json", "clients/ann/baseline.json"],
        ["rounds/1/updates/ann.json", "clients/ann/baseline.json", "rounds/1/updates/ann.safetensors"],
    ],
    ids=["before the record", "before the update"],
)
def test_a_training_that_was_cut_off_gives_the_same_bytes(trained, lost, capsys):
    before = files(trained.root)
    for key in lost:
        (trained.root / key).unlink()
    assert trained.train_client("ann")["status"] == "trained"
    assert "client=ann step=2/2" in capsys.readouterr().out
    assert files(trained.root) == before


def test_a_committed_round_is_not_trained_for_any_more(make_site, capsys):
    site = make_site().prepare()
    site.train_client("ann")
    site.aggregate(1)
    before = files(site.root)
    assert site.train_client("bob") == {
        "client": "bob",
        "status": "failed",
        "reason": "round 1 was committed without client 'bob'\n"
        "  fix: there is nothing to do: it may be sampled for a later round",
    }
    assert site.train_client("ann") == {"client": "ann", "status": "trained", "reason": ""}
    assert "step=" not in capsys.readouterr().out.partition("client bob has no result: ")[2]
    assert files(site.root) == before


def test_a_training_that_was_cut_off_at_its_very_end_changes_no_later_round(make_site, tmp_path):
    undisturbed = make_site(rounds=2).run()
    site = Site(undisturbed.spec, (tmp_path / "disturbed").as_uri()).prepare()
    site.run_round(1)
    (site.root / "clients/ann/baseline.json").unlink()
    site.train(1)
    site.run_round(2)
    assert files(site.root) == files(undisturbed.root)


def test_a_mask_is_sent_once(make_site):
    site = make_site(rounds=2).run()
    first, second = (parse_outcome(site.store.read_record(RoundPlace(round), "ann")) for round in (1, 2))
    sizes = [len(files(site.root)[f"rounds/{round}/updates/ann.safetensors"]) for round in (1, 2)]
    assert first.bytes_up - sizes[0] == len(site.store.get_mask("ann", first.mask_digest))
    assert second.bytes_up == sizes[1]


def test_records_in_an_s3_store_are_fetched(make_site, s3_server, monkeypatch, tmp_path):
    local_data = make_site(clients={"ann": {}}).prepare()
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    folder = f"{s3_server.store_uri}/{uuid.uuid4()}"
    open_store(folder).put("ann.jsonl", local_data.data("ann").read_bytes())
    client = local_data.spec.clients[0].model_copy(update={"data": f"{folder}/ann.jsonl"})
    s3_data = Site(local_data.spec.model_copy(update={"clients": (client,)}), (tmp_path / "there").as_uri())
    s3_data.prepare()
    for site in (local_data, s3_data):
        assert [status["status"] for status in site.train(1)] == ["trained"]
    expected = files(local_data.root)
    assert {key: data for key, data in files(s3_data.root).items() if key != "spec.yaml"} == {
        key: data for key, data in expected.items() if key != "spec.yaml"
    }


def test_progress_is_a_line_a_step(make_site, capsys):
    site = make_site(clients={"ann": {}}).prepare()
    site.train(1)
    steps = [line.split(" loss=")[0] for line in capsys.readouterr().out.splitlines() if "step=" in line]
    assert steps == [
        *(f"[perfit] round=0 client=ann step={n}/3" for n in (1, 2, 3)),
        *(f"[perfit] round=1 client=ann step={n}/2" for n in (1, 2)),
    ]


NO_RESPONSE = '{"instruction": "What is the sea?"}\n'


@pytest.mark.parametrize(
    ("spoil", "problem", "fix"),
    [
        (lambda path: path.unlink(), "{data}: no such file", "check the path"),
        (
            lambda path: path.write_text(path.read_text() + NO_RESPONSE),
            "{data}: 1 of 6 records cannot be used: line 6: no response",
            "repair them, or set data.bad_records: skip to leave them out",
        ),
        (lambda path: path.write_text(""), "{data}: contains no records", "give a client at least 2 records"),
        (
            lambda path: path.write_text(path.read_text().splitlines()[0]),
            "{data}: 1 usable record(s), all of the same messages: none can be held out",
            "give a client at least 2 different records, or held_out records of its own",
        ),
    ],
    ids=["vanished", "without a response", "empty", "one record"],
)
def test_bad_data_are_a_recorded_failure_that_names_them(make_site, spoil, problem, fix, capsys):
    site = make_site().prepare()
    site.planned(1)
    path = site.data("bob")
    spoil(path)
    output = site.train_client("bob")
    reason = f"{problem.format(data=path)}\n  fix: {fix}"
    assert output == {"client": "bob", "status": "failed", "reason": reason}
    stored = parse_outcome(files(site.root)["rounds/1/updates/bob.json"])
    assert stored == ClientStatus(client="bob", tier="default", rank=1, round=1, status="failed", reason=reason)
    assert f"client bob has no result: {problem.format(data=path)}" in capsys.readouterr().out
    assert not [key for key in files(site.root) if key.endswith("bob.safetensors") or key.startswith("clients/bob")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_pod_of_a_tier_with_accelerators_never_trains_on_the_cpu(make_site, monkeypatch, capsys):
    site = make_site(tiers={"default": {"accelerator": {"count": 2}}}).prepare()
    assert "tiers.default.accelerator.count: the 2 of a pod divide the model's layers" in capsys.readouterr().out
    site.planned(1)
    assert site.train_client("ann")["status"] == "trained"  # not in a pod
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    output = site.train_client("bob")
    assert output["status"] == "failed"
    assert output["reason"].startswith("tiers.default.accelerator: the pod asks for 2 of nvidia.com/gpu, but torch")


def test_a_client_that_fails_before_its_search_has_no_mask(make_site):
    site = make_site().prepare()
    site.planned(1)
    site.data("bob").unlink()
    assert site.train_client("bob")["status"] == "failed"
    assert site.store.find_masks("bob") == []


def test_a_name_that_the_federation_does_not_know(trained):
    before = files(trained.root)
    assert train(trained.uri, 1, "perfit-tiny-zoe").output["reason"] == (
        "no client of federation 'tiny' has the Secret 'perfit-tiny-zoe'\n"
        "  fix: use one of: perfit-tiny-ann, perfit-tiny-bob, perfit-tiny-eve"
    )
    assert train(trained.uri, 1, "../eve").output["status"] == "failed"
    assert files(trained.root) == before


def test_a_client_that_does_not_take_part(make_site):
    site = make_site(**THREE, participation={"fraction": 0.5}).prepare()
    (other,) = {"ann", "bob", "eve"} - {*site.planned(1)}
    output = site.train_client(other)
    assert output["reason"].startswith(f"client '{other}' does not take part in round 1")


def test_a_model_that_differs_is_not_loaded(make_site, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("PERFIT_CACHE", str(tmp_path / "cache"))
    site = make_site(model=save_gguf(tiny_llama, tmp_path / "tiny.gguf")).prepare()
    site.planned(1)
    (weights,) = (tmp_path / "cache").glob("*/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = site.train_client("ann")
    assert said["status"] == "failed"
    assert said["reason"].startswith(f"model: {weights} has other bytes than when the federation was founded\n  fix: ")


def test_a_client_writes_nothing_to_the_cache(make_site, tiny_llama, tmp_path, monkeypatch):
    """What the cache lacks it converts for itself: the same files, the same update."""
    monkeypatch.setenv("PERFIT_CACHE", str(tmp_path / "cache"))
    site = make_site(model=save_gguf(tiny_llama, tmp_path / "tiny.gguf")).prepare()
    site.planned(1)
    assert site.train_client("ann")["status"] == "trained"
    with_cache = files(site.root)
    shutil.rmtree(tmp_path / "cache")
    for key in [key for key in with_cache if "ann" in key]:
        (site.root / key).unlink()
    assert site.train_client("ann")["status"] == "trained"
    assert files(site.root) == with_cache
    assert not (tmp_path / "cache").exists()


def test_threads_are_those_that_the_task_is_given(make_site):
    site = make_site(clients={"ann": {}}).prepare()
    train(site.uri, 1, site.name("ann"), threads=2)
    assert torch.get_num_threads() == 2


def test_a_loss_that_is_not_finite(make_site, tiny_llama, tmp_path):
    broken = shutil.copytree(tiny_llama, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = np.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    site = make_site(model=str(broken), method={"name": "fedit"}).prepare()
    site.planned(1)
    output = site.train_client("ann")
    assert (output["status"], output["reason"]) == (
        "failed",
        "the loss is nan at step 1 of 2\n  fix: lower training.learning_rate, and look at the client's records",
    )


def test_records_in_a_store_are_named_by_their_uri(make_site, s3_server, monkeypatch):
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    folder = f"{s3_server.store_uri}/{uuid.uuid4()}"
    open_store(folder).put("ann.jsonl", b'{"instruction": "Add."}\n')
    site = make_site(
        clients={"ann": {"data": f"{folder}/ann.jsonl"}, "bob": {"data": f"{folder}/none.jsonl"}}
    ).prepare()
    assert site.train_client("ann")["reason"].startswith(f"{folder}/ann.jsonl: no usable record: line 1: no response")
    assert site.train_client("bob")["reason"].startswith(f"cannot read {folder}/none.jsonl at ")


def test_an_unreachable_store_raises_no_exception(make_site, unreachable_s3, capsys):
    uri = f"{unreachable_s3}/federations/tiny"
    record = train(uri, 1, "perfit-tiny-ann").output
    assert (record["client"], record["status"]) == ("perfit-tiny-ann", "failed")
    assert "check AWS_ENDPOINT_URL" in record["reason"]
    assert "secret-of-this-test" not in record["reason"] + capsys.readouterr().out


def test_only_a_clients_own_part_contains_text_of_its_records(trained):
    """What others read (updates, masks, plans, records) holds no text of a client's records."""
    shared = {key: data for key, data in files(trained.root).items() if not key.startswith("clients/")}
    words = {word for client in RECORDS for word in (f"What is {client}".encode(), b"Paris", b"capital")}
    assert not [(key, word) for key, data in shared.items() for word in words if word in data]
