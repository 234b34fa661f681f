"""What a federation asks of its model and its machines, checked before anything is trained."""

from __future__ import annotations

import numpy as np

from perfit.cluster_spec import ClusterSpec
from perfit.lora import expand
from perfit.memory import check_memory, memory_need
from perfit.models import model_skeleton
from perfit.quantization import check_quantization
from perfit.round import trained_in_turn
from perfit.space import LoraSpace


def check_model(spec: ClusterSpec, source: str) -> LoraSpace:
    """Check that the model has the adapted modules, that the rank fits them, and that every tier has enough memory.

    Args:
        spec: The federation.
        source: The model's prepared directory, or a GGUF file.

    Returns:
        The expanded space of the model.

    Raises:
        PerfitError: One of them does not fit, or there is no model there.
    """
    model = model_skeleton(source)
    space = expand(model, spec.expanded_lora)[1]
    for name in spec.tiers_in_use():
        training = spec.of_tier(name).training
        quantization = check_quantization(source, training.quantization)
        if (memory := spec.tiers[name].training_memory) is None:
            continue
        key, available = memory
        rank = max(spec.rank_of(client) for client in spec.clients if client.tier == name)
        need = memory_need(
            model,
            space,
            training,
            trained=max(map(np.count_nonzero, trained_in_turn(spec, space, space.plain_mask(rank)))),
            vectors=len({*spec.algorithm.downloads, *spec.algorithm.uploads}) - 1 + bool(spec.algorithm.correction),
            search=spec.search if rank < space.rank else None,
            quantization=quantization,
        )
        check_memory(f"tiers.{name}.{key}", available, need)
    return space
