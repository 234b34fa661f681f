"""A personal adapter in PEFT's own format, for ``PeftModel.from_pretrained``."""

from __future__ import annotations

import json

from safetensors.numpy import save

from perfit.adapter import SparseAdapter
from perfit.lora import lora_config
from perfit.spec import Lora

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def peft_files(lora: Lora, base_model: str, adapter: SparseAdapter) -> dict[str, bytes]:
    """Return the files of a PEFT directory, by name: a LoRA of the expanded rank, float32, zero off the mask."""
    fields = lora_config(lora, base_model).to_dict()
    # PEFT keeps module names in sets, whose order changes from process to process.
    tidy = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    config = json.dumps({**tidy, "inference_mode": True}, indent=2, sort_keys=True)
    weights = save(adapter.space.split(adapter.dense()), metadata={"format": "pt"})
    return {CONFIG_FILE: config.encode(), WEIGHTS_FILE: weights}
