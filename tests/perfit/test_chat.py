"""Where the assistant's turns are in what real chat templates write, and the labels that follow.

The templates are in `templates/`, as their models have them. The tokenizer is a small one that knows their special
tokens.
"""

# ruff: noqa: RUF001  DeepSeek's special tokens are written with such letters.
from __future__ import annotations

from datetime import datetime
from itertools import groupby
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from perfit.base_model import with_chat_template
from perfit.chat import render
from perfit.examples import IGNORE_INDEX, tokenize
from perfit.records import BadRecord, Message

from .tiny import tiny_tokenizer

TEMPLATES = {file.stem: file.read_text() for file in Path(__file__).with_name("templates").glob("*.jinja")}
SPECIAL = {  # (begin of text, end of text), and the other special tokens
    "llama": ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    "qwen": ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>"),
    "mistral": ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    "gemma": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    "phi": ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "smollm": ("<|endoftext|>", "<|im_end|>", "<|im_start|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
}
END = {
    "llama": "<|eot_id|>",
    "qwen": "<|im_end|>",
    "mistral": "</s>",
    "gemma": "<end_of_turn>",
    "phi": "<|end|>",
    "smollm": "<|im_end|>",
    "deepseek": "<｜end▁of▁sentence｜>",
}
STRIPS = ("llama", "gemma")  # These drop white space at the ends of a message.

SYSTEM = {"role": "system", "content": "Be brief."}


def talk(*contents: str) -> list[Message]:
    """A conversation of user and assistant by turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


TWO_TURNS = talk("What is two plus three?", "Five.", "Plus one?", "Six 🙂.")


def tokenizer_for(name: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(chat_template=False)
    begin, end, *others = SPECIAL[name.partition("-")[0]]
    tokenizer.add_special_tokens({"bos_token": begin, "eos_token": end, "additional_special_tokens": others})
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def with_loss(messages: list[Message], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The text of each run of tokens that have loss."""
    example = tokenize(messages, tokenizer, 4000)
    pairs = list(zip(example.input_ids, example.labels, strict=True))
    assert all(label in (token, IGNORE_INDEX) for token, label in pairs)
    runs = groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX)
    return [tokenizer.decode([token for token, _ in run]) for loss, run in runs if loss]


@pytest.fixture(params=sorted(TEMPLATES))
def name(request) -> str:
    return request.param


def test_every_model_of_the_list_has_its_template():
    families = {name.partition("-")[0] for name in TEMPLATES}
    assert families == set(SPECIAL) == set(END)


def test_each_turn_has_loss_from_its_first_word_to_its_end_token(name):
    end = END[name.partition("-")[0]]
    first, last = f"Five.{end}", f"Six 🙂.{end}"
    if name == "qwen-3":
        last = f"<think>\n\n</think>\n\n{last}"
    assert with_loss(TWO_TURNS, tokenizer_for(name)) == [first, last]


def test_the_text_is_the_templates_own_up_to_the_last_end(name):
    tokenizer = tokenizer_for(name)
    conversation = render(TWO_TURNS, tokenizer)
    whole = tokenizer.apply_chat_template(TWO_TURNS, tokenize=False)
    for form in ("%d %b %Y", "%d %B %Y", "%Y-%m-%d"):
        whole = whole.replace(datetime.now().strftime(form), datetime(2024, 7, 26).strftime(form))
    assert whole.startswith(conversation.text)
    tokens = tokenize(TWO_TURNS, tokenizer, 4000).input_ids
    assert tokens == tokenizer(conversation.text, add_special_tokens=False)["input_ids"]


def test_a_turn_begins_where_the_prompt_of_a_generation_ends(name):
    tokenizer = tokenizer_for(name)
    conversation = render(TWO_TURNS[:2], tokenizer)
    prompt = tokenizer.apply_chat_template(TWO_TURNS[:1], tokenize=False, add_generation_prompt=True)
    begins = conversation.text[: conversation.turns[0][0]]
    if name == "deepseek-r1-distill":  # It opens a thought that no given response has.
        assert prompt == begins + "<think>\n"
    else:
        assert prompt[-20:] == begins[-20:]


def test_white_space_around_a_response(name):
    family = name.partition("-")[0]
    end = END[family]
    response = with_loss(talk(" Two? \n", "\n Five. \n", "Plus one?", "Six."), tokenizer_for(name))[0]
    if family in STRIPS:
        assert response == f"Five.{end}"
    else:
        assert response.strip() == f"Five. \n{end}"


