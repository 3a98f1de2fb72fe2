"""Events for people: a recorder that says a thing once and counts repeats, and the clean-up of what is an hour old.

`Recorder.event` is called by controllers from the event loop; it never waits and never fails. Notes stand in a bounded
queue: when it is full the newest is dropped and counted (events are advice, state is in conditions). One task writes.
Equal events (object, type, reason, message) become one Event whose `count` grows, as client-go's correlator does.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from datetime import UTC, datetime, timedelta

import msgspec
import structlog

from stead.client.contract import Client, Object
from stead.controllers.conditions import text_from_time, time_from_text
from stead.kinds.register import EVENT
from stead.kube.errors import ApiError

log = structlog.get_logger(__name__)

QUEUE_LIMIT = 2_000
REMEMBERED = 4_000
EVENT_TTL = timedelta(hours=1)


class Note(msgspec.Struct, frozen=True):
    """One thing that happened to one object. `type` is Normal or Warning."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    type: str
    reason: str
    message: str


class Recorder:
    """See the module's prose. `component` is shown as the event's source."""

    def __init__(self, client: Client, component: str) -> None:
        self._client = client
        self._component = component
        self._queue: asyncio.Queue[Note] = asyncio.Queue(QUEUE_LIMIT)
        self._known: OrderedDict[Note, tuple[str, int]] = OrderedDict()  # note → (event name, count)
        self.dropped = 0

    def event(self, obj: Object, type: str, reason: str, message: str) -> None:
        """Note that something happened to `obj`."""
        metadata = obj["metadata"]
        note = Note(
            obj["apiVersion"],
            obj["kind"],
            metadata.get("namespace", ""),
            metadata["name"],
            metadata.get("uid", ""),
            type,
            reason,
            message[:1024],
        )
        try:
            self._queue.put_nowait(note)
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """Write notes until cancelled. What cannot be written is dropped with a log line."""
        while True:
            note = await self._queue.get()
            try:
                async with asyncio.timeout(30):
                    await self._write(note)
            except (ApiError, OSError, TimeoutError) as error:
                log.info("event not written", reason=note.reason, object=note.name, error=repr(error))

    async def drain(self, timeout_seconds: float = 5.0) -> None:
        """Wait until everything noted so far was taken up by `run`."""
        async with asyncio.timeout(timeout_seconds):
            while not self._queue.empty():
                await asyncio.sleep(0.01)

    async def _write(self, note: Note) -> None:
        name, count = self._known.get(note, ("", 0))
        now = text_from_time(datetime.now(UTC))
        if name:
            try:
                patch = {"count": count + 1, "lastTimestamp": now}
                await self._client.patch(EVENT, note.namespace or "default", name, patch)
                self._remember(note, name, count + 1)
                return
            except ApiError as error:
                if error.code != 404:
                    raise
        made = await self._client.create(EVENT, self._object(note, now))
        self._remember(note, made["metadata"]["name"], 1)

    def _object(self, note: Note, now: str) -> Object:
        mark = hashlib.sha256(repr((note, now, id(self))).encode()).hexdigest()[:16]
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": note.namespace or "default", "name": f"{note.name}.{mark}"[-253:]},
            "involvedObject": {
                "apiVersion": note.api_version,
                "kind": note.kind,
                "name": note.name,
                "uid": note.uid,
                **({"namespace": note.namespace} if note.namespace else {}),
            },
            "type": note.type,
            "reason": note.reason,
            "message": note.message,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": "",
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
        }

    def _remember(self, note: Note, name: str, count: int) -> None:
        self._known[note] = (name, count)
        self._known.move_to_end(note)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def is_expired(event: Object, now: datetime) -> bool:
    """Whether an Event was last seen longer than `EVENT_TTL` ago. An unreadable date keeps it."""
    series = event.get("series") or {}
    text = (
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
    )
    try:
        return bool(text) and now - time_from_text(text) > EVENT_TTL
    except ValueError:
        return False


async def expire_events(client: Client, *, every_seconds: float = 300.0) -> None:
    """Delete expired Events, again and again until cancelled."""
    while True:
        try:
            now = datetime.now(UTC)
            for event in (await client.list(EVENT)).items:
                if is_expired(event, now):
                    await client.delete(EVENT, event["metadata"]["namespace"], event["metadata"]["name"])
        except (ApiError, OSError, TimeoutError) as error:
            log.info("events not expired", error=repr(error))
        await asyncio.sleep(every_seconds)
