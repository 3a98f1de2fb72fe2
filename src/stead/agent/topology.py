"""What of a host's build placement and people ask for: NUMA nodes, bridges. Read from sysfs; blocking, milliseconds.

Called by `agent/host`. Formats: Documentation/ABI of the kernel's sysfs (node, net). What cannot be read is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

Object = dict[str, Any]


class NumaNode(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One NUMA node: processors by number, memory in bytes, reserved hugepages as page size to count."""

    id: int
    cpus: tuple[int, ...] = ()
    memory: int = 0
    hugepages: dict[int, int] = {}


def numa_nodes(root: Path = Path("/sys/devices/system/node")) -> tuple[NumaNode, ...]:
    """The NUMA nodes, by number."""
    found = []
    for folder in root.glob("node[0-9]*"):
        try:
            cpus = cpus_from((folder / "cpulist").read_text())
            lines = (folder / "meminfo").read_text().splitlines()
        except (OSError, ValueError):
            continue
        words = next((line.split() for line in lines if "MemTotal:" in line), [])
        memory = int(words[-2]) * 1024 if len(words) > 2 and words[-2].isdigit() else 0
        node = NumaNode(id=int(folder.name[4:]), cpus=cpus, memory=memory, hugepages=_hugepages(folder / "hugepages"))
        found.append(node)
    return tuple(sorted(found, key=lambda node: node.id))


def cpus_from(text: str) -> tuple[int, ...]:
    """Numbers of a list as the kernel writes it: `0-3,8`. Raises ValueError."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if part:
            found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def _hugepages(folder: Path) -> dict[int, int]:
    found = {}
    for each in folder.glob("hugepages-*kB"):
        try:
            count = int((each / "nr_hugepages").read_text())
        except (OSError, ValueError):
            continue
        if count:
            found[int(each.name.removeprefix("hugepages-").removesuffix("kB")) * 1024] = count
    return found


def bridges(root: Path = Path("/sys/class/net")) -> tuple[str, ...]:
    """Names of the Linux bridges that there are."""
    try:
        return tuple(sorted(entry.name for entry in root.iterdir() if (entry / "bridge").is_dir()))
    except OSError:
        return ()
