"""`footprint`: what Stead itself takes of a host, at idle and for each machine, and how fast it comes up.

Memory is PSS from smaps; CPU is ticks of all of Stead's processes and what they started over a quiet stretch. A
machine's share is everything but its guest's RAM: QEMU, its DHCP server, and what plane and agent have grown by, over
as many bare QEMUs with the same arguments, running at the same time, so that shared pages are shared alike.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from stead.kinds import register

from . import guest, machines, rig
from .figures import Figure, Request, Result, median
from .processes import command, cpu_seconds, descendants, guest_ram_pss_bytes, load, named, pss_bytes, quiet
from .processes import run as program

MB = 1e6
#: after coming up, before anything is measured
SETTLE_SECONDS = 20.0
#: how long guests may take to boot; a loaded machine emulates slowly
BOOT_SECONDS = 600.0
IDLE_SECONDS = 30.0
#: linux/if_tun.h: the call, and IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
TUNSETIFF = 0x400454CA
IFF_TAP_VNET_HDR = 0x0002 | 0x1000 | 0x4000
RAM = machines.MEMORY_MIB << 20


async def run(request: Request) -> Result:
    """See the module's prose."""
    if request.kubeconfig:
        raise OSError("footprint starts and stops Stead: it cannot use one that runs already")
    image = await guest.image(request.image)
    rows: list[dict[str, Any]] = []
    async with rig.host() as stead:
        cold = await _cold_starts(stead, 2 if request.quick else 5, rows)
        await asyncio.sleep(5 if request.quick else SETTLE_SECONDS)
        idle = _memory(stead)
        rows += [{"what": f"idle_pss {name}", "value": value, "unit": "bytes"} for name, value in idle.items()]
        cpu = await _cpu_share(stead, 10 if request.quick else IDLE_SECONDS)
        n = request.count(4, 2)
        each, bare, busy = await _machines(stead, image, n, rows)
    figures = {
        "idle_pss": Figure(ours=(idle["plane"] + idle["agent"]) / MB, unit="MB", target=150, judged="ours",
                           note=f"plane {idle['plane'] / MB:.0f}, agent {idle['agent'] / MB:.0f}"),
        "idle_pss_all": Figure(ours=sum(idle.values()) / MB, unit="MB", note="with the supervisor and DNS"),
        "machine_pss": Figure(ours=median(each) / MB, rival=median(bare) / MB, unit="MB", target=1.03,
                              note="a machine, guest RAM left out"),
        "idle_cpu": Figure(ours=cpu * 100, unit="% of a core", target=1.0, judged="ours"),
        "idle_cpu_machines": Figure(ours=busy * 100, unit="% of a core", note=f"with {n} machines"),
        "cold_start": Figure(ours=median(cold), unit="s", target=2.0, judged="ours",
                             note="`stead up` on an empty state directory to its host Ready"),
    }  # fmt: skip
    return Result(name="footprint", n=n, figures=figures, rows=rows)


async def _cold_starts(stead: rig.Rig, times: int, rows: list[dict[str, Any]]) -> list[float]:
    """`stead up` on nothing, several times; the last one stays up."""
    taken = []
    for number in range(times):
        if number:
            await stead.down()
            assert stead.settings is not None
            await asyncio.to_thread(shutil.rmtree, stead.settings.state_dir)
        await quiet(10)
        before = load()
        taken.append(await stead.up())
        rows.append({"what": "cold_start", "value": taken[-1], "unit": "s", "load": before})
        print(f"cold start {number + 1}/{times}: {taken[-1]:.2f} s", file=sys.stderr)
    return taken


def _memory(stead: rig.Rig) -> dict[str, int]:
    """PSS by process of ours; `others` are what they started (DNS, not guests)."""
    pids = stead.pids()
    found = {name: pss_bytes(pid) for name, pid in pids.items()}
    found["others"] = sum(pss_bytes(pid) for pid in _others(pids))
    return found


def _others(pids: dict[str, int]) -> set[int]:
    return (descendants(pids.values()) | named("dnsmasq")) - set(pids.values())


async def _cpu_share(stead: rig.Rig, seconds: float) -> float:
    """Share of one core that all of ours take over a quiet stretch."""
    pids = stead.pids()
    watched = set(pids.values()) | _others(pids)
    before = sum(map(cpu_seconds, watched))
    begun = time.monotonic()
    await asyncio.sleep(seconds)
    return (sum(map(cpu_seconds, watched)) - before) / (time.monotonic() - begun)


