"""An estimate of the memory that a client's search and tuning need.

It is for one device that holds the whole model. Its purpose is to refuse a machine that is clearly too small before it
is allocated, not to predict the exact peak: ``tests/benchmarks/memory.py`` compares it with measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from perfit.errors import PerfitError
from perfit.methods import Search
from perfit.quantization import weight_bytes
from perfit.space import LoraSpace
from perfit.spec import Quantization, Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROCESS = 700 * 2**20
"""Python with torch and transformers, or a CUDA context, before any model is loaded."""
_HIDDEN_COPIES, _FEED_FORWARD_COPIES = 16, 4
"""Tensors of hidden and of feed-forward width that a decoder layer keeps per token for the backward pass: inputs of two
norms and of LoRA, queries, keys, values, attention output, residuals; gate, activated gate, up and their product."""
_LOGIT_COPIES = 4
"""Logits, their float32 copy, log-probabilities and the gradient."""
_PRUNING = {"matrix": 21, "layer": 21, "global": 31}
"""Bytes per position during pruning: the scores in one array, a permutation for ties, the initial values, and the
sorting of one group, which in scope ``global`` is the whole space."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes at the peak of the more demanding of search and tuning.

    Args:
        weights: The frozen base model.
        adapter: LoRA values, gradients, optimiser state, importance scores.
        activations: What a batch of full-length sequences keeps for the backward pass.
        logits: The logits of that batch, with their copies, if all its tokens were responses.
    """

    weights: int
    adapter: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """The sum of these and of the process itself."""
        return self.weights + self.adapter + self.activations + self.logits + _PROCESS


def memory_need(
    model: PreTrainedModel,
    space: LoraSpace,
    training: Training,
    *,
    trained: int,
    vectors: int = 0,
    search: Search | None = None,
    quantization: Quantization | None = None,
) -> MemoryNeed:
    """Estimate what a client needs.

    Args:
        model: The base model; a skeleton without weights is enough.
        space: The expanded space.
        training: Batch, sequence length, precision.
        trained: Number of values that the client trains.
        vectors: Number of further vectors of that length that its method needs.
        search: How the client searches for its architecture, None if it does not.
        quantization: How the model's weights are held, as :func:`perfit.quantization.check_quantization` returns it.
    """
    config = model.config.get_text_config()
    width = 4 if training.precision == "float32" else 2
    tokens = training.batch_size * training.sequence_length
    hidden = config.hidden_size
    feed_forward = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = tokens * (_HIDDEN_COPIES * hidden + _FEED_FORWARD_COPIES * feed_forward) * width
    layers = config.num_hidden_layers
    checkpoints = layers * tokens * hidden * width + layer
    # Values, gradients and two moments in float32. A search adds scores, masks and the pruning; tuning adds an index of
    # 8 bytes and the scattered matrices with their gradients.
    searching = space.size * (16 + 5 + _PRUNING[search.scope]) if search else 0
    tuning = trained * (16 + 8 + 4 * vectors) + space.size * 8
    return MemoryNeed(
        weights=weight_bytes(model, width, quantization),
        adapter=max(searching, tuning),
        activations=checkpoints if training.gradient_checkpointing else layers * layer,
        logits=tokens * config.vocab_size * 4 * _LOGIT_COPIES,
    )


def check_memory(key: str, available: int, need: MemoryNeed) -> None:
    """Refuse a machine with less memory than a client needs.

    Args:
        key: The key of the federation file that sets the machine's memory.
        available: Bytes that the machine has.
        need: The client's need.

    Raises:
        PerfitError: The machine is too small.
    """
    if need.total > available:
        parts = ", ".join(
            f"{part} {getattr(need, part) / 2**30:.2f}" for part in ("weights", "adapter", "activations", "logits")
        )
        raise PerfitError(
            f"{key}: {available / 2**30:.2f} GiB cannot hold a training that needs about "
            f"{need.total / 2**30:.2f} GiB ({parts})",
            "raise it, or lower training.batch_size (and raise gradient_accumulation) or training.sequence_length, set "
            "training.gradient_checkpointing, or use precision bfloat16 or a quantization",
        )
