"""`clone`: a volume from a golden image of 30Gi on a pool that shares blocks, beside `cp --reflink` of the same file.

In turns, on XFS over a loop device. Ours is the whole road: create a DataVolume whose source is the golden claim, the
host's agent shares the blocks, the claim is bound, Succeeded seen on a watch; `seconds` promises at most one. The rival
ends when its copy is synced.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from stead.kinds import register
from stead.storage.pools import Pool

from . import machines, rig
from .figures import Figure, Request, Result, median
from .processes import load, quiet
from .processes import run as program

MIB = 1 << 20
GOLDEN = "golden"


async def run(request: Request) -> Result:
    """See the module's prose."""
    n = request.count(20, 3)
    size = 30 << 30
    written = (64 if request.quick else 1024) * MIB
    if request.kubeconfig:
        if request.pool is None:
            raise OSError("clone with --kubeconfig needs --pool, the directory that cp shall write to as well")
        async with rig.running(request.kubeconfig, request.libvirt_uri, request.pool) as stead:
            return await _measure(stead, n, size, written)
    async with rig.host() as stead:
        await _xfs(stead.root / "pool.xfs", stead.pool, written)
        await stead.up()
        return await _measure(stead, n, size, written)


async def _xfs(image: Path, folder: Path, written: int) -> None:
    """A file system that shares blocks, where the default pool will lie; it goes with the namespaces."""
    folder.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(written + (2 << 30))
    await program("mkfs.xfs", "-q", "-m", "reflink=1", image)
    await program("mount", "-o", "loop", image, folder)
    folder.chmod(0o711)


async def _measure(stead: rig.Rig, n: int, size: int, written: int) -> Result:
    await _create(stead, GOLDEN, {"blank": {}}, size)
    claim = await stead.client.get(register.PERSISTENT_VOLUME_CLAIM, machines.NAMESPACE, GOLDEN)
    golden = Pool(stead.pool).get(claim["metadata"]["uid"]).path
    await asyncio.to_thread(_fill, golden, written)
    rows: list[dict[str, Any]] = []
    for number in range(n + 1):  # the first warms both up and does not count
        row: dict[str, Any] = {"round": number, "load": load(), "warm_up": int(number == 0)}
        row["idle_share"] = await quiet()
        for side in ("ours", "rival") if number % 2 else ("rival", "ours"):
            if side == "ours":
                source = {"pvc": {"namespace": machines.NAMESPACE, "name": GOLDEN}}
                row["ours_s"] = await _create(stead, f"clone-{number}", source, size)
                await machines.remove(stead, register.DATA_VOLUME, f"clone-{number}")
                await machines.remove(stead, register.PERSISTENT_VOLUME_CLAIM, f"clone-{number}")
            else:
                row["rival_s"] = await _rival(golden, stead.pool / f"rival-{number}.raw")
        rows.append(row)
        print(f"clone {number}/{n}: ours {row['ours_s']:.2f} s, cp {row['rival_s']:.2f} s", file=sys.stderr)
    await machines.remove(stead, register.DATA_VOLUME, GOLDEN)
    counted = [row for row in rows if not row["warm_up"]]
    figure = Figure(
        ours=median([row["ours_s"] for row in counted]), rival=median([row["rival_s"] for row in counted]), unit="s",
        target=1.0, judged="ours", note=f"30Gi, of which {written // MIB} MiB written",
    )  # fmt: skip
    return Result(name="clone", n=n, figures={"seconds": figure}, rows=rows)


async def _create(stead: rig.Rig, name: str, source: dict[str, Any], size: int) -> float:
    item = machines.data_volume(name, "", str(size))
    item["spec"]["source"] = source
    seconds, _ = await machines.create_and_follow(
        stead, register.DATA_VOLUME, item, machines.has_phase("Succeeded"), 120
    )
    return seconds


def _fill(path: Path, written: int) -> None:
    """Data in every second MiB, so that there are many extents to share."""
    block = os.urandom(MIB)
    with path.open("r+b") as file:
        for at in range(0, 2 * written, 2 * MIB):
            file.seek(at)
            file.write(block)
        os.fsync(file.fileno())


async def _rival(source: Path, target: Path) -> float:
    begun = time.perf_counter()
    await program("cp", "--reflink=always", source, target)
    await program("sync", "--data", target)
    seconds = time.perf_counter() - begun
    target.unlink()
    return seconds
