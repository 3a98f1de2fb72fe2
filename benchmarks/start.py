"""`start`: from creating a bare instance to Running on a watch, over raw libvirt's define and start of the same XML.

One pair a round, the first of the pair in turns. Ours: a new instance each round (existing claim, masquerade,
cloud-init) through the API of a Stead that runs; nothing is left of the round before. The rival: libvirt-python's
defineXML and create with our own XML under a new name and uuid, its disk, seed and tap made before its clock
starts. Both begin with the same idle host and end with the guest's processor running; both are removed before the
next.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import time
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import libvirt

from stead.kinds import register

from . import guest, machines, rig
from .figures import Figure, Request, Result, compared
from .processes import QUIET, load, quiet
from .processes import run as program

CLAIM = "root"
#: rounds before the first that counts: libvirt's and Python's first-time work
WARM = 2


class Rival:
    """Raw libvirt with copies of what our machine was given."""

    def __init__(self, connection: Any, xml: str, folder: Path) -> None:
        self._connection = connection
        self._xml = xml
        self._folder = folder
        root = ET.fromstring(xml)
        self._uid, self._name = root.findtext("uuid", ""), root.findtext("name", "")
        target = root.find("devices/interface/target")
        self._tap = target.get("dev", "") if target is not None else ""
        label = root.find("seclabel[@model='dac']/label")
        self._owner = int((label.text or "0").lstrip("+").split(":")[0]) if label is not None else 0
        self._domain: Any = None

    async def copy_files(self) -> None:
        """Copies of the disks, once, while our machine still has them; owned as ours are."""
        self._files: dict[str, Path] = {}
        for number, element in enumerate(ET.fromstring(self._xml).iterfind("devices/disk/source")):
            path = element.get("file")
            if path:
                copy = self._folder / f"disk{number}"
                await program("cp", "--sparse=always", path, copy)
                os.chown(copy, self._owner, self._owner)
                self._files[path] = copy

    async def prepare(self) -> str:
        """The XML for the next round, its tap and its folders; not timed."""
        uid = str(uuid.uuid4())
        tap = f"raw{uid[:8]}"
        text = self._xml
        for path, copy in self._files.items():
            text = text.replace(path, str(copy))
        paths = re.findall(r"(?:path|socket)=['\"]([^'\"]+)['\"]", text)
        run_folders = {Path(found).parent for found in paths if self._uid in found}
        for folder in run_folders:
            new = Path(str(folder).replace(self._uid, uid))
            new.mkdir(parents=True, exist_ok=True)
            os.chown(new, self._owner, self._owner)
        text = text.replace(self._uid, uid).replace(f">{self._name}<", f">raw-{uid}<").replace(self._tap, tap)
        await program("ip", "tuntap", "add", "dev", tap, "mode", "tap", "user", str(self._owner), "vnet_hdr")
        self._tap_now = tap
        return text

    def start(self, text: str) -> float:
        """Define and start; in a thread."""
        begun = time.perf_counter()
        self._domain = self._connection.defineXML(text)
        self._domain.create()
        return time.perf_counter() - begun

    async def end(self) -> None:
        """Remove it again."""
        await asyncio.to_thread(self._domain.destroy)
        await asyncio.to_thread(self._domain.undefine)
        await program("ip", "link", "delete", self._tap_now)


async def ours(stead: rig.Rig, number: int) -> tuple[float, dict[str, float]]:
    """One instance: seconds to Running, and to each phase before."""
    name = f"bench-{number}"
    seconds, seen = await machines.create_and_follow(
        stead, register.VIRTUAL_MACHINE_INSTANCE, machines.instance(name, CLAIM), machines.has_phase("Running")
    )
    phases: dict[str, float] = {}
    for when, item in seen:
        phases.setdefault(str(item.get("status", {}).get("phase") or "created"), when)
    return seconds, phases


async def run_on(stead: rig.Rig, request: Request) -> Result:
    """The pairs."""
    n = request.count(30, 5)
    image = await guest.image(request.image)
    await machines.import_disk(stead, CLAIM, image)
    await ours(stead, 0)
    connection = await asyncio.to_thread(libvirt.open, stead.libvirt_uri)
    rows: list[dict[str, Any]] = []
    try:
        domain = next(d for d in connection.listAllDomains() if d.name().endswith("bench-0"))
        folder = stead.root / "raw"
        folder.mkdir(mode=0o755)
        rival = Rival(connection, domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), folder)
        await rival.copy_files()
        await machines.remove(stead, register.VIRTUAL_MACHINE_INSTANCE, "bench-0")
        for number in range(1, n + WARM + 1):
            row = await _pair(stead, rival, number)
            row["warm_up"] = int(number <= WARM)
            rows.append(row)
            print(
                f"start {number}/{n + WARM}: ours {row['ours_s']:.3f} s, rival {row['rival_s']:.3f} s", file=sys.stderr
            )
    finally:
        connection.close()
        shutil.rmtree(stead.root / "raw", ignore_errors=True)
    counted = [row for row in rows if not row["warm_up"]]
    mine, theirs = [row["ours_s"] for row in counted], [row["rival_s"] for row in counted]
    figures = {
        "p50": compared(mine, theirs, 50, unit="s", target=1.10),
        "p95": compared(mine, theirs, 95, unit="s", target=1.25),
    }
    calm = [row for row in counted if row["idle_share"] >= QUIET]
    figures["quiet_rounds"] = Figure(ours=len(calm), rival=n, unit="rounds", note="begun with 80 % of the CPUs idle")
    return Result(name="start", n=n, figures=figures, rows=rows)


async def _pair(stead: rig.Rig, rival: Rival, number: int) -> dict[str, Any]:
    row: dict[str, Any] = {"round": number, "load": load()}
    row["idle_share"] = await quiet()
    for side in ("ours", "rival") if number % 2 else ("rival", "ours"):
        if side == "ours":
            seconds, phases = await ours(stead, number)
            row |= {"ours_s": seconds, **{f"ours_{phase.lower()}_s": when for phase, when in phases.items()}}
            await machines.remove(stead, register.VIRTUAL_MACHINE_INSTANCE, f"bench-{number}")
        else:
            text = await rival.prepare()
            row["rival_s"] = await asyncio.to_thread(rival.start, text)
            await rival.end()
        await quiet(5)  # what this one left to do has been done
    return row


async def run(request: Request) -> Result:
    """See the module's prose."""
    if request.kubeconfig:
        async with rig.running(request.kubeconfig, request.libvirt_uri, request.pool) as stead:
            return await run_on(stead, request)
    async with rig.host() as stead:
        await stead.up()
        return await run_on(stead, request)
