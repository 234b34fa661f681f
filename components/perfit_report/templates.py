"""The pages' templates, and how they write numbers."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from perfit_report.style import byte_unit
from perfit_report.tables import cut

if TYPE_CHECKING:
    from jinja2 import Template


def template(name: str) -> Template:
    """Return a template of this package."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": "{:,.0f}".format,
        "cut": cut,
        "duration": format_duration,
        "percent": format_percent,
        "perplexity": format_perplexity,
    }
    return environment.get_template(name)


def format_perplexity(value: float) -> str:
    """Two decimals, of large values none."""
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def format_percent(fraction: float) -> str:
    """A signed change, with a true minus."""
    return f"{100 * fraction:+.1f}\u202f%".replace("-", "\u2212")


def format_duration(seconds: float) -> str:
    """Return seconds as a person says them, two units at most."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}\u202fs"
    if whole < 3600:
        return f"{whole // 60}\u202fmin {whole % 60}\u202fs"
    return f"{whole // 3600}\u202fh {whole % 3600 // 60}\u202fmin"


def format_bytes(count: float) -> str:
    """A decimal unit, at least two digits."""
    size, unit = byte_unit(count)
    return f"{count / size:.{1 if size > 1 and count < 100 * size else 0}f}\u202f{unit}"


def _read(name: str) -> str:
    return files("perfit_report").joinpath(name).read_text(encoding="utf-8")
