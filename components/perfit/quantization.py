"""Base models with quantised frozen weights (QLoRA, Dettmers et al., 2023, arXiv 2305.14314), through bitsandbytes.

The LoRA, its gradients and all sums stay as they are: what is quantised is never trained. transformers leaves the
embedding and the output layer in the precision of the training.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfit.errors import PerfitError
from perfit.spec import Quantization

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

_BYTES: dict[Quantization, float] = {"int8": 1, "nf4": 0.5 + 1 / 64}
"""Of a weight: nf4 has a scale of one byte for each block of 64. A float32 for each row (int8) or 16,384 weights (nf4)
is left out."""


def quantization_config(quantization: Quantization, precision: str) -> BitsAndBytesConfig:
    """Return the configuration with which transformers quantises a model while it loads it.

    Args:
        quantization: int8, or nf4 with doubly quantised scales.
        precision: Of the arithmetic: float32 or bfloat16.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, precision),
    )


def check_quantization(source: str, asked: Quantization | None) -> Quantization | None:
    """Return how the weights of a prepared model will be held.

    Args:
        source: Its directory.
        asked: By the federation file; None for as the files are.

    Raises:
        PerfitError: The files are quantised in a way that cannot be trained on here, or bitsandbytes is missing.
    """
    stored = _stored(source)
    method = stored and str(stored.get("quant_method", "an unknown method"))[:40]
    if method and method != "bitsandbytes":
        raise PerfitError(
            f"model: the weights of {source} are quantised with {method!r}, on which nothing is trained here",
            "name the model that they were made from; training.quantization: nf4 then holds it in 4 bits, int8 in 8",
        )
    if method and asked:
        raise PerfitError(
            f"training.quantization: the weights of {source} are quantised already, by bitsandbytes",
            "leave training.quantization out, or name the model that they were made from",
        )
    if (method or asked) and importlib.util.find_spec("bitsandbytes") is None:
        raise PerfitError(
            f"model: quantised weights need the package bitsandbytes, which is not installed (for {source})",
            "pip install 'perfit-kubeflow[quantized]'; the image for clients has it",
        )
    if method:
        return "nf4" if stored.get("load_in_4bit") else "int8"
    return asked


def keep_quantised_layout(model: PreTrainedModel) -> None:
    """Have a model's weights stay as they were loaded.

    On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights at the first evaluation, with scales in bfloat16, and
    cannot train on the result.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def weight_bytes(model: PreTrainedModel, width: int, quantization: Quantization | None) -> int:
    """Estimate the bytes of a model's weights.

    Args:
        model: May be without its weights.
        width: Bytes of a parameter that is not quantised.
        quantization: Of the linear modules but the output layer.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    total = sum(parameter.numel() for parameter in model.parameters()) * width
    if quantization is None:
        return total
    head = model.get_output_embeddings()
    linear = (m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head)
    return round(total - sum(module.weight.numel() for module in linear) * (width - _BYTES[quantization]))


def _stored(source: str) -> dict[str, Any] | None:
    """Return how a model's configuration says that its files are quantised; None if they are not."""
    try:
        config = json.loads(Path(source, "config.json").read_text())
    except (OSError, ValueError):
        return None  # transformers says what is wrong with it
    found = config.get("quantization_config") if isinstance(config, dict) else None
    return found if isinstance(found, dict) else None
