"""Whatever one client writes, the others' round is committed: what is malformed is refused, in bounded memory.

What is accepted must decode to what ``hostile.decode`` finds in it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from perfit.protocol import ClientStatus, UpdateRecord
from perfit_components.steps.contribution import Contribution, RoundReader
from perfit_storage import RoundPlace
from perfit_storage.s3 import S3Settings

from ..perfit_components.running import Site, files, make_spec
from .hostile import (
    BOMB,
    ENTRIES,
    METADATA,
    TEXTS,
    VALUES,
    WORST,
    Attack,
    Client,
    Objects,
    attacks,
    decode,
    encoded_attacks,
    join,
    split,
)
from .invariants import committed
from .steps import Federation
from .totals import EFFORT, TOTALS

EXAMPLES = 500 if EFFORT == 1 else 5000 * EFFORT
ROUNDS = 2
EVES = 16
"""Hostile clients in one round."""
HONEST = ["ann", "bob"]
EARLY = [*HONEST, "eve-0"]
"""Clients that are honest until the round is aggregated."""
AGGREGATE = """
import sys
from perfit_components.steps.aggregate import close_round
close_round(sys.argv[1], 1)
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
"""


def founded(model: str, directory: Path, eves: int, **sections: Any) -> tuple[Site, dict[str, Client]]:
    """A federation of two honest clients and many others, before any of them has delivered in the first round."""
    names = [*HONEST, *(f"eve-{number}" for number in range(eves))]
    spec = make_spec(model, directory, clients={name: {} for name in names}, **sections)
    site = Site(spec, (directory / "store").as_uri()).prepare()
    assert site.planned(1) == names
    space = site.context.downloads(site.context.plan(RoundPlace(1)).base).space
    base = site.store.read_head().adapter.digest
    return site, {name: Client(spec, name, base, space) for name in names}


# One client, in this process


class Reader:
    """Reads what a client wrote into a store of files."""

    def __init__(self, site: Site, client: Client):
        self.client, self._root, self._context = client, site.root, site.context
        self._plan = self._context.plan(RoundPlace(1))
        self._participant = next(p for p in self._plan.participants if p.client == client.name)

    def read(self, objects: Objects) -> Contribution | ClientStatus:
        for name in (f"masks/{self.client.name}/*", f"rounds/1/updates/{self.client.name}.*"):
            for path in self._root.glob(name):
                path.unlink()
        for key, data in objects.items():
            path = self._root / key
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(data)
        reader = RoundReader.of(self._context, self._plan)
        return reader.read(self._participant, reader.new_cohort())

    def check(self, objects: Objects) -> None:
        """Check what is made of objects, and the memory that it takes."""
        tracemalloc.start()
        try:
            result = self.read(objects)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        TOTALS.count("hostile objects")
        TOTALS.never("wrongly accepted", [] if is_allowed(result, decode(self.client, objects)) else [objects])
        assert peak < 2**24, "a record has 4 MiB at most, an update and a mask what the space allows"
        TOTALS.count("refused" if isinstance(result, ClientStatus) else "accepted as they follow the plan")
        assert isinstance(result, Contribution) or len(result.to_json()) < 20_000


def is_allowed(result: Contribution | ClientStatus, decoded: tuple | None) -> bool:
    if isinstance(result, ClientStatus):
        return True
    if decoded is None:
        return False
    mask, values, samples = decoded
    update = result.update
    same = (
        (result.mask == np.packbits(mask)).all()
        and (update.positions == mask).all()
        and result.record.samples == samples
    )
    return bool(same) and update.samples == samples and (update.vectors["values"] == values).all()


@pytest.fixture(scope="module")
def reader(tiny_llama, tmp_path_factory) -> Reader:
    site, clients = founded(tiny_llama, tmp_path_factory.mktemp("one"), 1)
    return Reader(site, clients["eve-0"])


def test_honest_objects_are_accepted(reader):
    assert isinstance(reader.read(reader.client.honest), Contribution)
    assert decode(reader.client, reader.client.honest) is not None


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_objects_of_one_client_are_refused_or_follow_the_plan(reader, data):
    reader.check(data.draw(attacks(reader.client)).objects)


def test_every_value_at_every_key_of_a_record(reader):
    client = reader.client
    for holder in ("", "perplexity", "update"):
        for key in [*(client.record[holder] if holder else client.record), "note"]:
            for value in VALUES:
                record = json.loads(json.dumps(client.record))
                (record[holder] if holder else record)[key] = value
                reader.check(client.honest | {client.record_key: json.dumps(record).encode()})


def test_every_entry_and_metadata_of_a_file(reader):
    client = reader.client
    for key in (client.update_key, client.mask_key):
        header, payload = split(client.honest[key])
        name = list(header)[-1]
        others = [header | {name: entry} for entry in ENTRIES]
        others += [header | {"surplus": entry} for entry in ENTRIES]
        others += [header | {"__metadata__": {"perfit": text}} for text in METADATA]
        for other in others:
            data = join(other, payload)
            reader.check(client.with_update(data) if key == client.update_key else client.honest | {key: data})


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_that_are_no_record(reader, text):
    reader.check(reader.client.honest | {reader.client.record_key: text})


# Many clients, and a real aggregation


def upload(federation: Federation, attack: Attack) -> None:
    """Write objects with headers that perfit never sends."""
    bucket, _, prefix = federation.uri.removeprefix("s3://").partition("/")
    client = S3Settings.from_environment(federation.environment).connect()
    for key, data in attack.objects.items():
        client._put_object(bucket, f"{prefix}/{key}", data, {**attack.headers.get(key, {})})


def aggregated(federation: Federation, kind: str) -> int:
    """Aggregate in a process of its own; return the most memory that it had, in MiB."""
    command = [sys.executable, "-c", AGGREGATE, federation.uri]
    environment = os.environ | federation.environment
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    TOTALS.never("aggregator failures", [] if result.returncode == 0 else [result.stderr[-3000:]])
    peak = int(result.stdout.split()[-1]) // 1024
    TOTALS.largest(f"peak memory of {kind} round, MiB", peak)
    return peak


def check_round(federation: Federation, clients: dict[str, Client], attacks: dict[str, Attack]) -> None:
    """Check that a round is committed with the honest clients, and of the others with those that follow the plan."""
    (summary,) = committed(federation).values()
    trained = {outcome.client for outcome in summary.clients if isinstance(outcome, UpdateRecord)}
    assert trained >= {*HONEST}
    wrong = [name for name, attack in attacks.items() if name in trained and not decode(clients[name], attack.objects)]
    TOTALS.never("wrongly accepted", wrong)
    TOTALS.count("hostile objects", len(attacks))
    TOTALS.count("refused", len(attacks.keys() - trained))
    TOTALS.count("accepted as they follow the plan", len(attacks.keys() & trained))
    TOTALS.count("trials")
    TOTALS.count("rounds committed")


@pytest.fixture(scope="module")
def tiny(tiny_llama, tmp_path_factory) -> tuple[Site, dict[str, Client]]:
    return founded(tiny_llama, tmp_path_factory.mktemp("many"), EVES)


@pytest.fixture(scope="module")
def large(tiny_llama, tmp_path_factory) -> tuple[Site, dict[str, Client]]:
    """A federation of 3.7 million positions: a Llama of width 1,024."""
    directory = tmp_path_factory.mktemp("large")
    shutil.copytree(tiny_llama, directory / "model")
    config = LlamaConfig.from_pretrained(tiny_llama, hidden_size=1024, head_dim=256)
    LlamaForCausalLM(config).save_pretrained(directory / "model")
    return founded(str(directory / "model"), directory, len(WORST), lora={"rank": 256})


def prepared(site: Site, clients: dict[str, Client], server, *names: str) -> Federation:
    """A copy of a federation in an S3 store, in which these clients have delivered honestly."""
    federation = Federation.on_s3(site.spec, server).write(files(site.root))
    for name in names:
        federation.write(clients[name].honest)
    return federation


@pytest.fixture(scope="module")
def honest_peak(tiny, s3_server) -> int:
    return aggregated(prepared(*tiny, s3_server, *EARLY), "an honest")


@settings(max_examples=ROUNDS * EFFORT, phases=[Phase.generate])
@given(data=st.data())
def test_rounds_of_hostile_clients_are_committed(tiny, honest_peak, s3_server, data):
    """Also if it is run again, and they have written other objects meanwhile."""
    site, clients = tiny
    federation = prepared(site, clients, s3_server, *EARLY)
    hostile = {name: data.draw(encoded_attacks(clients[name]), name) for name in clients if name not in EARLY}
    for attack in hostile.values():
        upload(federation, attack)
    assert aggregated(federation, "a hostile") < 2 * honest_peak
    check_round(federation, clients, hostile)
    for name in ["eve-0", *hostile]:
        upload(federation, Attack(dict.fromkeys(clients[name].honest, BOMB)))
    assert aggregated(federation, "a hostile") < 2 * honest_peak
    assert "eve-0" in {record.client for record in committed(federation)[1].trained}


def test_the_worst_takes_no_more_than_twice_the_memory_of_an_honest_round(large, s3_server):
    site, clients = large
    honest = aggregated(prepared(site, clients, s3_server, *EARLY), "an honest")
    federation = prepared(site, clients, s3_server, *HONEST)
    eves = [client for name, client in clients.items() if name not in HONEST]
    hostile = {eve.name: attack(eve) for eve, attack in zip(eves, WORST.values(), strict=True)}
    for attack in hostile.values():
        upload(federation, attack)
    assert aggregated(federation, "a hostile") < 2 * honest
    check_round(federation, clients, hostile)
    assert [record.client for record in committed(federation)[1].trained] == HONEST
