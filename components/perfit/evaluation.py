"""Loss and perplexity of a model on a client's responses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from perfit import processes
from perfit.examples import Example
from perfit.responses import only_responses, response_counts, response_tokens
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

    Losses are added in float64. How the examples are batched does not change the result, except through the rounding of
    the model itself.
    """
    loss, tokens = example_losses(model, examples, tokenizer, batch_size).sum(axis=0)
    return float(loss / tokens)


def example_losses(
    model: torch.nn.Module, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> np.ndarray:
    """Return the negative log-likelihood of each example's response, in nats, and the number of its tokens.

    Logits are converted to float32. Several processes divide the batches among them; each example is of one of them, so
    that all have the same result, and that of one process.

    Returns:
        float64, shape (examples, 2), in the order of the examples.
    """
    model.eval()
    device = next(model.parameters()).device
    # Longest first: batches of similar lengths need the least padding.
    order = sorted(range(len(examples)), key=lambda at: len(examples[at].input_ids), reverse=True)
    parts = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    own = parts[processes.index() :: processes.count()]
    batches = DataLoader(
        [features(example) for example in examples], batch_sampler=own, collate_fn=DataCollatorForSeq2Seq(tokenizer)
    )
    sums = torch.zeros(len(examples), 2, dtype=torch.float64)
    with torch.inference_mode():
        for part, batch in zip(own, batches, strict=True):
            labels = batch.pop("labels").to(device)
            with only_responses(model, labels):
                logits = model(**batch.to(device)).logits
            losses = F.cross_entropy(logits.float(), response_tokens(labels), reduction="none").double().cpu()
            counts = response_counts(labels).tolist()
            for at, of_example in zip(part, losses.split(counts), strict=True):
                sums[at, 0], sums[at, 1] = of_example.sum(), len(of_example)
    return processes.total(sums).numpy()
