"""Help and compilation are fast: nothing heavy is imported for them."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ..goldens import FEDERATION, STORE

HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "matplotlib"}
HERE = "name: n\nmodel: owner/model\nclients: [{id: a, data: a.parquet}, {id: b, data: b.jsonl}]\n"
CODE = f"""
import sys
from perfit_pipelines import cli
try:
    cli.main()
finally:
    heavy = {HEAVY} | ({{"kfp"}} if sys.argv[1] == "run" else set())
    heavy |= {{"numpy", "yaml"}} if sys.argv[1] in ("init", "logs") or "--help" in sys.argv else set()
    print("imported:", *sorted(heavy & set(sys.modules)))
"""


def test_a_run_that_finds_everything_done_needs_no_pipeline(finished):
    store = finished.home.site.store_uri
    arguments = ["run", str(finished.home.file), "--output", str(finished.home.results), "--store", store]
    result = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=finished.home.directory, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "there is nothing to do" in result.stdout
    assert result.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["data", "--help"],
        ["init", "new.yaml"],
        ["compile", "federation.yaml", "-o", "tuning.yaml", "--store", STORE],
        ["validate", "here.yaml"],
    ],
    ids=["help", "data-help", "init", "compile", "validate"],
)
def test_a_command_that_needs_no_model(arguments, tmp_path):
    (tmp_path / "federation.yaml").write_text(FEDERATION)
    (tmp_path / "here.yaml").write_text(HERE)
    pq.write_table(pa.table({"instruction": ["Add.", "Greet."], "output": ["5", "Hi"]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("".join(f'{{"instruction": "Add {n}.", "output": "5"}}\n' for n in range(2)))
    result = subprocess.run([sys.executable, "-c", CODE, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "imported:"
