"""Logits of response tokens alone: the others are more than half of the work of a model's output layer, for no loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional as F

from perfit.examples import IGNORE_INDEX


@contextmanager
def only_responses(model: torch.nn.Module, labels: torch.Tensor) -> Iterator[None]:
    """Within the context, a model gives the logits that predict response tokens, of shape (R, size of the vocabulary).

    Args:
        model: A causal language model.
        labels: Of the batch that it is about to see: int64, shape (examples, tokens), ``IGNORE_INDEX`` but for R
            response tokens.
    """
    positions = F.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))

    def select(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return inputs[0][positions.to(inputs[0].device)]

    with model.get_output_embeddings().register_forward_pre_hook(select):
        yield


def response_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Return what these logits predict: int64, shape (R,)."""
    return labels[:, 1:][labels[:, 1:] != IGNORE_INDEX]


def response_counts(labels: torch.Tensor) -> torch.Tensor:
    """Return how many of them each example has: int64, shape (examples,)."""
    return (labels[:, 1:] != IGNORE_INDEX).sum(dim=1)
