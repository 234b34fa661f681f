"""Two owners as containers of their own, each with its key alone, and a round that one of them misses."""

from __future__ import annotations

import shutil
from pathlib import Path

from perfit_components.steps.aggregate import close_round
from perfit_components.steps.prepare import prepare
from perfit_components.steps.wait import wait_for_clients

from ..perfit_components.running import Site, make_spec, write_data
from ..perfit_pipelines.store_roles import SERVER, KeyedStore, role_server
from .containers import RESTRICTED, USER

_SECONDS = 300


def test_two_owners_as_containers(daemon, images, tmp_path):
    from ..perfit.tiny import save_llama

    inputs = tmp_path / "inputs"
    inputs.mkdir()
    model, data = save_llama(inputs / "llama"), write_data(inputs / "data")
    for path in inputs.rglob("*.safetensors"):
        path.chmod(0o644)  # for the image's user
    clients = {"ann": {"tier": "office", "data": None}, "eve": {"tier": "clinic", "data": None}}

    def file(eve_has: int):
        deadlines = {"office": _SECONDS, "clinic": eve_has}
        tiers = {name: {"runner": "remote", "deadline_seconds": seconds} for name, seconds in deadlines.items()}
        return make_spec(model, data, rounds=2, clients=clients, tiers=tiers)

    with role_server(tmp_path / "s3") as server:
        spec = file(_SECONDS)
        keyed = KeyedStore(server, "s3://perfit", spec)
        owners = {
            client: start(daemon, images.client, keyed, client, inputs, tmp_path / client, rounds)
            for client, rounds in (("ann", 2), ("eve", 1))
        }
        try:
            for spec in (file(_SECONDS), file(1)):
                with keyed.acting(SERVER):
                    prepared = prepare(spec.to_yaml(), keyed.uri)
                    wait_for_clients(prepared.uri, prepared.round)
                    close_round(prepared.uri, prepared.round)
            ends = {client: owner.wait(timeout=_SECONDS)["StatusCode"] for client, owner in owners.items()}
            assert ends == {"ann": 0, "eve": 0}, [owner.logs().decode() for owner in owners.values()]
            with keyed.acting(SERVER):
                first, second = (Site(spec, keyed.uri).summary(round) for round in (1, 2))
        finally:
            for owner in owners.values():
                owner.remove(force=True)
    assert [record.client for record in first.trained] == ["ann", "eve"]
    assert [record.client for record in second.trained] == ["ann"]
    assert [(status.client, status.status) for status in second.lost] == [("eve", "missing")]


def start(daemon, image: str, keyed: KeyedStore, client: str, inputs: Path, cache: Path, rounds: int):
    """An owner's container: its own key, its own records, nothing else of the federation's."""
    from docker.types import Mount

    cache.mkdir()
    shutil.chown(cache, USER, USER)
    directory = inputs / "llama"
    mounts = [
        Mount(str(directory), str(directory), type="bind", read_only=True),
        Mount("/data", str(inputs / "data"), type="bind", read_only=True),
        Mount("/cache", str(cache), type="bind"),
    ]
    variables = {
        **{name: value for name, value in keyed.environment(client).items() if name.startswith("AWS_")},
        "PERFIT_FEDERATION": f"{keyed.uri}/federations/{keyed.spec.name}",
        "PERFIT_CLIENT": client,
    }
    options = ["--data", f"/data/{client}.jsonl", "--threads", "1", "--rounds", str(rounds), "--poll", "1"]
    command = ["perfit", "client", *options]
    limits = {**RESTRICTED, "network_mode": "host", "environment": variables, "mounts": mounts}
    return daemon.containers.run(image, command, detach=True, **limits)
