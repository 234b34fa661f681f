"""Tokens and labels of records, the layout of each template, and the held-out split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import groupby, pairwise
from pathlib import Path

import pytest

from perfit.errors import PerfitError
from perfit.examples import IGNORE_INDEX, Example, ExampleSet, draw_held_out, load_examples, split_held_out, tokenize
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


def example_set(texts: Iterable[str]) -> ExampleSet:
    """One example for each text; the first is truncated."""
    digests = tuple(hashlib.sha256(text.encode()).digest() for text in texts)
    count = len(digests)
    examples = tuple(Example([i], [i], i == 0) for i in range(count))
    return ExampleSet("a.jsonl", examples, tuple(range(1, count + 1)), digests, ((99, "bad"),))


def numbered(count: int) -> ExampleSet:
    return example_set(map(str, range(count)))


@pytest.mark.parametrize("split", [draw_held_out, split_held_out])
@pytest.mark.parametrize(("n", "fraction"), [(10, 0.2), (2, 0.001), (2, 0.999), (7, 0.001), (7, 0.999), (100, 0.2)])
def test_both_parts_have_records_and_together_all(split, n, fraction):
    train, held_out = split(numbered(n), fraction, seed=0)
    assert min(len(train.lines), len(held_out.lines)) > 0
    assert sorted(train.lines + held_out.lines) == list(range(1, n + 1))
    for part in (train, held_out):
        assert list(part.lines) == sorted(part.lines)
        assert [e.input_ids for e in part.examples] == [[line - 1] for line in part.lines]
        assert list(part.digests) == [numbered(n).digests[line - 1] for line in part.lines]
    assert train.truncated + held_out.truncated == 1
    assert (train.skipped, held_out.skipped) == (((99, "bad"),), ())


@pytest.mark.parametrize("split", [draw_held_out, split_held_out])
def test_a_split_follows_its_seed(split):
    splits = [split(numbered(50), 0.2, seed)[1].lines for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize(
    ("n", "fraction", "held"), [(10, 0.2, 2), (2, 0.2, 1), (2, 0.9, 1), (7, 0.001, 1), (7, 0.99, 6)]
)
def test_sizes_of_a_split_by_count(n, fraction, held):
    assert len(draw_held_out(numbered(n), fraction, seed=0)[1].lines) == held


@pytest.mark.parametrize(("n", "fraction"), [(1, 0.2), (10, 0.0), (10, 1.0), (10, float("nan"))])
def test_impossible_splits_by_count(n, fraction):
    with pytest.raises(PerfitError, match=r"^a\.jsonl: "):
        draw_held_out(numbered(n), fraction, seed=0)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_a_split_by_hash_holds_out_about_its_fraction(fraction):
    held = len(split_held_out(numbered(10_000), fraction, seed=0)[1].lines)
    assert abs(held / 10_000 - fraction) < 4 * (fraction * (1 - fraction) / 10_000) ** 0.5


def said(part: ExampleSet) -> set[bytes]:
    return set(part.digests)


@pytest.mark.parametrize("seed", range(5))
def test_what_was_trained_on_is_not_held_out_when_the_file_has_grown(seed):
    for more in (5, 500):
        (train, held_out), (later_train, later_held_out) = (
            split_held_out(numbered(n), 0.2, seed) for n in (1000, 1000 + more)
        )
        assert not said(train) & said(later_held_out)
        assert said(train) <= said(later_train)
        assert said(held_out) <= said(later_held_out)


def test_a_few_records_that_grow_one_by_one():
    for seed in range(100):
        parts = [split_held_out(numbered(n), 0.2, seed) for n in range(5, 40)]
        assert not any(said(train) & said(held) for (train, _), (_, held) in pairwise(parts))


def test_the_order_of_the_records_does_not_matter():
    one, other = (split_held_out(example_set(map(str, order)), 0.2, 0) for order in (range(50), reversed(range(50))))
    assert [said(part) for part in one] == [said(part) for part in other]


def test_records_that_say_the_same_are_on_one_side():
    for seed in range(20):
        train, held_out = split_held_out(example_set(["a", "b", "c", "a", "b", "c", "a"]), 0.3, seed)
        assert not said(train) & said(held_out)
        assert len(train.lines) + len(held_out.lines) == 7


@pytest.mark.parametrize("texts", ["a", "aaa"])
def test_records_that_all_say_the_same_cannot_be_split(texts):
    with pytest.raises(PerfitError, match=r"^a\.jsonl: \d usable record\(s\), all of the same messages"):
        split_held_out(example_set(texts), 0.2, seed=0)


def test_one_text_in_three_schemas_has_one_digest(tmp_path, tiny_tokenizer):
    records = [
        {"instruction": "Plus?", "input": "2 3", "output": "5"},
        {"context": "2 3", "instruction": "Plus?", "response": "5", "category": "sums"},
        {
            "messages": [
                {"role": "user", "content": "Plus?\n\n2 3", "name": "ann"},
                {"content": "5", "role": "assistant"},
            ]
        },
        {"instruction": "Plus?", "output": "5"},
    ]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    digests = load_examples(str(source), tiny_tokenizer, 60).digests
    assert digests[0] == digests[1] == digests[2] != digests[3]
