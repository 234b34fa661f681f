"""A personal adapter in PEFT's own format, for ``PeftModel.from_pretrained``."""

from __future__ import annotations

import json

from safetensors.numpy import save

from perfit.adapter import SparseAdapter
from perfit.spec import Lora

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def peft_files(lora: Lora, base_model: str, adapter: SparseAdapter) -> dict[str, bytes]:
    """Return the files of a PEFT directory, by name: a LoRA of the expanded rank, float32, zero off the mask.

    >>> import numpy as np
    >>> from safetensors.numpy import load
    >>> from perfit.space import LoraSpace
    >>> q_proj = "base_model.model.layers.0.self_attn.q_proj"
    >>> space = LoraSpace.from_shapes({f"{q_proj}.lora_A.weight": (1, 3), f"{q_proj}.lora_B.weight": (2, 1)})
    >>> mask = np.array([True, False, True, False, True])
    >>> files = peft_files(Lora(rank=1), "some/model", SparseAdapter(space, mask, np.float32([0.5, 1, 2])))
    >>> sorted(files)
    ['adapter_config.json', 'adapter_model.safetensors']
    >>> load(files["adapter_model.safetensors"])[f"{q_proj}.lora_A.weight"]
    array([[0.5, 0. , 1. ]], dtype=float32)

    Args:
        lora: The expanded LoRA of a federation: ``spec.expanded_lora``.
        base_model: Name of the base model, to be written into the adapter.
        adapter: A client's adapter.
    """
    from perfit.lora import lora_config  # imports torch, which the names of the files do not need

    fields = lora_config(lora, base_model).to_dict()
    # PEFT keeps module names in sets, whose order changes from process to process.
    ordered = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    config = json.dumps({**ordered, "inference_mode": True}, indent=2, sort_keys=True)
    weights = save(adapter.space.split(adapter.dense()), metadata={"format": "pt"})
    return {CONFIG_FILE: config.encode(), WEIGHTS_FILE: weights}
