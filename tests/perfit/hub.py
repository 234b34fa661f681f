"""A model hub on this machine: what `huggingface_hub` asks of one, over a directory."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Hub:
    """One repository, ``owner/name``: the files of a directory, at one commit.

    Args:
        directory: The files.
        commit: 40 hexadecimal digits.
        downloads: The files that were asked for.
    """

    directory: Path
    commit: str
    url: str = ""
    downloads: list[str] = field(default_factory=list)

    def files(self) -> list[str]:
        paths = (path for path in self.directory.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.directory).as_posix() for path in paths)

    def answer(self, path: str) -> tuple[bytes, dict[str, str]] | None:
        """The body and headers of a path, None where there is nothing."""
        if path == "/api/models/owner/name/revision/main":
            return self._json({"id": "owner/name", "sha": self.commit, "siblings": []})
        if path.startswith(f"/api/models/owner/name/tree/{self.commit}"):
            return self._json([{"type": "file", "path": name, **self._size(name)} for name in self.files()])
        root = f"/owner/name/resolve/{self.commit}/"
        name = path.removeprefix(root)
        if not path.startswith(root) or name not in self.files():
            return None
        self.downloads.append(name)
        return (self.directory / name).read_bytes(), {
            "ETag": f'"{self._size(name)["oid"]}"',
            "X-Repo-Commit": self.commit,
        }

    def _size(self, name: str) -> dict[str, object]:
        data = (self.directory / name).read_bytes()
        return {"size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _json(self, tree: object) -> tuple[bytes, dict[str, str]]:
        return json.dumps(tree).encode(), {"Content-Type": "application/json"}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve a hub at a port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            answer = hub.answer(self.path.split("?")[0])
            body, headers = answer or (b"", {"X-Error-Code": "EntryNotFound"})
            self.send_response(200 if answer else 404)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
