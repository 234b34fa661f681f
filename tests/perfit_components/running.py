"""A small federation over a store, run step by step in this process, and the files to expect from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from perfit.adapter import mask_hash
from perfit.adapter_file import AdapterFile, AdapterHeader, dump_server_vectors, dump_transfer, dump_vectors
from perfit.cluster_spec import ClusterSpec
from perfit.export import peft_files
from perfit.protocol import RoundSummary
from perfit.round import ClientRound, download, split_state
from perfit.sampling import sample_clients
from perfit.simulation import Simulation, State
from perfit_components.steps.client import train
from perfit_components.steps.commit import commit_round
from perfit_components.steps.context import FederationContext
from perfit_components.steps.plan import plan_round
from perfit_components.steps.prepare import prepare
from perfit_components.steps.rollback import plan_rollback, roll_back
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


def undated(page: str) -> str:
    """A report without its durations, which only ``perfit report`` fills in."""
    kept, cut = re.subn(r"<h2>Durations</h2>.*?(?=</main>)", "", page, flags=re.DOTALL)
    assert cut == 1
    return kept


def write_data(directory: Path) -> Path:
    """Write the records of every client into a new directory."""
    directory.mkdir()
    for client, count in RECORDS.items():
        write_records(directory / f"{client}.jsonl", client, count)
    return directory


def make_spec(model: str, data: Path, /, **sections: Any) -> ClusterSpec:
    """Make a federation file; ``clients`` maps ids to what differs from an id and its data."""
    clients = sections.pop("clients", {"ann": {}, "bob": {"rank": 1}})
    entries = [{"id": id, "data": str(data / f"{id}.jsonl"), **more} for id, more in clients.items()]
    return federation(sections.pop("model", model), data, clients=entries, **sections)


@dataclass(frozen=True)
class Site:
    """A federation in a store."""

    spec: ClusterSpec
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

    @property
    def context(self) -> FederationContext:
        return FederationContext.open(self.uri)

    def data(self, client: str) -> Path:
        """The file of a client's records."""
        return Path(self.spec.client(client).data)

    def name(self, client: str) -> str:
        """A client's name in the cluster."""
        return self.spec.secret_of(self.spec.client(client))

    def prepare(self) -> Site:
        prepare(self.spec.to_yaml(), self.store_uri)
        return self

    def planned(self, round: int) -> list[str]:
        """Plan a round; return the ids of its clients that are in the federation file."""
        ids = [participant.client for participant in plan_round(self.context, round).participants]
        return [client for client in ids if client in self.spec.clients_by_id]

    def train_client(self, client: str, round: int = 1) -> dict[str, str]:
        return train(self.uri, round, self.name(client), threads=1).output

    def train(self, round: int) -> list[dict[str, str]]:
        """Let a round's clients tune; return their tasks' outputs."""
        return [self.train_client(client, round) for client in self.planned(round)]

    def aggregate(self, round: int) -> RoundSummary:
        return commit_round(self.context, round)

    def run_round(self, round: int) -> RoundSummary:
        """Let a round's clients tune, then aggregate."""
        self.train(round)
        return self.aggregate(round)

    def roll_back(self, round: int) -> None:
        """Move the head back to a round."""
        roll_back(self.context, plan_rollback(self.context, round))

    def run(self) -> Site:
        """Run every step of every round."""
        self.prepare()
        for round in range(1, self.spec.rounds + 1):
            self.run_round(round)
        return self

    def summary(self, round: int) -> RoundSummary:
        """The summary of a committed round."""
        return self.context.summary_of(self.context.base_after(round))

    def mask_file(self, client: str) -> AdapterFile:
        """A client's architecture as it is stored."""
        return AdapterFile.parse(self.store.get_mask(client, self.store.find_masks(client)[0]))


class Interrupted(FederationContext):
    """A federation in which something happens after the aggregator has read the head and the plan."""

    def state(self, base):
        state = super().state(base)
        self.__dict__.pop("meanwhile")()
        return state


def interrupted(site: Site, meanwhile: Callable[[], object]) -> Interrupted:
    """A site's context, in which this happens meanwhile."""
    context = Interrupted(site.store, site.spec)
    context.__dict__["meanwhile"] = meanwhile
    return context


def files(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by its relative path; none if there is no directory."""
    paths = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(".perfit-"))
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def in_memory(spec: ClusterSpec) -> dict[str, bytes]:
    """Simulate a federation; return the files that its last round must leave in the store, by key."""
    simulation = Simulation.load(spec, Path("no-cache-needed"))
    before = state = simulation.start()
    for _ in range(spec.rounds):
        before, state = state, simulation.next_round(state)
    expected = _server_files(spec, before, state)
    for client, result in state.results.items():
        for name, content in peft_files(spec.expanded_lora, spec.model, result.adapter).items():
            expected[f"clients/{client}/adapter/{name}"] = content
    return expected


def _server_files(spec: ClusterSpec, before: State, state: State) -> dict[str, bytes]:
    space = next(iter(state.results.values())).adapter.space
    base = dump_server_vectors(spec, space, before.round, split_state(spec, before.vectors)[0])
    base_digest = blake3(base).hexdigest()
    downloads, own = split_state(spec, state.vectors)
    place = f"rounds/{state.round}"
    expected = {f"{place}/global.safetensors": dump_server_vectors(spec, space, state.round, downloads)}
    if own:
        expected[f"{place}/state.safetensors"] = dump_server_vectors(spec, space, state.round, own)
    for client in _sampled(spec, state.round):
        expected |= _client_files(spec, before, state, client, base_digest)
    return expected


def _client_files(spec: ClusterSpec, before: State, state: State, client: str, base_digest: str) -> dict[str, bytes]:
    """A client's download, update, and what it keeps, of the last round."""
    result, number = state.results[client], state.round
    space, digest = result.adapter.space, mask_hash(result.adapter.space, result.adapter.mask)
    header = AdapterHeader.of_client(spec, client, number, result.adapter.budget, digest)
    roles, expected = ClientRound(spec, space, result.adapter.mask, number).roles, {}
    if result.updated.any():
        update = dump_transfer(header.at_base(base_digest), result.updated, result.upload)
        expected[f"rounds/{number}/updates/{client}.safetensors"] = update
    if result.exchanged.any() and (spec.search is None or client in before.architectures):
        sent = download(spec, before.vectors, result.exchanged, number, spec.client(client))
        name = f"downloads/{client}" if spec.search else f"ranks/{header.rank}"
        file = dump_transfer(
            replace(header.at_base(base_digest), client=client if spec.search else None), roles.shared, sent
        )
        expected[f"rounds/{number}/{name}.safetensors"] = file
    kept = dump_vectors(header, space, result.kept)
    expected[f"clients/{client}/state/{number}.safetensors"] = kept
    return expected


def _sampled(spec: ClusterSpec, round: int) -> list[str]:
    return [c.id for c in sample_clients(spec.clients, spec.participation, spec.training.seed, round)]
