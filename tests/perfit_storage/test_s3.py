"""What can go wrong between a client and an S3 server: a real one, and a proxy that cuts connections."""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import logging
import socket
import socketserver
import ssl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from perfit_storage import AccessDenied, StoreError, StoreUnreachable, open_store
from perfit_storage.s3 import S3Settings

from ..authority import make_authority


class Proxy(socketserver.ThreadingTCPServer):
    """Passes connections on to a server; breaks the first ones off after so many bytes of the answer."""

    daemon_threads = True

    def __init__(self, upstream: tuple[str, int], cuts: list[int], tls: ssl.SSLContext | None = None):
        super().__init__(("127.0.0.1", 0), Connection)
        self.upstream, self.cuts, self.tls = upstream, cuts, tls


class Connection(socketserver.BaseRequestHandler):
    def setup(self) -> None:
        if self.server.tls:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)

    def handle(self) -> None:
        left = self.server.cuts.pop(0) if self.server.cuts else None
        with socket.create_connection(self.server.upstream) as server:
            threading.Thread(target=pass_on, args=(self.request, server), daemon=True).start()
            while answer := server.recv(65536):
                self.request.sendall(answer[:left])
                if left is not None:
                    left -= len(answer)
                    if left <= 0:
                        break
            with suppress(OSError):  # The client may have gone first.
                self.request.shutdown(socket.SHUT_RDWR)


def pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # The other direction may have been cut.
        while data := source.recv(65536):
            target.sendall(data)


@contextmanager
def proxied(server, cuts: list[int], tls: ssl.SSLContext | None = None) -> Iterator[dict[str, str]]:
    """Yields the environment of a store behind such a proxy."""
    url = urlsplit(server.environment["AWS_ENDPOINT_URL"])
    if url.scheme != "http":
        pytest.skip("the proxy speaks plain HTTP to the store")
    with Proxy((url.hostname, url.port or 80), cuts, tls) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        scheme = "https" if tls else "http"
        port = proxy.server_address[1]
        yield {**server.environment, "AWS_ENDPOINT_URL": f"{scheme}://127.0.0.1:{port}"}
        proxy.shutdown()


def fresh_uri(server) -> str:
    return f"{server.store_uri}/{uuid.uuid4()}"


def test_a_write_whose_answer_was_lost_is_no_conflict(s3_server):
    uri = fresh_uri(s3_server)
    with proxied(s3_server, cuts=[0]) as environment:
        assert open_store(uri, environment).create("a", b"1")
    with proxied(s3_server, cuts=[]) as environment:
        version = open_store(uri, environment).get("a").version
    with proxied(s3_server, cuts=[0]) as environment:
        assert open_store(uri, environment).replace("a", b"2", version)
    assert open_store(uri, s3_server.environment).get("a").data == b"2"


def test_a_read_that_breaks_off_is_repeated(s3_server):
    uri = fresh_uri(s3_server)
    data = bytes(range(256)) * 10_000
    open_store(uri, s3_server.environment).put("a", data)
    with proxied(s3_server, cuts=[100_000, 100_000]) as environment:
        assert open_store(uri, environment).get("a").data == data
    with (
        proxied(s3_server, cuts=[100_000] * 3) as environment,
        pytest.raises(StoreUnreachable, match="cannot read"),
    ):
        open_store(uri, environment).get("a")


