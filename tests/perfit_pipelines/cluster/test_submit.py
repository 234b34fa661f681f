"""``perfit submit``: what it creates in Kubeflow, what it prints, and its exit codes."""

from __future__ import annotations

import re
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from perfit.cluster_spec import ClusterSpec
from perfit_components.steps.file_by_uri import read_federation_file
from perfit_storage import FederationStore, Head, RoundPlace

from .conftest import FEDERATION, QUICK, Perfit, write_federation
from .kfp_api import upload_version
from .recorded import TWO_TIERS, client_died


def only(items: dict):
    """Return the one value of a dictionary."""
    (item,) = items.values()
    return item


def executors(version) -> dict:
    return version.pipeline_spec["pipeline_spec"]["deploymentSpec"]["executors"]


def test_uploads_the_pipeline_and_starts_a_run(api, perfit, file):
    out = perfit.succeed("submit", file, *QUICK)

    pipeline, version, run, experiment = map(only, (api.pipelines, api.versions, api.runs, api.experiments))
    assert (pipeline.display_name, experiment.display_name) == ("demo-tuning", "demo")
    assert re.fullmatch("[0-9a-f]{12}", version.display_name)
    assert run.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id
    assert (run.experiment_id, run.display_name[:12]) == (experiment.experiment_id, "demo-tuning ")
    assert f"{api.url}/#/runs/details/{run.run_id}" in out
    assert f"{api.url}/#/pipelines/details/{pipeline.pipeline_id}/version/{version.pipeline_version_id}" in out
    assert "the run succeeded; the report is on the task Aggregate of its last round" in out