async def _machines(
    stead: rig.Rig, image: Path, n: int, rows: list[dict[str, Any]]
) -> tuple[list[float], list[float], float]:
    """Bytes of each of our machines and of each bare QEMU beside them, and our CPU share meanwhile."""
    for number in range(n):
        await machines.import_disk(stead, f"root-{number}", image)
    await asyncio.sleep(5)
    before = _memory(stead)
    qemus: list[int] = []
    bares: list[Bare] = []
    try:
        for number in range(n):
            known = named("qemu-system-x86", "qemu-system-x86_64")
            await machines.create_and_follow(
                stead, register.VIRTUAL_MACHINE_INSTANCE, machines.instance(f"m-{number}", f"root-{number}"),
                machines.has_phase("Running"),
            )  # fmt: skip
            (pid,) = named("qemu-system-x86", "qemu-system-x86_64") - known
            qemus.append(pid)
            bares.append(await Bare.open(pid, stead.root / f"bare-{number}"))
        await _until_asleep([*qemus, *(bare.pid for bare in bares)])
        busy = await _cpu_share(stead, 10)
        grown = (sum(_memory(stead).values()) - sum(before.values())) / n
        each = [_beyond_ram(pid) + grown for pid in qemus]
        bare = [_beyond_ram(bare.pid) for bare in bares]
        rows.append({"what": "platform per machine", "value": grown, "unit": "bytes"})
        for what, pids, found in (("machine", qemus, each), ("bare qemu", [bare.pid for bare in bares], bare)):
            # CPU time tells whether both sides' guests got equally far: translated code is most of the memory.
            rows += [
                {"what": what, "value": value, "unit": "bytes", "cpu_seconds": cpu_seconds(pid)}
                for pid, value in zip(pids, found, strict=True)
            ]
        return each, bare, busy
    finally:
        for started in bares:
            await started.close()


async def _until_asleep(pids: list[int]) -> None:
    """Until all guests sleep: translated code is most of QEMU's memory, so both sides must be equally far."""
    deadline = time.monotonic() + BOOT_SECONDS
    calm = 0
    while calm < 3:
        before = [cpu_seconds(pid) for pid in pids]
        await asyncio.sleep(4)
        busiest = max(cpu_seconds(pid) - earlier for pid, earlier in zip(pids, before, strict=True)) / 4
        calm = calm + 1 if busiest < 0.05 else 0
        if time.monotonic() > deadline:
            raise TimeoutError(f"the guests did not come to rest within {BOOT_SECONDS:.0f} s")


def _beyond_ram(pid: int) -> float:
    return pss_bytes(pid) - guest_ram_pss_bytes(pid, RAM)


class Bare:
    """A QEMU with the arguments of one of ours, started by hand; what libvirt passes open is opened by name."""

    def __init__(self, folder: Path, tap: str) -> None:
        self.folder = folder
        self.tap = tap
        self.tap_descriptor = -1
        self.pid = 0
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    async def open(cls, pid: int, folder: Path) -> Bare:
        """Start the twin of a process."""
        folder.mkdir()
        bare = cls(folder, f"bare{pid}")
        owner = Path(f"/proc/{pid}").stat().st_uid
        await asyncio.to_thread(bare.make_tap)
        arguments = await bare._arguments(command(pid))
        for path in (folder, *folder.iterdir()):
            os.chown(path, owner, owner)
        with (folder / "log").open("wb") as output:
            bare._process = await asyncio.create_subprocess_exec(
                *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, user=owner, group=owner,
                pass_fds=(bare.tap_descriptor,),
            )  # fmt: skip
        await asyncio.sleep(1)
        if bare._process.returncode is not None:
            raise OSError(f"the bare QEMU ended: {(folder / 'log').read_text()[-800:]}")
        bare.pid = bare._process.pid
        return bare

    async def close(self) -> None:
        """End it."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        os.close(self.tap_descriptor)

    def make_tap(self) -> None:
        """A tap that lives as long as its descriptor; QEMU gets the descriptor, as from libvirt."""
        self.tap_descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(self.tap_descriptor, TUNSETIFF, struct.pack("16sH22x", self.tap.encode(), IFF_TAP_VNET_HDR))

    async def _arguments(self, words: list[str]) -> list[str]:
        """The command line with copies of its files, sockets of its own, and no inherited descriptors."""
        given = list(words)
        while "-add-fd" in given:
            at = given.index("-add-fd")
            del given[at : at + 2]
        if "-S" in given:
            given.remove("-S")  # libvirt starts the processor itself, afterwards
        if "-uuid" in given:
            given[given.index("-uuid") + 1] = "00000000-0000-4000-8000-000000000001"
        return [await self._argument(before, word) for before, word in zip(["", *given], given, strict=False)]

    async def _argument(self, before: str, word: str) -> str:
        if before == "-netdev" and '"tap"' in word:
            options = msgspec.json.decode(word)
            return f"tap,id={options['id']},fd={self.tap_descriptor}"
        if before == "-netdev":
            return f"tap,id={re.findall('id=([^,]+)', word)[0]},fd={self.tap_descriptor}"
        if before == "-chardev":
            return self._chardev(word)
        if before == "-vnc":
            return re.sub(r"unix:[^,]+", f"unix:{self.folder}/vnc", word)
        if before in ("-blockdev", "-object") and word.startswith("{"):
            options = msgspec.json.decode(word)
            for key in ("filename", "file"):
                path = options.get(key)
                if isinstance(path, str) and path.startswith("/"):
                    copy = self.folder / f"{options.get('node-name') or options.get('id')}-{Path(path).name}"
                    await program("cp", "--sparse=always", path, copy)
                    options[key] = str(copy)
            return msgspec.json.encode(options).decode()
        return word

    def _chardev(self, word: str) -> str:
        name = re.findall("id=([^,]+)", word)[0]
        kept = re.sub(r",(fd=\d+|logfile=[^,]+|logappend=\w+)", "", word)
        if kept.startswith("socket"):
            kept = re.sub(r",path=[^,]+", "", kept)
            kept = re.sub(r",(server=\w+|wait=\w+)", "", kept)
            return f"{kept},path={self.folder}/{name}.sock,server=on,wait=off"
        return kept
