"""Bounded fan-out of driver events to whoever called `events()`. Used by every driver, from the event loop only.

A subscriber that falls behind loses its queue and is told so with one `lost` event: observe everything again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from stead.hypervisor.contract import DriverEvent

QUEUE_LENGTH = 256
LOST = DriverEvent(uid="", kind="lost", detail="events were dropped")


class Subscribers:
    """The queues of all current subscribers."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[DriverEvent]] = set()

    def publish(self, event: DriverEvent) -> None:
        """Hand one event to all; never blocks."""
        for queue in self._queues:
            if queue.full():
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(LOST)
            queue.put_nowait(event)

    def subscribe(self) -> AsyncIterator[DriverEvent]:
        """Events from this call on (not from the first step of the iteration), without end."""
        queue: asyncio.Queue[DriverEvent] = asyncio.Queue(QUEUE_LENGTH)
        self._queues.add(queue)
        return self._drain(queue)

    async def _drain(self, queue: asyncio.Queue[DriverEvent]) -> AsyncIterator[DriverEvent]:
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)
