"""`watch`: from sending a write to its event at every watcher, over a bare server that fsyncs and fans out.

100 watchers, 50 writes a second, in stretches that alternate between the sides. Each object carries its number; an
event is timed when the measuring process has read it whole. Every watcher must see every write once and in order:
`lost` counts what did not come so.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from typing import Any

import msgspec

from . import served
from .figures import Figure, Request, Result, compared
from .http import Connection
from .processes import load

WATCHERS = 100
RATE = 50.0
_STAMP = re.compile(rb'"stamp":\s*"(\d+)"')
DRAIN_SECONDS = 20.0


class _Stretch:
    """One stretch of writes to one side."""

    def __init__(self, n: int) -> None:
        self.sent: list[float] = [0.0] * n
        self.delays: list[float] = []
        self.faults = 0
        self.arrived = 0

    async def follow(self, connection: Connection, path: str) -> None:
        """One watcher."""
        expected = 0
        async for line in connection.watch(path):
            found = _STAMP.search(line)
            if found is None:
                continue
            number = int(found[1])
            self.delays.append(time.perf_counter() - self.sent[number])
            self.arrived += 1
            self.faults += number != expected
            expected = number + 1


async def run(request: Request) -> Result:
    """See the module's prose."""
    n = request.count(600, 150)
    rounds = 2 if request.quick else 6
    delays: dict[str, list[float]] = {"ours": [], "rival": []}
    faults: dict[str, int] = {"ours": 0, "rival": 0}
    rows: list[dict[str, Any]] = []
    async with served.sides(request) as sides:
        for number in range(rounds):
            for side in ("ours", "rival") if number % 2 else ("rival", "ours"):
                before = load()
                stretch = await _stretch(sides, side, number, n // rounds)
                delays[side] += stretch.delays
                faults[side] += stretch.faults
                rows += [{"round": number, "side": side, "seconds": f"{delay:.6f}", "load": before}
                         for delay in stretch.delays]  # fmt: skip
        await _clean(sides, rounds, n // rounds)
    mine, theirs = ([delay * 1e3 for delay in delays[side]] for side in ("ours", "rival"))
    figures = {
        "p50": compared(mine[::50], theirs[::50], 50, unit="ms"),
        "p99": compared(mine[::50], theirs[::50], 99, unit="ms", target=2.0),
        "lost": Figure(ours=faults["ours"], rival=faults["rival"], unit="events", target=0, judged="ours"),
    }
    return Result(name="watch", n=n, figures=figures, rows=rows)


async def _stretch(sides: served.Sides, side: str, number: int, n: int) -> _Stretch:
    writer = await sides.connect(side)
    query = "?watch=1"
    if side == "ours":
        _, answer = await writer.call("GET", f"{served.PATH}?limit=1")
        query += f"&resourceVersion={msgspec.json.decode(answer)['metadata']['resourceVersion']}"
    stretch = _Stretch(n)
    connections = [await sides.connect(side) for _ in range(WATCHERS)]
    following = [asyncio.create_task(stretch.follow(each, served.PATH + query)) for each in connections]
    await asyncio.sleep(1)
    begun = time.perf_counter()
    for item in range(n):
        await asyncio.sleep(max(0.0, begun + item / RATE - time.perf_counter()))
        stretch.sent[item] = time.perf_counter()
        code, answer = await writer.call("POST", served.PATH, served.config_map(f"w-{number}-{item}", str(item)))
        if code >= 300:
            raise OSError(f"create: {code} {answer[:300].decode(errors='replace')}")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while stretch.arrived < n * WATCHERS and not all(task.done() for task in following):
                await asyncio.sleep(0.05)
    stretch.faults += n * WATCHERS - stretch.arrived
    for task in following:
        task.cancel()
    await asyncio.gather(*following, return_exceptions=True)
    for connection in (*connections, writer):
        await connection.close()
    return stretch


async def _clean(sides: served.Sides, rounds: int, n: int) -> None:
    connection = await sides.connect("ours")
    for number in range(rounds):
        for item in range(n):
            await connection.call("DELETE", f"{served.PATH}/w-{number}-{item}")
    await connection.close()
