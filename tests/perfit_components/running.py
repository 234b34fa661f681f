"""A small federation over a store, step by step in this process, and what to expect of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perfit.adapter import SparseAdapter
from perfit.adapter_file import AdapterHeader, dump_values
from perfit.export import peft_files
from perfit.federation import State, run_federation
from perfit.participation import draw_participants
from perfit.spec import Federation
from perfit_components.steps.aggregate import aggregate_updates
from perfit_components.steps.client import search, train
from perfit_components.steps.outcome import brief
from perfit_components.steps.plan import SEARCH_ROUND, plan
from perfit_components.steps.prepare import global_header, prepare
from perfit_components.steps.search_result import check_search
from perfit_storage import FederationStore

from ..perfit.tiny import federation, write_records

RECORDS = {"ann": 8, "bob": 5, "eve": 6}
"""Clients that have data, with the number of their records."""

TWO_TIERS = {
    "rounds": 2,
    "tiers": {"strong": {}, "weak": {}},
    "clients": {"ann": {"tier": "strong"}, "bob": {"tier": "weak", "rank": 1}},
}
"""Sections of a federation of two clients of unequal rank in two tiers, over two rounds."""

THREE = {"clients": {"ann": {}, "bob": {"rank": 1}, "eve": {}}}
"""Sections of a federation of three clients."""


def write_data(directory: Path) -> Path:
    """Write the records of every client into a new directory."""
    directory.mkdir()
    for client, count in RECORDS.items():
        write_records(directory / f"{client}.jsonl", client, count)
    return directory


def make_spec(model: str, data: Path, /, **sections: Any) -> Federation:
    """Make a federation file; ``clients`` maps ids to what differs from an id and its data."""
    clients = sections.pop("clients", {"ann": {}, "bob": {"rank": 1}})
    entries = [{"id": id, "data": str(data / f"{id}.jsonl"), **more} for id, more in clients.items()]
    return federation(sections.pop("model", model), data, clients=entries, **sections)


@dataclass(frozen=True)
class Site:
    """A federation in a store."""

    spec: Federation
    store_uri: str

    @property
    def uri(self) -> str:
        return f"{self.store_uri}/federations/{self.spec.name}"

    @property
    def root(self) -> Path:
        """The federation's directory in a file store."""
        return Path(self.uri.removeprefix("file://"))

    @property
    def store(self) -> FederationStore:
        return FederationStore.open(self.store_uri, self.spec.name)

    def data(self, client: str) -> Path:
        """The file of a client's records."""
        return Path(self.spec.client(client).data)

    def prepare(self) -> Site:
        prepare(self.spec.to_yaml(), self.store_uri)
        return self

    def search(self) -> Site:
        check_search(self.uri, [brief(search(self.uri, client)) for client in self.planned(SEARCH_ROUND)])
        return self

    def planned(self, round: int) -> list[str]:
        """Plan a round tier by tier; return the ids of its clients."""
        return [item["id"] for tier in self.spec.tiers_in_use() for item in plan(self.uri, round, tier)]

    def train(self, round: int) -> list[dict[str, str]]:
        """Let a round's clients tune; return what their tasks say."""
        return [brief(train(self.uri, round, client)) for client in self.planned(round)]

    def aggregate(self, round: int, statuses: list[dict[str, str]] = ()) -> dict:
        return aggregate_updates(self.uri, round, statuses)

    def run(self) -> Site:
        """Run every stage of every round."""
        self.prepare().search()
        for round in range(1, self.spec.rounds + 1):
            self.aggregate(round, self.train(round))
        return self


def files(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by its relative path; none if there is no directory."""
    paths = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(".perfit-"))
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def in_memory(spec: Federation) -> dict[str, bytes]:
    """Run a federation in memory; return the files that its last round must leave in the store, by key."""
    state = run_federation(spec, Path("no-cache-needed"))
    assert state.round == spec.rounds
    return {**_shared_files(spec, state), **_personal_files(spec, state)}


def _shared_files(spec: Federation, state: State) -> dict[str, bytes]:
    space = next(iter(state.tunings.values())).adapter.space
    everything = SparseAdapter(space, np.ones(space.size, dtype=bool), state.values)
    found = {f"rounds/{state.round}/global.safetensors": dump_values(global_header(spec, state.round), everything)}
    for client in draw_participants(spec, state.round):
        home = "rounds/{}/updates/{}" if spec.method.exchanges else "clients/{1}/rounds/{0}"
        header = AdapterHeader(
            federation=spec.name,
            round=state.round,
            client=client.id,
            base_model=spec.model,
            rank=spec.rank_of(client),
            expansion=spec.expansion,
        )
        update = dump_values(header, state.tunings[client.id].adapter, spec.wire_dtype)
        found[f"{home.format(state.round, client.id)}.safetensors"] = update
    return found


def _personal_files(spec: Federation, state: State) -> dict[str, bytes]:
    return {
        f"clients/{client}/adapter/{name}": content
        for client, tuning in state.tunings.items()
        for name, content in peft_files(spec, tuning.adapter).items()
    }
