"""Which URIs are accepted, and how they are shown."""

from __future__ import annotations

import pytest

from perfit_storage import StoreError, open_store


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/tmp/x",
        "tmp",
        "file://host/x",
        "file:x",
        "s3://",
        "s3:///x",
        "gs://b",
        "s3://bucket/a?b",
        "s3://B",
    ],
)
def test_refused_uris(uri: str):
    with pytest.raises(StoreError):
        open_store(uri, {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"})


@pytest.mark.parametrize(
    "uri", ["s3://id:pa55word@bucket/x", "s3://id:pa55/word@bucket/x", "s3://bucket/x?key=pa55word", "s3://b#pa55word"]
)
def test_credentials_in_a_uri_are_not_repeated(uri):
    with pytest.raises(StoreError) as caught:
        open_store(uri)
    assert "word" not in str(caught.value)
    assert "pa55word" not in str(caught.value)


def test_uris_are_shown_without_a_slash_at_the_end():
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
    assert open_store("file:///tmp/a%20b/").uri == "file:///tmp/a%20b"
    assert open_store("s3://bucket", keys).uri == "s3://bucket"
    assert open_store("s3://bucket/some/prefix/", keys).uri == "s3://bucket/some/prefix"
