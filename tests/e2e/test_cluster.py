"""Install, submit, kill a client's pod, schedule, on a live cluster: in this order, on one federation.

Later tests go on from where earlier ones left the federation: run the file whole.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from perfit_components.secret_names import STORE_KEYS
from perfit_pipelines.cluster.connection import Endpoint, connect
from perfit_pipelines.cluster.schedule import list_schedules
from perfit_storage import AccessDenied, FederationStore, RoundPlace

from .conftest import ROUNDS, Cluster, Home, wait_for

RUN_ID = re.compile(r"id ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


@pytest.fixture(scope="module")
def installed(cluster: Cluster, home: Home) -> Home:
    """The overlay with the federation's keys, applied; the store's users made."""
    endpoint = ["--endpoint", cluster.pods_endpoint] if cluster.pods_endpoint else []
    succeed(
        cluster.perfit(
            "deploy", home.file, "--overlay", cluster.overlay, "--apply",
            "--context", cluster.context, "--namespace", cluster.namespace, *endpoint,
        )
    )  # fmt: skip
    if cluster.overlay == "seaweedfs":
        cluster.kubectl("wait", "pod/seaweedfs-0", "-n", "perfit", "--for=condition=ready", "--timeout=10m")
    elif cluster.overlay != "existing-minio":
        cluster.kubectl("wait", "job/minio-setup", "-n", "perfit", "--for=condition=complete", "--timeout=1h")
    return home


@pytest.fixture(scope="module")
def tuned(installed: Home) -> Home:
    """The federation after ``perfit submit`` of all its rounds."""
    submitted = succeed(installed.submit("--timeout", "1h"))
    assert "the run succeeded" in submitted.stdout
    return installed


def test_every_role_has_a_secret_with_a_key_of_its_own(cluster: Cluster, installed: Home):
    names = [installed.spec.server_secret, *(installed.spec.secret_of(client) for client in installed.spec.clients)]
    held = [json.loads(cluster.kubectl("get", "secret", name, "-o", "json"))["data"] for name in names]
    assert all(set(STORE_KEYS) <= set(data) for data in held)
    assert len({data["AWS_SECRET_ACCESS_KEY"] for data in held}) == len(names)


def test_doctor_finds_nothing_in_the_way(cluster: Cluster, installed: Home):
    done = cluster.perfit("doctor", installed.file, *cluster.connection, "--context", cluster.context, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (0, True), found


def test_submit_commits_all_rounds_with_both_clients(tuned: Home):
    assert tuned.files.read_head().round == ROUNDS
    summaries = tuned.context.summaries()
    assert [summary.round for summary in summaries] == list(range(1, ROUNDS + 1))
    for summary in summaries:
        assert {record.client: record.status for record in summary.clients} == {
            client.id: "trained" for client in tuned.spec.clients
        }


def test_head_names_an_adapter_that_is_there_and_intact(tuned: Home):
    head = tuned.files.read_head()
    assert tuned.files.read_blob(head.adapter)  # raises if the bytes are not those that the head names


def test_report_names_every_client(tuned: Home):
    html = tuned.files.read_report(RoundPlace(ROUNDS)).decode()
    assert all(client.id in html for client in tuned.spec.clients)


def test_submit_again_changes_nothing(tuned: Home):
    before = tuned.files.read_head()
    succeed(tuned.submit("--timeout", "1h"))
    assert tuned.files.read_head() == before


def test_a_clients_key_does_not_open_the_other_clients_files(cluster: Cluster, tuned: Home):
    ours, other = tuned.spec.clients
    data = json.loads(cluster.kubectl("get", "secret", tuned.spec.secret_of(ours), "-o", "json"))["data"]
    key = {name: base64.b64decode(data[name]).decode() for name in STORE_KEYS if name != "AWS_ENDPOINT_URL"}
    files = FederationStore.open(cluster.store, tuned.spec.name, {**_endpoint(), **key})
    assert files.list_client_files(ours.id)
    with pytest.raises(AccessDenied):
        files.list_client_files(other.id)


def test_a_deleted_client_pod_is_tried_again(cluster: Cluster, tuned: Home):
    """By the retries that KFP gives every task from 2.17 on."""
    before = tuned.files.read_head()
    tuned.edit(rounds=before.round + 1)
    run_id = _run_id(succeed(tuned.submit("--no-follow")))
    cluster.kubectl("delete", "pod", _client_pod(tuned, run_id), "--grace-period=0", "--force")

    followed = succeed(cluster.perfit("follow", run_id, *cluster.connection, "--timeout", "30m"))
    assert "attempt 2" in followed.stdout
    assert tuned.files.read_head().round == before.round + 1


def test_a_client_pod_that_dies_for_good_ends_the_run_and_not_the_round(cluster: Cluster, tuned: Home):
    before = tuned.files.read_head()
    tuned.edit(rounds=before.round + 1, participation={"minimum_clients": 1})
    run_id = _run_id(succeed(tuned.submit("--no-follow")))
    cluster.kubectl("exec", _client_pod(tuned, run_id), "-c", "main", "--", "sh", "-c", "kill -9 -1")

    followed = cluster.perfit("follow", run_id, *cluster.connection, "--timeout", "30m")
    assert followed.returncode == 3, followed.stdout + followed.stderr
    assert re.search(r"failed: Round \d of \d: (hospital|bank)", followed.stderr)
    summary = tuned.context.summaries()[-1]
    assert (summary.round, [status.status for status in summary.lost]) == (before.round + 1, ["missing"])


def _client_pod(home: Home, run_id: str) -> str:
    """Return the pod of a client that trains, once there is one."""
    return wait_for("a client's pod of the new round", lambda: home.pods(run_id, "client-default"), minutes=30)[0]


@pytest.fixture
def schedule(cluster: Cluster, tuned: Home) -> Iterator[str]:
    """The name of a schedule that starts a round each minute, one at a time."""
    name = f"{tuned.spec.name}-schedule"
    succeed(cluster.perfit("schedule", "create", tuned.file, "--every", "1m", "--name", name, *cluster.running))
    yield name
    succeed(cluster.perfit("schedule", "delete", name, *cluster.connection))


def test_schedule_commits_rounds_until_it_is_paused(cluster: Cluster, tuned: Home, schedule: str):
    before = tuned.files.read_head().round
    kubeflow = connect(Endpoint(cluster.kfp, cluster.namespace))
    assert [found.enabled for found in list_schedules(kubeflow) if found.name == schedule] == [True]

    wait_for("a scheduled round", lambda: tuned.files.read_head().round > before, minutes=45, seconds=15)

    succeed(cluster.perfit("schedule", "pause", schedule, *cluster.connection))
    assert [found.enabled for found in list_schedules(kubeflow) if found.name == schedule] == [False]
    (summary,) = [summary for summary in tuned.context.summaries() if summary.round == before + 1]
    assert len(summary.trained) == len(tuned.spec.clients)


def succeed(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Return a command's result, once it is sure that it is one."""
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done


def _run_id(submitted: subprocess.CompletedProcess[str]) -> str:
    found = RUN_ID.search(submitted.stdout)
    assert found, submitted.stdout
    return found[1]


def _endpoint() -> dict[str, str]:
    """Where this machine reaches the store: pods have another address for it."""
    return {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]} if os.environ.get("AWS_ENDPOINT_URL") else {}