def test_a_system_message(name):
    messages = [SYSTEM, *TWO_TURNS]
    if name == "gemma-2":
        with pytest.raises(BadRecord, match="the model's chat template rejects it"):
            render(messages, tokenizer_for(name))
    else:
        assert with_loss(messages, tokenizer_for(name)) == with_loss(TWO_TURNS, tokenizer_for(name))


def test_thoughts_in_the_responses():
    messages = talk("Two?", "<think>\nHm.\n</think>\n\nFive.", "Plus one?", "<think>\nAdd.\n</think>\n\nSix.")
    assert with_loss(messages, tokenizer_for("qwen-3")) == [
        "Five.<|im_end|>",
        "<think>\nAdd.\n</think>\n\nSix.<|im_end|>",
    ]
    end = "<｜end▁of▁sentence｜>"
    assert with_loss(messages, tokenizer_for("deepseek-r1-distill")) == [f"\n\nFive.{end}", f"\n\nSix.{end}"]
    whole = "<think>\nAdd.\n</think>\n\nSix.<|im_end|>"
    assert with_loss(messages, tokenizer_for("qwen-2.5"))[1] == whole


@pytest.mark.parametrize("name", ["llama-3.1", "llama-3.2", "mistral-small-3.2"], indirect=True)
def test_the_date_is_the_same_every_day(name):
    tokenizer = tokenizer_for(name)
    text = render(TWO_TURNS, tokenizer).text
    assert any(date in text for date in ("Today Date: 26 Jul 2024", "The current date is 2024-07-26"))
    today = tokenizer.apply_chat_template(TWO_TURNS, tokenize=False)
    assert today.startswith(text) == (name == "llama-3.1"), "that one's template has a date of its own"
    assert with_chat_template(tokenizer).apply_chat_template(TWO_TURNS, tokenize=False).startswith(text)


def test_smollm2_has_the_labels_that_it_had():
    """As prompts and responses were once tokenised: one by one."""
    tokenizer = tokenizer_for("smollm-2")
    for messages in (TWO_TURNS, [SYSTEM, *TWO_TURNS], talk("Line\n\none?", "Two  words \n", "Three?", " four")):
        ids, labels, done = [], [], ""
        for i in range(1, len(messages)):
            if messages[i]["role"] != "assistant":
                continue
            prompt = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
            turn = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False).rstrip()
            for text, has_loss in ((prompt[len(done) :], False), (turn[len(prompt) :], True)):
                tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
                ids += tokens
                labels += tokens if has_loss else [IGNORE_INDEX] * len(tokens)
            done = turn
        example = tokenize(messages, tokenizer, 4000)
        assert (example.input_ids, example.labels) == (ids, labels)


def test_a_tokenizer_that_puts_a_space_before_a_text():
    """As SentencePiece does: a response tokenised by itself would begin with another token than within the whole."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    words = ["[INST] What is two plus three? [/INST] Five. Six. Plus one?"] * 3
    backend.train_from_iterator(words, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ '[INST] ' + message.content + ' [/INST]'"
        " if message.role == 'user' else message.content + eos_token }}{% endfor %}"
    )
    messages = talk("What is two plus three?", "Five.", "Plus one?", "Six.")
    example = tokenize(messages, tokenizer, 400)
    assert example.input_ids == tokenizer(render(messages, tokenizer).text, add_special_tokens=False)["input_ids"]
    apart = tokenizer("Five.", add_special_tokens=False)["input_ids"]
    labelled = [token for token in example.labels if token != IGNORE_INDEX]
    assert labelled[: len(apart)] != apart
    assert [text.strip() for text in with_loss(messages, tokenizer)] == ["Five.</s>", "Six.</s>"]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages[0].content }}", "leaves out a response or its prompt"),
        (
            "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else '...' }}{% endfor %}",
            "leaves out",
        ),
        ("{% for m in messages %}{{ m.content | length }}{{ m.content }}{% endfor %}", "where its turns are cannot be"),
        (
            "{% for m in messages %}{{ '(long)' if '.' in m.content else '(short)' }}{{ m.content }}{% endfor %}"
            "{{ '(answer)' if add_generation_prompt }}",
            "where a response begins cannot be told",
        ),
        ("{{ messages[7].content }}", "the model's chat template rejects it"),
        ("{{ raise_exception('no') }}", "the model's chat template rejects it"),
        ("{{ 1 + messages[0].content }}", "the model's chat template rejects it"),
    ],
)
def test_a_template_whose_turns_cannot_be_found(template, problem):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(BadRecord, match=problem):
        render(TWO_TURNS, tokenizer)
