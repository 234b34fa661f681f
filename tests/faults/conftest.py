"""Fixtures of the tests of faults: a federation of the steps' tests."""

from ..perfit_components.conftest import make_site, tiny_llama

__all__ = ["make_site", "tiny_llama"]
