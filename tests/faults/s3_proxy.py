"""A proxy before a real S3 server that breaks what passes through it: request by request, or all the time."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from minio.error import S3Error

from perfit_storage.s3 import S3Settings

from .totals import TOTALS

RESET = "reset"  # the connection, before the server has the request
LOSE = "lose"  # the answer: the server has done what it was asked
TRUNCATE = "truncate"  # the answer's body, after half of it
FLIP = "flip"  # a bit in the answer's body
FLIP_UPLOAD = "flip upload"  # a bit in the request's body
REPEAT = "repeat"  # the request; the second answer is passed on
DELAY = "delay"  # for 0.2 s
BUSY = "busy"  # 503, not the server's own
ENDLESS = "endless"  # zeros without a length, as long as somebody reads
ANNOUNCE = "announce"  # 10**12 bytes, of which none comes
BEFORE, AFTER = "before", "after"
KINDS = (RESET, LOSE, TRUNCATE, FLIP_UPLOAD, REPEAT, DELAY, BUSY)
"""What a writer with patience does not notice."""
_FAULTS = {*KINDS, FLIP, ENDLESS, ANNOUNCE, "down"}

_ENDLESS_CHUNK = bytes(2**16)
_HOP_BY_HOP = {"connection", "content-length", "transfer-encoding"}


@dataclass
class Behaviour:
    """What the proxy does.

    Attributes:
        plan: Faults of the next requests, one each.
        share: Of later requests, that get one of ``kinds`` by chance.
        down: Whether every connection is reset.
        down_at: End of the path of an upload at which the proxy goes down, for ``down_s``; if ``down_after``, it first
            passes the upload on to the server.
        conditions: "kept", "dropped" (``If-Match`` and ``If-None-Match`` never reach the server), or "unlocked" (they
            are checked, and the write comes a moment later, as in SeaweedFS before 4.18).
        etag: Changes each ETag that the server gives; None leaves it out.
        encoding: The Content-Encoding that answers claim.
        answer: Status, content type and body to give to every request instead of the server's.
        watch: Told of each request before it is passed on and after that (``BEFORE``, ``AFTER``), with its method and
            path; the connection is reset where it says so.
    """

    plan: list[str] = field(default_factory=list)
    share: float = 0.0
    kinds: tuple[str, ...] = KINDS
    down: bool = False
    down_at: str | None = None
    down_after: bool = False
    down_s: float = 2.5
    conditions: str = "kept"
    etag: Callable[[str], str | None] = str
    encoding: str | None = None
    answer: tuple[int, str, bytes] | None = None
    watch: Callable[[str, str, str], bool] = lambda *_: False


class FaultyS3(ThreadingHTTPServer):
    """The proxy.

    Attributes:
        behaviour: Change it at any time.
        counts: How often each fault was done; "requests" and "connections" beside them.
        sent: Bytes of endless bodies that were taken.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, settings: S3Settings, behaviour: Behaviour, seed: int = 0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour, self.counts, self.sent = behaviour, Counter(), 0
        url = urlsplit(settings.endpoint)
        self.upstream, self.client = (url.hostname, url.port or 80), settings.connect()
        self._random, self._lock = random.Random(seed), threading.Lock()

    def next_fault(self) -> str | None:
        with self._lock:
            behaviour, fault = self.behaviour, None
            if behaviour.plan:
                fault = behaviour.plan.pop(0)
            elif self._random.random() < behaviour.share:
                fault = self._random.choice(behaviour.kinds)
            self.counts.update(["requests", *([fault] if fault else [])])
            return fault

    def handle_error(self, *_: Any) -> None:
        """Clients leave while they are being answered."""


