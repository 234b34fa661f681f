"""Two backends, one answer: a federation in memory, and through the pipeline on KFP's local runner."""

from __future__ import annotations

import uuid

from perfit_pipelines.local_run import run_locally
from perfit_storage import open_store

from ..perfit_components.running import files, in_memory


def test_the_pipeline_leaves_what_the_federation_in_memory_gives(finished):
    assert finished.result.code == 0, finished.result.err
    expected = in_memory(finished.home.site.spec)
    stored = files(finished.home.site.root)
    assert {key: stored.get(key) for key in expected} == expected


def test_a_run_on_a_real_s3_server_leaves_the_same_files(finished, s3_server, tmp_path):
    spec = finished.home.site.spec
    uri = f"{s3_server.store_uri}/{uuid.uuid4()}"
    lines = []
    run_locally(spec, uri, s3_server.environment, tmp_path, lines.append)
    objects = open_store(f"{uri}/federations/{spec.name}", s3_server.environment)
    assert {key: objects.get(key).data for key in objects.list("")} == files(finished.home.site.root)
    log = (tmp_path / "run.log").read_text()
    assert log.splitlines() == [line for line in lines]
    assert s3_server.environment["AWS_SECRET_ACCESS_KEY"] not in log


def test_a_second_run_trains_nothing_and_prints_the_same(finished):
    before = files(finished.home.site.root)
    again = finished.home.stored("run", finished.home.file)
    print(finished.result.out, again.out)
    assert files(finished.home.site.root) == before
    assert "step" in finished.result.out
    assert not [line for line in again.out.splitlines() if " step " in line]
    table = finished.result.out[finished.result.out.index("Held-out perplexity") :]
    assert again.out.endswith(table)
