"""`import`: from a qcow2 behind HTTP to a usable disk, over `qemu-img convert` of the same file from the local disk.

In turns, into the same directory; both end when the bytes are on the disk (fsync; qemu-img itself does not, and
`throughput_unsynced` is over qemu-img's own end). Ours is the whole road: create a DataVolume, fetch from a loopback
server in a confined child, check, convert, bind, Succeeded on a watch. Two images with the same data, files of this
host's /usr in every second MiB: `throughput` is of a compressed one, as distributions publish them; `throughput_plain`
of one without compression, where the disk is all that counts.
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
from .processes import load, quiet
from .processes import run as program

MIB = 1 << 20
#: image to the suffix of its figures
KINDS = {"compressed": "", "plain": "_plain"}


async def run(request: Request) -> Result:
    """See the module's prose."""
    n = request.count(10, 3)
    size = (256 if request.quick else 2048) * MIB
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
    print("import: making the images", file=sys.stderr)
    data = await _images(folder, size)
    rows: list[dict[str, Any]] = []
    async with machines.served(folder) as url:
        for number in range(n + 1):  # the first warms the page cache of both and does not count
            for kind in KINDS:
                row: dict[str, Any] = {"round": number, "image": kind, "load": load(), "warm_up": int(number == 0)}
                row["idle_share"] = await quiet()
                for side in ("ours", "rival") if number % 2 else ("rival", "ours"):
                    if side == "ours":
                        row |= await _ours(stead, f"{url}/{kind}.qcow2", f"import-{kind}-{number}", size)
                    else:
                        row |= await _rival(folder / f"{kind}.qcow2", stead.pool / f"rival-{number}.raw")
                rows.append(row)
                print(
                    f"import {kind} {number}/{n}: ours {row['ours_s']:.2f} s, rival {row['rival_s']:.2f} s",
                    file=sys.stderr,
                )
    figures: dict[str, Figure] = {}
    for kind, suffix in KINDS.items():
        counted = [row for row in rows if not row["warm_up"] and row["image"] == kind]
        rates = {key: [data / MIB / row[key] for row in counted] for key in ("ours_s", "rival_s", "rival_unsynced_s")}
        ours, theirs = rates["ours_s"], rates["rival_s"]
        low, high = interval(ours, theirs, 50)
        figures["throughput" + suffix] = Figure(
            ours=median(ours), rival=median(theirs), unit="MiB/s", target=0.95, bound=">=",
            note=f"{kind}; 95 % of ratios in {low:.2f}–{high:.2f}",
        )  # fmt: skip
        figures["throughput_unsynced" + suffix] = Figure(
            ours=median(ours), rival=median(rates["rival_unsynced_s"]), unit="MiB/s", note="over qemu-img without fsync"
        )
    return Result(name="import", n=n, figures=figures, rows=rows)


async def _images(folder: Path, size: int) -> int:
    """The images of `KINDS`. Returns the bytes of data in each."""
    raw = folder / "disk.raw"
    data = await asyncio.to_thread(_fill, raw, size)
    for kind in KINDS:
        packed = ("-c", "-m", "16", "-W") if kind == "compressed" else ()
        target = folder / f"{kind}.qcow2"
        await program("qemu-img", "convert", *packed, "-f", "raw", "-O", "qcow2", raw, target, seconds=600)
    raw.unlink()
    return data


def _fill(raw: Path, size: int) -> int:
    """Every second MiB from files of /usr, which pack as an operating system's do; returns how many bytes that is."""
    files = (path for root in ("/usr/lib", "/usr/bin", "/usr/share") for path in sorted(Path(root).rglob("*")))
    pending = b""
    with raw.open("wb") as out:
        out.truncate(size)
        for at in range(0, size, 2 * MIB):
            while len(pending) < MIB:
                path = next(files, None)
                if path is None:
                    return at // 2
                if path.is_file() and not path.is_symlink():
                    pending += path.read_bytes()[: 8 * MIB]
            out.seek(at)
            out.write(pending[:MIB])
            pending = pending[MIB:]
    return size // 2


async def _ours(stead: rig.Rig, url: str, name: str, size: int) -> dict[str, float]:
    item = machines.data_volume(name, url, str(size))
    seconds, seen = await machines.create_and_follow(
        stead, register.DATA_VOLUME, item, machines.has_phase("Succeeded"), 600
    )
    phases: dict[str, float] = {}
    for when, found in seen:
        phases.setdefault(str(found.get("status", {}).get("phase") or "created"), when)
    await machines.remove(stead, register.DATA_VOLUME, name)
    await machines.remove(stead, register.PERSISTENT_VOLUME_CLAIM, name)
    return {"ours_s": seconds, **{f"ours_{phase.lower()}_s": when for phase, when in phases.items()}}


async def _rival(image: Path, target: Path) -> dict[str, float]:
    begun = time.perf_counter()
    await program("qemu-img", "convert", "-m", "16", "-W", "-f", "qcow2", "-O", "raw", image, target, seconds=600)
    unsynced = time.perf_counter() - begun
    await asyncio.to_thread(_sync, target)
    seconds = time.perf_counter() - begun
    target.unlink()
    return {"rival_s": seconds, "rival_unsynced_s": unsynced}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
