"""``perfit compare``: federations of a store beside each other, by name and all of them."""

from __future__ import annotations

import csv
import json

import pytest

from perfit_storage import open_store
from perfit_storage.local_server import LocalS3Server

from ...perfit_components.running import Site, make_spec, write_data
from ..commands import perfit


@pytest.fixture(scope="module")
def store(tiny_llama, tmp_path_factory) -> str:
    """A store with two federations of one round."""
    directory = tmp_path_factory.mktemp("compare")
    data, store = write_data(directory / "data"), (directory / "store").as_uri()
    for method in ("fedit", "local"):
        spec = make_spec(tiny_llama, data, name=f"by-{method}", rounds=1, method={"name": method})
        Site(spec, store).run()
    return store


def test_all_federations_of_a_store(store, tmp_path):
    result = perfit("compare", store, "-o", "tables", cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert "Personal minus fedit's" in result.out
    rows = list(csv.DictReader((tmp_path / "tables/summary.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["fedit", "local"]
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        "report.html",
        "report.md",
        "summary.csv",
        "clients.csv",
    }


def test_federations_by_name_and_another_baseline(store, tmp_path):
    named = [f"{store}/federations/by-{method}" for method in ("local", "fedit")]
    result = perfit("compare", *named, "-b", "local", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "Personal minus local's" in result.out
    assert "Personal minus fedit's" not in result.out
    assert (tmp_path / ".perfit/compare/report.md").exists()


def test_federations_of_this_machine_by_name(store, tmp_path):
    with LocalS3Server(tmp_path / ".perfit/s3") as server:
        own, there = open_store(server.store_uri, server.environment), open_store(store)
        for key in there.list("federations/"):
            own.put(key, there.get(key).data)
        result = perfit("compare", "by-local", "by-fedit", "--json", cwd=tmp_path)
        assert [row["method"] for row in json.loads(result.out)] == ["local", "fedit"]
        assert "holds no federation 'none'" in perfit("compare", "by-local", "none", cwd=tmp_path).err


def test_the_numbers_as_json(store, tmp_path):
    result = perfit("compare", store, "--json", "-o", "tables", cwd=tmp_path)
    rows = json.loads(result.out)
    assert [row["method"] for row in rows] == ["fedit", "local"]
    (line, _) = csv.DictReader((tmp_path / "tables/summary.csv").read_text().splitlines())
    assert float(line["minus_local_low"]) == pytest.approx(rows[0]["minus_local_low"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{store}/federations/none"], "holds no federation 'none'"),
        (["{store}/elsewhere"], "holds no federation"),
        (["s3://key:secret@bucket"], "the store URI holds credentials"),
        (["{store}", "-b", "perfit"], "no method is called 'perfit'"),
    ],
)
def test_what_is_not_there(store, tmp_path, arguments, problem):
    result = perfit("compare", *(argument.format(store=store) for argument in arguments), cwd=tmp_path)
    assert result.code == 1
    assert problem in result.err
    assert "fix:" in result.err
    assert "Traceback" not in result.err
