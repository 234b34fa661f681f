"""A client's context in one round: its federation, model and data."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from perfit import processes
from perfit.adapter_file import AdapterHeader
from perfit.cluster_spec import ClusterClient, ClusterSpec, Tier
from perfit.collection import without_collection
from perfit.errors import PerfitError
from perfit.protocol import Participant, Plan
from perfit_components.log_lines import format_phase, format_step
from perfit_components.steps.context import FederationContext, model_cache
from perfit_components.steps.owner import Owner
from perfit_storage import FederationStore, Head, ObjectNotFound, RoundPlace, open_store

if TYPE_CHECKING:
    from perfit.client import ClientData, ExpandedModel

_CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class ClientContext:
    """A client of a federation, in one round. Model and data are loaded once, and only if needed.

    ``head`` is that of the federation when the task began: what it says of places holds until the task's end.
    ``owner`` is what the client's owner gives it; None in a pod.
    """

    federation: FederationContext
    client: ClusterClient
    round: int
    head: Head
    owner: Owner | None = None

    @classmethod
    def open(cls, uri: str, round: int, name: str, owner: Owner | None = None) -> ClientContext:
        """Open a client's federation; ``name`` is that of its Secret.

        Raises:
            PerfitError: The store cannot be reached, or the federation has no such client.
        """
        federation = FederationContext.open(uri)
        client = federation.client_named(name)
        if owner:
            client = client.model_copy(update={"data": owner.data, "held_out": owner.held_out})
        return cls(federation, client, round, federation.store.read_head(), owner)

    @cached_property
    def spec(self) -> ClusterSpec:
        """The federation file, with the training of the client's tier."""
        return self.federation.spec.of_client(self.client)

    @property
    def store(self) -> FederationStore:
        """The federation's files."""
        return self.federation.store

    @property
    def place(self) -> RoundPlace:
        """Where the round's files are."""
        return self.head.place(self.round)

    @property
    def is_committed(self) -> bool:
        """Whether the round was committed when the task began."""
        return self.head.round >= self.round

    @cached_property
    def plan(self) -> Plan:
        """The plan of the round."""
        return self.federation.plan(self.place)

    @property
    def participant(self) -> Participant:
        """The client's entry in the plan.

        Raises:
            PerfitError: It does not take part.
        """
        for participant in self.plan.participants:
            if participant.client == self.client.id:
                return participant
        raise PerfitError(
            f"client {self.client.id!r} does not take part in round {self.round}",
            "the round was planned without it; it may be sampled for a later one",
        )

    @cached_property
    def loaded(self) -> tuple[ExpandedModel, ClientData]:
        """The model with the expanded LoRA, and the client's records.

        The cache of models is only read, and believed as far as its files are those that the federation was founded
        with. On its owner's machine the client also fills it.
        """
        with without_collection():
            model = self._load_model()
        gc.freeze()  # accelerate collects after every training: slow over all of torch and transformers

        from perfit.client import load_client_data

        with tempfile.TemporaryDirectory() as downloads:
            return model, load_client_data(self.spec, self.client, model.tokenizer, _fetcher(downloads))

    def _load_model(self) -> ExpandedModel:
        from perfit.client import load_prepared
        from perfit.models import checked_model, own_model

        _check_device(self.spec.tiers[self.client.tier], self.client.tier)
        manifest, cache = self.federation.model(), model_cache()
        if manifest.model != self.spec.model:
            raise PerfitError(
                f"{self.store.uri}/model.json is about {manifest.model}, the federation's model is {self.spec.model}",
                "prepare the federation again (every run does), or restore it from a backup of the store",
            )
        with tempfile.TemporaryDirectory() as scratch:
            if self.owner:
                source = own_model(manifest, cache, self.owner.model)
            else:
                source = checked_model(manifest, cache, Path(scratch))
            return load_prepared(self.spec, source)

    def header(self, budget: int, mask_digest: str) -> AdapterHeader:
        """Return the header of a file that the client writes in this round."""
        return AdapterHeader.of_client(self.spec, self.client.id, self.round, budget, mask_digest)

    @property
    def checkpoint(self) -> StoredCheckpoint:
        """Where the client keeps the last checkpoint of the training that it is in."""
        return StoredCheckpoint(self.store, self.client.id)

    def say(self, phase: str) -> None:
        """Report what the client does from now on; see :class:`perfit_components.log_lines.Phase`."""
        print(format_phase(self.round, self.client.id, phase), flush=True)

    def on_step(self, round: int) -> Callable[[int, int, float], None] | None:
        """Return a function that reports the progress of a training, one line per step; the first process does so."""
        if processes.index() > 0:
            return None

        def report(step: int, steps: int, loss: float) -> None:
            print(format_step(round, self.client.id, step, steps, loss), flush=True)

        return report


def _check_device(tier: Tier, name: str) -> None:
    """Refuse to train on fewer accelerators than a pod was given; a local run ignores the cluster's machines."""
    import torch

    wanted, seen = tier.accelerator, torch.cuda.device_count()
    if wanted and "KUBERNETES_SERVICE_HOST" in os.environ and seen < wanted.count:
        raise PerfitError(
            f"tiers.{name}.accelerator: the pod asks for {wanted.count} of {wanted.type}, but torch "
            f"{torch.__version__} sees {seen or 'none'}",
            "look whether the image has a torch for it and the node its driver: "
            "`python3 -m perfit_components.health client` in the pod says what is there",
        )


@dataclass(frozen=True)
class StoredCheckpoint:
    """The last checkpoint of a client's training, in its own part of the store."""

    store: FederationStore
    client: str

    def load(self, limit: int) -> bytes | None:
        """See :class:`perfit.checkpoint.CheckpointFile`."""
        try:
            return self.store.get_client_file(self.client, _CHECKPOINT, limit) or None
        except ObjectNotFound:
            return None

    def save(self, data: bytes) -> None:
        """See :class:`perfit.checkpoint.CheckpointFile`."""
        self.store.put_client_file(self.client, _CHECKPOINT, data)

    def drop(self) -> None:
        """Empty the file: what it was for is done. If that fails, the next training replaces or drops it."""
        with suppress(PerfitError):
            self.store.empty_client_file(self.client, _CHECKPOINT)


def _fetcher(directory: str) -> Callable[[str], str]:
    """Return a function that downloads s3:// data into a directory and leaves every other URI as it is."""

    def fetch(uri: str) -> str:
        if not uri.startswith("s3://"):
            return uri
        folder, _, name = uri.rpartition("/")
        target = Path(directory, name)
        target.write_bytes(open_store(folder).get(name).data)
        return str(target)

    return fetch
