"""Perplexity, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from perfit.evaluation import perplexity
from perfit.examples import IGNORE_INDEX, Example
from perfit.models import load_model, load_tokenizer

from .tiny import loaded

SKIP = IGNORE_INDEX


class Bigrams(torch.nn.Module):
    """A model whose next token depends only on the last one: its logits are a table."""

    def __init__(self, table: list[list[float]]):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(table))
        self.output = torch.nn.Identity()

    def get_output_embeddings(self):
        return self.output

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.output(self.table[input_ids]))


def test_uniform_logits_give_the_size_of_the_vocabulary(make_federation, tiny_llama):
    _, data = loaded(make_federation())
    model = load_model(tiny_llama, "float32")
    torch.nn.init.zeros_(model.lm_head.weight)
    result = perplexity(model, data["ann"].held_out.examples, load_tokenizer(tiny_llama), 2)
    assert result == pytest.approx(320, rel=1e-6)


# Odds of the next token after 0: 1:1:2, after 1: 1:3:4, after 2: 1:1:0 (nearly).
TABLE = [[0.0, 0.0, math.log(2)], [0.0, math.log(3), math.log(4)], [0.0, 0.0, -80.0]]
EXAMPLES = [
    Example([0, 2, 1, 2, 0], [SKIP, 2, SKIP, 2, 0]),  # 2 after 0: 1/2; 2 after 1: 1/2; 0 after 2: 1/2
    Example([0, 1, 1], [SKIP, SKIP, 1]),  # 1 after 1: 3/8
    Example([1, 0], [1, 0]),  # the first token is never predicted; 0 after 1: 1/8
]


def test_logits_of_half_precision_are_taken_to_float32(tiny_tokenizer):
    model = Bigrams([[0.0] * 3] * 3).bfloat16()
    assert perplexity(model, EXAMPLES, tiny_tokenizer, 2) == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_every_response_token_counts_once(tiny_tokenizer, batch_size):
    product = 1 / 2 * 1 / 2 * 1 / 2 * 3 / 8 * 1 / 8
    result = perplexity(Bigrams(TABLE), EXAMPLES, tiny_tokenizer, batch_size)
    assert result == pytest.approx(product ** (-1 / 5), rel=1e-6)


def test_the_batch_size_does_not_matter(make_federation):
    model, data = loaded(make_federation())
    examples = [*data["ann"].train.examples, *data["bob"].train.examples]
    assert len({len(example.input_ids) for example in examples}) > 2
    results = [perplexity(model.peft, examples, model.tokenizer, size) for size in (1, 3, 10)]
    assert results == pytest.approx([results[0]] * 3, rel=1e-5)


def test_it_agrees_with_the_models_own_loss(make_federation):
    model, data = loaded(make_federation())
    example = data["ann"].held_out.examples[0]
    own = model.peft(input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])).loss
    assert perplexity(model.peft, [example], model.tokenizer, 1) == pytest.approx(own.exp().item(), rel=1e-5)


def test_dropout_is_off_and_parameters_still_train(make_federation, tiny_gpt2):
    spec = make_federation(model=tiny_gpt2, lora={"target_modules": ["c_attn"]})
    model, data = loaded(spec)
    model.peft.train()
    first, second = (perplexity(model.peft, data["ann"].held_out.examples, model.tokenizer, 2) for _ in "ab")
    assert first == second
    example = data["ann"].held_out.examples[0]
    loss = model.peft(input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])).loss
    loss.backward()


def test_a_perplexity_beyond_a_float_is_infinite(tiny_tokenizer):
    # exp(1000) is beyond a float64.
    model = Bigrams([[0.0, -1000.0], [0.0, 0.0]])
    assert perplexity(model, [Example([0, 1], [SKIP, 1])], tiny_tokenizer, 1) == math.inf
