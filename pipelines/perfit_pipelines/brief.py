"""Components as pipelines have them: without the descriptions that readers of their source need."""

from __future__ import annotations

import copy
import re

from kfp.dsl.base_component import BaseComponent

_DOCSTRING = re.compile(r'"""([^\n]*)\n.*?"""', re.DOTALL)


def brief(component: BaseComponent, name: str | None = None) -> BaseComponent:
    """Return a copy of a component whose inputs have no descriptions and whose docstring is its first line.

    KFP repeats a component's text about eight times in the workflow, for each of its tasks, and a workflow's size is
    limited (docs/scaling.md).

    Args:
        component: Made of a function that has a docstring of several lines.
        name: Another name: KFP mixes up the pods' settings of executors of one name in two tiers.
    """
    short = copy.deepcopy(component)
    spec = short.component_spec
    spec.name = short.name = name or component.name
    for given in spec.inputs.values():
        given.description = None
    container = spec.implementation.container
    container.command = [_DOCSTRING.sub(r'"""\1"""', part, count=1) for part in container.command]
    return short
