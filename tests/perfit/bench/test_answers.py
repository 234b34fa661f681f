"""Greedy answers of a tiny model, and scores worked out by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from perfit.bench.answers import exact_match, greedy_answers, last_turn, rouge_l
from perfit.examples import Example, tokenize
from perfit.records import to_messages


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("a b c d", "a b c d", 1),
        ("a b c d", "a c d", 6 / 7),  # 3 common words of 4 and of 3
        ("b a", "a b", 1 / 2),  # one in order
        ("a a a", "a", 1 / 2),
        ("Größe: 3", "größe 3!", 1),
        ("x", "y", 0),
        ("", "y", 0),
        ("x", "", 0),
        ("?", "!", 1),
    ],
)
def test_rouge_l(answer, reference, score):
    assert rouge_l(answer, reference) == pytest.approx(score)


def test_exact_match_ignores_white_space_alone():
    assert exact_match(" two\nlines ", "two lines")
    assert not exact_match("Two", "two")
    assert not exact_match("two", "two lines")


def test_the_last_turn_of_a_conversation():
    ignored = -100
    example = Example([1, 2, 3, 4, 5, 6], [ignored, 2, ignored, ignored, 5, 6])
    assert last_turn(example) == ([1, 2, 3, 4], [5, 6])


@pytest.fixture(scope="module")
def model(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama)


def examples_of(tokenizer) -> list[Example]:
    records = [("Name the capital of France.", "Paris."), ("Two plus three?", "Two plus three is five.")]
    return [tokenize(to_messages({"instruction": q, "output": a}), tokenizer, 128) for q, a in records]


def test_answers_are_greedy_however_they_are_batched(model, tiny_tokenizer):
    examples = examples_of(tiny_tokenizer)
    pairs = greedy_answers(model, examples, tiny_tokenizer, tokens=6, batch_size=2)
    assert [reference for _, reference in pairs] == ["Paris.", "Two plus three is five."]
    for example, (answer, _) in zip(examples, pairs, strict=True):
        ids, _ = last_turn(example)
        for _ in range(6):
            with torch.no_grad():
                ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
        assert answer == tiny_tokenizer.decode(ids[-6:], skip_special_tokens=True)


def test_an_answer_ends_where_the_template_ends_a_turn(model, tiny_tokenizer):
    examples = examples_of(tiny_tokenizer)
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        biased = model.get_output_embeddings().weight[end].clone()
        model.get_output_embeddings().weight[end] *= 0
        hidden = model.model(torch.tensor([last_turn(examples[0])[0]])).last_hidden_state[0, -1]
        model.get_output_embeddings().weight[end] = 100 * hidden  # the next token, whatever the others say
        ((answer, _),) = greedy_answers(model, examples[:1], tiny_tokenizer, tokens=6, batch_size=1)
        model.get_output_embeddings().weight[end] = biased
    assert answer == ""
