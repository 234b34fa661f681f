"""Help and compilation are fast: nothing heavy is imported for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ..goldens import FEDERATION, STORE

HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate"}
CODE = f"""
import sys
from perfit_pipelines import cli
try:
    cli.main()
finally:
    print("imported:", *sorted({HEAVY} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["data", "--help"],
        ["init", "new.yaml"],
        ["compile", "federation.yaml", "-o", "tuning.yaml", "--store", STORE],
    ],
    ids=["help", "data-help", "init", "compile"],
)
def test_a_command_that_needs_no_model(arguments, tmp_path):
    (tmp_path / "federation.yaml").write_text(FEDERATION)
    result = subprocess.run([sys.executable, "-c", CODE, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "imported:"
