"""Greedy answers to held-out records, and how well they match the records' own."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from perfit.examples import IGNORE_INDEX, Example


def last_turn(example: Example) -> tuple[list[int], list[int]]:
    """Return the tokens before the last response, and those of that response."""
    start = len(example.labels)
    while start and example.labels[start - 1] != IGNORE_INDEX:
        start -= 1
    return example.input_ids[:start], example.input_ids[start:]


def greedy_answers(
    model: PreTrainedModel,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    batch_size: int,
) -> list[tuple[str, str]]:
    """Let a model answer the last turn of examples, always with the likeliest token.

    Args:
        model: A causal language model; its LoRA as it is.
        examples: None of them truncated.
        tokenizer: The model's.
        tokens: Maximum length of an answer.
        batch_size: Prompts answered at a time, padded on the left.

    Returns:
        Each answer, and what the record has in its place.
    """
    model.eval()
    turns = [last_turn(example) for example in examples]
    # A turn ends as the template ends it, which need not be the tokenizer's end of text.
    special = set(tokenizer.all_special_ids)
    stops = {tokenizer.eos_token_id, *(answer[-1] for _, answer in turns if answer[-1] in special)} - {None}
    answers: list[str] = []
    for first in range(0, len(turns), batch_size):
        prompts = [torch.tensor(prompt) for prompt, _ in turns[first : first + batch_size]]
        masks = [torch.ones_like(prompt) for prompt in prompts]
        ids = pad_sequence(prompts, batch_first=True, padding_value=tokenizer.pad_token_id, padding_side="left")
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=pad_sequence(masks, batch_first=True, padding_side="left").to(model.device),
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted(stops),
        )
        answers += tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    references = tokenizer.batch_decode([answer for _, answer in turns], skip_special_tokens=True)
    return list(zip(answers, references, strict=True))


def exact_match(answer: str, reference: str) -> bool:
    """Whether two texts are equal but for white space at their ends and the kind of it between words."""
    return answer.split() == reference.split()


def rouge_l(answer: str, reference: str) -> float:
    """Return the F-measure of the longest common subsequence of words, lower case (ROUGE-L, Lin, 2004).

    >>> rouge_l("The cat sat.", "the cat lay, then sat")  # 3 common words of 3 and of 5
    0.75

    Words are runs of letters and digits of any script, not stemmed. Two texts without words match.
    """
    words, wanted = (re.findall(r"\w+", text.lower()) for text in (answer, reference))
    if not words or not wanted:
        return float(words == wanted)
    common = [0] * (len(wanted) + 1)  # Lengths with the words so far, by prefix of those wanted.
    for word in words:
        diagonal = 0
        for i, other in enumerate(wanted, start=1):
            diagonal, common[i] = common[i], diagonal + 1 if word == other else max(common[i], common[i - 1])
    return 2 * common[-1] / (len(words) + len(wanted))
