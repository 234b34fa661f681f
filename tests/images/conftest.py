"""Images to test, and the Docker daemon that has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from docker import DockerClient

    from perfit_pipelines.pipelines import Images


@pytest.fixture(scope="session")
def images() -> Images:
    """The images that PERFIT_TEST_IMAGES names: two names with their tags, the client's first."""
    named = os.environ.get("PERFIT_TEST_IMAGES")
    if not named:
        pytest.skip("PERFIT_TEST_IMAGES names no images to test: images/ci/run.sh builds some and runs these tests")
    from perfit_pipelines.pipelines import Images

    return Images(*named.split())


@pytest.fixture(scope="session")
def daemon(images) -> Iterator[DockerClient]:
    """The Docker daemon at DOCKER_HOST, which must be there if images are named."""
    import docker

    with closing(docker.from_env()) as client:
        yield client
