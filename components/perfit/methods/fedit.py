"""FedIT: one plain LoRA for all, averaged by sample counts (Zhang et al., 2023, arXiv 2305.05644)."""

from __future__ import annotations

from typing import Literal

from perfit.methods.method import Method, MethodOptions


class Options(MethodOptions):
    """FedIT has no options."""

    name: Literal["fedit"] = "fedit"


METHOD = Method("FedIT", "arXiv 2305.05644", Options)
