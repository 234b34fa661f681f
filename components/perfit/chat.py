"""Conversations rendered by a model's chat template, and where each of the assistant's turns is in the text.

A turn is what the model generates: it begins where the prompt of a generation ends, and ends with the end-of-turn
token. Templates rewrite as they like: Qwen 3 drops the thoughts of earlier turns and gives the last one empty ones,
DeepSeek-R1 opens a thought in the prompt alone, Mistral moves the system message, Gemma strips white space, and Phi
ends what it takes for a whole conversation. So the text is rendered once as it is and once with a mark at the end of
every message; without its marks the second must be the first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from perfit.errors import log_error
from perfit.records import BadRecord, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = (
    "{% set labels = {'system': 'System', 'user': 'Instruction', 'assistant': 'Response'} %}"
    "{% for message in messages %}"
    "{{ '### ' + labels[message.role] + ':\\n' + message.content }}"
    "{{ (eos_token or '') if message.role == 'assistant' else '' }}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{{ '### Response:\\n' if add_generation_prompt else '' }}"
)
"""The Jinja chat template for models that have none of their own."""

_TODAY = datetime(2024, 7, 26)  # What Llama 3's templates say where they cannot ask for the date.
_DIRECTIVES = [f"%{letter}" for letter in (*"aAbBcdeHIjmMpSxXyY", "-d", "-m")]
# transformers passes no functions to a template, so a macro takes the place of its own. Jinja drops the line break.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{directive}', '{_TODAY.strftime(directive)}')" for directive in _DIRECTIVES)
    + " }}{% endmacro %}\n"
)
# Noncharacters of Unicode, which are for use within a program.
_MARK = re.compile("\ufdd0([0-9]{1,9})\ufdd1")


@dataclass(frozen=True)
class Conversation:
    """A conversation as the model reads it.

    Args:
        text: Up to the end of the last turn, special tokens included.
        turns: (first character, character after the last) of each of the assistant's turns.
    """

    text: str
    turns: tuple[tuple[int, int], ...]


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> Conversation:
    """Render messages by the tokenizer's chat template, or by `PLAIN_TEMPLATE` if it has none.

    The text depends on nothing else: where a template asks for the date it is 26 July 2024.

    Args:
        messages: What `perfit.records.to_messages` returns.
        tokenizer: The model's tokenizer.

    Raises:
        BadRecord: The template does not fit the record, or the place of a response cannot be told.
    """
    marked = _with_marks(messages)
    text, places = _unmark(_apply(marked, tokenizer))
    if text != _apply(messages, tokenizer):
        raise BadRecord("chat template: where its turns are cannot be told")
    responses = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not all(i - 1 in places and i in places for i in responses):
        raise BadRecord("chat template leaves out a response or its prompt")
    turns = []
    for i in responses:
        start = _start(text, places[i - 1], marked, i, tokenizer)
        turns.append((start, _end(text, places[i], marked, i, tokenizer)))
    return Conversation(text[: turns[-1][1]], tuple(turns))


def _with_marks(messages: Sequence[Message]) -> list[Message]:
    """Put a mark behind the last word of each message: a template may strip the white space after it."""
    marked = []
    for i, message in enumerate(messages):
        words = message["content"].rstrip()
        content = f"{words}{_mark(i)}{message['content'][len(words) :]}"
        marked.append({"role": message["role"], "content": content})
    return marked


def _mark(i: int) -> str:
    return f"\ufdd0{i}\ufdd1"


def _unmark(text: str) -> tuple[str, dict[int, int]]:
    """Return the text without marks, and by message the place in it where its mark was."""
    places, plain, done = {}, "", 0
    for mark in _MARK.finditer(text):
        plain += text[done : mark.start()]
        done = mark.end()
        places[int(mark[1])] = len(plain)
    return plain + text[done:], places


def _start(text: str, place: int, marked: Sequence[Message], i: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return where turn i begins, given the place where the message before it ends."""
    prompt = _apply(marked[:i], tokenizer, add_generation_prompt=True).rpartition(_mark(i - 1))[2]
    if text.startswith(prompt, place):
        return place + len(prompt)
    # DeepSeek-R1: the prompt of a generation goes on where a response that is given does not.
    short = {"role": "assistant", "content": _mark(i)}
    prompt = (
        _apply([*marked[:i], short, *marked[i + 1 :]], tokenizer).rpartition(_mark(i - 1))[2].partition(_mark(i))[0]
    )
    if text.startswith(prompt, place):
        return place + len(prompt)
    raise BadRecord("chat template: where a response begins cannot be told")


def _end(text: str, place: int, marked: Sequence[Message], i: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return where turn i ends, given the place where its last word does.

    What a template adds after the end-of-turn token (ChatML: a line break) is never generated.
    """
    closing = _apply(marked[: i + 1], tokenizer).rpartition(_mark(i))[2]
    rest = closing.lstrip()
    tokens = [token for token in tokenizer.get_added_vocab() if rest.startswith(token)]
    if tokens:
        closing = closing[: len(closing) - len(rest) + max(map(len, tokens))]
    return place + len(closing) if text.startswith(closing, place) else place


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template that a model is tuned with: its own, with a fixed date for today's, or `PLAIN_TEMPLATE`."""
    if tokenizer.chat_template is None:
        # A model's own template writes the bos token itself; the plain one does not, though the tokenizer would add it.
        adds_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        return ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE
    template = tokenizer.get_chat_template()
    return _FIXED_DATE + template if "strftime_now" in template else template


def _apply(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False
) -> str:
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=chat_template(tokenizer),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            date_string=_TODAY.strftime("%d %b %Y"),
        )
    except Exception as error:  # The template is a program of the model's owner.
        log_error("chat template", error)
        raise BadRecord("the model's chat template rejects it") from error
