"""A client's pod: it searches once, tunes once a round, and fails softly."""

from __future__ import annotations

import json
import shutil
import uuid

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from perfit.adapter_file import load_mask, load_values
from perfit.errors import PerfitError
from perfit_components.steps.client import search, train
from perfit_components.steps.outcome import brief
from perfit_components.steps.search_result import check_search
from perfit_storage import open_store

from .running import RECORDS, THREE, Site, files


def test_a_search_leaves_a_mask_of_the_clients_budget(make_site):
    site = make_site().prepare()
    for client, rank in [("ann", 2), ("bob", 1)]:
        record = search(site.uri, client)
        sha256 = record["mask_sha256"]
        assert record == {"client": client, "status": "searched", "mask_sha256": sha256}
        header, space, mask = load_mask(files(site.root)[f"masks/{client}-{sha256}"])
        assert (header.client, header.round, header.rank) == (client, 0, rank)
        assert np.count_nonzero(mask) == space.budget(rank)


def test_a_second_search_gives_the_same_mask(make_site):
    site = make_site().prepare()
    first = search(site.uri, "bob")
    before = files(site.root)
    assert search(site.uri, "bob") == first
    assert files(site.root) == before
    for path in (site.root / "masks").iterdir():
        path.unlink()
    assert search(site.uri, "bob") == first
    assert files(site.root) == before


def test_what_a_round_leaves(trained):
    stored = files(trained.root)
    record = json.loads(stored["rounds/1/updates/bob.json"])
    update = stored["rounds/1/updates/bob.safetensors"]
    _, space, mask = load_mask(stored[f"masks/bob-{record['mask_sha256']}"])
    header, adapter = load_values(update, mask)
    assert (header.federation, header.round, header.client, header.rank, header.expansion) == ("tiny", 1, "bob", 1, 2)
    assert record["budget"] == adapter.budget == space.budget(1)
    assert (record["samples"], record["held_out_records"]) == (RECORDS["bob"] - 1, 1)
    assert record["bytes"] == len(update)
    assert record["bytes_up"] == len(update) + len(stored[f"masks/bob-{record['mask_sha256']}"])
    assert record["bytes_down"] == len(stored["rounds/0/global.safetensors"])
    assert record["perplexity"]["before"] == pytest.approx(
        json.loads(stored["clients/bob/baseline.json"])["perplexity"]
    )
    assert len(record["losses"]) == trained.spec.training.steps
    assert {key for key in stored if key.startswith("clients/bob/")} == {
        "clients/bob/baseline.json",
        "clients/bob/adapter/adapter_config.json",
        "clients/bob/adapter/adapter_model.safetensors",
    }


def test_a_second_training_trains_nothing(trained, capsys):
    before = files(trained.root)
    record = train(trained.uri, 1, "ann")
    assert record == json.loads(before["rounds/1/updates/ann.json"])
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
    assert train(trained.uri, 1, "ann")["status"] == "trained"
    assert "client=ann step=2/2" in capsys.readouterr().out
    assert files(trained.root) == before


def test_a_training_that_was_cut_off_at_its_very_end_changes_no_later_round(make_site, tmp_path):
    undisturbed = make_site(rounds=2).run()
    site = Site(undisturbed.spec, (tmp_path / "disturbed").as_uri()).prepare().search()
    site.aggregate(1, site.train(1))
    (site.root / "clients/ann/baseline.json").unlink()
    site.train(1)
    site.aggregate(2, site.train(2))
    assert files(site.root) == files(undisturbed.root)


def test_a_mask_is_sent_once(make_site):
    site = make_site(rounds=2).run()
    first, second = (site.store.read_record(round, "ann") for round in (1, 2))
    assert first["bytes_up"] - first["bytes"] == len(site.store.get_mask("ann", first["mask_sha256"]))
    assert second["bytes_up"] == second["bytes"]


def test_records_in_an_s3_store_are_fetched(make_site, s3_server, monkeypatch, tmp_path):
    here = make_site(clients={"ann": {}}).prepare().search()
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    folder = f"{s3_server.store_uri}/{uuid.uuid4()}"
    open_store(folder).put("ann.jsonl", here.data("ann").read_bytes())
    client = here.spec.clients[0].model_copy(update={"data": f"{folder}/ann.jsonl"})
    there = Site(here.spec.model_copy(update={"clients": (client,)}), (tmp_path / "there").as_uri())
    there.prepare().search()
    for site in (here, there):
        assert [status["status"] for status in site.train(1)] == ["trained"]
    expected = files(here.root)
    assert {key: data for key, data in files(there.root).items() if key != "spec.yaml"} == {
        key: data for key, data in expected.items() if key != "spec.yaml"
    }


