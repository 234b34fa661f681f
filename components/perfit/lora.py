"""The expanded LoRA on a model, through PEFT, and its compact form of surviving values alone.

While a client searches, A and B are PEFT's dense parameters. While it tunes, the trainable tensor of each matrix is the
vector of its surviving values, scattered into the dense matrix in the forward pass: gradients and optimizer state
have the size of the budget, and what is off the mask is zero by construction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from perfit.adapter import SparseAdapter
from perfit.errors import PerfitError
from perfit.space import LoraSpace
from perfit.spec import Federation

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

_ADAPTER = "default"


def lora_config(federation: Federation) -> LoraConfig:
    """Return PEFT's configuration of the expanded LoRA.

    The scaling lora_alpha / r equals alpha / rank of the federation, whatever the expansion and a client's own rank.
    """
    from peft import LoraConfig

    targets = federation.lora.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=federation.expanded_rank,
        lora_alpha=federation.expanded_alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        lora_dropout=0.0,
        bias="none",
        base_model_name_or_path=federation.model,
    )


def expand(model: PreTrainedModel, federation: Federation) -> tuple[PeftModel, LoraSpace]:
    """Put the expanded LoRA on a model.

    Returns:
        The PEFT model, its LoRA in float32, and the space of its positions.

    Raises:
        PerfitError: A target module is not in the model, or is not a linear module.
    """
    from peft import get_peft_model

    _check_targets(model, federation.lora.target_modules)
    peft_model = get_peft_model(model, lora_config(federation))
    shapes = {name: tuple(module.weight.shape) for name, module in _matrices(peft_model)}
    return peft_model, LoraSpace.from_shapes(shapes)


def set_dense(model: PeftModel, space: LoraSpace, values: np.ndarray) -> None:
    """Copy all values (float32, shape (N,)) into the dense A and B."""
    blocks = space.split(values)
    with torch.no_grad():
        for name, module in _matrices(model):
            module.weight.copy_(torch.from_numpy(blocks[name]))


def dense_weights(model: PeftModel) -> dict[str, nn.Parameter]:
    """Return the dense A and B parameters by the names of the space."""
    return {name: module.weight for name, module in _matrices(model)}


@contextmanager
def compact(model: PeftModel, adapter: SparseAdapter) -> Iterator[dict[str, nn.Parameter]]:
    """Within the context, the model's LoRA is ``adapter``, and its values alone are trainable.

    Yields:
        The trainable vector of each matrix, by name: float32, shape (number of set bits,).
    """
    start, vectors = 0, {}
    for name, module in _matrices(model):
        bits = adapter.mask[adapter.space.slices[name]]
        index = torch.from_numpy(np.flatnonzero(bits)).to(module.weight.device)
        values = torch.from_numpy(adapter.values[start : start + index.numel()].copy())
        start += index.numel()
        parametrize.register_parametrization(
            module, "weight", _Scatter(index, module.weight.shape, values), unsafe=True
        )
        vectors[name] = module.parametrizations.weight.original
    try:
        yield vectors
    finally:
        for _, module in _matrices(model):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            module.weight.requires_grad_(True)


def read_values(vectors: dict[str, nn.Parameter]) -> np.ndarray:
    """Return the trainable vectors as one float32 array of the budget's length."""
    return np.concatenate([vector.detach().float().cpu().numpy() for vector in vectors.values()])


class _Scatter(nn.Module):
    """Scatters a vector of values into a zero matrix; its gradient gathers."""

    def __init__(self, index: torch.Tensor, shape: torch.Size, values: torch.Tensor):
        super().__init__()
        self.shape, self.values = shape, values
        self.full = index.numel() == shape.numel()
        self.register_buffer("index", index, persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.full:
            return values.view(self.shape)
        return values.new_zeros(self.shape.numel()).scatter(0, self.index, values).view(self.shape)

    def right_inverse(self, dense: torch.Tensor) -> torch.Tensor:
        return self.values.to(dense)


def _matrices(model: PeftModel) -> Iterator[tuple[str, nn.Linear]]:
    """Yield each LoRA matrix's name in PEFT's adapter file and the module that holds it, A before B."""
    for path, module in model.named_modules():
        for matrix in ("lora_A", "lora_B"):
            if _ADAPTER in getattr(module, matrix, {}):
                yield f"{path}.{matrix}.weight", getattr(module, matrix)[_ADAPTER]


def _check_targets(model: PreTrainedModel, targets: str | tuple[str, ...]) -> None:
    from transformers.pytorch_utils import Conv1D

    if isinstance(targets, str):
        return
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    offered = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise PerfitError(
                f"lora.target_modules: the model has no linear module {target!r}",
                f"use all-linear, or some of: {offered}",
            )
