"""Answers of a model in a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from perfit.errors import PerfitError, printable
from perfit.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer

_TURN = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    max_tokens: int,
    temperature: float = 0.0,
    streamer: BaseStreamer | None = None,
) -> str:
    """Return a model's answer to a conversation.

    Args:
        model: A causal language model, with or without a LoRA.
        tokenizer: Its tokenizer, with a chat template.
        messages: The conversation; the last one is the user's.
        max_tokens: Maximum length of the answer.
        temperature: Of the sampling; 0 for always the likeliest token.
        streamer: Is given each token of the prompt and the answer as it is known.

    Raises:
        PerfitError: The chat template rejects the conversation, or it is longer than the model's context.
    """
    prompt = _render(tokenizer, messages, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
    length, context = ids["input_ids"].shape[1], getattr(model.config, "max_position_embeddings", None)
    if context and length >= context:
        raise PerfitError(
            f"the conversation has {length} tokens, but the model's context only {context}", "start a new conversation"
        )
    model.eval()
    output = model.generate(
        **ids,
        max_new_tokens=min(max_tokens, context - length) if context else max_tokens,
        # Without sampling, a temperature of the model's own generation settings would be warned of.
        **{"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False, "temperature": None},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_stops(tokenizer),
        streamer=streamer,
    )
    return tokenizer.decode(output[0, length:], skip_special_tokens=True).strip()


def _stops(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: a turn ends as the template ends it, which need not be the end of text."""
    special = set(tokenizer.all_special_ids)
    turn = tokenizer(_render(tokenizer, _TURN).rstrip(), add_special_tokens=False)["input_ids"]
    return sorted({tokenizer.eos_token_id, *(token for token in turn[-1:] if token in special)})


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: bool) -> str:
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except TemplateError as error:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise PerfitError(
            f"the model's chat template rejects a conversation of {roles}: {printable(str(error))}",
            "leave out --system" if "system" in roles else "use a model whose template takes conversations",
        ) from error


def set_quiet() -> None:
    """Let transformers print neither progress nor warnings: what is on the terminal is the conversation."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
