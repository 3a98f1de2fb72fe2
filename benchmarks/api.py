"""`api`: durable creates over what the disk can fsync; gets and lists, and what they cost the plane.

Creates come from 64 clients at once, then from 8, each answered only when its object is on the disk. `durable_creates`
is the rate over one fdatasync at a time on the same disk in the same run: it shows what group commit wins; where the
disk does more than 300 of those a second, the processor is what counts and the promise is a plain rate. `creates` is
over the bare server of `http.py`, which commits one at a time. Stages of both sides alternate. Then the plane is
filled with halted machines (`machine_creates`, 8 clients) and lists them, again and again; `list_…_extra` is how far
the plane's resident memory rose above what it had before. CPU time is the plane's own, so it means something on a busy
machine too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from . import served
from .figures import Figure, Request, Result, median, percentile
from .http import Connection
from .processes import cpu_seconds, load

CLIENTS, FEW = 64, 8
LISTS = 5
MACHINES = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
#: on the machines that are made here, so that they are found again
LABEL = "stead-bench"
#: a disk that syncs faster than this, 1/s, is not what bounds creates
FAST_DISK = 300.0


class Storm(msgspec.Struct):
    """What many requests of one sort took: seconds of each, requests per second, the plane's CPU seconds."""

    taken: list[float]
    rate: float
    cpu: float = 0.0