def test_tls_trusts_the_given_bundle_alone(s3_server, tmp_path: Path):
    certificate = self_signed(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    uri = fresh_uri(s3_server)
    with proxied(s3_server, cuts=[], tls=tls) as environment:
        trusting = environment | {"AWS_CA_BUNDLE": str(certificate)}
        open_store(uri, trusting).put("a", b"over TLS")
        assert open_store(uri, trusting).get("a").data == b"over TLS"
        with pytest.raises(StoreUnreachable, match="AWS_CA_BUNDLE"):
            open_store(uri, environment).get("a")


def test_tls_with_a_private_authority(s3_server, tmp_path: Path):
    """The server's certificate is not in the bundle: only the authority that signed it."""
    tls, uri = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), fresh_uri(s3_server)
    authority, server = make_authority(tmp_path)
    tls.load_cert_chain(server)
    with proxied(s3_server, cuts=[], tls=tls) as environment:
        store = open_store(uri, environment | {"AWS_CA_BUNDLE": str(authority)})
        assert store.create("a", b"1")
        assert store.replace("a", b"2", store.get("a").version)
        assert list(store.list("")) == ["a"]
        with pytest.raises(StoreUnreachable, match="AWS_CA_BUNDLE"):
            open_store(uri, environment).get("a")
        elsewhere = {
            **environment,
            "AWS_ENDPOINT_URL": environment["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost"),
        }
        with pytest.raises(StoreUnreachable):
            open_store(uri, elsewhere | {"AWS_CA_BUNDLE": str(authority)}).get("a")


def self_signed(directory: Path) -> Path:
    """Writes a certificate for 127.0.0.1, and its key, into one PEM file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "perfit test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path = directory / "server.pem"
    path.write_bytes(
        certificate.public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def test_no_server(s3_server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # Bound, but not listening.
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        store = open_store(s3_server.store_uri, s3_server.environment | {"AWS_ENDPOINT_URL": url})
        with pytest.raises(StoreUnreachable, match=url) as caught:
            store.get("a")
    assert "AWS_ENDPOINT_URL" in caught.value.fix


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys(s3_server, name: str):
    store = open_store(s3_server.store_uri, s3_server.environment | {name: "wr0ng"})
    for act in (lambda: store.get("a"), lambda: store.create("a", b""), lambda: store.list("")):
        with pytest.raises(AccessDenied, match=r"cannot (read|create|list) s3://") as caught:
            act()
        assert name in caught.value.fix
        assert "wr0ng" not in str(caught.value)


def test_missing_bucket(s3_server):
    store = open_store(f"s3://perfit-{uuid.uuid4()}", s3_server.environment)
    for act in (lambda: store.get("a"), lambda: store.put("a", b""), lambda: list(store.list(""))):
        with pytest.raises(StoreError, match="NoSuchBucket") as caught:
            act()
        assert "create the bucket" in caught.value.fix


def test_missing_credentials():
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY not set"):
        open_store("s3://bucket", {})
    with pytest.raises(StoreError, match="store: AWS_SECRET_ACCESS_KEY not set"):
        open_store("s3://bucket", {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "\n"})


def test_settings():
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret\n"}
    aws = S3Settings.from_environment(keys)
    assert aws == S3Settings("https://s3.amazonaws.com", "id", "secret", None, "us-east-1", None)
    own = S3Settings.from_environment(
        keys | {"AWS_ENDPOINT_URL": "http://minio:9000/", "AWS_REGION": "eu", "AWS_SESSION_TOKEN": "t"}
    )
    assert own == dataclasses.replace(aws, endpoint="http://minio:9000", region="eu", session_token="t")
    assert "secret" not in repr(own)


@pytest.mark.parametrize("url", ["minio:9000", "ftp://minio", "http://", "http://minio/path", "http://a:pw@b"])
def test_refused_endpoints(url: str):
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL") as caught:
        S3Settings.from_environment(keys | {"AWS_ENDPOINT_URL": url})
    assert "pw" not in str(caught.value)


def test_credentials_are_never_logged(s3_server, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with proxied(s3_server, cuts=[0]) as environment:
        store = open_store(fresh_uri(s3_server), environment)
        store.create("a", b"1")
        store.replace("a", b"2", store.get("a").version)
    assert "/a" in caplog.text
    assert s3_server.environment["AWS_ACCESS_KEY_ID"] not in caplog.text
    assert s3_server.environment["AWS_SECRET_ACCESS_KEY"] not in caplog.text
    assert "Signature" not in caplog.text
