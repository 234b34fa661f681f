"""A SeaweedFS that gives each role of a federation its own key, with the policy for that role."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from perfit.cluster_spec import ClusterSpec
from perfit_pipelines.deploy.policies import Policy, client_policy, policy_text, server_policy
from perfit_storage import FederationStore, StoreError, open_store
from perfit_storage.local_server import LocalS3Server, find_weed

SERVER = "server of the federation"
"""Role of planning and aggregation: no client's id contains spaces."""


def role_policies(spec: ClusterSpec, store: str) -> dict[str, Policy]:
    """The policy of the server, and of each client by id."""
    return {SERVER: server_policy(spec, store)} | {
        client.id: client_policy(spec, client, store) for client in spec.clients
    }


@dataclass(frozen=True)
class RoleServer:
    """A running S3 server whose users can be replaced."""

    directory: Path
    server: LocalS3Server

    @property
    def administrator(self) -> dict[str, str]:
        return self.server.environment

    def environment(self, access_key: str, secret_key: str) -> dict[str, str]:
        """The settings of another user."""
        return {**self.server.environment, "AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}

    def add_users(self, users: Mapping[str, tuple[str, Policy]]) -> None:
        """Set the users: a secret key and a policy by access key. SeaweedFS accepts AWS's policy documents."""
        path = self.directory / "users.json"
        known = json.loads(path.read_text())
        policies = known.setdefault("policies", [])
        for access_key, (secret_key, policy) in users.items():
            # SeaweedFS evaluates such policies whole, denials and conditions included; its own "actions" have neither.
            policies.append({"name": access_key, "content": policy_text(policy)})
            keys = [{"accessKey": access_key, "secretKey": secret_key}]
            known["identities"].append({"name": access_key, "credentials": keys, "policyNames": [access_key]})
        path.write_text(json.dumps(known))
        os.killpg(json.loads((self.directory / "state.json").read_text())["group"], signal.SIGHUP)
        for access_key, (secret_key, _) in users.items():
            self._wait_for(self.environment(access_key, secret_key))

    def _wait_for(self, environment: Mapping[str, str]) -> None:
        store, deadline = open_store(self.server.store_uri, environment), time.monotonic() + 20
        while True:
            try:
                store.get("no-such-key")
            except StoreError as error:
                if "InvalidAccessKeyId" not in error.problem:
                    return
            assert time.monotonic() < deadline, "SeaweedFS did not read its users again"
            time.sleep(0.05)


@contextmanager
def role_server(directory: Path) -> Iterator[RoleServer]:
    """Run a server; skip the tests where SeaweedFS is missing."""
    try:
        find_weed()
    except StoreError as error:
        pytest.skip(str(error))
    with LocalS3Server(directory) as server:
        yield RoleServer(directory, server)


@dataclass(frozen=True)
class KeyedStore:
    """A federation's place in the store, and its roles' keys."""

    server: RoleServer
    uri: str
    spec: ClusterSpec

    def __post_init__(self):
        policies = role_policies(self.spec, self.uri)
        self.server.add_users({self.access_key(role): (f"secret-{role}", policies[role]) for role in policies})

    def access_key(self, role: str) -> str:
        return hashlib.sha256(f"{self.uri} {self.spec.name} {role}".encode()).hexdigest()[:20].upper()

    def environment(self, role: str) -> dict[str, str]:
        return self.server.environment(self.access_key(role), f"secret-{role}")

    def open(self, role: str, directory: str | None = None) -> FederationStore:
        """The federation's files, or those of its run by another method, under a role's key."""
        return FederationStore.open(self.uri, directory or self.spec.name, self.environment(role))

    @contextmanager
    def acting(self, role: str) -> Iterator[None]:
        """Give the steps of this process the role's environment, as its pods have it."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment(role).items():
                patch.setenv(name, value)
            yield
