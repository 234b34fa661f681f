"""What images are built from, without building any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "images").glob("*/Dockerfile"))

TOOL = """#!/bin/sh
# Stands for docker: keeps what it is called with, and the directory that it shall build from.
printf '%s\\n' "$@" > "$RECORD/arguments"
for last; do :; done
cp -r "$last" "$RECORD/context"
"""


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_hadolint_finds_nothing(dockerfile):
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, dockerfile], capture_output=True, text=True)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_both_images_are_linted():
    assert [path.parent.name for path in DOCKERFILES] == ["client", "server"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_dockerfiles_pin_what_they_name(dockerfile):
    text = dockerfile.read_text()
    assert "ARG BASE=python:3.11.14-slim-bookworm\n" in text
    assert "'tini=0.19.0-*'" in text


@pytest.fixture
def build(tmp_path):
    """A function that runs images/build.sh with a tool that builds nothing; it returns where that tool kept all."""
    record, tool = tmp_path / "record", tmp_path / "podman"
    record.mkdir()
    tool.write_text(TOOL)
    tool.chmod(0o755)

    def run(*images: str, **settings: str) -> Path:
        environment = {"PATH": os.environ["PATH"], "RECORD": str(record), "CONTAINER_TOOL": str(tool), **settings}
        subprocess.run([ROOT / "images" / "build.sh", *images], env=environment, check=True)
        return record

    return run


def test_the_context_holds_no_more_than_the_images_need(build):
    context = build("server") / "context"
    assert {path.name for path in context.iterdir()} == {
        ".dockerignore",
        "LICENSE",
        "README.md",
        "components",
        "constraints.txt",
        "images",
        "pipelines",
        "pyproject.toml",
    }
    files = [path for folder in ("components", "pipelines") for path in (context / folder).rglob("*")]
    assert {path.suffix for path in files if path.is_file()} <= {".py", ".j2", ".md", ".yaml"}
    assert not any(path.name == "manifests" for path in files)


def test_one_image_gets_its_name_labels_and_base(build):
    record = build("server", IMAGE_PREFIX="registry.example/", BASE="debian:own", BUILD_FLAGS="--network=host --pull")
    arguments = (record / "arguments").read_text().splitlines()
    assert f"registry.example/perfit-server:{_version()}" in arguments
    assert {"BASE=debian:own", f"VERSION={_version()}", "--network=host", "--pull", "--format=docker"} <= set(arguments)


def test_wheels_index_and_certificates_go_into_the_build_alone(build, tmp_path):
    (tmp_path / "torch-1-py3-none-any.whl").write_bytes(b"wheel")
    (tmp_path / "ca.crt").write_text("certificates")
    record = build("client", WHEELS=str(tmp_path), CA_BUNDLE=str(tmp_path / "ca.crt"), PIP_INDEX_URL="https://index")
    install = record / "context" / "images" / "install"
    assert (install / "wheels" / "torch-1-py3-none-any.whl").read_bytes() == b"wheel"
    assert (install / "pip.conf").read_text().splitlines()[-4:] == [
        "[global]",
        "find-links = /build/install/wheels",
        "index-url = https://index",
        "cert = /build/install/ca-bundle.crt",
    ]
    assert (ROOT / "images" / "install" / "pip.conf").read_text().endswith("[global]\n")


def test_without_a_tool_the_error_says_what_to_install(tmp_path):
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    found = subprocess.run(
        ["/bin/bash", ROOT / "images" / "build.sh"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert found.returncode == 1
    assert "fix: install docker, podman or buildah" in found.stderr


def test_requirements_are_the_project_s_and_those_of_the_extras(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\ndependencies = ["a>=1", "b"]\n'
        '[project.optional-dependencies]\none = ["c", "b"]\ntwo = ["d"]\nthree = ["e"]\n'
    )
    script = ROOT / "images" / "install" / "requirements.py"
    printed = subprocess.check_output([sys.executable, script, tmp_path / "pyproject.toml", "one", "two"], text=True)
    assert printed.split() == ["a>=1", "b", "c", "d"]


def _version() -> str:
    line = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version"))
    return line.split('"')[1]
