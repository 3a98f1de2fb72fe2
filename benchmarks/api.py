"""`api`: durable creates over what the disk can fsync; gets over a bare TLS server's; lists.

Creates come from 64 clients at once, each answered only when its object is on the disk: `creates_batching` is their
rate over one fdatasync at a time on the same disk in the same run, so it shows what group commit wins. `creates` is
over the bare server of `http.py`, which commits one at a time. Stages of both sides alternate.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from . import served
from .figures import Figure, Request, Result, median, percentile
from .http import Connection
from .processes import load

CLIENTS = 64
LISTED = 500


async def run(request: Request) -> Result:
    """See the module's prose."""
    n = request.count(2000, 400)
    rounds = 2 if request.quick else 5
    rows: list[dict[str, Any]] = []
    async with served.sides(request) as sides:
        floor: list[float] = []
        rates: dict[str, list[float]] = {}
        waits: dict[str, list[float]] = {"ours": [], "rival": []}
        for number in range(rounds):
            floor += await asyncio.to_thread(_fsyncs, sides.folder, 100)
            for side in ("ours", "rival") if number % 2 else ("rival", "ours"):
                one = (await _storm(sides, side, number, n // rounds), await _gets(sides, side, n // rounds))
                rates.setdefault(f"{side} creates", []).append(one[0][0])
                rates.setdefault(f"{side} gets", []).append(one[1])
                waits[side] += one[0][1]
                rows += [{"round": number, "side": side, "what": "create", "seconds": wait} for wait in one[0][1]]
                rows.append({"round": number, "side": side, "what": "gets/s", "seconds": one[1], "load": load()})
        rows += [{"side": "disk", "what": "fdatasync", "seconds": seconds} for seconds in floor]
        lists = await _lists(sides, 10)
        rows += [{"side": "ours", "what": f"list {LISTED}", "seconds": seconds} for seconds in lists]
        await _clean(sides, rounds, n // rounds)
    fsyncs = 1 / median(floor)
    creates, gets = median(rates["ours creates"]), median(rates["ours gets"])
    figures = {
        "creates_batching": Figure(ours=creates, rival=fsyncs, unit="1/s",
                                   note=f"{CLIENTS} clients, over one fdatasync at a time"),
        "creates": Figure(ours=creates, rival=median(rates["rival creates"]), unit="1/s", note="over the bare server"),
        "create_p99": Figure(ours=percentile(waits["ours"], 99) * 1e3, rival=percentile(waits["rival"], 99) * 1e3,
                             unit="ms"),
        "gets": Figure(ours=gets, rival=median(rates["rival gets"]), unit="1/s",
                       note="8 clients, over the bare server"),
        f"list_{LISTED}": Figure(ours=median(lists) * 1e3, unit="ms"),
    }  # fmt: skip
    return Result(name="api", n=n, figures=figures, rows=rows)


def _fsyncs(folder: Path, times: int) -> list[float]:
    """Seconds of each 4 KiB append with fdatasync; in a thread."""
    handle = os.open(folder / "fsync", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    taken = []
    try:
        for _ in range(times):
            begun = time.perf_counter()
            os.write(handle, bytes(4096))
            os.fdatasync(handle)
            taken.append(time.perf_counter() - begun)
    finally:
        os.close(handle)
    return taken


async def _storm(sides: served.Sides, side: str, number: int, n: int) -> tuple[float, list[float]]:
    """Creates per second, and each one's seconds."""
    waiting = iter(range(n))
    taken: list[float] = []

    async def client(connection: Connection) -> None:
        for item in waiting:
            body = served.config_map(f"bench-{number}-{item}")
            begun = time.perf_counter()
            code, answer = await connection.call("POST", served.PATH, body)
            if code >= 300:
                raise OSError(f"create: {code} {answer[:300].decode(errors='replace')}")
            taken.append(time.perf_counter() - begun)

    connections = [await sides.connect(side) for _ in range(CLIENTS)]
    begun = time.perf_counter()
    await asyncio.gather(*map(client, connections))
    seconds = time.perf_counter() - begun
    for connection in connections:
        await connection.close()
    return n / seconds, taken


async def _gets(sides: served.Sides, side: str, n: int) -> float:
    """Gets of one object per second, by 8 clients."""
    connections = [await sides.connect(side) for _ in range(8)]
    path = f"{served.PATH}/bench-0-0"
    if (await connections[0].call("POST", served.PATH, served.config_map("bench-0-0")))[0] not in (200, 201, 409):
        raise OSError("the object to get could not be made")
    waiting = iter(range(n))

    async def client(connection: Connection) -> None:
        for _ in waiting:
            code, _ = await connection.call("GET", path)
            if code != 200:
                raise OSError(f"GET {path}: {code}")

    begun = time.perf_counter()
    await asyncio.gather(*map(client, connections))
    seconds = time.perf_counter() - begun
    for connection in connections:
        await connection.close()
    return n / seconds


async def _lists(sides: served.Sides, times: int) -> list[float]:
    """Seconds of each list of `LISTED` objects."""
    connection = await sides.connect("ours")
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        code, _ = await connection.call("GET", f"{served.PATH}?limit={LISTED}")
        if code != 200:
            raise OSError(f"list: {code}")
        taken.append(time.perf_counter() - begun)
    await connection.close()
    return taken


async def _clean(sides: served.Sides, rounds: int, n: int) -> None:
    """A Stead that ran before keeps nothing of this."""
    connection = await sides.connect("ours")
    for number in range(rounds):
        for item in range(n):
            await connection.call("DELETE", f"{served.PATH}/bench-{number}-{item}")
    await connection.close()
