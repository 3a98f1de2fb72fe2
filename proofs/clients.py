"""Ten clients that read and write a few ConfigMaps over HTTPS without pause, and what each of them saw.

`Recording` collects: operations for `histories`, acknowledged revisions, lists as snapshots, and the events of one
watch that is resumed whenever it breaks. One event loop, so one clock for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import ssl
import time
from collections.abc import Callable
from typing import Any

import msgspec
from stead.benchmarks.http import Connection
from stead.benchmarks.served import PATH

from . import histories
from .histories import Operation, Seen

#: what a broken or dying server gives a client
TROUBLE = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ssl.SSLError, TimeoutError, IndexError)
Dial = Callable[[], Connection]


class Recording:
    """What all clients saw."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.writes: list[tuple[float, float, int]] = []
        self.acknowledged: dict[int, tuple[str, str | None]] = {}
        self.values: dict[int, str] = {}
        self.snapshots: list[tuple[int, dict[str, str]]] = []
        self.events: list[Seen] = []
        self.resumed = 0
        self.faults: list[str] = []

    def saw(self, revision: int, value: str) -> None:
        """An object's resourceVersion and value: one revision, one value."""
        if self.values.setdefault(revision, value) != value:
            self.faults.append(f"revision {revision} is both {self.values[revision]} and {value}")

    def check_snapshots(self) -> list[str]:
        """Lists that differ from what the watch told up to their resourceVersion."""
        faults, state, position = [], dict[str, str](), 0
        for revision, items in sorted(self.snapshots, key=lambda each: each[0]):
            while position < len(self.events) and self.events[position].revision <= revision:
                event = self.events[position]
                position += 1
                if event.type == "DELETED":
                    state.pop(event.key, None)
                else:
                    state[event.key] = event.value
            if state != items:
                wrong = sorted(key for key in {*state, *items} if state.get(key) != items.get(key))
                faults.append(f"a list at {revision} differs from the events up to then in {wrong[:5]}")
        return faults


class Client:
    """One of the ten: one connection, one operation at a time."""

    def __init__(self, number: int, dial: Dial, recording: Recording, draw: random.Random) -> None:
        self._number = number
        self._dial = dial
        self._recording = recording
        self._draw = draw
        self._connection: Connection | None = None
        self._latest: dict[str, int] = {}
        self._count = 0

    async def work(self, keys: list[str], stop: asyncio.Event, pause: float = 0.0) -> None:
        """Do something with one of the keys, again and again; `pause` is seconds between two operations, on average."""
        while not stop.is_set():
            if pause:
                await asyncio.sleep(self._draw.uniform(0, 2 * pause))
            kind = self._draw.choices(("create", "read", "update", "delete", "list"), (4, 4, 6, 2, 1))[0]
            await self._once(kind, self._draw.choice(keys), keys)
        await self._hang_up()

    async def _once(self, kind: str, key: str, keys: list[str]) -> None:
        if kind == "update" and key not in self._latest:
            kind = "read"
        self._count += 1
        value = f"{self._number}-{self._count}-{self._draw.randrange(1 << 30):x}"
        if not await self._connected():
            return  # nothing was sent
        begin = time.perf_counter()
        try:
            code, answer = await self._call(kind, key, value)
        except TROUBLE:
            self._connection = None
            code, answer = 0, {}
        end = time.perf_counter()
        if code in (0, 429, 500, 503, 504):
            self._unknown(kind, key, value, begin)
            await asyncio.sleep(0.02)
        elif kind == "list":
            self._listed(answer, keys, (begin, end))
        else:
            self._answered(kind, key, (code, answer), (begin, end))

    async def _connected(self) -> bool:
        if self._connection is None:
            try:
                self._connection = await self._dial().open()
            except TROUBLE:
                await asyncio.sleep(0.02)
        return self._connection is not None

    async def _call(self, kind: str, key: str, value: str) -> tuple[int, Any]:
        connection = self._connection
        assert connection is not None
        async with asyncio.timeout(15):
            if kind == "create":
                return _parsed(await connection.call("POST", PATH, body(key, value)))
            if kind == "update":
                return _parsed(await connection.call("PUT", f"{PATH}/{key}", body(key, value, self._latest[key])))
            method = "DELETE" if kind == "delete" else "GET"
            return _parsed(await connection.call(method, PATH if kind == "list" else f"{PATH}/{key}"))

    def _note(self, kind: str, key: str, times: tuple[float, float], **rest: Any) -> None:
        self._recording.operations.append(
            Operation(client=self._number, key=key, kind=kind, begin=times[0], end=times[1], **rest)
        )

    def _unknown(self, kind: str, key: str, value: str, begin: float) -> None:
        """It may have happened, or may happen yet. Reads without an answer say nothing."""
        times = (begin, math.inf)
        if kind == "create":
            self._note(histories.CREATE, key, times, value=value)
        elif kind == "update":
            self._note(histories.UPDATE, key, times, value=value, expected=self._expected(key))
        elif kind == "delete":
            self._note(histories.DELETE, key, times)

    def _expected(self, key: str) -> str:
        return self._recording.values[self._latest[key]]

    def _listed(self, answer: Any, keys: list[str], times: tuple[float, float]) -> None:
        found = {}
        for item in answer["items"]:
            if "stead-proof" in (item["metadata"].get("labels") or {}):
                name, revision, value = seen(item)
                found[name] = value
                self._recording.saw(revision, value)
                self._latest[name] = revision
        self._recording.snapshots.append((int(answer["metadata"]["resourceVersion"]), found))
        for key in keys:
            self._note(histories.READ, key, times, value=found.get(key))

    def _answered(self, kind: str, key: str, answered: tuple[int, Any], times: tuple[float, float]) -> None:
        code, answer = answered
        if code == 404:
            self._note(histories.READ, key, times, value=None)
            self._latest.pop(key, None)
        elif code == 409 and kind == "create":
            self._note(histories.EXISTS, key, times)
        elif code == 409 and kind == "update":
            self._note(histories.STALE, key, times, expected=self._expected(key))
            self._latest.pop(key, None)
        elif code >= 300:
            self._recording.faults.append(f"{kind} of {key} was answered with {code}: {answer}")
        elif kind == "delete":
            self._note(histories.DELETE, key, times)
        else:
            self._done(kind, key, answer, times)

    def _done(self, kind: str, key: str, answer: Any, times: tuple[float, float]) -> None:
        _, revision, value = seen(answer)
        expected = self._expected(key) if kind == "update" else None
        self._recording.saw(revision, value)
        self._note(kind, key, times, value=value, expected=expected)
        self._latest[key] = revision
        if kind != "read":
            self._recording.acknowledged[revision] = (key, value)
            self._recording.writes.append((*times, revision))

    async def _hang_up(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


def body(key: str, value: str, revision: int = 0) -> bytes:
    """A ConfigMap of ours."""
    metadata: dict[str, Any] = {"name": key, "namespace": "default", "labels": {"stead-proof": "true"}}
    if revision:
        metadata["resourceVersion"] = str(revision)
    return msgspec.json.encode({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"v": value}})


def seen(item: Any) -> tuple[str, int, str]:
    """Name, revision and value of a ConfigMap of ours."""
    return item["metadata"]["name"], int(item["metadata"]["resourceVersion"]), (item.get("data") or {}).get("v", "")


def _parsed(answer: tuple[int, bytes]) -> tuple[int, Any]:
    return answer[0], msgspec.json.decode(answer[1])


async def follow(dial: Dial, recording: Recording, revision: int, hang_up_after: int = 0) -> None:
    """One watch without end from a revision on, resumed after the last event; until cancelled.

    `hang_up_after`: break it off by ourselves after so many events, to resume more often than the server dies.
    """
    query = f"{PATH}?watch=1&labelSelector=stead-proof&resourceVersion="
    while True:
        told = 0
        with contextlib.suppress(*TROUBLE, ValueError):
            connection = await dial().open()
            try:
                async for line in connection.watch(query + str(revision)):
                    event = msgspec.json.decode(line)
                    if event["type"] == "ERROR":
                        recording.faults.append(f"the watch from {revision} was refused: {event['object']}")
                        return
                    name, revision, value = seen(event["object"])
                    recording.events.append(Seen(event["type"], name, revision, value))
                    told += 1
                    if told == hang_up_after:
                        break
            finally:
                connection.abort()
        await asyncio.sleep(0 if hang_up_after and told else 0.02)
        recording.resumed += 1
