"""``perfit schedule``: recurring rounds, one trigger at a time."""

from __future__ import annotations

import json
import uuid
from datetime import datetime

import pytest

from .conftest import Perfit, write_federation

DAILY = ("--every", "24h")


def only(items: dict):
    """Return the one value of a dictionary."""
    (item,) = items.values()
    return item


def test_a_schedule_runs_a_round_of_the_file_one_at_a_time(api, perfit, file):
    out = perfit.succeed("schedule", "create", file, "--cron", "0 0 2 * * *", "--service-account", "tuner")

    run, version = only(api.recurring_runs), only(api.versions)
    assert run.display_name == only(api.pipelines).display_name == "demo-round"
    assert (run.trigger.cron_schedule.cron, run.trigger.periodic_schedule) == ("0 0 2 * * *", None)
    assert (run.max_concurrency, run.no_catchup, run.mode, run.service_account) == ("1", True, "ENABLE", "tuner")
    assert run.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id
    assert only(api.experiments).display_name == "demo"
    root = version.pipeline_spec["pipeline_spec"]["root"]
    assert '"name":"demo"' in root["inputDefinitions"]["parameters"]["federation_file"]["defaultValue"]
    assert f"created schedule demo-round: cron 0 0 2 * * *: {api.url}/#/recurringrun/details/" in out


def test_rounds_under_an_account_that_reads_every_key_are_not_scheduled(serve, file):
    api = serve(version=(2, 16, 1))
    error = Perfit(api).fail("schedule", "create", file, *DAILY)
    assert "the service account 'pipeline-runner', which may read every client's key" in error.problem
    assert api.recurring_runs == {}


@pytest.mark.parametrize(("every", "seconds"), [("1h30m", "5400"), ("720h", "2592000")])
def test_an_interval(api, perfit, file, every, seconds):
    out = perfit.succeed("schedule", "create", file, "--every", every, "--name", "often")
    assert only(api.recurring_runs).trigger.periodic_schedule.interval_second == seconds
    assert f"created schedule often: every {every}: " in out


@pytest.mark.parametrize("timing", [(), (*DAILY, "--cron", "0 0 2 * * *")])
def test_one_of_cron_and_interval_is_needed(api, perfit, file, timing):
    assert "either --cron or --every" in perfit.fail("schedule", "create", file, *timing).problem
    assert not api.requests


def test_five_fields_are_refused_before_anything_is_sent(api, perfit, file):
    error = perfit.fail("schedule", "create", file, "--cron", "30 2 * * *")
    assert error.fix == "put a 0 before it: --cron '0 30 2 * * *'"
    assert not api.requests


def test_creating_again_replaces_without_two_triggers(api, perfit, file):
    perfit.succeed("schedule", "create", file, *DAILY)
    before = set(api.recurring_runs)
    out = perfit.succeed("schedule", "create", write_federation(file, rounds=5), "--every", "12h")

    assert "replaced schedule demo-round: every 12h" in out
    assert only(api.recurring_runs).mode == "ENABLE"
    assert not before & set(api.recurring_runs)
    assert max(api.enabled_at_once) == 1


def test_a_round_that_runs_outlives_its_schedule(api, perfit, file):
    perfit.succeed("schedule", "create", file, *DAILY)
    perfit.succeed("schedule", "delete", "demo-round")
    assert not api.recurring_runs
    assert api.calls("DELETE", "/recurringruns/") == [{"propagation_policy": "ORPHAN"}]


def test_a_refused_replacement_leaves_the_old_schedule_running(api, perfit, file):
    perfit.succeed("schedule", "create", file, *DAILY)
    before = set(api.recurring_runs)
    api.fail("POST", "/recurringruns$", 500, "no")
    assert "would not create the schedule" in perfit.fail("schedule", "create", file, "--every", "1h").problem
    assert set(api.recurring_runs) == before
    assert only(api.recurring_runs).mode == "ENABLE"


@pytest.mark.parametrize("step", [":disable$", ":enable$"])
def test_a_replacement_that_fails_half_way_is_undone(api, perfit, file, step):
    perfit.succeed("schedule", "create", file, *DAILY)
    before = set(api.recurring_runs)
    api.fail("POST", step, 500, "no")
    perfit.fail("schedule", "create", file, "--every", "1h")
    assert set(api.recurring_runs) == before
    assert only(api.recurring_runs).mode == "ENABLE"


def test_a_paused_schedule_stays_paused_when_its_replacement_fails(api, perfit, file):
    perfit.succeed("schedule", "create", file, *DAILY)
    perfit.succeed("schedule", "pause", "demo-round")
    api.fail("POST", ":enable$", 500, "no")
    perfit.fail("schedule", "create", file, "--every", "1h")
    assert only(api.recurring_runs).mode == "DISABLE"