def test_the_pipeline_carries_the_federation_file_and_the_store(api, perfit, file):
    perfit.succeed("submit", file, "--store", "s3://other/place", *QUICK)

    parameters = only(api.versions).pipeline_spec["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    kept = ClusterSpec.model_validate(yaml.safe_load(parameters["federation_file"]["defaultValue"]))
    assert (kept.name, [client.id for client in kept.clients]) == ("demo", ["bank", "kitchen"])
    assert parameters["store"]["defaultValue"] == "s3://other/place"
    # So that Compare runs shows them: defaults are not compared.
    assert only(api.runs).runtime_config.parameters == {"method": "perfit", "store": "s3://other/place"}


def test_kubeflow_2_16_gets_no_limits_and_keeps_all_else(serve, file):
    api = serve(version=(2, 16, 1))
    result = Perfit(api)("submit", file, *QUICK)
    assert result.exit_code == 0, result.exception
    assert "older than 2.17: the run has no deadline" in result.stderr
    kubernetes = only(api.versions).pipeline_spec["platform_spec"]["platforms"]["kubernetes"]
    assert "pipelineConfig" not in kubernetes
    assert all(settings["secretAsEnv"] for settings in kubernetes["deploymentSpec"]["executors"].values())


def test_a_server_that_drops_the_settings_of_pods_gets_no_run(serve, file):
    """An old one that does not give its version."""
    api = serve(version=(0, 0, 0))
    error = Perfit(api).fail("submit", file, *QUICK)
    assert "dropped the settings of the pipeline's pods" in error.problem
    assert "cluster.deadline_seconds and cluster.keep_seconds to null" in error.fix
    assert not api.runs
    Perfit(api).succeed(
        "submit", write_federation(file, cluster={"deadline_seconds": None, "keep_seconds": None}), *QUICK
    )


def test_a_run_that_got_another_account_is_ended(api, perfit, file):
    api.before["/runs"] = lambda query, body: body.update(service_account="pipeline-runner")
    error = perfit.fail("submit", file, *QUICK)
    assert "the service account 'pipeline-runner', which may read every client's key, instead of" in error.problem
    assert only(api.runs).state == "CANCELED"


def test_an_unchanged_file_uses_its_version_again(api, perfit, file):
    perfit.succeed("submit", file, *QUICK)
    assert "unchanged" in perfit.succeed("submit", file, *QUICK)
    assert (len(api.versions), len(api.runs), len(api.experiments)) == (1, 2, 1)

    perfit.succeed("submit", write_federation(file, rounds=1), *QUICK)
    assert (len(api.pipelines), len(api.versions)) == (1, 2)


def test_names_images_and_service_account_can_be_given(api, perfit, file):
    images = ("--client-image", "registry/client:1", "--server-image", "registry/server:1")
    names = ("--experiment", "trials", "--run-name", "first", "--service-account", "tuner")
    perfit.succeed("submit", file, "--pipeline", "federated_round", *images, *names, *QUICK)

    run = only(api.runs)
    assert only(api.pipelines).display_name == "demo-round"
    assert (only(api.experiments).display_name, run.display_name, run.service_account) == ("trials", "first", "tuner")
    used = {key: executor["container"]["image"] for key, executor in executors(only(api.versions)).items()}
    assert (used["exec-client-default"], used["exec-aggregate"]) == ("registry/client:1", "registry/server:1")


def test_progress_names_tasks_rounds_and_clients(api, perfit, file):
    died = client_died()
    moments = ("09:46:45", "09:47:30", "09:47:46", "09:47:46", "09:47:56", "09:48:05")
    api.play(
        ("PENDING", []),
        *(("RUNNING", died.at(moment).as_listed()) for moment in moments),
        ("FAILED", died.as_listed()),
    )
    out = perfit("submit", write_federation(file, **TWO_TIERS), *QUICK).stdout

    lines = [line.strip().partition("  ")[2] for line in out.splitlines() if re.match(r" +\d+:\d\d  ", line)]
    assert lines == [
        "run: waiting",
        "Prepare: running",
        "run: running",
        "Prepare: succeeded",
        "Round 1 of 1: bank: running",
        "Round 1 of 1: dock: running",
        "Round 1 of 1: cafe: running",
        "Round 1 of 1: farm: running",
        "Round 1 of 1: bank: succeeded",
        "Round 1 of 1: dock: failed",
        "Round 1 of 1: cafe: succeeded",
        "Round 1 of 1: farm: succeeded",
        "Round 1 of 1: Aggregate: running",
        "Round 1 of 1: Aggregate: succeeded",
        "run: failed",
    ]


@pytest.mark.parametrize(("state", "word"), [("CANCELED", "cancelled"), ("SKIPPED", "skipped")])
def test_a_run_that_was_stopped_ends_with_4(api, perfit, file, state, word):
    api.play(("RUNNING", []), (state, []))
    result = perfit("submit", file, *QUICK)
    assert (result.exit_code, f"the run was {word}" in result.stderr) == (4, True)


def test_a_run_that_takes_too_long_ends_with_4_and_goes_on(api, perfit, file):
    api.play(("RUNNING", []))
    result = perfit("submit", file, "--timeout", "1s", *QUICK)
    assert result.exit_code == 4
    assert f"the run goes on. Follow again: perfit follow {only(api.runs).run_id}" in result.stderr


def test_without_following_it_ends_at_once(api, perfit, file):
    api.play(("RUNNING", []))
    out = perfit.succeed("submit", file, "--no-follow")
    assert f"perfit follow {only(api.runs).run_id}" in out
    assert not api.calls("GET", "/runs/")


def test_a_terminal_shows_a_table_by_stage(api, perfit, file, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    api.play(("FAILED", client_died().at("09:48:05").as_listed()))
    out = perfit("submit", write_federation(file, **TWO_TIERS), *QUICK).stdout
    # Of the five tasks of a round: four clients, aggregate.
    assert re.search(r"Round 1 of 1\s+3/5\s+\S*failed: dock\S*\s+Aggregate", out)


def test_paths_of_this_machine_are_warned_of(perfit, tmp_path):
    data = tmp_path / "bank.jsonl"
    data.write_text("")
    file = write_federation(tmp_path / "f.yaml", clients=[{"id": "bank", "data": "bank.jsonl"}])
    result = perfit("submit", file, *QUICK)
    assert result.exit_code == 0
    assert f"warning: client bank: {data} is a path of this machine" in result.stderr


@pytest.fixture
def stored(s3_server, monkeypatch, tmp_path):
    """A function that puts a federation at a round into a store that this machine can read, and returns its file."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)

    def at(round: int) -> Path:
        store = f"{s3_server.store_uri}/{uuid.uuid4().hex}"
        spec = ClusterSpec.model_validate({**FEDERATION, "store": store, "rounds": 3})
        files = FederationStore.open(store, spec.name)
        files.write_spec(spec.to_yaml().encode(), None)
        head = Head(0, files.put_global(RoundPlace(0), b"round 0"))
        files.create_head(head)
        for number in range(1, round + 1):
            before, head = head, replace(head, round=number, summary=files.put_summary(RoundPlace(number), b"{}"))
            files.advance_head(before, head)
        file = tmp_path / "stored.yaml"
        file.write_bytes(spec.to_yaml().encode())
        return file

    return at


@pytest.mark.parametrize(("committed", "rounds"), [(0, ["1", "2", "3"]), (2, ["3"])])
def test_committed_rounds_are_no_part_of_a_run(api, perfit, stored, committed, rounds):
    perfit.succeed("submit", stored(committed), *QUICK)
    tasks = only(api.versions).pipeline_spec["pipeline_spec"]["root"]["dag"]["tasks"].values()
    names = sorted(task["taskInfo"]["name"] for task in tasks)
    assert names == ["Prepare", *(f"Round {number} of 3" for number in rounds)]


def test_a_finished_federation_takes_no_run(api, perfit, stored):
    assert "all 3 rounds are committed: there is nothing to do" in perfit.succeed("submit", stored(3))
    assert not api.requests


def test_a_store_that_cannot_be_read_from_here_runs_all_rounds(api, perfit, file, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    result = perfit("submit", file, *QUICK)
    assert result.exit_code == 0
    assert "note: the run passes committed rounds, about a minute each, for the store cannot be asked" in result.stderr


def test_someone_else_may_upload_the_same_at_the_same_time(api, perfit, file):
    api.before["/pipelines/upload_version"] = lambda query, body: upload_version(api, query, body)
    assert "unchanged" in perfit.succeed("submit", file, *QUICK)
    assert len(api.versions) == 1


def test_a_name_that_is_taken_by_something_hidden(api, perfit, file):
    api.fail("POST", "/pipelines$", 409, "The name demo-tuning already exists")
    error = perfit.fail("submit", file)
    assert error.problem == "pipeline demo-tuning exists in Kubeflow, but is not shown to you under this name"
    assert "rename" in error.fix


def test_a_pipeline_too_large_for_the_cluster(api, perfit, file):
    api.largest_upload = 1000
    error = perfit.fail("submit", file)
    assert "File size too large" in error.problem
    assert "lower rounds" in error.fix
    assert not api.runs


@pytest.mark.parametrize("status", [413, 500])
def test_a_workflow_too_large_for_kubernetes(api, perfit, file, status):
    api.fail("POST", "/runs$", status, "etcdserver: request is too large")
    error = perfit.fail("submit", file)
    assert f"would not create the run ({status}): etcdserver: request is too large" in error.problem
    assert "lower rounds" in error.fix


def test_a_file_that_is_no_federation(api, perfit, tmp_path):
    file = tmp_path / "values.yaml"
    file.write_text("replicas: 3\n")
    assert "values.yaml:1: replicas: unknown key" in perfit.fail("submit", file).problem
    assert not api.requests


@pytest.mark.parametrize("store", [None, "file:///srv/store"])
def test_a_store_that_pods_cannot_use(api, perfit, tmp_path, store):
    file = write_federation(tmp_path / "federation.yaml", store=store)
    assert "s3://bucket/prefix" in perfit.fail("submit", file).fix
    assert not api.requests


# More than one run can take


@pytest.fixture
def many(tmp_path, s3_server, monkeypatch) -> Path:
    """The file of a federation of 400 clients, in a store that this machine reaches."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    clients = [{"id": f"client-{n:03}", "data": f"s3://data/client-{n:03}.jsonl"} for n in range(400)]
    store = f"{s3_server.store_uri}/{uuid.uuid4()}"
    return write_federation(tmp_path / "many.yaml", rounds=1, clients=clients, store=store)


def prepare_inputs(version) -> dict:
    tasks = version.pipeline_spec["pipeline_spec"]["root"]["dag"]["tasks"]
    return tasks["prepare"]["inputs"]["parameters"]


def test_a_round_of_400_clients_takes_two_runs_of_one_version(api, perfit, many):
    out = perfit.succeed("submit", many, *QUICK)

    assert "too large for one run: 2 runs, one after the other: 2 a round, of up to 200 clients each" in out
    assert [run.display_name[-12:] for run in api.runs.values()] == [", run 1 of 2", ", run 2 of 2"]
    inputs = prepare_inputs(only(api.versions))
    assert [inputs[name]["runtimeValue"]["constant"] for name in ("round", "at_most")] == [1, 200]
    assert out.count("the run succeeded; the last of a round's runs commits the round and has its report") == 2


def test_a_long_file_is_passed_by_its_uri(api, perfit, many):
    out = perfit.succeed("submit", many, *QUICK)

    parameters = only(api.versions).pipeline_spec["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    uri, store = (parameters[name]["defaultValue"] for name in ("federation_file", "store"))
    assert f"the federation file is passed by its URI: {uri}" in out
    assert uri.startswith(f"{store}/federations/demo/files/")
    assert len(read_federation_file(uri, store).clients) == 400


def test_a_long_file_whose_store_is_out_of_reach_is_not_submitted(api, perfit, many, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    error = perfit.fail("submit", many)
    assert "too long for a run's parameter, and cannot be put into the store" in error.problem
    assert "the server's keys in AWS_* variables" in error.fix
    assert not api.runs


def test_the_next_run_waits_for_the_one_before(api, perfit, many):
    api.play(("FAILED", []))
    result = perfit("submit", many, *QUICK)
    assert result.exit_code == 3
    assert only(api.runs).display_name.endswith("run 1 of 2")
    assert f"to go on: perfit submit {many} --first-run 1" in result.stderr


def test_runs_can_be_started_one_by_one(api, perfit, many):
    out = perfit.succeed("submit", many, "--no-follow")
    assert only(api.runs).display_name.endswith("run 1 of 2")
    assert f"the next run, when it has ended: perfit submit {many} --first-run 2" in out
    out = perfit.succeed("submit", many, "--no-follow", "--first-run", "2")
    assert "--first-run" not in out
    assert len(api.runs) == 2
    assert perfit.fail("submit", many, "--first-run", "3").problem == "--first-run 3: the pipeline takes 2 runs"


def test_a_list_that_will_stop_is_announced(api, perfit, tmp_path):
    clients = [{"id": f"client-{n:02}", "data": f"s3://data/client-{n:02}.jsonl"} for n in range(20)]
    file = write_federation(tmp_path / "some.yaml", rounds=1, clients=clients)
    assert "Kubeflow's list of its tasks stops changing above 1.0 MB" in perfit("submit", file, *QUICK).stderr
    assert "warning" not in perfit("submit", write_federation(file, rounds=1), *QUICK).stderr
