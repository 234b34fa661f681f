"""A federation through KFP's DockerRunner: the tasks' very commands, in the very images, as the cluster limits them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from perfit.cluster_spec import ClusterSpec
from perfit_storage import open_store

from ..perfit_components.running import TWO_TIERS, in_memory, make_spec, write_data
from .containers import USER, run_federation


@dataclass(frozen=True)
class Finished:
    """A federation that ran in containers.

    Args:
        spec: Its file.
        stored: Every object that it left in the store, by key.
        outputs: Directory of what the tasks gave to KFP.
        cache: Directory that was mounted at /cache.
    """

    spec: ClusterSpec
    stored: dict[str, bytes]
    outputs: Path
    cache: Path


@pytest.fixture(scope="module")
def finished(daemon, images, s3_server, tmp_path_factory) -> Finished:
    """Two clients of unequal rank in two tiers, one round, through an S3 server on this machine."""
    from ..perfit.tiny import save_gguf, save_llama

    work = tmp_path_factory.mktemp("federation")
    inputs, outputs, cache = work / "inputs", work / "outputs", work / "cache"
    inputs.mkdir()
    model = save_gguf(save_llama(work / "llama"), inputs / "tiny.gguf")
    spec = make_spec(model, write_data(inputs / "data"), **{**TWO_TIERS, "rounds": 1})
    uri = f"{s3_server.store_uri}/{uuid.uuid4()}"
    environment = {**s3_server.environment, "OMP_NUM_THREADS": "1"}
    run_federation(spec, uri, images, environment, {inputs: str(inputs)}, outputs, cache)
    objects = open_store(f"{uri}/federations/{spec.name}", s3_server.environment)
    return Finished(spec, {key: objects.get(key).data for key in objects.list("")}, outputs, cache)


def test_containers_leave_what_the_federation_in_memory_gives(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the model is converted
    expected = in_memory(finished.spec)
    assert {key: finished.stored.get(key) for key in expected} == expected


def test_tasks_ran_as_the_images_user_and_left_their_outputs_to_kfp(finished):
    made = [path for path in finished.outputs.rglob("*") if path.is_file()]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(USER, USER)}
    pages = [path for path in made if b"<html" in path.read_bytes()[:1000].lower()]
    assert len(pages) == 1


def test_the_model_was_converted_into_the_mounted_cache_and_records_were_not(finished):
    kept = {path.relative_to(finished.cache).parts[0] for path in finished.cache.rglob("*") if path.is_file()}
    assert kept == {"perfit"}
