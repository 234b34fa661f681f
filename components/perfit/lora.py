"""The expanded LoRA on a model, through PEFT, and its compact form, which holds only the trained values.

During a search, A and B are PEFT's dense parameters. During tuning, the trainable tensor of each matrix is the vector
of its trained values; the forward pass scatters it into the frozen ones. By construction, gradients and optimiser state
have the size of the budget, frozen values do not change, and positions off the architecture are zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from perfit.errors import PerfitError
from perfit.models import split_revision
from perfit.space import LoraSpace
from perfit.spec import Lora

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

_ADAPTER = "default"


def lora_config(lora: Lora, base_model: str) -> LoraConfig:
    """Return PEFT's configuration of a LoRA.

    Args:
        lora: The expanded LoRA of a federation, whose scaling alpha / rank is that of all its clients.
        base_model: Name of the base model, to be written into the configuration.
    """
    from peft import LoraConfig

    targets = lora.target_modules
    name, revision = split_revision(base_model)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        lora_dropout=0.0,
        bias="none",
        base_model_name_or_path=name,
        revision=revision,
    )


def expand(model: PreTrainedModel, lora: Lora) -> tuple[PeftModel, LoraSpace]:
    """Put a LoRA on a model.

    Args:
        model: The frozen base.
        lora: The expanded LoRA of a federation.

    Returns:
        The PEFT model, its LoRA in float32, and the space of its positions.

    Raises:
        PerfitError: A target module is not in the model, or is not a linear module; the rank exceeds all of them.
    """
    from peft import get_peft_model

    _check_rank(_targets(model, lora.target_modules), lora.rank)
    with quiet_peft():
        peft_model = get_peft_model(model, lora_config(lora, model.config.name_or_path))
    shapes = {name: tuple(module.weight.shape) for name, module in _matrices(peft_model)}
    return peft_model, LoraSpace.from_shapes(shapes)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Make a PEFT model without a warning of a name that PEFT asks transformers 5 by, and that it deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


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
def compact(
    model: PeftModel, space: LoraSpace, values: np.ndarray, trained: np.ndarray
) -> Iterator[dict[str, nn.Parameter]]:
    """Within the context, the model's LoRA has these values, and only those at ``trained`` are trainable.

    Args:
        model: PEFT model with the expanded LoRA.
        space: The expanded space of N positions.
        values: float32, shape (N,), zero off the client's architecture.
        trained: bool, shape (N,).

    Yields:
        The trainable vector of each matrix that has any, by name: float32, shape (number of trained positions,).
    """
    blocks, vectors, scattered = space.split(values), {}, []
    for name, module in _matrices(model):
        index = np.flatnonzero(trained[space.slices[name]])
        if index.size == 0:  # nothing to train: the matrix stays dense
            module.weight.requires_grad_(False)
            with torch.no_grad():
                module.weight.copy_(torch.from_numpy(blocks[name]))
            continue
        scatter = _Scatter(index, blocks[name].ravel(), module.weight)
        parametrize.register_parametrization(module, "weight", scatter, unsafe=True)
        vectors[name] = module.parametrizations.weight.original
        scattered.append(module)
    try:
        yield vectors
    finally:
        for module in scattered:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        for _, module in _matrices(model):
            module.weight.requires_grad_(True)


def read_values(vectors: dict[str, nn.Parameter]) -> np.ndarray:
    """Return the trainable vectors as one float32 array."""
    return np.concatenate([vector.detach().float().cpu().numpy() for vector in vectors.values()])


class _Scatter(nn.Module):
    """Scatters a vector of trained values into the frozen values of a matrix; the backward pass gathers the gradient.

    Args:
        index: Positions of the trained values in the matrix, row by row.
        values: float32, the whole matrix, row by row.
        weight: The dense weight that is replaced.
    """

    def __init__(self, index: np.ndarray, values: np.ndarray, weight: torch.Tensor):
        super().__init__()
        self.shape, self.full = weight.shape, index.size == values.size
        self.values = torch.from_numpy(values[index])
        self.register_buffer("index", torch.from_numpy(index).to(weight.device), persistent=False)
        frozen = values.copy()
        frozen[index] = 0
        frozen = torch.from_numpy(frozen).to(weight) if frozen.any() else None
        self.register_buffer("frozen", frozen, persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.full:
            return values.view(self.shape)
        frozen = values.new_zeros(self.shape.numel()) if self.frozen is None else self.frozen
        return frozen.scatter(0, self.index, values).view(self.shape)

    def right_inverse(self, dense: torch.Tensor) -> torch.Tensor:
        return self.values.to(dense)


def _matrices(model: PeftModel) -> Iterator[tuple[str, nn.Linear]]:
    """Yield each LoRA matrix's name in PEFT's adapter file and the module that holds it, A before B."""
    for path, module in model.named_modules():
        for matrix in ("lora_A", "lora_B"):
            if _ADAPTER in getattr(module, matrix, {}):
                yield f"{path}.{matrix}.weight", getattr(module, matrix)[_ADAPTER]


def _targets(model: PreTrainedModel, targets: str | tuple[str, ...]) -> list[nn.Module]:
    """Return the linear modules that targets name."""
    from transformers.pytorch_utils import Conv1D

    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    if isinstance(targets, str):
        return list(linear.values())
    available = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
    found: list[nn.Module] = []
    for target in targets:
        named = [module for name, module in linear.items() if name == target or name.endswith(f".{target}")]
        if not named:
            raise PerfitError(
                f"lora.target_modules: the model has no linear module {target!r}",
                f"use all-linear, or some of: {available}",
            )
        found += named
    return found


def _shape(module: nn.Module) -> tuple[int, ...]:
    # A weight of 4 bits is stored in another shape.
    return (module.out_features, module.in_features) if isinstance(module, nn.Linear) else tuple(module.weight.shape)


def _check_rank(modules: list[nn.Module], rank: int) -> None:
    """Refuse a space with more values than the matrices that it is for."""
    largest = max(map(_shape, modules), key=min)
    if rank > min(largest):
        raise PerfitError(
            f"lora.rank: the rank {rank:,} (rank times expansion) exceeds every adapted matrix: the largest is "
            f"{largest[0]:,} by {largest[1]:,}",
            f"lower lora.rank, or lora.expansion: together at most {min(largest):,}",
        )
