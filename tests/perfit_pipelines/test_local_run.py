"""Two backends, one answer: a federation in memory, and through the pipeline on KFP's local runner."""

from __future__ import annotations

import builtins
import os
import uuid
from pathlib import Path

import pytest
from kfp import local

from perfit.errors import PerfitError
from perfit_components.log_lines import plain
from perfit_pipelines import local_run
from perfit_pipelines.local_run import run_locally
from perfit_pipelines.pipelines import federated_round
from perfit_storage import open_store

from ..perfit_components.running import Site, files, in_memory
from .commands import make_home


def test_the_pipeline_leaves_what_the_federation_in_memory_gives(finished):
    expected = in_memory(finished.home.site.spec)
    stored = files(finished.home.site.root)
    assert {key: stored.get(key) for key in expected} == expected


def test_a_run_on_a_real_s3_server_leaves_the_same_files(finished, s3_server, tmp_path):
    spec = finished.home.site.spec
    uri = f"{s3_server.store_uri}/{uuid.uuid4()}"
    lines = []
    environment, own_print = dict(os.environ), builtins.print
    run_locally(spec, uri, s3_server.environment, tmp_path, lines.append)
    objects = open_store(f"{uri}/federations/{spec.name}", s3_server.environment)
    assert {key: objects.get(key).data for key in objects.list("")} == files(finished.home.site.root)
    log = (tmp_path / "run.log").read_text()
    assert log.splitlines() == [plain(line) for line in lines]
    assert s3_server.environment["AWS_SECRET_ACCESS_KEY"] not in log
    assert (dict(os.environ), builtins.print) == (environment, own_print)


def test_a_second_run_trains_nothing_and_prints_the_same(finished):
    before = files(finished.home.site.root)
    again = finished.home.stored("run", finished.home.file)
    assert again.code == 0, again.err
    assert files(finished.home.site.root) == before
    assert "  step " in finished.result.out
    assert "  step " not in again.out
    table = finished.result.out[finished.result.out.index("Perplexity") :]
    assert again.out.endswith(table)


def test_a_run_whose_clients_all_fail_says_why(make):
    """The prompts fill the sequence, which only the clients' own pods notice, as they have the tokenizer."""
    home = make(training={"sequence_length": 8}, clients={"ann": {"tier": "strong"}})
    result = home.stored("run", home.file)
    assert result.code == 1
    first, *rest = result.err.splitlines()
    assert first == "error: 0 clients have an architecture, participation.minimum_clients is 1:"
    assert rest[0].startswith(f"  ann: {home.directory}/data/ann.jsonl: no usable record: line 1: the prompt alone has")
    assert rest[-1] == "  fix: repair these clients and run again (who has an architecture does not search again)"
    assert f"client ann has no result: {home.directory}/data/ann.jsonl" in result.out
    assert home.site.store.read_head().round == 0


def test_an_error_that_is_not_ours_points_at_the_log(home, tmp_path):
    """A model whose files are damaged, for which we have no message."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama", "hidden_size": "many"}')
    spec = home.site.spec.model_copy(update={"model": str(broken)})
    with pytest.raises(PerfitError) as caught:
        run_locally(spec, home.site.store_uri, {}, tmp_path / "run", lambda line: None)
    assert "prepare-federation" in caught.value.problem
    assert caught.value.fix == f"look at the end of {tmp_path}/run/run.log"
    assert "hidden_size" in (tmp_path / "run/run.log").read_text()


# One round from the head


def run_round(site: Site, root: Path) -> None:
    """Run ``federated_round`` as a scheduled run does, here through the local runner."""
    with local_run._settings({}):
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
        federated_round(site.spec, site.store_uri)()


def test_one_round_after_the_other_with_a_client_that_joins(tiny_llama, tmp_path, capfd):
    home = make_home(tmp_path, tiny_llama, clients={"ann": {"tier": "strong"}})
    run_round(home.site, tmp_path / "kfp")
    assert home.site.store.read_head().round == 1
    first = files(home.site.root)
    assert [key for key in first if key.startswith("masks/")] == [key for key in first if key.startswith("masks/ann/")]

    home.file.write_text(home.file.read_text() + "- {id: bob, data: data/bob.jsonl, tier: weak, rank: 1}\n")
    capfd.readouterr()
    run_round(home.site, tmp_path / "kfp")
    assert home.site.store.read_head().round == 2
    second = files(home.site.root)
    assert [outcome["client"] for outcome in home.site.store.read_summary(2)["clients"]] == ["ann", "bob"]
    assert len([key for key in second if key.startswith("masks/bob/")]) == 1
    printed = capfd.readouterr().out
    assert "round=0 client=bob" in printed
    assert "round=0 client=ann" not in printed
    kept = [key for key in first if key not in ("head.json", "spec.yaml") and not key.startswith("clients/")]
    assert {key: second[key] for key in kept} == {key: first[key] for key in kept}
