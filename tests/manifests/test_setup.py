"""setup.sh brings users and policies to what is mounted, however often it runs.

By a stand-in for `mc`: neither MinIO's server nor its client can be had where these tests run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import pytest

from perfit_pipelines.deploy.render import USER_SECRETS

from .rendering import MANIFESTS, WITH_MINIO, only

STORE = MANIFESTS / "base/minio"
MARK = "perfit-no-self-service"
SHELLS = [shell for shell in ("dash", "bash --posix", "busybox ash") if shutil.which(shell.split()[0])]


@dataclass(frozen=True)
class Minio:
    """A directory with what the Job mounts, and the state of a MinIO."""

    root: Path
    shell: str = "sh"

    @property
    def state(self) -> dict:
        return json.loads((self.root / "state.json").read_text())

    def set_state(self, **changes) -> None:
        (self.root / "state.json").write_text(json.dumps(self.state | changes))

    def give_client(self, key: str, secret: str) -> None:
        (self.root / f"clients/{key}.secret-key").write_text(secret)
        (self.root / f"clients/{key}.policy.json").write_text(json.dumps({"Statement": [key]}))

    def take_client(self, key: str) -> None:
        for path in (self.root / "clients").glob(f"{key}.*"):
            path.unlink()

    @property
    def calls(self) -> list[str]:
        """What mc was called with in the last run."""
        return (self.root / "calls").read_text().splitlines()

    def run(self) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.root / "bin"),
            "SETUP_ROOT": str(self.root),
            "MC_STATE": str(self.root / "state.json"),
            "MC_CALLS": str(self.root / "calls"),
            "MINIO_ROOT_USER": "root-user",
            "MINIO_ROOT_PASSWORD": "root-password",
        }
        (self.root / "calls").write_text("")
        program, *options = self.shell.split()
        command = [shutil.which(program), *options, str(STORE / "setup.sh")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def set_up(self) -> dict:
        done = self.run()
        assert done.returncode == 0, done.stderr
        return self.state


@pytest.fixture
def minio(tmp_path: Path) -> Minio:
    """A fresh MinIO that knows no user, a server and two clients, and a PATH that holds no more than the image does."""
    for name in ("bin", "clients"):
        (tmp_path / name).mkdir()
    shutil.copytree(STORE / "policies", tmp_path / "policies")
    mc = tmp_path / "bin/mc"
    mc.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {Path(__file__).with_name("mc.py")} "$@"\n')
    mc.chmod(0o755)
    os.symlink(shutil.which("cat"), tmp_path / "bin/cat")
    state = {
        "not_ready_for": 0,
        "host": "http://root-user:root-password@minio:9000",
        "buckets": [],
        "versioned": {},
        "policies": {},
        "users": {},
    }
    (tmp_path / "state.json").write_text(json.dumps(state))
    minio = Minio(tmp_path)
    minio.give_client("perfitserver-tiny", "of-the-server")
    minio.give_client("tiny.ann", "of-ann")
    minio.give_client("tiny.ann-b", "of-ann-b")
    return minio


def test_it_makes_bucket_users_and_policies(minio):
    state = minio.set_up()
    assert state["buckets"] == ["perfit"]
    assert state["users"] == {
        "perfitserver-tiny": {"secret": "of-the-server", "policies": [MARK, "perfitserver-tiny"]},
        "tiny.ann": {"secret": "of-ann", "policies": [MARK, "client-tiny.ann"]},
        "tiny.ann-b": {"secret": "of-ann-b", "policies": [MARK, "client-tiny.ann-b"]},
    }
    assert state["policies"]["client-tiny.ann"] == {"Statement": ["tiny.ann"]}
    assert state["policies"]["perfitserver-tiny"] == {"Statement": ["perfitserver-tiny"]}


def test_what_is_overwritten_can_be_found_again_but_for_clients_own_files(minio):
    """MinIO takes such a prefix as a pattern, whose star also matches slashes."""
    ((bucket, prefixes),) = minio.set_up()["versioned"].items()
    assert bucket == "perfit"
    kept, left_out = ["head.json", "rounds/1/updates/ann.json", "masks/ann/0"], ["clients/ann/adapter/x", "clients/b/y"]
    for name in ("tiny", "tiny.fedit", "clients"):
        for path in kept + left_out:
            excluded = any(fnmatch(f"federations/{name}/{path}", f"{prefix}*") for prefix in prefixes)
            assert excluded == (path in left_out), path
    assert not any(fnmatch("records/ann.jsonl", f"{prefix}*") for prefix in prefixes)


def test_the_user_that_all_federations_shared_is_gone(minio):
    minio.set_state(users={"perfit-server": {"secret": "shared", "policies": [MARK, "perfit-server"]}})
    assert "perfit-server" not in minio.set_up()["users"]


def test_it_may_run_again(minio):
    first = minio.set_up()
    assert minio.set_up() == first


def test_a_new_user_costs_four_calls_of_mc_and_one_that_is_there_two(minio):
    """Three users, and five for all: is MinIO ready, who is there, the bucket, its versions, what nobody may do."""
    minio.set_up()
    assert len(minio.calls) == 5 + 4 * 3
    minio.set_up()
    assert len(minio.calls) == 5 + 2 * 3


@pytest.mark.parametrize("shell", SHELLS)
def test_any_posix_shell_does(minio, shell):
    minio = replace(minio, shell=shell)
    first = minio.set_up()
    minio.give_client("tiny.new", "new")
    minio.set_up()
    minio.take_client("tiny.new")
    assert minio.set_up()["users"] == first["users"]
    assert len(minio.calls) == 5 + 2 * 3 + 1


def test_it_gives_new_secrets_and_policies(minio):
    minio.set_up()
    minio.give_client("tiny.ann", "of-ann-2")
    (minio.root / "clients/tiny.ann.policy.json").write_text('{"Statement": ["another"]}')
    state = minio.set_up()
    assert state["users"]["tiny.ann"]["secret"] == "of-ann-2"
    assert state["policies"]["client-tiny.ann"] == {"Statement": ["another"]}


def test_it_removes_users_of_clients_that_are_gone_and_nobody_elses(minio):
    state = minio.set_up()
    strangers = {"backup": {"secret": "x", "policies": ["readonly"]}, "idle": {"secret": "y", "policies": []}}
    minio.set_state(users=state["users"] | strangers)
    minio.take_client("tiny.ann")
    assert set(minio.set_up()["users"]) == {"perfitserver-tiny", "tiny.ann-b", "backup", "idle"}


@pytest.mark.parametrize("broken", ["policies/no-self-service.json", "clients/tiny.ann-b.policy.json"])
def test_a_removed_clients_user_is_gone_even_if_a_later_step_fails(minio, broken):
    minio.set_up()
    minio.take_client("tiny.ann")
    (minio.root / broken).unlink()
    assert minio.run().returncode != 0
    assert set(minio.state["users"]) == {"perfitserver-tiny", "tiny.ann-b"}


def test_a_name_within_another_is_a_user_of_its_own(minio):
    """Those that are new beside those that have all, then those beside them when they are gone."""
    before = minio.set_up()["users"]
    new = ("tiny.an", "tiny.ann-", "tiny.ann-b2", "ny.ann", "x-tiny.ann", "tiny-ann")
    for key in new:
        minio.give_client(key, "new")
    policies = {key: f"client-{key}" if "." in key else key for key in new}
    added = {key: {"secret": "new", "policies": [MARK, policies[key]]} for key in new}
    assert minio.set_up()["users"] == before | added
    for key in new:
        minio.take_client(key)
    assert minio.set_up()["users"] == before


def test_nobody_has_rights_without_the_mark(minio):
    """Else a run that was cut off would leave users that no later run removes."""
    assert {user["policies"][0] for user in minio.set_up()["users"].values()} == {MARK}


def test_it_needs_no_clients(minio):
    for key in ("tiny.ann", "tiny.ann-b"):
        minio.take_client(key)
    assert set(minio.set_up()["users"]) == {"perfitserver-tiny"}


def test_it_goes_on_from_where_it_was_cut_off(minio):
    """A user that was made, but given none or one of its two policies, or one whose name begins like it."""
    state = minio.set_up()
    made = {"tiny.ann": {"secret": "", "policies": []}, "tiny.ann-b": {"secret": "", "policies": [MARK]}}
    made["perfitserver-tiny"] = {"secret": "", "policies": ["perfitserver-tiny-2"]}
    minio.set_state(users=state["users"] | made)
    policies = {name: set(user["policies"]) for name, user in minio.set_up()["users"].items()}
    assert policies == {
        "tiny.ann": {"client-tiny.ann", MARK},
        "tiny.ann-b": {"client-tiny.ann-b", MARK},
        "perfitserver-tiny": {"perfitserver-tiny", "perfitserver-tiny-2", MARK},
    }


def test_it_waits_for_minio_and_shows_what_is_wrong(minio):
    minio.set_state(not_ready_for=2)
    done = minio.run()
    assert done.returncode == 0
    assert done.stdout.count("The cluster 'store' is unreachable: ") == 2
    assert minio.state["buckets"] == ["perfit"]


@pytest.mark.parametrize("broken", ["clients/tiny.ann.policy.json", "policies/no-self-service.json"])
def test_it_fails_where_something_is_missing(minio, broken):
    (minio.root / broken).unlink()
    assert minio.run().returncode != 0


def test_it_gives_nobody_an_empty_secret(minio):
    minio.give_client("tiny.ann", "")
    done = minio.run()
    assert done.returncode != 0
    assert "no secret key of tiny.ann" in done.stderr
    assert "tiny.ann" not in minio.state["users"]


def test_it_fails_with_the_wrong_password(minio):
    minio.set_state(host="http://root-user:another@minio:9000")
    assert minio.run().returncode != 0
    assert minio.state["users"] == {}


def test_it_says_no_secret(minio):
    done = minio.run()
    for secret in ("root-password", "of-the-server", "of-ann"):
        assert secret not in done.stdout + done.stderr


@pytest.mark.parametrize("overlay", WITH_MINIO)
def test_the_job_mounts_what_the_script_reads(overlay):
    assert only(overlay, "ConfigMap", "minio-setup")["data"]["setup.sh"] == (STORE / "setup.sh").read_text()
    job = only(overlay, "Job", "minio-setup")["spec"]["template"]["spec"]
    (container,) = job["containers"]
    assert container["command"] == ["/bin/sh", "/setup/setup.sh"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {*("/setup", "/policies", "/clients", "/tmp")}
    (clients,) = (volume["projected"]["sources"] for volume in job["volumes"] if volume["name"] == "clients")
    assert clients == [{"secret": {"name": name, "optional": True}} for name in USER_SECRETS]
