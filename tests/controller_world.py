"""A whole control plane of controllers over a `FakeClient`, and ways to wait for what users see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fake_agent import FakeAgent
from fake_client import FakeClient
from stead.controllers.start import ControllerOptions, run_controllers
from stead.kinds.register import VIRTUAL_MACHINE
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError

Object = dict[str, Any]


class Plane:
    """The client, the agent and waiting."""

    def __init__(self, client: Any, agent: FakeAgent) -> None:
        self.client = client
        self.agent = agent

    async def get(self, resource: Resource, name: str, namespace: str | None = "default") -> Object | None:
        try:
            return await self.client.get(resource, namespace if resource.namespaced else None, name)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def until(
        self, resource: Resource, name: str, holds: Callable[[Object], Any], *, seconds: float = 10.0, **rest: Any
    ) -> Object:
        """Wait until the object exists and `holds`; the failure shows the last state."""
        found: Object | None = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    found = await self.get(resource, name, **rest)
                    if found is not None and holds(found):
                        return found
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{resource.kind} {name} did not get there: {found}") from None

    async def until_gone(self, resource: Resource, name: str, *, seconds: float = 10.0, **rest: Any) -> None:
        found: Object | None = None
        try:
            async with asyncio.timeout(seconds):
                while (found := await self.get(resource, name, **rest)) is not None:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{resource.kind} {name} is still there: {found}") from None

    async def until_printable(self, name: str, status: str, **rest: Any) -> Object:
        return await self.until(
            VIRTUAL_MACHINE, name, lambda o: o.get("status", {}).get("printableStatus") == status, **rest
        )

    async def settle(self, quiet: float = 0.15) -> None:
        """Wait until nothing was written for a while."""
        seen = -1
        while seen != len(self.client.writes):
            seen = len(self.client.writes)
            await asyncio.sleep(quiet)


@asynccontextmanager
async def plane(client: Any = None, **node: Any) -> AsyncIterator[Plane]:
    """Run all controllers and one instant agent; on leaving, check that nobody changed a shared object.

    Without a client the API is a `FakeClient`; a real server's client works as well.
    """
    client = client or FakeClient()
    ready = asyncio.Event()
    task = asyncio.create_task(run_controllers(client, ControllerOptions(root_ca="PEM"), on_ready=ready.set))
    try:
        async with asyncio.timeout(20):
            await ready.wait()
        async with FakeAgent(client, **node) as agent:
            yield Plane(client, agent)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if isinstance(client, FakeClient):
        client.assert_untouched()


def machine(name: str = "vm1", strategy: str = "Always", **spec: Any) -> Object:
    """A small VirtualMachine."""
    template: Object = {
        "spec": {
            "domain": {
                "memory": {"guest": "64Mi"},
                "devices": {"interfaces": [{"name": "default", "masquerade": {}}]},
            },
            "networks": [{"name": "default", "pod": {}}],
        }
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"namespace": "default", "name": name},
        "spec": {"runStrategy": strategy, "template": template, **spec},
    }
