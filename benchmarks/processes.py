"""What processes cost: proportional memory from smaps, CPU ticks from stat, and waiting with deadlines.

Read-only views of /proc, for root (smaps of others). Memory is PSS: shared pages are divided among those who share
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

#: idle share of the CPUs from which on a sample counts as undisturbed
QUIET = 0.8
TICKS = os.sysconf("SC_CLK_TCK")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process. Raises OSError when it is gone."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/smaps_rollup has no Pss")


def guest_ram_pss_bytes(pid: int, size: int) -> int:
    """PSS of the mappings that are as large as the guest's memory (QEMU maps it at once)."""
    found, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        mapping = _MAPPING.match(line)
        if mapping:
            inside = int(mapping[2], 16) - int(mapping[1], 16) == size
        elif inside and line.startswith("Pss:"):
            found += int(line.split()[1]) * 1024
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def descendants(pids: Iterable[int]) -> set[int]:
    """The processes and all that they started and that still are their children's children."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def command(pid: int) -> list[str]:
    """Its arguments."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")


def named(*names: str) -> set[int]:
    """Processes of this pid namespace whose program has one of the names."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "comm").read_text().strip() in names:
                    found.add(int(entry.name))
    return found


def load() -> float:
    """Load average of the last minute, kept beside every sample."""
    return os.getloadavg()[0]


async def quiet(seconds: float = 15.0) -> float:
    """Wait until the machine has nothing else to do, or for so long; returns the idle share of its CPUs (0 to 1)."""
    deadline = time.monotonic() + seconds
    while True:
        before = _ticks()
        await asyncio.sleep(0.5)
        after = _ticks()
        share = (after[1] - before[1]) / max(1, after[0] - before[0])
        if share >= QUIET or time.monotonic() > deadline:
            return round(share, 2)


def _ticks() -> tuple[int, int]:
    """All ticks of all CPUs, and the idle ones among them."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4]


async def until(probe: Callable[[], Awaitable[bool]], what: str, seconds: float, pause: float = 0.02) -> None:
    """Wait for something. Raises TimeoutError that names it."""
    deadline = time.monotonic() + seconds
    while not await probe():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain until {what}")
        await asyncio.sleep(pause)


async def run(*arguments: str | Path, seconds: float = 120) -> str:
    """Run a program to its end and return its output. Raises OSError with its last words when it fails."""
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(seconds):
        out, errors = await process.communicate()
    if process.returncode:
        raise OSError(
            f"{arguments[0]} ended with {process.returncode}: {errors.decode(errors='replace').strip()[-500:]}"
        )
    return out.decode(errors="replace")
