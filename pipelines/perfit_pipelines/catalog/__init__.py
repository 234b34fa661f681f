"""The components for the pipelines of others, in the files that Kubeflow's own catalog of components asks for.

A component's directory holds what docs/CONTRIBUTING.md of kubeflow/pipelines-components requires, and the compiled
``component.yaml`` besides. They are written for the images that their user has, which is why they are not kept in git.
"""

from __future__ import annotations

import inspect
import json
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from kfp import compiler
from kfp.dsl.python_component import PythonComponent
from kfp.dsl.structures import ComponentSpec

from perfit_components import aggregate, client, prepare, train_job, wait
from perfit_pipelines.pipelines import Images
from perfit_pipelines.writing import write_file, writing

_MODULES = {"prepare": prepare, "client": client, "train_job": train_job, "wait": wait, "aggregate": aggregate}
COMPONENTS = tuple(_MODULES)
GROUP = Path("components", "training", "perfit")
"""Where the catalog keeps them: category, then a subcategory for components of one owner."""
VERIFIED = "2026-11-29T00:00:00Z"
"""When the components last ran. The catalog removes what is not verified for a year."""
_TEXTS = Path(__file__).parent
_CUSTOM = "<!-- custom-content -->"
"""What follows it, the catalog's generator of READMEs leaves as it is."""
_TYPES = {
    "String": "str",
    "Integer": "int",
    "Boolean": "bool",
    "List": "list",
    "Dict": "dict",
    "TaskConfig": "dsl.TaskConfig",
}
_STABILITY, _PIPELINES = "beta", ">=2.16.1"
_MORE = {"train_job": "    - name: Trainer\n      version: '>=2.2.0'\n"}
"""What else of Kubeflow a component needs."""
_METADATA = """\
---
name: {name}
stability: {stability}
dependencies:
  kubeflow:
    - name: Pipelines
      version: '{pipelines}'
{more}tags:
  - training
  - fine-tuning
  - federated-learning
  - lora
lastVerified: {verified}
"""


def write_catalog(directory: Path, images: Images, owners: Sequence[str]) -> Path:
    """Write the directory of every component, and what they have in common.

    Args:
        directory: Root of a checkout of kubeflow/pipelines-components, or any other directory.
        images: Where the components run.
        owners: GitHub names of those who approve changes.

    Returns:
        The components' common directory.

    Raises:
        PerfitError: A file cannot be written.
    """
    group = directory / GROUP
    owned = yaml.safe_dump({"approvers": list(owners)})
    for name in COMPONENTS:
        with writing(group / name):
            (group / name).mkdir(parents=True, exist_ok=True)
        _write_component(group / name, name, images)
        write_file(group / name / "OWNERS", owned.encode())
    write_file(group / "OWNERS", owned.encode())
    write_file(group / "README.md", (_TEXTS / "README.md").read_bytes())
    exports = "".join(f"from .{name} import {name}\n" for name in sorted(COMPONENTS))
    listed = ", ".join(f'"{name}"' for name in sorted(COMPONENTS))
    docstring = '"""Personalised federated instruction tuning."""'
    write_file(group / "__init__.py", f"{docstring}\n\n{exports}\n__all__ = [{listed}]\n".encode())
    return group


def _write_component(directory: Path, name: str, images: Images) -> None:
    module = directory / "component.py"
    write_file(module, _source(name, images).encode())
    component = _compile(module, name, directory / "component.yaml")
    exported = f'"""{_title(name)}."""\n\nfrom .component import {name}\n\n__all__ = ["{name}"]\n'
    write_file(directory / "__init__.py", exported.encode())
    needs = {"stability": _STABILITY, "pipelines": _PIPELINES, "verified": VERIFIED, "more": _MORE.get(name, "")}
    write_file(directory / "metadata.yaml", _METADATA.format(name=name, **needs).encode())
    write_file(directory / "README.md", _readme(name, component).encode())


def _source(name: str, images: Images) -> str:
    """A component's source, which takes its image from no other file."""
    source = Path(_MODULES[name].__file__).read_text(encoding="utf-8")
    for constant, image in (("CLIENT_IMAGE", images.client), ("SERVER_IMAGE", images.server)):
        imported = f"from perfit_components.images import {constant}\n"
        source = source.replace(imported, f"{constant} = {json.dumps(image)}\n")
    return source


def _compile(module: Path, name: str, target: Path) -> PythonComponent:
    """Compile a component as the file on disk has it."""
    component = runpy.run_path(str(module))[name]
    with writing(target):
        compiler.Compiler().compile(component, str(target))
    return component


def _title(name: str) -> str:
    return f"PerFIT {name}"


def _readme(name: str, component: PythonComponent) -> str:
    """A component's README: what its source says, as tables, then how it is used."""
    overview, _, rest = inspect.getdoc(component.python_func).partition("\n\nArgs:\n")
    sections = [
        f"# {_title(name)}",
        "## Overview",
        overview,
        "## Inputs",
        _table(("Parameter", "Type", "Default", "Description"), _input_rows(component.component_spec)),
        "## Outputs",
        " ".join(rest.partition("Returns:\n")[2].split()),
        _table(("Name", "Type"), _output_rows(component.component_spec)),
        "## Metadata",
        f"- **Name**: {name}\n- **Stability**: {_STABILITY}\n- **Dependencies**: Kubeflow Pipelines {_PIPELINES}\n"
        f"- **Last Verified**: {VERIFIED}",
        _CUSTOM,
        (_TEXTS / f"{name}.md").read_text(encoding="utf-8").strip(),
    ]
    return "\n\n".join(sections) + "\n"


def _input_rows(component: ComponentSpec) -> Iterator[tuple[str, ...]]:
    for name, given in component.inputs.items():
        default = f"`{given.default}`" if given.optional else "required"
        yield f"`{name}`", f"`{_TYPES[given.type]}`", default, given.description


def _output_rows(component: ComponentSpec) -> Iterator[tuple[str, ...]]:
    for name, given in component.outputs.items():
        yield f"`{name}`", f"`{_TYPES.get(given.type.partition('[')[0], given.type)}`"


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
