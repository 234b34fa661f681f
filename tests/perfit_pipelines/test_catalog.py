"""``perfit components``: what it writes can be loaded, run, and given to Kubeflow's catalog."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from kfp import components

from perfit_components.aggregate import aggregate
from perfit_components.client import client
from perfit_components.prepare import prepare
from perfit_components.train_job import train_job
from perfit_components.wait import wait

from ..perfit_components.running import files, in_memory
from .commands import perfit

SOURCES = {component.python_func.__name__: component for component in (prepare, client, train_job, wait, aggregate)}
REQUIRED = {"__init__.py", "component.py", "metadata.yaml", "README.md", "OWNERS"}
"""Of each component, by docs/CONTRIBUTING.md of kubeflow/pipelines-components."""


@pytest.fixture(scope="module")
def group(tmp_path_factory) -> Path:
    """The components' common directory, as the command writes it."""
    directory = tmp_path_factory.mktemp("catalog")
    images = ("--client-image", "registry.example/client:1", "--server-image", "registry.example/server:1")
    result = perfit("components", "out", "--owner", "ann", "--owner", "bob", *images, cwd=directory)
    assert result.code == 0, result.err
    return directory / "out" / "components" / "training" / "perfit"


@pytest.mark.parametrize("name", SOURCES)
def test_a_component_loads_with_its_description_and_typed_inputs(group, name):
    path = group / name / "component.yaml"
    loaded, source = components.load_component_from_file(str(path)), SOURCES[name]
    types = {parameter: given.type for parameter, given in loaded.component_spec.inputs.items()}
    assert types == {parameter: given.type for parameter, given in source.component_spec.inputs.items()}
    assert loaded.description == inspect.getdoc(source.python_func)
    assert "perfit_components.images" not in (group / name / "component.py").read_text()
    image = loaded.component_spec.implementation.container.image
    assert image == f"registry.example/{'client' if name in ('prepare', 'client') else 'server'}:1"
    given = yaml.safe_load(path.read_text())["components"][f"comp-{source.name}"]["inputDefinitions"]["parameters"]
    assert all(parameter["description"] and parameter["parameterType"] for parameter in given.values())
    readme = (group / name / "README.md").read_text()
    assert all(f"| `{parameter}` |" in readme for parameter in (*given, *loaded.component_spec.outputs))


def test_the_files_are_those_that_kubeflows_catalog_requires(group):
    owners = {"approvers": ["ann", "bob"]}
    assert yaml.safe_load((group / "OWNERS").read_text()) == owners
    for name in SOURCES:
        directory = group / name
        assert {path.name for path in directory.iterdir()} == REQUIRED | {"component.yaml"}
        assert yaml.safe_load((directory / "OWNERS").read_text()) == owners
        metadata = yaml.safe_load((directory / "metadata.yaml").read_text())
        # Its validate_metadata.py wants these, in this order, once the optional ones are left out.
        required = [key for key in metadata if key not in ("tags", "ci", "links")]
        assert required == ["name", "stability", "dependencies", "lastVerified"]
        assert metadata["name"] == name
        needed = {part["name"]: part["version"] for part in metadata["dependencies"]["kubeflow"]}
        assert set(needed) == ({"Pipelines", "Trainer"} if name == "train_job" else {"Pipelines"})
        assert all(re.fullmatch(r"(==|>=|<=|~=)?\d+\.\d+\.\d+", version) for version in needed.values())
        assert isinstance(metadata["lastVerified"], datetime)


def test_the_pipeline_of_the_readme_runs_a_round(group, make, tmp_path):
    home = make(rounds=1, clients={"ann": {}, "bob": {"rank": 1}}, tiers={"default": {}})
    (example,) = re.findall(r"```python\n(.*?)```", (group / "README.md").read_text(), re.DOTALL)
    call = (
        "from kfp import local\n"
        "local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], workspace_root=sys.argv[1])\n"
        "federated_round(federation_file=sys.argv[2], store=sys.argv[3])\n"
    )
    script = tmp_path / "example.py"
    script.write_text(f"import sys\n{example}{call}")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # tasks call `python3`
    spec = home.site.spec
    ran = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "kfp"), spec.to_json(), home.site.store_uri],
        cwd=group,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    expected, stored = in_memory(spec), files(home.site.root)
    assert {key: stored.get(key) for key in expected} == expected
