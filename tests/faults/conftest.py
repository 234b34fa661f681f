"""A federation that is undisturbed, hosts of its steps, and the totals of the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from ..perfit_components.conftest import make_site, tiny_llama
from ..perfit_components.running import THREE, Site, make_spec, write_data
from .steps import Case, Hosts, undisturbed
from .totals import EFFORT, TOTALS

__all__ = ["make_site", "tiny_llama"]

# Attacks are large, and their strategies are made of what a fixture has.
_slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
settings.register_profile("ci", derandomize=True, deadline=None, database=None, suppress_health_check=_slow)
settings.register_profile("long", deadline=None, database=None, suppress_health_check=_slow)
settings.load_profile("ci" if EFFORT == 1 else "long")


@pytest.fixture(scope="session")
def site(tiny_llama, tmp_path_factory) -> Site:
    """Three clients, two rounds, in an empty store of files. One that does not deliver stops no round."""
    directory = tmp_path_factory.mktemp("undisturbed")
    sections = THREE | {"rounds": 2, "participation": {"minimum_clients": 2}}
    return Site(make_spec(tiny_llama, write_data(directory / "data"), **sections), (directory / "store").as_uri())


@pytest.fixture(scope="session")
def cases(site) -> list[Case]:
    return undisturbed(site)


@pytest.fixture(scope="session")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path_factory.mktemp("hosts"))
    yield hosts
    hosts.close()


def pytest_terminal_summary(terminalreporter) -> None:
    if TOTALS:
        terminalreporter.section("faults")
        terminalreporter.write_line("\n".join(TOTALS.lines()))
