"""The expanded LoRA on real (tiny) models, and its compact form."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from peft.tuners.lora import LoraLayer
from transformers import TrainerCallback

from perfit.adapter import SparseAdapter
from perfit.client import load_expanded
from perfit.errors import PerfitError
from perfit.lora import compact, dense_weights, expand, lora_config, read_values, set_dense
from perfit.models import load_model
from perfit.training import train

from .tiny import base_hash, compact_adapter, loaded, logits


def random_adapter(space, seed: int, share: float = 0.3) -> SparseAdapter:
    rng = np.random.default_rng(seed)
    mask = rng.random(space.size) < share
    return SparseAdapter(space, mask, rng.normal(0, 0.3, np.count_nonzero(mask)).astype(np.float32))


def structure(model: torch.nn.Module) -> list[tuple]:
    return [(n, type(p), p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()] + [
        (n, type(m)) for n, m in model.named_modules()
    ]


def test_the_space_of_a_llama(make_federation, tiny_llama):
    _, space = expand(load_model(tiny_llama, "float32"), make_federation().expanded_lora)
    here = "base_model.model.model.layers.{}.self_attn.{}.weight"
    # Rank 2 * expansion 2; q from 32 to 32 features, v from 32 to 2 heads of 8.
    assert space.to_list() == [
        [here.format(layer, name), *shape]
        for layer in (0, 1)
        for name, shape in [
            ("q_proj.lora_A", (4, 32)),
            ("q_proj.lora_B", (32, 4)),
            ("v_proj.lora_A", (4, 32)),
            ("v_proj.lora_B", (16, 4)),
        ]
    ]


def test_expanding_warns_of_nothing(make_federation, tiny_llama):
    """The log of each client would begin with it."""
    model = load_model(tiny_llama, "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expand(model, make_federation().expanded_lora)


def test_all_linear_is_every_linear_module_but_the_head(make_federation, tiny_llama):
    spec = make_federation(lora={"target_modules": "all-linear"})
    _, space = expand(load_model(tiny_llama, "float32"), spec.expanded_lora)
    modules = {name.rsplit(".", 1)[1] for name in space.layers()}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(space.layers()) == 14


@pytest.mark.parametrize("target", ["query", "embed_tokens", "proj", "self_attn", "norm"])
def test_an_unknown_target_names_those_there_are(target, make_federation, tiny_llama):
    spec = make_federation(lora={"target_modules": ["q_proj", target]})
    with pytest.raises(PerfitError) as caught:
        expand(load_model(tiny_llama, "float32"), spec.expanded_lora)
    assert str(caught.value) == (
        f"lora.target_modules: the model has no linear module {target!r}\n"
        "  fix: use all-linear, or some of: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    )


@pytest.mark.parametrize("expansion", [1, 2, 3])
def test_the_scaling_is_that_of_the_federation_whatever_the_expansion(expansion, make_federation, tiny_llama):
    spec = make_federation(lora={"rank": 2, "alpha": 5, "expansion": expansion})
    model, space = expand(load_model(tiny_llama, "float32"), spec.expanded_lora)
    scalings = {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}
    assert scalings == {2.5}
    assert space.rank == lora_config(spec.expanded_lora, spec.model).r == 2 * expansion


def test_only_the_lora_is_trainable(make_federation):
    model = load_expanded(make_federation(), "unused").peft
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(trainable) == 8


def test_dense_values_come_back(make_federation):
    model, _ = loaded(make_federation())
    values = np.random.default_rng(0).random(model.space.size, dtype=np.float32)
    set_dense(model.peft, model.space, values)
    weights = dense_weights(model.peft)
    assert list(weights) == list(model.space.slices)
    assert_array_equal(np.concatenate([w.detach().numpy().ravel() for w in weights.values()]), values)


def test_the_compact_model_is_the_dense_one(make_federation):
    model, data = loaded(make_federation())
    examples = data["ann"].held_out.examples
    for adapter in (random_adapter(model.space, 0), random_adapter(model.space, 1, share=1.0)):
        set_dense(model.peft, model.space, adapter.dense())
        dense = logits(model.peft, examples)
        with compact_adapter(model, adapter) as vectors:
            assert_array_equal(read_values(vectors), adapter.values)
            assert all(torch.equal(a, b) for a, b in zip(logits(model.peft, examples), dense, strict=True))


def loss_of(model, example) -> torch.Tensor:
    return model(input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])).loss


def test_gradients_are_the_dense_ones_at_the_mask(make_federation):
    model, data = loaded(make_federation())
    example = data["ann"].train.examples[0]
    adapter = random_adapter(model.space, 0)
    set_dense(model.peft, model.space, adapter.dense())
    loss_of(model.peft, example).backward()
    dense = np.concatenate([w.grad.numpy().ravel() for w in dense_weights(model.peft).values()])
    model.peft.zero_grad()
    with compact_adapter(model, adapter) as vectors:
        loss_of(model.peft, example).backward()
        gradients = [vector.grad for vector in vectors.values()]
        assert sum(gradient.numel() for gradient in gradients) == adapter.budget
        assert_array_equal(np.concatenate([gradient.numpy() for gradient in gradients]), dense[adapter.mask])


class OptimiserSizes(TrainerCallback):
    """Records the sizes of the optimiser's parameters, gradients and state after each step."""

    def __init__(self):
        self.parameters: list[int] = []
        self.gradients: list[int] = []
        self.state: list[int] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.parameters.append(sum(p.numel() for p in parameters))
        self.gradients.append(sum(p.grad.numel() for p in parameters))

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        tensors = [t for entry in optimizer.state.values() for t in entry.values() if t.ndim]
        self.state.append(sum(t.numel() for t in tensors))


