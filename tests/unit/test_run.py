"""What the composition root derives from settings."""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest

from stead import run
from stead.config import Settings
from stead.network.addresses import gateway_of


@pytest.mark.parametrize("listened", ["0.0.0.0", "::"])
def test_importers_reach_our_endpoints_by_no_address_of_this_host(listened: str) -> None:
    settings = Settings(listen_address=listened, importer_allowed_networks=("127.0.0.0/8", "::1/128"))
    policy = run._policy(settings)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.5.6.7", 0))  # the whole network is this host's, whatever else it has
    for address in ("127.0.0.1", "127.5.6.7", "::1", "::ffff:127.0.0.1"):
        assert "Stead itself" in policy.refusal(address, settings.listen_port), address
        assert policy.refusal(address, 8080) == "", address
    assert "Stead itself" in policy.refusal("127.0.0.1", settings.agent_port)
    assert policy.refusal("192.0.2.1", settings.listen_port) == "", "of another host"
    assert "Stead itself" in policy.refusal(gateway_of(settings.pod_cidr), 80)


def test_with_one_address_only_that_is_refused() -> None:
    policy = run._policy(Settings(listen_address="192.0.2.7", importer_allowed_networks=("127.0.0.0/8",)))
    assert "Stead itself" in policy.refusal("192.0.2.7", 6443)
    assert policy.refusal("192.0.2.7", 443) == ""
    assert policy.refusal("127.0.0.1", 6443) == ""


async def test_work_beside_a_process_that_stops_at_once_is_not_forgotten(recwarn: pytest.WarningsRecorder) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with run._background(work(), asyncio.Event()):
        pass
    gc.collect()
    assert begun.is_set()
    assert [each for each in recwarn if "never awaited" in str(each.message)] == []
