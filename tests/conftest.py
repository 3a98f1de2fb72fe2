"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import hypothesis
import pytest
import pytest_asyncio
from tests.etcd_cluster import running_cluster
from tests.stead_host import SteadHost, stead_host

# How long an example takes says more of the machine than of our code; the same code is judged by the same examples.
_SLOW = (hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much)
hypothesis.settings.register_profile("stead", deadline=None, derandomize=True, suppress_health_check=_SLOW)
hypothesis.settings.load_profile("stead")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stead(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SteadHost]:
    """A running Stead for all tests of a module, which carry `pytest.mark.asyncio(loop_scope="module")`."""
    async with stead_host(tmp_path_factory.mktemp("stead")) as host:
        yield host


@pytest.fixture(scope="session")
def etcd_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real etcd cluster of three members, started when the first test asks; each test takes a name of its own."""
    with running_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster
