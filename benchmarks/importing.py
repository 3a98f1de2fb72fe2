"""`import`: from a qcow2 behind HTTP to a usable disk, over `qemu-img convert` of the same file from the local disk.

In turns, into the same directory; both end when the bytes are on the disk (fsync; qemu-img itself does not, and
`throughput_unsynced` is over qemu-img's own end). Ours is the whole road: create a DataVolume, fetch from a loopback
server in a confined child, check, convert, bind, Succeeded on a watch. The image is made here: random data in half of
its clusters, so that neither side wins by compression or by holes alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from stead.kinds import register

from . import machines, rig
from .figures import Figure, Request, Result, interval, median
from .processes import load
from .processes import run as program

MIB = 1 << 20


async def run(request: Request) -> Result:
    """See the module's prose."""
    n = request.count(10, 3)
    size = (256 if request.quick else 1024) * MIB
    if request.kubeconfig:
        if request.pool is None:
            raise OSError("import with --kubeconfig needs --pool, the directory that qemu-img shall write to as well")
        async with rig.running(request.kubeconfig, request.libvirt_uri, request.pool) as stead:
            return await _measure(stead, n, size)
    async with rig.host() as stead:
        await stead.up()
        return await _measure(stead, n, size)


async def _measure(stead: rig.Rig, n: int, size: int) -> Result:
    folder = stead.root / "served"
    folder.mkdir()
    data = await _image(folder, size)
    rows: list[dict[str, Any]] = []
    async with machines.served(folder) as url:
        for number in range(n + 1):  # the first warms the page cache of both and does not count
            row: dict[str, Any] = {"round": number, "load": load(), "warm_up": int(number == 0)}
            for side in ("ours", "rival") if number % 2 else ("rival", "ours"):
                row |= await (_ours(stead, url, number, size) if side == "ours" else _rival(stead, folder, number))
            rows.append(row)
            print(f"import {number}/{n}: ours {row['ours_s']:.2f} s, rival {row['rival_s']:.2f} s", file=sys.stderr)
    counted = [row for row in rows if not row["warm_up"]]
    rates = {key: [data / MIB / row[key] for row in counted] for key in ("ours_s", "rival_s", "rival_unsynced_s")}
    low, high = interval(rates["ours_s"], rates["rival_s"], 50)
    figures = {
        "throughput": Figure(ours=median(rates["ours_s"]), rival=median(rates["rival_s"]), unit="MiB/s", target=0.95,
                             bound=">=", note=f"95 % of ratios in {low:.2f}–{high:.2f}"),
        "throughput_unsynced": Figure(ours=median(rates["ours_s"]), rival=median(rates["rival_unsynced_s"]),
                                      unit="MiB/s", note="over qemu-img without fsync"),
    }  # fmt: skip
    return Result(name="import", n=n, figures=figures, rows=rows)


async def _image(folder: Path, size: int) -> int:
    """`disk.qcow2`: every second MiB random. Returns the bytes of data in it."""
    raw = folder / "disk.raw"

    def fill() -> None:
        with raw.open("wb") as out:
            out.truncate(size)
            for at in range(0, size, 2 * MIB):
                out.seek(at)
                out.write(os.urandom(MIB))

    await asyncio.to_thread(fill)
    await program("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, folder / "disk.qcow2")
    raw.unlink()
    return size // 2


async def _ours(stead: rig.Rig, url: str, number: int, size: int) -> dict[str, float]:
    name = f"import-{number}"
    item = machines.data_volume(name, f"{url}/disk.qcow2", str(size))
    seconds, seen = await machines.create_and_follow(
        stead, register.DATA_VOLUME, item, machines.has_phase("Succeeded"), 600
    )
    phases: dict[str, float] = {}
    for when, found in seen:
        phases.setdefault(str(found.get("status", {}).get("phase") or "created"), when)
    await machines.remove(stead, register.DATA_VOLUME, name)
    await _until_gone(stead, name)
    return {"ours_s": seconds, **{f"ours_{phase.lower()}_s": when for phase, when in phases.items()}}


async def _until_gone(stead: rig.Rig, name: str) -> None:
    await machines.remove(stead, register.PERSISTENT_VOLUME_CLAIM, name)


async def _rival(stead: rig.Rig, folder: Path, number: int) -> dict[str, float]:
    target = stead.pool / f"rival-{number}.raw"
    begun = time.perf_counter()
    await program("qemu-img", "convert", "-m", "16", "-W", "-f", "qcow2", "-O", "raw", folder / "disk.qcow2", target,
                  seconds=600)  # fmt: skip
    unsynced = time.perf_counter() - begun

    def sync() -> None:
        handle = os.open(target, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    await asyncio.to_thread(sync)
    seconds = time.perf_counter() - begun
    target.unlink()
    return {"rival_s": seconds, "rival_unsynced_s": unsynced}
