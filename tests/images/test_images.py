"""What the built images are: their user, their packages, their labels, and how they end."""

from __future__ import annotations

import json
import time
import tomllib
from pathlib import Path

import pytest

from .containers import RESTRICTED, USER, run, run_python

ROOT = Path(__file__).parents[2]
BOTH = pytest.mark.parametrize("name", ["client", "server"])

INSTALLED = "import importlib.metadata as m; print(*sorted({d.name.lower() for d in m.distributions()}))"
# Links are as writable as what they lead to, and everybody may write to a directory with the sticky bit, as /tmp.
WRITABLE = """
import os, stat
for place, inside, files in os.walk("/", topdown=True):
    inside[:] = [name for name in inside if os.path.join(place, name) not in ("/proc", "/sys", "/dev")]
    for path in [place, *(os.path.join(place, name) for name in files)]:
        if not os.path.islink(path) and os.access(path, os.W_OK) and not os.stat(path).st_mode & stat.S_ISVTX:
            print(path)
"""


@BOTH
def test_health_with_a_read_only_root_and_no_network(daemon, images, name):
    ended = run(daemon, getattr(images, name))
    assert ended.code == 0, ended.output
    assert json.loads(ended.output)["perfit-kubeflow"] == "0.2.0"


def test_health_says_what_is_missing(daemon, images):
    ended = run(daemon, images.server, tmpfs={})
    assert ended.code == 1
    assert "no temporary file can be written" in ended.output
    assert "--tmpfs /tmp" in ended.output


@BOTH
def test_the_health_command_is_the_image_s_own(daemon, images, name):
    settings = daemon.images.get(getattr(images, name)).attrs["Config"]
    assert settings["Healthcheck"]["Test"] == ["CMD", *settings["Cmd"]]


@BOTH
def test_tasks_run_as_a_numeric_user_and_their_processes_as_well(daemon, images, name):
    image = getattr(images, name)
    assert daemon.images.get(image).attrs["Config"]["User"] == f"{USER}:{USER}"
    assert run_python(daemon, image, "import os, getpass; print(os.getuid(), os.getgid(), getpass.getuser())") == (
        f"{USER} {USER} perfit"
    )


@BOTH
def test_tasks_could_write_to_mount_points_and_temporary_directories_alone(daemon, images, name):
    written = run_python(daemon, getattr(images, name), WRITABLE, read_only=False)
    assert {path for path in written.split() if not path.startswith("/compiled")} == {"/cache", "/data"}


def test_the_server_finds_its_compiled_loops(daemon, images):
    code = "from perfit.kernels import set_mean as f; print(len(f.stats.cache_hits), len(f.stats.cache_misses))"
    assert run_python(daemon, images.server, code, read_only=False).split() == ["1", "0"]


@BOTH
def test_versions_are_those_of_the_constraints(daemon, images, name):
    code = "import importlib.metadata as m; print(*{f'{d.name}=={d.version}' for d in m.distributions()})"
    lines = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    pinned = dict(line.split("==") for line in lines)
    found = run_python(daemon, getattr(images, name), code).lower().replace("_", "-").split()
    versions = {distribution: version.partition("+")[0] for distribution, version in (f.split("==") for f in found)}
    assert versions.pop("perfit-kubeflow") == _project()["version"]
    assert {d: v for d, v in versions.items() if pinned.get(d, v) != v} == {}
    assert set(versions) <= {*pinned, "setuptools"}


def test_the_server_has_no_torch_and_neither_has_kfp_s_client(daemon, images):
    server = set(run_python(daemon, images.server, INSTALLED).split())
    assert server.isdisjoint({"torch", "transformers", "datasets", "kubernetes", "google-cloud-storage", "pip"})
    assert {"torch", "transformers"} < set(run_python(daemon, images.client, INSTALLED).split())


@BOTH
def test_of_this_project_only_what_tasks_import_is_there(daemon, images, name):
    code = (
        "import importlib.util as u; print(*[bool(u.find_spec(p)) for p in"
        " ('perfit', 'perfit_report', 'perfit_storage', 'perfit_components', 'perfit_pipelines')])"
    )
    command = name == "client"  # of which one is a client's owner's
    assert run_python(daemon, getattr(images, name), code) == f"True True True True {command}"


@BOTH
def test_modules_are_compiled_ahead(daemon, images, name):
    code = "import numpy.ma, perfit.space as s, os; print(*map(os.path.exists, (numpy.ma.__cached__, s.__cached__)))"
    assert run_python(daemon, getattr(images, name), code) == "True True"


@BOTH
def test_labels_say_what_the_image_was_built_from(daemon, images, name):
    labels = daemon.images.get(getattr(images, name)).labels
    found = {key.removeprefix("org.opencontainers.image."): value for key, value in labels.items()}
    assert found["title"] == f"perfit-{name}"
    assert (found["version"], found["licenses"]) == (_project()["version"], _project()["license"])
    assert len(found["revision"].removesuffix("-dirty")) == 40
    assert {"description", "source", "base.name"} < set(found)


@BOTH
def test_a_terminated_task_ends_by_the_signal(daemon, images, name):
    sleep = ["sh", "-ec", 'python3 -uc "$0"', "import time; print('up'); time.sleep(600)"]
    container = daemon.containers.run(getattr(images, name), sleep, detach=True, network_mode="none", **RESTRICTED)
    try:
        while b"up" not in container.logs():
            time.sleep(0.1)
        container.stop(timeout=60)  # SIGTERM, and SIGKILL (137) after that many seconds
        assert container.wait()["StatusCode"] == 143
    finally:
        container.remove(force=True)


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