@contextmanager
def faulty(server, behaviour: Behaviour | None = None, seed: int = 0) -> Iterator[tuple[FaultyS3, dict[str, str]]]:
    """Yields a proxy before a server, and the environment of a store behind it."""
    settings = S3Settings.from_environment(server.environment)
    if not settings.endpoint.startswith("http://"):
        pytest.skip("the proxy speaks plain HTTP to the store")
    with FaultyS3(settings, behaviour or Behaviour(), seed) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield proxy, {**server.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}"}
        finally:
            TOTALS.count("faults injected", sum(proxy.counts[fault] for fault in _FAULTS))
            proxy.shutdown()


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyS3

    def setup(self) -> None:
        super().setup()
        self.server.counts["connections"] += 1

    def relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.next_fault()
        behaviour = self.server.behaviour
        if behaviour.down_at and self.command == "PUT" and urlsplit(self.path).path.endswith(behaviour.down_at):
            if behaviour.down_after:
                self.ask(body)
            behaviour.down, behaviour.down_at = True, None
            timer = threading.Timer(behaviour.down_s, lambda: setattr(behaviour, "down", False))
            timer.daemon = True
            timer.start()
        if behaviour.down or fault == RESET:
            self.server.counts["down"] += behaviour.down
            return self.reset()
        if fault == BUSY:
            return self.give(_Answer(503, [("Content-Type", "text/html")], b"<html>busy</html>"))
        if behaviour.answer:
            status, kind, text = behaviour.answer
            return self.give(_Answer(status, [("Content-Type", kind)], text))
        if fault == DELAY:
            time.sleep(0.2)
        if fault == FLIP_UPLOAD and body:
            body = flipped(body)
        if behaviour.watch(BEFORE, self.command, self.path):
            return self.reset()
        answer = self.ask(body)
        if fault == REPEAT:
            answer = self.ask(body)
        if behaviour.watch(AFTER, self.command, self.path) or fault == LOSE:
            return self.reset()
        self.give(answer, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay

    def ask(self, body: bytes) -> _Answer:
        names = {"if-match", "if-none-match"}
        conditions = {name: value for name, value in self.headers.items() if name.lower() in names}
        if conditions and self.server.behaviour.conditions != "kept":
            return self.ask_without(body, conditions)
        upstream = http.client.HTTPConnection(*self.server.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            response = upstream.getresponse()
            return _Answer(response.status, response.getheaders(), response.read())
        finally:
            upstream.close()

    def ask_without(self, body: bytes, conditions: Mapping[str, str]) -> _Answer:
        """Writes as a gateway does that does not pass conditions on; they are signed, so it signs anew."""
        bucket, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        if self.server.behaviour.conditions == "unlocked":
            holds = self.holds(bucket, key, {name.lower(): value for name, value in conditions.items()})
            time.sleep(0.05)
            if not holds:
                error = b"<Error><Code>PreconditionFailed</Code><Message>no</Message></Error>"
                return _Answer(412, [("Content-Type", "application/xml")], error)
        written = self.server.client._put_object(bucket, key, body, {"Content-Type": "application/octet-stream"})
        return _Answer(200, [("ETag", f'"{written.etag}"')], b"")

    def holds(self, bucket: str, key: str, conditions: Mapping[str, str]) -> bool:
        try:
            etag = self.server.client.stat_object(bucket_name=bucket, object_name=key).etag
        except S3Error:
            return "if-none-match" in conditions
        return conditions.get("if-match") == f'"{etag}"'

    def give(self, answer: _Answer, fault: str | None = None) -> None:
        behaviour, body = self.server.behaviour, answer.body
        self.send_response_only(answer.status)
        length = str(len(body))
        for name, value in answer.headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() in _HOP_BY_HOP:
                continue
            changed = behaviour.etag(value) if name.lower() == "etag" else value
            if changed is not None and not (behaviour.encoding and name.lower() == "content-encoding"):
                self.send_header(name, changed)
        if behaviour.encoding:
            self.send_header("Content-Encoding", behaviour.encoding)
        if fault in (ENDLESS, ANNOUNCE) and answer.status == 200:
            return self.go_on(fault)
        self.send_header("Content-Length", length)
        self.end_headers()
        if fault == TRUNCATE:
            self.wfile.write(body[: len(body) // 2])
            return self.reset()
        self.wfile.write(flipped(body) if fault == FLIP and body else body)

    def go_on(self, fault: str) -> None:
        if fault == ANNOUNCE:
            self.send_header("Content-Length", str(10**12))
            self.end_headers()
            time.sleep(2)
            return self.reset()
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):
            while True:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(_ENDLESS_CHUNK), _ENDLESS_CHUNK))
                self.server.sent += len(_ENDLESS_CHUNK)

    def reset(self) -> None:
        """Ends the connection as a machine does that has gone."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        pass


def flipped(data: bytes) -> bytes:
    """Returns the bytes with one bit in their middle changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