def test_gradients_and_optimiser_state_have_the_size_of_the_budget(make_federation):
    spec = make_federation()
    model, data = loaded(spec)
    adapter = random_adapter(model.space, 0)
    seen = OptimiserSizes()
    with compact_adapter(model, adapter) as vectors:
        trainable = [p for p in model.peft.parameters() if p.requires_grad]
        assert {id(p) for p in trainable} == {id(v) for v in vectors.values()}
        assert {v.dtype for v in vectors.values()} == {torch.float32}
        train(
            model.peft,
            data["ann"].train.examples,
            model.tokenizer,
            spec.training,
            steps=2,
            seed=0,
            callbacks=[seen],
        )
        assert np.any(read_values(vectors) != adapter.values)
    assert seen.parameters == seen.gradients == [adapter.budget] * 2
    assert seen.state == [2 * adapter.budget] * 2  # AdamW's two moments


def test_off_the_mask_stays_zero_and_the_backbone_as_it_was(make_federation):
    spec = make_federation()
    model, data = loaded(spec)
    before = base_hash(model.peft)
    set_dense(model.peft, model.space, np.ones(model.space.size, np.float32))
    adapter = random_adapter(model.space, 0)
    with compact_adapter(model, adapter) as vectors:
        train(model.peft, data["ann"].train.examples, model.tokenizer, spec.training, steps=3, seed=0)
        tuned = read_values(vectors)
        # Read what the forward pass uses.
        effective = np.concatenate([w.detach().numpy().ravel() for w in dense_weights(model.peft).values()])
        assert base_hash(model.peft) == before
    assert not effective[~adapter.mask].any()
    assert_array_equal(effective[adapter.mask], tuned)
    left = np.concatenate([w.detach().numpy().ravel() for w in dense_weights(model.peft).values()])
    assert_array_equal(left, effective)
    assert base_hash(model.peft) == before


def test_values_that_are_not_trained_stay_as_they_were(make_federation):
    spec = make_federation()
    model, data = loaded(spec)
    examples = data["ann"].train.examples
    adapter = random_adapter(model.space, 0, share=0.6)
    trained = adapter.mask & (np.random.default_rng(1).random(model.space.size) < 0.5)
    trained[next(iter(model.space.slices.values()))] = False  # a matrix that is frozen as a whole
    dense, frozen = adapter.dense(), adapter.mask & ~trained
    set_dense(model.peft, model.space, dense)
    loss_of(model.peft, examples[0]).backward()
    gradient = np.concatenate([w.grad.numpy().ravel() for w in dense_weights(model.peft).values()])
    model.peft.zero_grad()
    with compact(model.peft, model.space, dense, trained) as vectors:
        assert_array_equal(read_values(vectors), dense[trained])
        loss_of(model.peft, examples[0]).backward()
        assert_array_equal(np.concatenate([v.grad.numpy() for v in vectors.values()]), gradient[trained])
        model.peft.zero_grad()
        train(model.peft, examples, model.tokenizer, spec.training, steps=3, seed=0)
        tuned = read_values(vectors)
    left = np.concatenate([w.detach().numpy().ravel() for w in dense_weights(model.peft).values()])
    assert_array_equal(left[trained], tuned)
    assert np.any(tuned != dense[trained])
    assert_array_equal(left[frozen], dense[frozen])
    assert np.any(left[frozen])
    assert not left[~adapter.mask].any()


def test_after_compact_the_model_is_as_it_was(make_federation):
    model, data = loaded(make_federation())
    fresh, _ = loaded(make_federation())
    examples = data["ann"].held_out.examples
    before = structure(model.peft)
    for seed, share in [(0, 0.3), (1, 1.0), (2, 0.1)]:
        with compact_adapter(model, random_adapter(model.space, seed, share)):
            assert structure(model.peft) != before
        assert structure(model.peft) == before
    values = np.random.default_rng(3).random(model.space.size, dtype=np.float32)
    for other in (model, fresh):
        set_dense(other.peft, other.space, values)
    both = zip(logits(model.peft, examples), logits(fresh.peft, examples), strict=True)
    assert all(torch.equal(a, b) for a, b in both)


def test_after_an_error_within_compact_too(make_federation):
    model, _ = loaded(make_federation())
    before = structure(model.peft)
    with pytest.raises(KeyboardInterrupt), compact_adapter(model, random_adapter(model.space, 0)):
        raise KeyboardInterrupt
    assert structure(model.peft) == before


def test_a_matrix_of_which_nothing_survives(make_federation):
    spec = make_federation()
    model, data = loaded(spec)
    mask = np.ones(model.space.size, dtype=bool)
    empty, *others = model.space.slices
    mask[model.space.slices[empty]] = False
    set_dense(model.peft, model.space, np.ones(model.space.size, np.float32))
    values = model.space.initial_values(0)[mask]
    with compact_adapter(model, SparseAdapter(model.space, mask, values)) as vectors:
        assert list(vectors) == others
        assert vectors[others[0]].numel() == 128
        losses = train(model.peft, data["ann"].train.examples, model.tokenizer, spec.training, steps=2, seed=0)
        assert np.isfinite(losses).all()
        assert read_values(vectors).shape == values.shape
        assert not dense_weights(model.peft)[empty].any()
    assert all(weight.requires_grad for weight in dense_weights(model.peft).values())


def test_the_values_given_are_not_changed(make_federation):
    model, _ = loaded(make_federation())
    adapter = random_adapter(model.space, 0, share=1.0)
    kept = adapter.values.copy()
    with compact_adapter(model, adapter) as vectors, torch.no_grad():
        for vector in vectors.values():
            vector.add_(1)
    assert_array_equal(adapter.values, kept)
