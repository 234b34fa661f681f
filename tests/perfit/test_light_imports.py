"""The image for planning and aggregation has no torch: the modules imported there must not need it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "kfp", "minio", "matplotlib", "numba"}


@pytest.mark.parametrize(
    "module",
    [
        "adapter",
        "adapter_file",
        "aggregation",
        "bench.plan",
        "bench.statistics",
        "cluster_spec",
        "federation_file",
        "importance",
        "methods",
        "protocol",
        "pruning",
        "round",
        "sampling",
        "seeds",
        "space",
        "spec",
    ],
)
def test_a_light_module_imports_nothing_heavy(module):
    code = f"import sys, perfit.{module}; print(*sorted({HEAVY} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
