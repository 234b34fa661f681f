"""Exported adapters in plain PEFT."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from peft import PeftModel
from safetensors.numpy import load
from transformers import AutoModelForCausalLM

from perfit.export import CONFIG_FILE, WEIGHTS_FILE, peft_files
from perfit.simulation import Simulation

from .tiny import compact_adapter, loaded, logits


def one_round(spec, model, data):
    """The first round's result of each client."""
    simulation = Simulation(spec, model, data)
    return simulation.next_round(simulation.start()).results


def write(files: dict[str, bytes], directory) -> str:
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return str(directory)


def reload(base: str, directory: str):
    """Load an exported adapter as a user does, without this package."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), directory)


@pytest.mark.parametrize("method", ["perfit", "fedit", "ffa-lora"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_plain_peft_gives_the_logits_of_the_client(
    make_federation, tiny_llama, tiny_gpt2, tmp_path, method, architecture
):
    base = {"llama": tiny_llama, "gpt2": tiny_gpt2}[architecture]
    targets = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}[architecture]
    spec = make_federation(
        model=base,
        method={"name": method},
        lora={"target_modules": targets, "alpha": 5},
        training={"steps": 6, "learning_rate": 0.03},
    )
    model, data = loaded(spec)
    results = one_round(spec, model, data)
    for client, rank in [("ann", 2), ("bob", 1)]:
        adapter, examples = results[client].adapter, data[client].held_out.examples
        assert adapter.budget == model.space.budget(rank)
        with compact_adapter(model, adapter):
            expected = logits(model.peft, examples)
        with model.peft.disable_adapter():
            untuned = logits(model.peft, examples)
        (tmp_path / client).mkdir()
        plain = reload(base, write(peft_files(spec.expanded_lora, spec.model, adapter), tmp_path / client))
        actual = logits(plain, examples)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(actual, untuned, strict=True))


def test_merged_it_gives_the_same_logits_but_for_rounding(make_federation, tiny_llama, tmp_path):
    spec = make_federation(training={"steps": 6, "learning_rate": 0.03})
    model, data = loaded(spec)
    results = one_round(spec, model, data)
    plain = reload(tiny_llama, write(peft_files(spec.expanded_lora, spec.model, results["bob"].adapter), tmp_path))
    examples = data["bob"].held_out.examples
    apart = logits(plain, examples)
    for a, b in zip(logits(plain.merge_and_unload(), examples), apart, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_files(make_federation, tiny_llama):
    spec = make_federation()
    model, data = loaded(spec)
    results = one_round(spec, model, data)
    adapter = results["bob"].adapter
    files = peft_files(spec.expanded_lora, spec.model, adapter)
    assert set(files) == {CONFIG_FILE, WEIGHTS_FILE} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(files[CONFIG_FILE])
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    # Rank 2 * 2 and alpha 4 * 2: the scaling of the federation, though bob's own rank is 1.
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == tiny_llama
    assert config["inference_mode"] is True
    weights = load(files[WEIGHTS_FILE])
    assert {weight.dtype for weight in weights.values()} == {np.dtype(np.float32)}
    flat = np.concatenate([weights[matrix.name].ravel() for matrix in adapter.space.matrices])
    assert_array_equal(flat, adapter.dense())
    assert not flat[~adapter.mask].any()


def test_all_linear(make_federation, tiny_llama, tmp_path):
    spec = make_federation(lora={"target_modules": "all-linear"}, training={"learning_rate": 0.03})
    model, data = loaded(spec)
    results = one_round(spec, model, data)
    adapter, examples = results["bob"].adapter, data["bob"].held_out.examples
    with compact_adapter(model, adapter):
        expected = logits(model.peft, examples)
    plain = reload(tiny_llama, write(peft_files(spec.expanded_lora, spec.model, adapter), tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(logits(plain, examples), expected, strict=True))


DIGEST = """
import hashlib
import numpy as np
from perfit.adapter import SparseAdapter
from perfit.export import peft_files
from perfit.space import LoraSpace
from perfit.spec import Lora

targets = ["q_proj", "v_proj", "o_proj", "k_proj"]
lora = Lora(target_modules=targets)
shapes = {"A": (16, 3), "B": (3, 16)}
space = LoraSpace.from_shapes(
    {f"base_model.model.{t}.lora_{ab}.weight": shapes[ab] for t in targets for ab in "AB"}
)
adapter = SparseAdapter(space, np.ones(space.size, dtype=bool), space.initial_values(0))
files = sorted(peft_files(lora, "m", adapter).items())
digest = hashlib.sha256(b"".join(content for _, content in files)).hexdigest()
"""


def test_the_same_bytes_in_another_process():
    exec(DIGEST, namespace := {})
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    process = subprocess.run(
        [sys.executable, "-c", f"{DIGEST}\nprint(digest)"],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == namespace["digest"]
