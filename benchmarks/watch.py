"""`watch`: from a commit to its event at every watcher, over a bare server that fans out the same bytes.

100 and then 1,000 watchers at 100 writes a second, in stretches that alternate between the sides. Both servers write
down when a write was on the disk (`stamped.py`, `http.py`); a process of its own holds the watchers and reads all of
them, and takes the time of an event on twenty that are spread evenly over the fan-out (`watchers.py`). `lost` counts
what did not come to those, once and in order. A server that cannot keep up is slow to answer the writer, so the rates
reached stand beside. With --kubeconfig nothing is written down, and times count from the sending of the write.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from . import served, watchers
from .figures import Figure, Request, Result, compared, median
from .processes import load

SAMPLED = 20
RATE = 100.0
#: longest time that the last events may take, and the opening of all watches, seconds
DRAIN_SECONDS, OPEN_SECONDS = 60.0, 120.0


class _Stretch(msgspec.Struct):
    """One stretch of writes to one side: delays in seconds, what was lost, writes per second."""

    delays: list[float]
    faults: int
    rate: float


async def run(request: Request) -> Result:
    """See the module's prose."""
    rounds = 2 if request.quick else 6
    rows: list[dict[str, Any]] = []
    figures: dict[str, Figure] = {}
    lost = {"ours": 0, "rival": 0}
    n = request.count(600, 150)
    async with served.sides(request) as sides:
        for count in (100, 1000):
            each = n // rounds if count == 100 else n // rounds // 2
            taken: dict[str, list[_Stretch]] = {"ours": [], "rival": []}
            for number in range(rounds):
                for side in ("ours", "rival") if number % 2 else ("rival", "ours"):
                    before = load()
                    stretch = await _stretch(sides, side, f"{count}-{number}", count, each)
                    taken[side].append(stretch)
                    lost[side] += stretch.faults
                    rows += [{"watchers": count, "round": number, "side": side, "seconds": f"{delay:.6f}",
                              "load": before} for delay in stretch.delays]  # fmt: skip
                await _clean(sides, f"{count}-{number}", each)
            figures |= _figures(count, taken)
    figures["lost"] = Figure(ours=lost["ours"], rival=lost["rival"], unit="events", target=0, judged="ours")
    return Result(name="watch", n=n, figures=figures, rows=rows)


def _figures(count: int, taken: dict[str, list[_Stretch]]) -> dict[str, Figure]:
    mine, theirs = ([delay * 1e3 for each in taken[side] for delay in each.delays] for side in ("ours", "rival"))
    ours, rival = (median([each.rate for each in taken[side]]) for side in ("ours", "rival"))
    return {
        f"p50_{count}": compared(mine[::SAMPLED], theirs[::SAMPLED], 50, unit="ms"),
        f"p99_{count}": compared(mine[::SAMPLED], theirs[::SAMPLED], 99, unit="ms", target=2.0),
        f"rate_{count}": Figure(ours=ours, rival=rival, unit="1/s", note=f"writes, {RATE:.0f} wanted"),
    }


async def _stretch(sides: served.Sides, side: str, name: str, count: int, n: int) -> _Stretch:
    at: served.Side = getattr(sides, side)
    writer = await sides.connect(side)
    path = f"{served.PATH}?watch=1"
    if side == "ours":
        _, answer = await writer.call("GET", f"{served.PATH}?limit=1")
        path += f"&resourceVersion={msgspec.json.decode(answer)['metadata']['resourceVersion']}"
    order = watchers.Order(at.host, at.port, at.files, path, count, SAMPLED, n)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", watchers.__file__, msgspec.json.encode(order).decode(), stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, limit=64 << 20,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            if (await process.stdout.readline()).strip() != b"ready":
                raise OSError(f"the watchers of {side} could not be opened")
        await asyncio.sleep(0.5)
        told = at.commits.stat().st_size if at.commits.exists() else 0
        sent, rate = await _write(writer, name, n)
        try:
            seen = msgspec.json.decode(await asyncio.wait_for(process.stdout.readline(), DRAIN_SECONDS))
        except TimeoutError:
            process.stdin.close()
            seen = msgspec.json.decode(await asyncio.wait_for(process.stdout.readline(), DRAIN_SECONDS))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await writer.close()
    committed = await asyncio.to_thread(_commits, at.commits, told, sent)
    delays = [when - committed[int(number)] for times in seen["times"] for number, when in times.items()]
    missing = sum(n - len(times) for times in seen["times"])
    return _Stretch(delays, seen["faults"] + missing, rate)


async def _write(writer: Any, name: str, n: int) -> tuple[list[float], float]:
    """When each write was sent, and how many a second."""
    sent = []
    begun = time.perf_counter()
    for item in range(n):
        await asyncio.sleep(max(0.0, begun + item / RATE - time.perf_counter()))
        sent.append(time.perf_counter())
        code, answer = await writer.call("POST", served.PATH, served.config_map(f"w-{name}-{item}", str(item)))
        if code >= 300:
            raise OSError(f"create: {code} {answer[:300].decode(errors='replace')}")
    return sent, n / (time.perf_counter() - begun)


def _commits(path: Path, told: int, sent: list[float]) -> dict[int, float]:
    """When each write was on the disk, as the server wrote it down after `told` bytes; else when it was sent."""
    times = dict(enumerate(sent))
    if path.exists():
        for line in path.read_bytes()[told:].splitlines():
            number, when = line.split()
            times[int(number)] = float(when)
    return times


async def _clean(sides: served.Sides, name: str, n: int) -> None:
    connection = await sides.connect("ours")
    for item in range(n):
        await connection.call("DELETE", f"{served.PATH}/w-{name}-{item}")
    await connection.close()
