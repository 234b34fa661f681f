"""Quantised base models: trained on by a client on the CPU, refused where they cannot be, and what they weigh."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from perfit.errors import PerfitError
from perfit.models import load_model, model_skeleton
from perfit.quantization import check_quantization, weight_bytes
from perfit.simulation import Simulation

from .tiny import base_hash


def quantised_files(model: str, directory: Path, **config) -> str:
    """A copy of a model whose configuration says that its files are quantised."""
    shutil.copytree(model, directory)
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": config}))
    return str(directory)


@pytest.mark.parametrize(("quantization", "kind"), [("int8", torch.int8), ("nf4", torch.uint8)])
def test_a_federation_on_a_quantised_model(make_federation, tmp_path, quantization, kind):
    training = {"steps": 12, "batch_size": 6, "quantization": quantization}
    simulation = Simulation.load(make_federation(training=training, rounds=1), tmp_path)
    model = simulation.model.peft
    base = [m.base_layer for m in model.modules() if hasattr(m, "base_layer")]
    assert base
    assert {layer.weight.dtype for layer in base} == {kind}
    before = base_hash(model)
    results = simulation.next_round(simulation.start()).results
    assert base_hash(model) == before
    for result in results.values():
        assert result.losses[-1] < result.losses[0]
        assert result.adapter.values.dtype == np.float32


@pytest.mark.parametrize(("quantization", "error"), [("int8", 0.01), ("nf4", 0.1)])
def test_a_quantised_module_gives_nearly_what_the_plain_one_gives(tiny_llama, tmp_path, quantization, error):
    """With rows of 64 weights, a block of nf4: bitsandbytes 0.50 loses more of shorter ones on the CPU."""
    config = LlamaConfig.from_pretrained(tiny_llama, hidden_size=64, head_dim=16)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    inputs = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, quantised = (
            load_model(str(tmp_path), "float32", q).model.layers[1].mlp.up_proj(inputs) for q in (None, quantization)
        )
    assert 0 < (plain - quantised).norm() / plain.norm() < 1.5 * error


def test_a_checkpoint_of_bitsandbytes_is_used_as_it_is(tiny_llama, tmp_path):
    load_model(tiny_llama, "float32", "nf4").save_pretrained(tmp_path / "nf4")
    assert check_quantization(str(tmp_path / "nf4"), None) == "nf4"
    model = load_model(str(tmp_path / "nf4"), "float32")
    assert {m.weight.dtype for name, m in model.named_modules() if name.endswith("q_proj")} == {torch.uint8}
    with pytest.raises(PerfitError, match="quantised already") as caught:
        load_model(str(tmp_path / "nf4"), "float32", "int8")
    assert "leave training.quantization out" in caught.value.fix


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", None])
def test_checkpoints_of_other_methods_are_refused(tiny_llama, tmp_path, method):
    config = {"bits": 4} | ({"quant_method": method} if method else {})
    source = quantised_files(tiny_llama, tmp_path / "model", **config)
    with pytest.raises(PerfitError, match=f"quantised with '{method or 'an unknown method'}'") as caught:
        load_model(source, "float32")
    assert "name the model that they were made from" in caught.value.fix


def test_without_bitsandbytes_the_error_says_what_to_install(tiny_llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(PerfitError, match="not installed") as caught:
        check_quantization(tiny_llama, "nf4")
    assert "perfit-kubeflow[quantized]" in caught.value.fix
    assert check_quantization(tiny_llama, None) is None


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_what_the_weights_weigh(tiny_llama, quantization):
    """Linear modules but the output layer in one byte, or in half a byte and a 64th; all else in four."""
    linear = 2 * (32 * 32 + 32 * 16 + 32 * 16 + 32 * 32 + 3 * 32 * 48)
    estimate = weight_bytes(model_skeleton(tiny_llama), 4, quantization)
    assert estimate == (36_000 - linear) * 4 + linear * {"int8": 1, "nf4": 0.5 + 1 / 64}[quantization]
    loaded = load_model(tiny_llama, "float32", quantization)
    stored = sum(p.numel() * p.element_size() for p in loaded.parameters())  # without the scales
    assert stored == (36_000 - linear) * 4 + linear * {"int8": 1, "nf4": 0.5}[quantization]
    assert isinstance(loaded.get_output_embeddings(), nn.Linear)
