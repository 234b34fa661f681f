"""What ``perfit deploy`` creates satisfies ``perfit doctor``."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from perfit_pipelines.deploy import register
from perfit_pipelines.deploy.kubectl import Kubectl
from perfit_storage import open_store

from .conftest import NAMESPACE


def texts(secret: dict) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def set_up_store(site, objects: list[dict]) -> None:
    """Do what MinIO's setup Job does, to the real server of these tests: a user with its policy for every key."""
    held = {(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]): item for item in objects}
    users = {}
    for key, item in held.items():
        if key[2].startswith("perfit-clients-"):
            files = texts(item)
            for user in (name.removesuffix(".secret-key") for name in files if name.endswith(".secret-key")):
                users[user] = (files[f"{user}.secret-key"], json.loads(files[f"{user}.policy.json"]))
    site.store.server.add_users(users)


def test_what_is_deployed_passes(site, monkeypatch):
    monkeypatch.chdir(site.directory)
    site.write(name="deployed")
    app = typer.Typer()
    register(app)
    written = CliRunner().invoke(app, ["federation.yaml", "--overlay", "kind", "--output", "out"])
    assert written.exit_code == 0, written.output
    objects = Kubectl().build(Path("out"))
    set_up_store(site, objects)
    site.cluster.add(*(o for o in objects if o["kind"] == "Secret" and o["metadata"]["namespace"] == NAMESPACE))
    endpoint = site.store.server.administrator["AWS_ENDPOINT_URL"]
    assert site.findings("--store-endpoint", endpoint) == []

    administrator = open_store("s3://perfit", site.store.server.administrator)
    left = ["federations/deployed/rounds/0/state.probe.safetensors"]
    assert list(administrator.list("federations/deployed/")) == left, "the doctor's scratch object"
