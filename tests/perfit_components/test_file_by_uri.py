"""A federation file that a run is given by its URI, which whoever starts the run chooses."""

from __future__ import annotations

import pytest
from blake3 import blake3

from perfit.errors import PerfitError
from perfit_components.steps import file_by_uri
from perfit_components.steps.file_by_uri import is_uri, put_federation_file, read_federation_file
from perfit_components.steps.prepare import prepare

from .running import Site, files


@pytest.fixture
def site(make_site) -> Site:
    return make_site()


def put(site: Site, data: bytes, name: str = "tiny") -> str:
    """Put any bytes where federation files are; return their URI."""
    digest = blake3(data).hexdigest()
    directory = site.root.with_name(name) / "files"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{digest}.yaml").write_bytes(data)
    return f"{site.store_uri}/federations/{name}/files/{digest}.yaml"


def test_a_run_that_is_given_the_uri_founds_the_same_federation(site, tmp_path):
    by_text = Site(site.spec, (tmp_path / "by-text").as_uri()).prepare()
    uri = put_federation_file(site.spec, site.store_uri)
    assert put_federation_file(site.spec, site.store_uri) == uri
    assert prepare(uri, site.store_uri).uri == site.uri
    digest = blake3(site.spec.to_yaml().encode()).hexdigest()
    assert files(site.root) == {**files(by_text.root), f"files/{digest}.yaml": site.spec.to_yaml().encode()}


def test_the_text_of_a_file_is_no_uri(site):
    for text in (site.spec.to_yaml(), site.spec.to_json()):
        assert not is_uri(text)
        assert read_federation_file(text, site.store_uri) == site.spec


@pytest.mark.parametrize(
    "uri",
    [
        "s3://somewhere/else",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "{store}/federations/tiny/spec.yaml",
        "{store}/federations/tiny/files/{hash}",
        "{store}/federations/../files/{hash}.yaml",
        "{store}/federations/tiny/files/../files/{hash}.yaml",
        "{store}x/federations/tiny/files/{hash}.yaml",
        "s3://other/federations/tiny/files/{hash}.yaml",
    ],
)
def test_a_uri_of_anything_else_is_refused(site, uri):
    uri = uri.replace("{store}", site.store_uri).replace("{hash}", "0" * 64)
    with pytest.raises(PerfitError):
        read_federation_file(uri, site.store_uri)


def test_a_file_that_was_changed_is_refused(site):
    uri = put_federation_file(site.spec, site.store_uri)
    (site.root / "files" / uri.rpartition("/")[2]).write_text("name: other")
    with pytest.raises(PerfitError, match="has digest"):
        read_federation_file(uri, site.store_uri)
    with pytest.raises(PerfitError, match="already holds other bytes than its name says"):
        put_federation_file(site.spec, site.store_uri)


def test_a_file_that_is_not_there(site):
    with pytest.raises(PerfitError, match="there is no"):
        read_federation_file(f"{site.store_uri}/federations/tiny/files/{'0' * 64}.yaml", site.store_uri)


def test_the_file_of_another_federation_is_refused(site):
    with pytest.raises(PerfitError, match="is the file of a federation 'tiny'"):
        read_federation_file(put(site, site.spec.to_yaml().encode(), "other"), site.store_uri)


@pytest.mark.parametrize(("data", "problem"), [(b"\xff\xfe", "is no text"), (b"name: tiny\n", "the key 'model' is")])
def test_a_file_that_is_no_federation_file_is_refused(site, data, problem):
    with pytest.raises(PerfitError, match=problem):
        read_federation_file(put(site, data), site.store_uri)


def test_a_file_that_is_too_long_is_not_read(site):
    uri = put(site, b" " * (file_by_uri._MAX_BYTES + 1))
    with pytest.raises(PerfitError, match="more than 4,000,000 bytes"):
        read_federation_file(uri, site.store_uri)
