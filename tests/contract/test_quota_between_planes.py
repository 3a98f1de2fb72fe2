"""A quota holds although several planes write to one store, each counting from its own memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from stead.client.contract import Client, Selection
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.server.api import ApiServer, Settings
from stead.store.sqlite import SqliteStore

Object = dict[str, Any]
ROOM, ATTEMPTS = 9, 30


class SharedStore(SqliteStore):
    """One store under several planes; as a cluster's, it says so."""

    @property
    def is_shared(self) -> bool:
        return True


@contextlib.asynccontextmanager
async def planes(store: SqliteStore, count: int = 3) -> AsyncIterator[list[Client]]:
    """Several API servers over one store."""
    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(store.close)
        clients: list[Client] = []
        for _ in range(count):
            api = ApiServer(store, Settings(token_key=ec.generate_private_key(ec.SECP256R1()), address="127.0.0.1"))
            await api.start()
            undo.push_async_callback(api.stop)
            clients.append(api.local_client())
        yield clients


def named(resource: Any, name: str, **body: Any) -> Object:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **body}


async def rush(clients: list[Client]) -> tuple[int, list[str]]:
    """All planes create at once: how many objects there are then, and what the others were told."""
    hard = {"count/configmaps": ROOM, "requests.storage": "100Gi"}
    await clients[0].create(register.RESOURCE_QUOTA, named(register.RESOURCE_QUOTA, "q", spec={"hard": hard}))
    await asyncio.sleep(0.2)  # every plane knows the quota
    refusals: list[str] = []

    async def attempt(client: Client, name: str) -> None:
        try:
            await client.create(register.CONFIG_MAP, named(register.CONFIG_MAP, name))
        except ApiError as error:
            refusals.append(error.message)

    await asyncio.gather(*(attempt(c, f"p{p}-{n}") for n in range(ATTEMPTS) for p, c in enumerate(clients)))
    return len((await clients[0].list(register.CONFIG_MAP, Selection("default"))).items), refusals


async def test_planes_never_pass_a_quota_together(tmp_path: Path) -> None:
    async with planes(await SharedStore.open(tmp_path / "store.db")) as clients:
        made, refusals = await rush(clients)
        assert made == ROOM
        assert len(refusals) == ATTEMPTS * len(clients) - ROOM
        assert all("exceeded quota: q" in text for text in refusals)
        quota = await clients[1].get(register.RESOURCE_QUOTA, "default", "q")
        assert quota["status"]["used"]["count/configmaps"] == str(ROOM)
        # What one plane takes away, another may take at once; and growth counts as much as a new object.
        await clients[2].delete(register.CONFIG_MAP, "default", (await first_name(clients[2])))
        await asyncio.sleep(0.2)
        await clients[0].create(register.CONFIG_MAP, named(register.CONFIG_MAP, "again"))
        with pytest.raises(ApiError, match="exceeded quota"):
            await clients[1].create(register.CONFIG_MAP, named(register.CONFIG_MAP, "more"))


async def first_name(client: Client) -> str:
    listed = await client.list(register.CONFIG_MAP, Selection("default"))
    return str(listed.items[0]["metadata"]["name"])


async def test_control_planes_that_do_not_agree_pass_it(tmp_path: Path) -> None:
    """The same rush where each plane believes that it is alone: the test above would notice."""
    async with planes(await SqliteStore.open(tmp_path / "store.db")) as clients:
        made, _ = await rush(clients)
        assert made > ROOM