async def run(request: Request) -> Result:
    """See the module's prose."""
    n = request.count(2000, 400)
    rounds = 2 if request.quick else 5
    rows: list[dict[str, Any]] = []
    storms: dict[str, list[Storm]] = {}
    floor: list[float] = []
    names = itertools.count()
    async with served.sides(request) as sides:
        for number in range(rounds):
            floor += await asyncio.to_thread(_fsyncs, sides.folder, 100)
            for side in ("ours", "rival") if number % 2 else ("rival", "ours"):
                before = load()
                stages = {
                    f"creates by {CLIENTS}": _creates(sides, side, names, CLIENTS, n // rounds),
                    f"creates by {FEW}": _creates(sides, side, names, FEW, n // rounds // 2),
                    "gets by 1": _gets(sides, side, 1, n // rounds),
                    f"gets by {FEW}": _gets(sides, side, FEW, n // rounds),
                }
                for what, stage in stages.items():
                    storm = await stage
                    storms.setdefault(f"{side} {what}", []).append(storm)
                    rows += [{"round": number, "side": side, "what": what, "seconds": f"{one:.6f}", "load": before}
                             for one in storm.taken]  # fmt: skip
        rows += [{"side": "disk", "what": "fdatasync", "seconds": seconds} for seconds in floor]
        figures = _figures(storms, 1 / median(floor))
        await _clean(sides, next(names))
        for count in (1000,) if request.quick else (4000, 8000):
            figures |= await _listed(sides, count, rows)
        await _remove_machines(sides)
    return Result(name="api", n=n, figures=figures, rows=rows)


def _figures(storms: dict[str, list[Storm]], fsyncs: float) -> dict[str, Figure]:
    def rate(key: str) -> float:
        return median([storm.rate for storm in storms[key]])

    def p99(key: str) -> float:
        return percentile([one for storm in storms[key] for one in storm.taken], 99) * 1e3

    def cost(key: str) -> float | None:
        cpu = sum(storm.cpu for storm in storms[key])
        return sum(len(storm.taken) for storm in storms[key]) / cpu if cpu else None

    def both(value: Callable[[str], float], what: str, **rest: Any) -> Figure:
        return Figure(ours=value(f"ours {what}"), rival=value(f"rival {what}"), **rest)

    many, few = f"creates by {CLIENTS}", f"creates by {FEW}"
    fast = fsyncs > FAST_DISK
    over = {"target": 600.0, "judged": "ours"} if fast else {"target": 5.0, "judged": "ratio"}
    return {
        "durable_creates": Figure(ours=rate(f"ours {many}"), rival=fsyncs, unit="1/s", bound=">=",
                                  note=f"{CLIENTS} clients, over one fdatasync at a time", **over),
        "creates": both(rate, many, unit="1/s", note="over the bare server"),
        "create_p99": both(p99, many, unit="ms", target=60.0, judged="ours", note=f"{CLIENTS} clients"),
        f"creates_{FEW}": both(rate, few, unit="1/s", target=600.0, bound=">=", judged="ours", note=f"{FEW} clients"),
        f"create_p99_{FEW}": both(p99, few, unit="ms", target=60.0, judged="ours", note=f"{FEW} clients"),
        "gets_1": both(rate, "gets by 1", unit="1/s", target=2000.0, bound=">=", judged="ours", note="one client"),
        "gets": both(rate, f"gets by {FEW}", unit="1/s", note=f"{FEW} clients, over the bare server"),
        "get_p99": both(p99, f"gets by {FEW}", unit="ms", target=50.0, judged="ours", note=f"{FEW} clients"),
        "gets_per_core": Figure(ours=cost(f"ours gets by {FEW}"), unit="1/s", note="per second of the plane's CPU"),
        "creates_per_core": Figure(ours=cost(f"ours {many}"), unit="1/s", note="per second of the plane's CPU"),
    }  # fmt: skip


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


async def _storm(sides: served.Sides, side: str, clients: int, requests: list[tuple[str, str, bytes]]) -> Storm:
    """Requests (method, path, body) by some clients at once, as fast as they are answered."""
    waiting = iter(requests)
    taken: list[float] = []

    async def client(connection: Connection) -> None:
        for method, path, body in waiting:
            begun = time.perf_counter()
            code, answer = await connection.call(method, path, body)
            if code >= 300:
                raise OSError(f"{method} {path}: {code} {answer[:300].decode(errors='replace')}")
            taken.append(time.perf_counter() - begun)

    connections = [await sides.connect(side) for _ in range(clients)]
    pid = sides.pid if side == "ours" else 0
    cpu = cpu_seconds(pid) if pid else 0.0
    begun = time.perf_counter()
    await asyncio.gather(*map(client, connections))
    seconds = time.perf_counter() - begun
    spent = cpu_seconds(pid) - cpu if pid else 0.0
    for connection in connections:
        await connection.close()
    return Storm(taken, len(requests) / seconds, spent)


async def _creates(sides: served.Sides, side: str, names: itertools.count[int], clients: int, n: int) -> Storm:
    bodies = [served.config_map(f"bench-{next(names)}") for _ in range(n)]
    return await _storm(sides, side, clients, [("POST", served.PATH, body) for body in bodies])


async def _gets(sides: served.Sides, side: str, clients: int, n: int) -> Storm:
    """Gets of one object."""
    connection = await sides.connect(side)
    made, _ = await connection.call("POST", served.PATH, served.config_map("bench-got"))
    await connection.close()
    if made not in (200, 201, 409):
        raise OSError("the object to get could not be made")
    return await _storm(sides, side, clients, [("GET", f"{served.PATH}/bench-got", b"")] * n)


async def _listed(sides: served.Sides, count: int, rows: list[dict[str, Any]]) -> dict[str, Figure]:
    """Fill up to `count` halted machines, let the plane come to rest, then list them."""
    connection = await sides.connect("ours")
    _, answer = await connection.call("GET", MACHINES)
    have = len(msgspec.json.decode(answer)["items"])
    wanted = [("POST", MACHINES, _machine(f"bench-{number}")) for number in range(have, count)]
    storm = await _storm(sides, "ours", FEW, wanted)
    settled = await _at_rest(connection, count)
    taken, extra = [], 0.0
    for _ in range(LISTS):
        before = _reset_peak(sides.pid)
        begun = time.perf_counter()
        code, answer = await connection.call("GET", MACHINES)
        taken.append(time.perf_counter() - begun)
        if code != 200:
            raise OSError(f"list: {code}")
        if before:
            extra = max(extra, _status_bytes(sides.pid, "VmHWM") - before)
    await connection.close()
    rows += [{"side": "ours", "what": f"list of {count}", "seconds": seconds, "load": load()} for seconds in taken]
    limit = 0.15 if count == 4000 else None
    return {
        f"machine_creates_{count}": Figure(ours=storm.rate, unit="1/s", note=f"{FEW} clients, halted machines"),
        f"machine_create_p99_{count}": Figure(ours=percentile(storm.taken, 99) * 1e3, unit="ms"),
        f"machine_settle_{count}": Figure(ours=settled, unit="s", note="after the last create"),
        f"list_{count}": Figure(ours=median(taken), unit="s", target=limit, judged="ours",
                                note=f"{len(answer) / 1e6:.1f} MB"),
        f"list_{count}_extra": Figure(ours=extra / 1e6 if before else None, unit="MB", target=8.0, judged="ours"),
    }  # fmt: skip


def _machine(name: str) -> bytes:
    """A halted machine of the usual shape."""
    domain = {
        "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                    "interfaces": [{"name": "default", "masquerade": {}}]},
        "memory": {"guest": "64Mi"},
    }  # fmt: skip
    spec = {"domain": domain, "networks": [{"name": "default", "pod": {}}],
            "volumes": [{"name": "root", "emptyDisk": {"capacity": "1Gi"}}]}  # fmt: skip
    return msgspec.json.encode({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": "default", "labels": {LABEL: "api"}},
        "spec": {"runStrategy": "Halted", "template": {"metadata": {"labels": {"name": name}}, "spec": spec}},
    })  # fmt: skip


async def _at_rest(connection: Connection, count: int) -> float:
    """Seconds until every machine has a status."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < 300:
        _, answer = await connection.call("GET", MACHINES)
        if answer.count(b'"printableStatus":"Stopped"') >= count:
            break
        await asyncio.sleep(0.5)
    return time.perf_counter() - begun


def _reset_peak(pid: int) -> float:
    """Begin to watch the peak of a process's memory anew; its memory now in bytes, 0 where that cannot be done."""
    if not pid:
        return 0.0
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        return _status_bytes(pid, "VmRSS")
    return 0.0


def _status_bytes(pid: int, field: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return float(next(line for line in text.splitlines() if line.startswith(field)).split()[1]) * 1024


async def _clean(sides: served.Sides, count: int) -> None:
    """A Stead that ran before keeps nothing of this."""
    connection = await sides.connect("ours")
    for name in ["bench-got", *(f"bench-{number}" for number in range(count))]:
        await connection.call("DELETE", f"{served.PATH}/{name}")
    await connection.close()


async def _remove_machines(sides: served.Sides) -> None:
    """As `_clean`, of ours only; a plane that was made for this ends with all it holds."""
    if sides.pid:
        return
    connection = await sides.connect("ours")
    await connection.call("DELETE", f"{MACHINES}?labelSelector={LABEL}%3Dapi")
    await connection.close()
