"""A whole control plane (API server, controllers) with one host that has pools and no hypervisor: for import tests.

`async with import_world(folder) as w:` gives a `World`; DataVolumes made through `w.client` are carried out by the
host's real volume worker, in real children, from whatever server the test runs on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tests.api_server import running_server
from tests.fake_agent import ready_node
from tests.image_server import LOOPBACK

from stead.agent.volumes import Volumes, VolumeSettings
from stead.client.contract import Client, Selection
from stead.client.queue import Backoff
from stead.controllers.start import ControllerOptions, run_controllers
from stead.images.sources import Policy
from stead.kinds.register import DATA_VOLUME, EVENT, NODE, PERSISTENT_VOLUME_CLAIM
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError
from stead.storage.pools import Pool

Object = dict[str, Any]
HOST = "host1"
BACKOFF = Backoff(base=0.3, cap=0.6, jitter=0.0)


class World:
    """See the module. `pools` by name."""

    def __init__(self, client: Client, pools: dict[str, Pool], kubeconfig: Path) -> None:
        self.client, self.pools, self.kubeconfig = client, pools, kubeconfig

    async def until(
        self, resource: Resource, name: str, holds: Callable[[Object], Any], namespace: str = "default"
    ) -> Object:
        """The object, once it is as wanted."""
        found: Object = {}
        for _ in range(600):
            with contextlib.suppress(ApiError):
                found = await self.client.get(resource, namespace if resource.namespaced else None, name)
                if holds(found):
                    return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"{resource.kind} {name} was last seen as {found.get('status')}")

    async def data_volume(self, name: str, source: Object, size: str = "8Mi", **more: Any) -> Object:
        """Create a DataVolume; `more` goes to its `storage`."""
        return await self.client.create(DATA_VOLUME, {
            "apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume",
            "metadata": {"namespace": "default", "name": name},
            "spec": {"source": source, "storage": {"resources": {"requests": {"storage": size}}, **more}},
        })  # fmt: skip

    async def phase(self, name: str, phase: str) -> Object:
        """The DataVolume in that phase."""
        return await self.until(DATA_VOLUME, name, lambda d: d.get("status", {}).get("phase") == phase)

    async def disk(self, name: str, pool: str = "default") -> Path:
        """The file behind a claim."""
        claim = await self.client.get(PERSISTENT_VOLUME_CLAIM, "default", name)
        return self.pools[pool].get(claim["metadata"]["uid"]).path

    async def events(self, kind: str, name: str) -> list[tuple[str, str]]:
        """(reason, message) of all events about an object."""
        found = await self.client.list(EVENT, Selection(namespace="default"))
        about = [e for e in found.items if (e["involvedObject"]["kind"], e["involvedObject"]["name"]) == (kind, name)]
        return [(e["reason"], e["message"]) for e in about]


def condition(obj: Object, kind: str) -> Object:
    """A condition of an object, {} if it has none of that type."""
    return next((c for c in obj.get("status", {}).get("conditions", []) if c["type"] == kind), {})


@contextlib.asynccontextmanager
async def import_world(folder: Path, **more_pools: Path) -> AsyncIterator[World]:
    """See the module's prose."""
    paths = {"default": folder / "pool", **more_pools}
    pools = {name: Pool(path, name) for name, path in paths.items()}
    async with running_server() as server:
        ready = asyncio.Event()
        options = ControllerOptions(node_grace_seconds=3600, upload_url=server.url)
        settings = VolumeSettings(
            host_name=HOST, policy=Policy(allowed=LOOPBACK), insecure_registries=("127.0.0.1",), backoff=BACKOFF
        )
        tasks = [asyncio.create_task(run_controllers(server.client, options, on_ready=ready.set))]
        try:
            async with asyncio.timeout(60):
                await ready.wait()
            node = ready_node(HOST, labels={f"pool.stead.io/{name}": pool.uid for name, pool in pools.items()})
            status = node.pop("status")
            await server.client.create(NODE, node)
            await server.client.patch(NODE, None, HOST, {"status": status}, subresource="status")
            tasks.append(asyncio.create_task(Volumes(server.client, pools, settings).run()))
            yield World(server.client, pools, server.kubeconfig)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
