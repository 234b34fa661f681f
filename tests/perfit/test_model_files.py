"""The manifest of a model's files, by small files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from perfit.errors import PerfitError
from perfit.model_files import ModelFile, ModelManifest, check_files, describe_files


@pytest.fixture
def model(tmp_path) -> Path:
    directory = tmp_path / "model"
    (directory / "more").mkdir(parents=True)
    (directory / ".git").mkdir()
    for name in ("config.json", "model.safetensors", "more/x.jinja", "README.md", "code.py", ".git/x.json", "old.bin"):
        (directory / name).write_text(name)
    return directory


def test_the_files_that_are_loaded(model):
    files = tuple(
        ModelFile(name=name, size=len(name), sha256=hashlib.sha256(name.encode()).hexdigest())
        for name in ("config.json", "model.safetensors", "more/x.jinja")
    )
    manifest = describe_files("owner/name", model, "abc")
    assert manifest == ModelManifest(model="owner/name", commit="abc", files=files)
    assert ModelManifest.parse(manifest.to_json()) == manifest


def test_weights_of_pytorch_count_where_there_are_no_others(model):
    (model / "model.safetensors").unlink()
    assert [file.name for file in describe_files("m", model).files] == ["config.json", "more/x.jinja", "old.bin"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda model: None, None),
        (lambda model: (model / "README.md").write_text("new"), None),
        (lambda model: (model / "code.py").unlink(), None),
        (lambda model: (model / "config.json").write_text("config.jsoN"), "config.json has other bytes than when"),
        (lambda model: (model / "config.json").write_text("longer than that"), "config.json has other bytes than when"),
        (lambda model: (model / "more/x.jinja").unlink(), "more/x.jinja is missing, but was there when"),
        (lambda model: (model / "adapter_config.json").touch(), "adapter_config.json was not there when"),
        (lambda model: (model / "more/y.safetensors").touch(), "more/y.safetensors was not there when"),
        (
            lambda model: [(model / "config.json").unlink(), os.mkfifo(model / "config.json")],
            "config.json is missing, but was there when",
        ),
        (
            lambda model: [(model / "config.json").unlink(), (model / "config.json").symlink_to("config.json")],
            "config.json is missing, but was there when",
        ),
    ],
)
def test_a_file_that_differs_is_named(model, change, problem):
    manifest = describe_files("m", model)
    change(model)
    if problem is None:
        return check_files(manifest, model)
    with pytest.raises(PerfitError) as caught:
        check_files(manifest, model)
    assert caught.value.problem == f"model: {model}/{problem} the federation was founded"


def test_a_link_to_the_same_bytes_is_the_same_file(model, tmp_path):
    """As Hugging Face's cache keeps its files."""
    manifest = describe_files("m", model)
    (model / "config.json").rename(tmp_path / "blob")
    (model / "config.json").symlink_to(tmp_path / "blob")
    check_files(manifest, model)
