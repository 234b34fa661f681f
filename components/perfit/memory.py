"""An estimate of the memory that a client's search and tuning need.

On the CPU everything is in one memory; with accelerators a part of it is in theirs, divided among them layer by layer
unless each has a process, and another in the pod's. Its purpose is to refuse a machine that is clearly too small before
it is allocated, not to predict the exact peak: ``tests/benchmarks/memory.py`` compares that of the CPU with measured
peaks. What accelerators need has never been measured.
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
_CUDA_ON_HOST = 2 * 2**30
"""What CUDA's libraries and contexts take of main memory, in addition. An assumption."""
_HIDDEN_COPIES, _FEED_FORWARD_COPIES = 16, 4
"""Tensors of hidden and of feed-forward width that a decoder layer keeps per token for the backward pass: inputs of two
norms and of LoRA, queries, keys, values, attention output, residuals; gate, activated gate, up and their product."""
_LOGIT_COPIES = 4
"""Logits, their float32 copy, log-probabilities and the gradient."""
_PRUNING = {"matrix": 21, "layer": 21, "global": 31}
"""Bytes per position during pruning: the scores in one array, a permutation for ties, the initial values, and the
sorting of one group, which in scope ``global`` is the whole space."""
_CHECKPOINT = 2 * 17
"""Bytes per trained value of a checkpoint in main memory: value, two moments, score and mask, and these as a file."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes at the peak of the more demanding of search and tuning.

    Args:
        weights: The frozen base model.
        adapter: LoRA values, gradients, optimiser state, importance scores, and the pruning by them.
        activations: What a batch of full-length sequences keeps for the backward pass.
        logits: The logits of that batch, with their copies, if all its tokens were responses.
        device_adapter: What of the adapter is on an accelerator, if there is one.
        host_vectors: What of vectors of positions is in main memory then.
    """

    weights: int
    adapter: int
    activations: int
    logits: int
    device_adapter: int
    host_vectors: int

    @property
    def total(self) -> int:
        """All of it in one memory, and the process itself."""
        return self.weights + self.adapter + self.activations + self.logits + _PROCESS

    def on_device(self, devices: int = 1) -> int:
        """Bytes on the fullest of some accelerators, which divide the layers evenly; one of them makes all logits."""
        layers = self.weights + self.device_adapter + self.activations
        return -(-layers // devices) + self.logits + _PROCESS

    @property
    def on_host(self) -> int:
        """Bytes of main memory beside accelerators. Weights only pass through it, file by file."""
        return self.host_vectors + _PROCESS + _CUDA_ON_HOST


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
    searching = _searching(space, search) if search else (0, 0)
    tuning = _tuning(space, trained, vectors)
    return MemoryNeed(
        weights=weight_bytes(model, width, quantization),
        adapter=max(sum(searching), tuning[0]),
        activations=checkpoints if training.gradient_checkpointing else layers * layer,
        logits=tokens * config.vocab_size * 4 * _LOGIT_COPIES,
        device_adapter=max(searching[0], tuning[0]),
        host_vectors=max(searching[1], tuning[1]),
    )


def _searching(space: LoraSpace, search: Search) -> tuple[int, int]:
    """Return the bytes on the device and in main memory: values, gradients, two moments, score and mask; pruning."""
    return space.size * (16 + 5), space.size * _PRUNING[search.scope]


def _tuning(space: LoraSpace, trained: int, vectors: int) -> tuple[int, int]:
    """Return the bytes on the device and in main memory.

    There, values, gradients, two moments, an index of 8 bytes, the scattered matrices with their gradients, and the
    method's vectors. Here, two masks and two dense vectors, start, end, gradient and upload, the method's vectors, and
    a checkpoint.
    """
    device = trained * (16 + 8 + 4 * vectors) + space.size * 8
    return device, space.size * (2 + 8) + trained * (16 + 4 * vectors + _CHECKPOINT)


def check_machine(tier: str, memory: int, need: MemoryNeed) -> None:
    """Refuse a machine without an accelerator that has less memory than a client needs.

    Args:
        tier: Its name.
        memory: Bytes that the machine has.
        need: The client's need.

    Raises:
        PerfitError: The machine is too small.
    """
    if need.total > memory:
        parts = {part: getattr(need, part) for part in ("weights", "adapter", "activations", "logits")}
        raise _too_small(f"tiers.{tier}.memory", memory, need.total, parts)


def check_accelerators(
    tier: str, memory: int, device_memory: int | None, devices: int, need: MemoryNeed, processes: int = 1
) -> str | None:
    """Refuse a machine whose accelerators, or whose main memory beside them, have less than a client needs.

    Args:
        tier: Its name.
        memory: Bytes of main memory that the machine has.
        device_memory: Bytes of each of its accelerators; None if it is not known.
        devices: How many there are to a process.
        need: What a process needs.
        processes: How many processes the machine has, each with accelerators of its own.

    Returns:
        What is to be said of several accelerators: they divide the model by layers, which work one after the other.

    Raises:
        PerfitError: One of the two is too small.
    """
    on_host, vectors = need.on_host * processes, need.host_vectors * processes
    if on_host > memory:
        problem = _too_small(
            f"tiers.{tier}.memory", memory, on_host, {"vectors": vectors, "libraries": on_host - vectors}
        ).problem
        raise PerfitError(f"{problem} beside its accelerator", "raise it, or lower lora.rank or lora.expansion")
    if device_memory is not None and need.on_device(devices) > device_memory:
        parts = {
            "weights": need.weights // devices,
            "adapter": need.device_adapter // devices,
            "activations": need.activations // devices,
            "logits": need.logits,
        }
        each = " of each" if devices * processes > 1 else ""
        raise _too_small(f"tiers.{tier}.accelerator.memory", device_memory, need.on_device(devices), parts, each)
    if devices == 1:
        return None
    what = f"tiers.{tier}.accelerator.count: the {devices} of a pod divide the model's layers and work in turn"
    if device_memory is None:
        return f"{what}; say accelerator.memory, to know whether one would do"
    if need.on_device() <= device_memory:
        return f"{what}, but one would do: set count: 1, and {devices} times as many clients train at once"
    return f"{what}; the model needs them"


def _too_small(key: str, available: int, needed: int, parts: dict[str, int], each: str = "") -> PerfitError:
    listed = ", ".join(f"{part} {size / 2**30:.2f}" for part, size in parts.items())
    return PerfitError(
        f"{key}: {available / 2**30:.2f} GiB{each} cannot hold a training that needs about "
        f"{needed / 2**30:.2f} GiB ({listed})",
        "raise it, or lower training.batch_size (and raise gradient_accumulation) or training.sequence_length, set "
        "training.gradient_checkpointing, or use precision bfloat16 or a quantization",
    )
