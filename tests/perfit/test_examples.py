"""Tokens and labels of records, the layout of each template, and the held-out split."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from perfit.errors import PerfitError
from perfit.examples import IGNORE_INDEX, Example, ExampleSet, load_examples, split_held_out, tokenize
from perfit.records import BadRecord

from .tiny import tiny_tokenizer as make_tokenizer

QUESTION = {"role": "user", "content": "What is two plus three?"}
ANSWER = {"role": "assistant", "content": "Five."}
TWO_TURNS = [
    {"role": "system", "content": "Be brief."},
    QUESTION,
    ANSWER,
    {"role": "user", "content": "Plus one?"},
    {"role": "assistant", "content": "Six. "},
]


def spans(example: Example, tokenizer) -> list[tuple[bool, str]]:
    """(has loss, text) of each run of tokens."""
    pairs = list(zip(example.input_ids, example.labels, strict=True))
    assert all(label in (token, IGNORE_INDEX) for token, label in pairs)
    runs = groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX)
    return [(loss, tokenizer.decode([token for token, _ in run])) for loss, run in runs]


def test_loss_on_the_response_and_its_end_of_turn(tiny_tokenizer):
    example = tokenize([QUESTION, ANSWER], tiny_tokenizer, 100)
    assert spans(example, tiny_tokenizer) == [
        (False, "<|im_start|>user\nWhat is two plus three?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "Five.<|im_end|>"),
    ]


def test_every_assistant_turn_has_loss(tiny_tokenizer):
    assert spans(tokenize(TWO_TURNS, tiny_tokenizer, 200), tiny_tokenizer) == [
        (
            False,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is two plus three?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (True, "Five.<|im_end|>"),
        (False, "\n<|im_start|>user\nPlus one?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "Six. <|im_end|>"),
    ]


def test_the_prompt_is_tokenised_as_at_generation(tiny_tokenizer):
    example = tokenize([QUESTION, ANSWER], tiny_tokenizer, 100)
    prompt = tiny_tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True)["input_ids"]
    assert example.input_ids[: len(prompt)] == prompt
    assert example.labels[: len(prompt) + 1] == [IGNORE_INDEX] * len(prompt) + [example.input_ids[len(prompt)]]


def test_the_plain_layout_of_a_model_without_template():
    tokenizer = make_tokenizer(chat_template=False)
    assert spans(tokenize(TWO_TURNS, tokenizer, 200), tokenizer) == [
        (
            False,
            "<s>### System:\nBe brief.\n\n### Instruction:\nWhat is two plus three?\n\n### Response:\n",
        ),
        (True, "Five.<|im_end|>"),
        (False, "\n\n### Instruction:\nPlus one?\n\n### Response:\n"),
        (True, "Six. <|im_end|>"),
    ]


def test_the_plain_layout_without_special_tokens():
    tokenizer = make_tokenizer(chat_template=False)
    tokenizer.bos_token = tokenizer.eos_token = None
    assert spans(tokenize([QUESTION, ANSWER], tokenizer, 100), tokenizer) == [
        (False, "### Instruction:\nWhat is two plus three?\n\n### Response:\n"),
        (True, "Five.\n\n"),
    ]


def test_truncation_on_the_right(tiny_tokenizer):
    whole = tokenize([QUESTION, ANSWER], tiny_tokenizer, 100)
    length = len(whole.input_ids)
    assert tokenize([QUESTION, ANSWER], tiny_tokenizer, length) == whole
    cut = tokenize([QUESTION, ANSWER], tiny_tokenizer, length - 1)
    assert cut == Example(whole.input_ids[:-1], whole.labels[:-1], truncated=True)


def test_a_prompt_that_fills_the_sequence(tiny_tokenizer):
    example = tokenize([QUESTION, ANSWER], tiny_tokenizer, 100)
    prompt = example.labels.count(IGNORE_INDEX)
    assert len(tokenize([QUESTION, ANSWER], tiny_tokenizer, prompt + 1).input_ids) == prompt + 1
    with pytest.raises(BadRecord, match=rf"prompt alone has {prompt} tokens .* training\.sequence_length"):
        tokenize([QUESTION, ANSWER], tiny_tokenizer, prompt)


def test_a_template_that_rewrites_earlier_turns():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message.content", "(message.content if loop.last or message.role != 'assistant' else '...')"
    )
    assert tokenize([QUESTION, ANSWER], tokenizer, 100).input_ids
    with pytest.raises(BadRecord, match="chat template rewrites earlier turns"):
        tokenize(TWO_TURNS, tokenizer, 200)


def test_a_template_that_leaves_out_the_response():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(BadRecord, match="chat template leaves out the response"):
        tokenize([QUESTION, ANSWER], tokenizer, 100)


def test_a_template_that_refuses_a_record():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + tokenizer.chat_template
    )
    with pytest.raises(BadRecord, match="the model's chat template rejects it"):
        tokenize(TWO_TURNS, tokenizer, 200)


def write(path: Path, records: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_load_examples_names_what_it_leaves_out(tmp_path, tiny_tokenizer):
    records = [
        {"instruction": "Name the capital of France.", "response": "Paris. " * 40},
        {"instruction": "What is two plus three?"},
        {"instruction": "plus " * 60, "output": "Five."},
        {"instruction": "What is two plus three?", "output": "Five."},
    ]
    source = write(tmp_path / "a.jsonl", records)

    examples = load_examples(source, tiny_tokenizer, 60, "skip")

    assert examples.lines == (1, 4)
    assert [len(example.input_ids) <= 60 for example in examples.examples] == [True, True]
    assert examples.truncated == 1
    assert [line for line, _ in examples.skipped] == [2, 3]
    with pytest.raises(PerfitError, match="2 of 4 records cannot be used: line 2: no response; line 3: the prompt"):
        load_examples(source, tiny_tokenizer, 60, "refuse")


def example_set(n: int) -> ExampleSet:
    return ExampleSet(
        "a.jsonl", tuple(Example([i], [i], i == 0) for i in range(n)), tuple(range(1, n + 1)), ((99, "bad"),)
    )


@pytest.mark.parametrize(
    ("n", "fraction", "held"), [(10, 0.2, 2), (2, 0.2, 1), (2, 0.9, 1), (7, 0.001, 1), (7, 0.99, 6)]
)
def test_held_out_sizes(n, fraction, held):
    train, held_out = split_held_out(example_set(n), fraction, seed=0)
    assert (len(train.examples), len(held_out.examples)) == (n - held, held)
    assert sorted(train.lines + held_out.lines) == list(range(1, n + 1))
    assert all(e.input_ids == [line - 1] for e, line in zip(train.examples, train.lines, strict=True))
    assert train.truncated + held_out.truncated == 1
    assert (train.skipped, held_out.skipped) == (((99, "bad"),), ())


def test_the_held_out_split_follows_its_seed():
    splits = [split_held_out(example_set(50), 0.2, seed)[1].lines for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert np.all(np.diff(splits[0]) > 0)


@pytest.mark.parametrize(("n", "fraction"), [(1, 0.2), (10, 0.0), (10, 1.0), (10, float("nan"))])
def test_impossible_splits(n, fraction):
    with pytest.raises(PerfitError, match=r"^a\.jsonl: "):
        split_held_out(example_set(n), fraction, seed=0)
