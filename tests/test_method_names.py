"""No code outside ``perfit.methods`` depends on a method's name."""

from __future__ import annotations

import ast
from pathlib import Path

from perfit.methods import METHODS

ROOT = Path(__file__).parents[1]


def uses_of_names(tree: ast.AST) -> list[int]:
    """The lines of a module that compare something with a method's name, or look one up by it."""
    lines = []
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        names = set(METHODS)
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.match_case):
            parts = [node.pattern]
        elif isinstance(node, ast.Subscript | ast.Dict):
            parts = [node.slice] if isinstance(node, ast.Subscript) else [key for key in node.keys if key]
            names -= {"perfit"}  # there it is the name of the package
        values = {leaf.value for part in parts for leaf in ast.walk(part) if isinstance(leaf, ast.Constant)}
        if values & names:
            lines.append(node.lineno)
    return lines


def test_no_code_outside_of_methods_uses_a_methods_name():
    sources = [path for root in ("components", "pipelines") for path in (ROOT / root).rglob("*.py")]
    others = [path for path in sources if "methods" not in path.parts]
    assert len(sources) > len(others) > 50
    assert {str(path): lines for path in others if (lines := uses_of_names(ast.parse(path.read_text())))} == {}


def test_the_report_uses_no_methods_name():
    template = (ROOT / "components/perfit_report/report.html.j2").read_text()
    assert [name for name in METHODS if f'"{name}"' in template or f"'{name}'" in template] == []


def test_uses_of_names_are_detected():
    assert uses_of_names(ast.parse('if spec.method.name == "fedit": pass')) == [1]
    assert uses_of_names(ast.parse('x = spec.method.name in ("perfit", "local")')) == [1]
    assert uses_of_names(ast.parse('TITLES = {"scaffold": 1}')) == [1]