def test_what_an_interrupted_replacement_left_is_cleared_up(api, perfit, file):
    perfit.succeed("schedule", "create", file, *DAILY)
    api.fail("DELETE", "/recurringruns/", 500, "no")
    perfit.fail("schedule", "create", file, "--every", "1h")
    assert sorted(run.mode for run in api.recurring_runs.values()) == ["DISABLE", "ENABLE"]

    perfit.succeed("schedule", "resume", "demo-round")
    assert only(api.recurring_runs).trigger.periodic_schedule.interval_second == "3600"
    assert max(api.enabled_at_once) == 1


def test_pause_and_resume(api, perfit, file):
    perfit.succeed("schedule", "create", file, *DAILY)
    assert "paused demo-round" in perfit.succeed("schedule", "pause", "demo-round")
    assert only(api.recurring_runs).mode == "DISABLE"
    assert "resumed demo-round" in perfit.succeed("schedule", "resume", "demo-round")
    assert only(api.recurring_runs).mode == "ENABLE"


def test_the_list_has_all_pages(api, perfit, file):
    for name, timing in (("a", DAILY), ("b", ("--cron", "0 0 2 * * MON")), ("c", DAILY)):
        perfit.succeed("schedule", "create", file, "--name", name, *timing)
    perfit.succeed("schedule", "pause", "c")
    api.page = 1
    rows = [line for line in perfit.succeed("schedule", "list").splitlines() if "demo-round" in line]
    shown = [[cell.strip() for cell in row.strip("│").split("│")][:3] for row in rows]
    assert shown[:2] == [["a", "every 24h", "enabled"], ["b", "cron 0 0 2 * * MON", "enabled"]]
    assert shown[2:] == [["c", "every 24h", "paused"]]


def test_the_list_for_programs(perfit, file):
    assert json.loads(perfit.succeed("schedule", "list", "--json")) == []
    perfit.succeed("schedule", "create", file, "--every", "24h")
    (listed,) = json.loads(perfit.succeed("schedule", "list", "--json"))
    assert (listed["name"], listed["enabled"], listed["when"]) == (
        "demo-round",
        True,
        {"cron": None, "seconds": 86_400},
    )
    assert datetime.fromisoformat(listed["created"]).tzinfo is not None


def test_an_empty_list_says_how_to_begin(perfit):
    assert "perfit schedule create FILE --every 24h" in perfit.succeed("schedule", "list")


@pytest.mark.parametrize("command", ["pause", "resume", "delete"])
def test_a_schedule_that_does_not_exist(perfit, file, command):
    assert "perfit schedule create" in perfit.fail("schedule", command, "demo-round").fix
    perfit.succeed("schedule", "create", file, *DAILY)
    error = perfit.fail("schedule", command, "demo")
    assert (error.problem, error.fix) == ("there is no schedule 'demo'", "use one of: demo-round")


def test_recurring_runs_of_others_are_left_alone(api, perfit, file):
    perfit.succeed("schedule", "create", file, *DAILY)
    only(api.recurring_runs).description = "made in the UI"

    assert "no schedules" in perfit.succeed("schedule", "list")
    assert "there is no schedule" in perfit.fail("schedule", "delete", "demo-round").problem
    error = perfit.fail("schedule", "create", file, *DAILY)
    assert "that perfit did not create" in error.problem
    assert "--name" in error.fix
    assert len(api.recurring_runs) == 1


def test_schedules_belong_to_a_namespace(serve, file):
    api = serve(multi_user=True, namespaces=("team-a", "team-b"))
    perfit = Perfit(api)
    perfit.succeed("schedule", "create", file, *DAILY, "--namespace", "team-a")
    assert "demo-round" in perfit.succeed("schedule", "list", "--namespace", "team-a")
    assert "no schedules" in perfit.succeed("schedule", "list", "--namespace", "team-b")
    assert "in namespace team-b" in perfit.fail("schedule", "delete", "demo-round", "--namespace", "team-b").problem


def test_a_round_of_many_clients_takes_several_triggers(api, perfit, tmp_path, s3_server, monkeypatch):
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    clients = [{"id": f"client-{n:03}", "data": f"s3://data/client-{n:03}.jsonl"} for n in range(400)]
    store = f"{s3_server.store_uri}/{uuid.uuid4()}"
    file = write_federation(tmp_path / "many.yaml", clients=clients, store=store)
    out = perfit.succeed("schedule", "create", file, "--every", "1h")
    assert "too large for one run: 2 runs, one after the other: 2 a round, of up to 200 clients each" in out
    (version,) = api.versions.values()
    inputs = version.pipeline_spec["pipeline_spec"]["root"]["dag"]["tasks"]["prepare"]["inputs"]["parameters"]
    assert inputs["at_most"]["runtimeValue"]["constant"] == 200
