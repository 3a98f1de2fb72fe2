"""Tells the pod network which other hosts there are, as their Nodes say.

One task of the agent, where the network spans hosts. A Node's InternalIP is its host's address on the segment.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import structlog

from stead.client.contract import Client
from stead.client.informer import Informer
from stead.kinds import register
from stead.network.attachment import NetworkError

log = structlog.get_logger(__name__)

Object = dict[str, Any]

RETRY_SECONDS = 5.0


class Joinable(Protocol):
    """What is used of `network.podnetwork.PodNetwork`."""

    async def join(self, peers: frozenset[str]) -> None: ...


def addresses_of(nodes: list[Object], own: str) -> frozenset[str]:
    """Addresses of the other hosts."""
    found: set[str] = set()
    for node in nodes:
        if node["metadata"]["name"] != own:
            listed = (node.get("status") or {}).get("addresses") or []
            found.update(str(entry["address"]) for entry in listed if entry.get("type") == "InternalIP")
    return frozenset(found)


class Neighbours:
    """See the module. `run` is the task."""

    def __init__(self, client: Client, network: Joinable, host: str) -> None:
        self._informer = Informer(client, register.NODE)
        self._network = network
        self._host = host
        self._wake = asyncio.Event()

    async def run(self) -> None:
        self._informer.add_listener(lambda _old, _new: self._wake.set())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informer.run())
            group.create_task(self._follow())

    async def _follow(self) -> None:
        known: frozenset[str] | None = None
        while True:
            await self._wake.wait()
            self._wake.clear()
            wanted = addresses_of(list(self._informer.objects()), self._host)
            if wanted == known:
                continue
            try:
                await self._network.join(wanted)
                known = wanted
            except NetworkError as error:
                log.warning("the other hosts cannot be joined, trying again", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()
