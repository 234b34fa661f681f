"""A Kubernetes API server over TLS with an authority of its own, and what pods of an account that it knows have."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .authority import make_authority

TOKEN = "the-accounts-token"
NAMESPACE = "kubeflow"
Answer = Callable[[str, str, Any], tuple[int, dict[str, Any]]]
"""Answers a method, path and body with a status and an object."""


@contextmanager
def pod_api(directory: Path, answer: Answer) -> Iterator[tuple[dict[str, str], Path]]:
    """Serve the API; it answers 401 to any other token than the account's.

    Yields:
        The environment of a pod, and the directory of its account's files.
    """
    authority, server_file = make_authority(directory)
    mount = directory / "mount"
    mount.mkdir()
    (mount / "token").write_text(TOKEN)
    (mount / "namespace").write_text(NAMESPACE)
    (mount / "ca.crt").write_bytes(authority.read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(answer))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(server_file)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.server_port)}, mount
    finally:
        server.shutdown()
        server.server_close()


def _handler(answer: Answer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            known = self.headers["Authorization"] == f"Bearer {TOKEN}"
            status, item = answer(self.command, self.path, json.loads(body or "null")) if known else (401, {})
            data = json.dumps(item).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
