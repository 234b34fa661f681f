"""Planning, aggregating and reporting run in an image without torch."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "kfp"}
CODE = f"""
import sys
from perfit_components.steps.aggregate import aggregate_updates
from perfit_components.steps.plan import plan
from perfit_components.steps.search_result import check_search
uri = sys.argv[1]
assert [item["id"] for item in plan(uri, 1, "default")] == ["ann", "bob", "eve"]
check_search(uri, [{{"client": "ann", "status": "searched", "reason": ""}}])
assert len(aggregate_updates(uri, 1, [])["clients"]) == 3
assert len(plan(uri, 2, "default")) == 3
from perfit_components.steps.report import report
assert report(uri, 1).html
print(*sorted({HEAVY} & set(sys.modules)))
"""


def test_the_servers_steps_import_nothing_heavy(trained):
    result = subprocess.run([sys.executable, "-c", CODE, trained.uri], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == ""
    assert trained.store.read_head().round == 1
