"""Planning, aggregating and reporting run in an image without torch."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "kfp"}
CODE = f"""
import sys
from perfit_components.steps.aggregate import close_round
closed = close_round(sys.argv[1], 1, ["default"])
assert closed.report.html
assert closed.report.metrics["clients_delivered"] == 3
assert closed.participants == [["perfit-tiny-ann", "perfit-tiny-bob", "perfit-tiny-eve"]]
print(*sorted({HEAVY} & set(sys.modules)))
"""


def test_the_servers_step_imports_nothing_heavy(trained):
    result = subprocess.run([sys.executable, "-c", CODE, trained.uri], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == ""
    assert trained.store.read_head().round == 1
