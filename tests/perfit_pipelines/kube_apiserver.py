"""A real Kubernetes API: etcd and kube-apiserver with RBAC, as controller-runtime's envtest has them; without nodes.

Where envtest's programs cannot be had, Debian's etcd-server and its source package kubernetes (1.20.2) do:
golang-go, rsync, ``make WHAT=cmd/kube-apiserver``, eight minutes on 2 cores.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from perfit_pipelines.deploy.kubectl import find_kubectl

ADMIN, ANN = "admin", "ann"
"""Users, and contexts of the kubeconfig: one may do everything, the other only what it is allowed."""


@dataclass(frozen=True)
class ApiServer:
    """A running API server.

    Args:
        kubeconfig: How to reach it, as ``ADMIN`` unless another context is chosen.
    """

    kubeconfig: Path

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl as ``ADMIN``; return what it printed."""
        command = [find_kubectl(), "--kubeconfig", str(self.kubeconfig), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def may(self, user: str, verb: str, what: str, namespace: str) -> bool:
        """Whether a user or service account may do something."""
        command = [find_kubectl(), "--kubeconfig", str(self.kubeconfig), "auth", "can-i", verb, what]
        answer = subprocess.run([*command, "-n", namespace, "--as", user], capture_output=True, text=True)
        return answer.stdout.strip() == "yes"


@contextmanager
def api_server(assets: Path, directory: Path) -> Iterator[ApiServer]:
    """Run the programs in ``assets`` on free ports; all that they write goes into ``directory``."""
    etcd, peers, port = free_ports(3)
    url = f"http://127.0.0.1:{etcd}"
    key, tokens, certificates = directory / "accounts.key", directory / "tokens.csv", directory / "certificates"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], capture_output=True, check=True)
    tokens.write_text(f"{ADMIN}-token,{ADMIN},1,system:masters\n{ANN}-token,{ANN},2\n")
    with ExitStack() as running:
        start = f"--data-dir={directory}/etcd --listen-client-urls={url} --advertise-client-urls={url}"
        running.enter_context(
            _process([assets / "etcd", *start.split(), f"--listen-peer-urls=http://127.0.0.1:{peers}"])
        )
        settings = {
            "etcd-servers": url,
            "secure-port": port,
            "bind-address": "127.0.0.1",
            "cert-dir": certificates,
            "token-auth-file": tokens,
            "authorization-mode": "RBAC",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
            "service-cluster-ip-range": "10.0.0.0/24",
            "disable-admission-plugins": "ServiceAccount",  # no controller makes the accounts that it waits for
        }
        command = [assets / "kube-apiserver", *(f"--{name}={value}" for name, value in settings.items())]
        running.enter_context(_process(command))
        server = ApiServer(_kubeconfig(directory / "kubeconfig", port, certificates / "apiserver.crt"))
        _wait(server)
        yield server


def free_ports(count: int) -> list[int]:
    """Free ports of 127.0.0.1."""
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def _kubeconfig(file: Path, port: int, certificate: Path) -> Path:
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(certificate)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": ADMIN,
        "clusters": [{"name": "local", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": f"{user}-token"}} for user in (ADMIN, ANN)],
        "contexts": [{"name": user, "context": {"cluster": "local", "user": user}} for user in (ADMIN, ANN)],
    }
    file.write_text(yaml.safe_dump(config))
    return file


@contextmanager
def _process(command: list[str | os.PathLike[str]]) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def _wait(server: ApiServer) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            server.kubectl("get", "--raw", "/readyz")
            server.kubectl("get", "namespace", "default")
            return
        except subprocess.CalledProcessError as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"kube-apiserver does not answer: {error.stderr}") from error
        time.sleep(0.5)