def test_progress_is_a_line_a_step(make_site, capsys):
    site = make_site(clients={"ann": {}}).prepare().search()
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
        (lambda path: path.write_text(""), "{data}: there is no record in it", "give a client at least 2 records"),
        (
            lambda path: path.write_text(path.read_text().splitlines()[0]),
            "{data}: 1 usable record(s): too few to train on one and hold out another",
            "give a client at least 2 records",
        ),
    ],
    ids=["vanished", "without a response", "empty", "one record"],
)
def test_bad_data_are_a_soft_failure_that_names_them(make_site, spoil, problem, fix):
    site = make_site().prepare().search()
    site.planned(1)
    path = site.data("bob")
    spoil(path)
    record = train(site.uri, 1, "bob")
    reason = f"{problem.format(data=path)}\n  fix: {fix}"
    assert brief(record) == {"client": "bob", "status": "failed", "reason": reason}
    stored = json.loads(files(site.root)["rounds/1/updates/bob.json"])
    assert (stored["status"], stored["reason"], stored["key"]) == ("failed", reason, None)
    assert not [key for key in files(site.root) if key.endswith("bob.safetensors") or key.startswith("clients/bob")]


def test_a_failed_search_is_soft_until_too_few_are_left(make_site):
    site = make_site(participation={"minimum_clients": 2}, **THREE).prepare()
    for client in ("bob", "eve"):
        site.data(client).rename(site.data(client).with_suffix(".away"))
    statuses = [brief(search(site.uri, client)) for client in ("ann", "bob", "eve")]
    assert [status["status"] for status in statuses] == ["searched", "failed", "failed"]
    with pytest.raises(PerfitError) as caught:
        check_search(site.uri, statuses)
    first, *named = caught.value.problem.splitlines()
    assert first == "1 clients have an architecture, participation.minimum_clients is 2:"
    assert [line for line in named if "no such file" in line] == [
        f"  {client}: {site.data(client)}: no such file" for client in ("bob", "eve")
    ]
    site.data("bob").with_suffix(".away").rename(site.data("bob"))
    statuses = [brief(search(site.uri, client)) for client in ("ann", "bob", "eve")]
    check_search(site.uri, statuses)
    assert [status["status"] for status in statuses] == ["searched", "searched", "failed"]


def test_a_client_without_an_architecture_searches_it_before_it_tunes(make_site):
    site, searched = make_site().prepare(), make_site().prepare().search()
    for each in (site, searched):
        each.planned(1)
    record = train(site.uri, 1, "ann")
    assert record["status"] == "trained"
    assert record == train(searched.uri, 1, "ann")
    assert site.store.find_masks("ann") == searched.store.find_masks("ann") == [record["mask_sha256"]]


def test_a_client_that_the_federation_does_not_know(trained):
    before = files(trained.root)
    assert search(trained.uri, "zoe")["reason"] == (
        "client 'zoe' is not in federation 'tiny'\n  fix: use one of: ann, bob, eve"
    )
    assert train(trained.uri, 1, "../eve")["status"] == "failed"
    assert not [key for key in set(files(trained.root)) - set(before) if "/zoe" not in key]


def test_a_loss_that_is_not_finite(make_site, tiny_llama, tmp_path):
    broken = shutil.copytree(tiny_llama, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = np.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    site = make_site(model=str(broken), method={"name": "fedit"}).prepare().search()
    site.planned(1)
    record = train(site.uri, 1, "ann")
    assert (record["status"], record["reason"]) == (
        "failed",
        "the loss is nan at step 1 of 2\n  fix: lower training.learning_rate, and look at the client's records",
    )


def test_a_store_that_vanished_is_a_soft_failure_too(make_site, unreachable_s3, capsys):
    uri = f"{unreachable_s3}/federations/tiny"
    record = train(uri, 1, "ann")
    assert (record["client"], record["status"]) == ("ann", "failed")
    assert "check AWS_ENDPOINT_URL" in record["reason"]
    assert "secret-of-this-test" not in record["reason"] + capsys.readouterr().out


def test_records_of_the_own_part_alone_hold_words_of_the_data(trained):
    """What others read (updates, masks, plans, records) holds no text of a client's records."""
    shared = {key: data for key, data in files(trained.root).items() if not key.startswith("clients/")}
    words = {word for client in RECORDS for word in (f"What is {client}".encode(), b"Paris", b"capital")}
    assert not [(key, word) for key, data in shared.items() for word in words if word in data]
