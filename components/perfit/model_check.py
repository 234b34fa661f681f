"""What a federation asks of its model and its machines, checked before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from perfit.cluster_spec import ClusterSpec, quantity_bytes
from perfit.lora import expand
from perfit.memory import MemoryNeed, check_accelerators, check_machine, memory_need
from perfit.models import model_skeleton
from perfit.quantization import check_quantization
from perfit.round import trained_in_turn
from perfit.space import LoraSpace

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_model(spec: ClusterSpec, source: str) -> tuple[LoraSpace, list[str]]:
    """Check that the model has the adapted modules, that the rank fits them, and that every tier has enough memory.

    Args:
        spec: The federation.
        source: The model's prepared directory, or a GGUF file.

    Returns:
        The expanded space of the model, and what is to be said of tiers whose pods have several accelerators.

    Raises:
        PerfitError: One of them does not fit, or there is no model there.
    """
    model = model_skeleton(source)
    space = expand(model, spec.expanded_lora)[1]
    remarks = [_check_tier(spec, name, _need(spec, name, source, model, space)) for name in spec.tiers_in_use()]
    return space, [remark for remark in remarks if remark]


def _need(spec: ClusterSpec, tier: str, source: str, model: PreTrainedModel, space: LoraSpace) -> MemoryNeed:
    """Return what a client of a tier needs that has the largest rank in it: each of its processes."""
    training = spec.of_tier(tier).training
    rank = max(spec.rank_of(client) for client in spec.clients if client.tier == tier)
    return memory_need(
        model,
        space,
        training,
        trained=max(map(np.count_nonzero, trained_in_turn(spec, space, space.plain_mask(rank)))),
        vectors=len({*spec.algorithm.downloads, *spec.algorithm.uploads}) - 1 + bool(spec.algorithm.correction),
        search=spec.search if rank < space.rank else None,
        quantization=check_quantization(source, training.quantization),
    )


def _check_tier(spec: ClusterSpec, name: str, need: MemoryNeed) -> str | None:
    tier = spec.tiers[name]
    if tier.is_remote:  # its owners' machines are not described
        return None
    memory, accelerator = quantity_bytes(tier.memory), tier.accelerator
    if accelerator is None:
        return check_machine(name, memory, need)
    device_memory = quantity_bytes(accelerator.memory) if accelerator.memory else None
    devices = accelerator.count // tier.processes_per_node
    return check_accelerators(name, memory, device_memory, devices, need, tier.processes_per_node)
