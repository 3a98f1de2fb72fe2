"""An agent's certificate is renewed under a machine that runs; a new authority is taken up, and work goes on.

The simulated driver's machines end with their agent, which starts anew for a new authority; that real guests outlive
such a start is shown in `tests/faults`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from tests.wire.test_rotation import LIFE, Plane, free_port, running_plane

from stead import installation, run
from stead.cli import rotate
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.network.podnetwork import PodNetwork

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an agent makes a bridge: needs root")
VMI = register.VIRTUAL_MACHINE_INSTANCE
SPEC: dict[str, Any] = {"domain": {"devices": {"autoattachPodInterface": False}, "memory": {"guest": "64Mi"}}}


class AgentOf:
    """The agent of a plane's host with the simulated driver, started anew when it ends, as `stead up` does."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.settings = msgspec.structs.replace(
            plane.settings, hypervisor="simulated", instance="rotat", agent_port=free_port(), pod_bridge="stdrotat0",
            pod_cidr="10.241.0.0/24",
        )  # fmt: skip
        self.starts = 0
        self._stopping = asyncio.Event()
        self._ending = False

    async def run(self) -> None:
        while not self._ending:
            self._stopping = asyncio.Event()
            self.starts += 1
            await run.serve_agent(self.settings, self._stopping)

    def end(self) -> None:
        self._ending = True
        self._stopping.set()


@contextlib.asynccontextmanager
async def running_agent(plane: Plane) -> AsyncIterator[AgentOf]:
    agent = AgentOf(plane)
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        agent.end()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 30)
        network = PodNetwork(run._network(agent.settings))
        await network.remove()
        await network.close()


@contextlib.asynccontextmanager
async def tended(plane: Plane) -> AsyncIterator[None]:
    """Renew certificates meanwhile; not beside a rotation, which writes the same files in this process."""
    task = asyncio.create_task(plane.tend())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.5)  # what it had begun in a thread is done


async def phase(plane: Plane, name: str) -> str:
    client = plane.client()
    try:
        return str((await client.get(VMI, "default", name)).get("status", {}).get("phase"))
    except (ApiError, OSError):
        return ""
    finally:
        await client.close()


async def run_machine(plane: Plane, name: str) -> None:
    """Create a machine and wait until it runs."""
    client = plane.client()
    metadata = {"name": name, "namespace": "default"}
    await client.create(VMI, {"apiVersion": VMI.api_version, "kind": VMI.kind, "metadata": metadata, "spec": SPEC})
    await client.close()
    async with asyncio.timeout(60):
        while await phase(plane, name) != "Running":
            await asyncio.sleep(0.1)


def serial(agent: AgentOf) -> int:
    """That of the agent's certificate."""
    path = installation.Files.of(agent.settings).agent.certificate
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


async def test_an_agent_outlives_its_certificate_and_its_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotate.os, "geteuid", lambda: 0)
    async with running_plane(tmp_path) as plane, running_agent(plane) as agent:
        async with tended(plane):
            await run_machine(plane, "one")
            before, began = serial(agent), time.monotonic()
            while time.monotonic() - began < LIFE + 2:
                assert await phase(plane, "one") == "Running"
                await asyncio.sleep(0.3)
        assert serial(agent) != before
        assert agent.starts == 1, "without a fresh start"
        await plane.restarted(plane.stead("rotate", "ca"))
        async with tended(plane):
            await asyncio.sleep(2)  # both processes have taken the new authority up
        await plane.restarted(plane.stead("rotate", "ca", "--finish"))
        async with tended(plane):
            await run_machine(plane, "two")
