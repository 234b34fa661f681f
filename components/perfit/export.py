"""A personal adapter in PEFT's own format, for ``PeftModel.from_pretrained``."""

from __future__ import annotations

import json

from safetensors import SafetensorError
from safetensors.numpy import load, save

from perfit.adapter import SparseAdapter
from perfit.collection import without_collection
from perfit.errors import PerfitError
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
    weights = save(adapter.space.split(adapter.dense()), metadata={"format": "pt"})
    return {CONFIG_FILE: peft_config(lora, base_model), WEIGHTS_FILE: weights}


def peft_config(lora: Lora, base_model: str, revision: str | None = None) -> bytes:
    """Return PEFT's configuration file of an adapter.

    Args:
        lora: The expanded LoRA of a federation.
        base_model: Name of the base model.
        revision: The hub's commit of it; None for the one that the name pins, if any.
    """
    with without_collection():
        from perfit.lora import lora_config  # imports torch, which the names of the files do not need

        fields = lora_config(lora, base_model).to_dict()
    # PEFT keeps module names in sets, whose order changes from process to process.
    ordered = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    pinned = {"revision": revision} if revision else {}
    return json.dumps({**ordered, **pinned, "inference_mode": True}, indent=2, sort_keys=True).encode()


def portable_lora(lora: Lora, weights: bytes) -> Lora:
    """Return a LoRA whose target modules are named one by one, as programs want them that do not know all-linear.

    Args:
        lora: The expanded LoRA of a federation.
        weights: The adapter's ``WEIGHTS_FILE``.

    Raises:
        PerfitError: That is no file of an adapter.
    """
    try:
        names = load(weights)
    except SafetensorError as error:
        raise PerfitError(
            f"the personal adapter's {WEIGHTS_FILE} is damaged", "run another round with the client"
        ) from error
    modules = {name.rsplit(".", 3)[-3] for name in names if name.endswith((".lora_A.weight", ".lora_B.weight"))}
    every = lora.model_copy(update={"target_modules": tuple(sorted(modules))})
    return every if lora.target_modules == "all-linear" else lora
