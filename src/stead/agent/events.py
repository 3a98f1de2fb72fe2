"""Event objects about machines, for `kubectl describe` and `events`: best effort, never in the way of the work
itself.

Called from machine tasks; each event is written by a background task with a deadline, at most `MAX_PENDING` at once,
and the same event of one machine at most once in `QUIET_SECONDS` (its count is not kept). Reasons follow KubeVirt's.
"""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any

import structlog

from stead.agent import vmi as reading
from stead.client.contract import Client
from stead.kinds import register
from stead.kube.errors import ApiError

log = structlog.get_logger(__name__)

Object = dict[str, Any]

MAX_PENDING = 32
QUIET_SECONDS = 30.0
WRITE_SECONDS = 10.0


def now() -> str:
    """RFC 3339 with seconds, UTC: the form of all times in status."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Events:
    """Writes events through one client; `host` is the reporting instance."""

    def __init__(self, client: Client, host: str) -> None:
        self._client = client
        self._host = host
        self._pending: set[asyncio.Task[None]] = set()
        self._said: dict[tuple[str, str, str], float] = {}

    def say(self, vmi: Object, kind: str, reason: str, message: str) -> None:
        """One event of `kind` Normal or Warning about an instance."""
        time = asyncio.get_running_loop().time()
        identity = (reading.uid(vmi), reason, message)
        if len(self._pending) >= MAX_PENDING or time - self._said.get(identity, -QUIET_SECONDS) < QUIET_SECONDS:
            return
        self._said = {known: at for known, at in self._said.items() if time - at < QUIET_SECONDS}
        self._said[identity] = time
        task = asyncio.create_task(self._write(event_from(vmi, self._host, (kind, reason, message))), name="event")
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _write(self, event: Object) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._client.create(register.EVENT, event)
        except (ApiError, OSError, TimeoutError) as error:
            log.info("an event could not be written", reason=event["reason"], error=str(error))

    async def close(self) -> None:
        """Give up what is not written yet."""
        for task in self._pending:
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)


def event_from(vmi: Object, host: str, said: tuple[str, str, str]) -> Object:
    """The Event object; `said` is (type, reason, message)."""
    kind, reason, message = said
    moment = now()
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": reading.namespace(vmi), "name": f"{reading.name(vmi)}.{uuid.uuid4().hex[:16]}"},
        "involvedObject": {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "namespace": reading.namespace(vmi),
            "name": reading.name(vmi),
            "uid": reading.uid(vmi),
            "resourceVersion": reading.resource_version(vmi),
        },
        "type": kind,
        "reason": reason,
        "message": message[:1024],
        "source": {"component": "virt-handler", "host": host},
        "reportingComponent": "virt-handler",
        "reportingInstance": host,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }
