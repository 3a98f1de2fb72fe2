"""`watch`: watchers that reconnect again and again, to a plane that dies now and then, miss nothing.

Ten watchers get `n` events together, of a tenth as many writes on a hundred ConfigMaps by eight clients. Each watch is
hung up on at random by ourselves and resumed from its last event; the plane gets `kill -9` up to four times. At the end
the events of each must be all acknowledged writes, each once, in the order of revisions, and lists must agree with
them. The control: events of which one is left out, doubled
or exchanged are found faulty.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

import msgspec
from stead.benchmarks import rig
from stead.benchmarks.http import Connection
from stead.benchmarks.served import PATH

from . import histories
from .clients import TROUBLE, Dial, Recording, body, follow, seen
from .linearizability import dialler, revision_now
from .report import Outcome, Request

WRITERS, WATCHERS = 8, 10
OBJECTS = 100
#: kills in one run at most, and the most events before we hang up
KILLS, HANG_UP = 4, 300


async def run(request: Request) -> Outcome:
    """See the module's prose."""
    begun = time.monotonic()
    draw = random.Random(request.seed)
    writes = max(1, request.n // WATCHERS)
    kills = max(1, min(KILLS, writes // 100))
    recording = Recording()
    others = [Recording() for _ in range(WATCHERS - 1)]
    async with rig.plane() as plane:
        dial = dialler(plane)
        first = await revision_now(dial)
        watches = [
            asyncio.create_task(follow(dial, each, first, draw.randint(HANG_UP // 3, HANG_UP)))
            for each in (recording, *others)
        ]
        numbers = iter(range(writes))
        writing = [asyncio.create_task(_write(each, dial, recording, numbers)) for each in range(WRITERS)]
        for kill in range(kills):
            while len(recording.acknowledged) < writes * (kill + 1) // (kills + 1):
                await asyncio.sleep(0.02)
            await plane.kill()
            await plane.up("plane")
        await asyncio.gather(*writing)
        async with asyncio.timeout(60):
            while not all(_has_all(each, max(recording.acknowledged)) for each in (recording, *others)):
                await asyncio.sleep(0.05)
        await _list(dial, recording)
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
    failures = histories.broken_events(recording.events, recording.acknowledged)
    for each in others:
        failures += histories.broken_events(each.events, recording.acknowledged) + each.faults
    failures += recording.check_snapshots() + recording.faults + _control(recording, draw)
    everybody = (recording, *others)
    facts = {
        "writes acknowledged": str(len(recording.acknowledged)),
        "events": f"{sum(len(each.events) for each in everybody)} at {WATCHERS} watchers",
        "watches were resumed": f"{sum(each.resumed for each in everybody)} times; kill -9 of the plane: {kills}",
        "lost, doubled, out of order": str(len(failures)),
        "control": "a left-out, a doubled and an exchanged event are each found",
    }
    return Outcome(name="watch", n=request.n, seed=request.seed, facts=facts, failures=failures,
                   seconds=time.monotonic() - begun)  # fmt: skip


def _has_all(recording: Recording, newest: int) -> bool:
    return bool(recording.events) and recording.events[-1].revision >= newest


async def _write(number: int, dial: Dial, recording: Recording, numbers: Iterator[int]) -> None:
    """One writer, on objects of its own; each write is repeated until it is acknowledged."""
    connection: Connection | None = None
    made: set[str] = set()
    for item in numbers:
        key, value = f"watched-{number}-{item % (OBJECTS // WRITERS)}", str(item)
        while True:
            try:
                connection = connection or await dial().open()
                method, path = ("PUT", f"{PATH}/{key}") if key in made else ("POST", PATH)
                code, answer = await connection.call(method, path, body(key, value))
            except TROUBLE:
                connection = None
                await asyncio.sleep(0.02)
                continue
            made.add(key)
            if code != 409:  # else the create had happened, although nobody could say so
                break
        if code >= 300:
            recording.faults.append(f"{method} of {key}: {code} {answer[:200]!r}")
            return
        name, revision, value = seen(msgspec.json.decode(answer))
        recording.acknowledged[revision] = (name, value)
    if connection is not None:
        await connection.close()


async def _list(dial: Dial, recording: Recording) -> None:
    connection = await dial().open()
    _, answer = await connection.call("GET", f"{PATH}?labelSelector=stead-proof")
    await connection.close()
    found = msgspec.json.decode(answer)
    items = [seen(item) for item in found["items"]]
    recording.snapshots.append((int(found["metadata"]["resourceVersion"]), {name: value for name, _, value in items}))


def _control(recording: Recording, draw: random.Random) -> list[str]:
    """The checks, on events that were tampered with; what they do not find is a failure."""
    events = recording.events
    # An event that was acknowledged: the writes of which nobody knows are not missed.
    at = draw.choice([index for index, event in enumerate(events[1:], 1) if event.revision in recording.acknowledged])
    tampered = {
        "left out": [*events[:at], *events[at + 1 :]],
        "doubled": [*events[: at + 1], *events[at:]],
        "exchanged": [*events[: at - 1], events[at], events[at - 1], *events[at + 1 :]],
    }
    return [
        f"the control was not found out: an event {what}"
        for what, told in tampered.items()
        if not histories.broken_events(told, recording.acknowledged)
    ]
