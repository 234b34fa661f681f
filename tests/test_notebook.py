"""The example notebook runs."""

from __future__ import annotations

import pytest

from .notebook import EXECUTED, execute, read, sources_sha256
from .perfit.tiny import save_llama


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """The notebook, run with a tiny model."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # it keeps a history
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = save_llama(tmp_path / "llama")
    notebook = read(f'MODEL, METHODS = {model!r}, ["perfit", "fedit"]\nROUNDS, STEPS, SEQUENCE_LENGTH = 1, 2, 768')
    execute(notebook)
    return notebook


def test_the_notebook_runs(executed):
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    tables = "".join(output.data.get("text/markdown", "") for output in outputs if "data" in output)
    assert printed.count("client-4: holds ") == 1
    assert "adapter_model.safetensors: " in printed
    assert "# Methods on the sample data" in tables
    assert "| fedit |" in tables
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


def test_the_notebooks_outputs_are_of_its_code():
    notebook = read()
    has_outputs = any(cell.get("outputs") for cell in notebook.cells)
    assert notebook.metadata.get(EXECUTED) == (sources_sha256(notebook) if has_outputs else None)
