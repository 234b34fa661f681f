"""Loss and perplexity of a model on a client's responses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from perfit import processes
from perfit.examples import Example
from perfit.responses import only_responses, response_tokens
from perfit.training import features


def perplexity(
    model: torch.nn.Module, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> float:
    """Return exp of :func:`mean_loss`, infinite if that is too large for a float."""
    loss = mean_loss(model, examples, tokenizer, batch_size)
    return math.exp(loss) if loss < 709 else math.inf


def mean_loss(
    model: torch.nn.Module, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> float:
    """Return the mean negative log-likelihood over all response tokens of the examples, in nats.

    Logits are converted to float32 and losses summed in float64. How the examples are batched does not change the
    result, except through the rounding of the model itself. Several processes divide the batches among them; each
    batch's sum is of one of them, so that all have the same result, and that of one process.
    """
    model.eval()
    device = next(model.parameters()).device
    # Longest first: batches of similar lengths need the least padding.
    ordered = sorted(examples, key=lambda example: len(example.input_ids), reverse=True)
    parts = [range(at, min(at + batch_size, len(ordered))) for at in range(0, len(ordered), batch_size)]
    own = range(processes.index(), len(parts), processes.count())
    batches = DataLoader(
        [features(example) for example in ordered],
        batch_sampler=[parts[number] for number in own],
        collate_fn=DataCollatorForSeq2Seq(tokenizer),
    )
    sums = torch.zeros(len(parts), 2, dtype=torch.float64)
    with torch.inference_mode():
        for number, batch in zip(own, batches, strict=True):
            labels = batch.pop("labels").to(device)
            with only_responses(model, labels):
                logits = model(**batch.to(device)).logits
            response = response_tokens(labels)
            losses = F.cross_entropy(logits.float(), response, reduction="none")
            sums[number, 0], sums[number, 1] = losses.double().sum().item(), response.numel()
    total, tokens = 0.0, 0.0
    for loss, count in processes.total(sums).tolist():
        total, tokens = total + loss, tokens + count
    return total / tokens
