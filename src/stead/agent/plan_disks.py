"""From the VMI's disks and its prepared volumes to the hypervisor's disks. Pure; called by `plan.py`.

Bus and cache defaults are KubeVirt's: SATA where nothing else is said (admission usually has), cache `none` where the
file takes O_DIRECT and `writethrough` where it does not, io `native` for block devices and preallocated files opened
directly.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.agent import vmi as reading
from stead.agent.prepared import Prepared, PreparedVolume, Unsupported
from stead.hypervisor.contract import Disk

Object = dict[str, Any]


def disks_from(vmi: Object, prepared: Prepared) -> tuple[Disk, ...]:
    """The disks in the VMI's order. Unsupported names the field that cannot be honoured."""
    entries = reading.devices(vmi).get("disks") or []
    sockets, cores, threads = reading.topology(vmi)
    queues = sockets * cores * threads if reading.devices(vmi).get("blockMultiQueue") else 0
    disks = [_disk(entry, index, prepared) for index, entry in enumerate(entries)]
    return tuple(
        msgspec.structs.replace(disk, queues=queues) if queues and disk.bus == "virtio" else disk for disk in disks
    )


def has_dedicated_io_threads(vmi: Object) -> int:
    """How many disks ask for an I/O thread of their own."""
    return sum(1 for entry in reading.devices(vmi).get("disks") or [] if entry.get("dedicatedIOThread"))


def io_threads(vmi: Object) -> int:
    """Number of I/O threads by `ioThreadsPolicy` (shared: 1 + dedicated; auto: capped at 2 per vCPU;
    supplementalPool).
    """
    policy = reading.domain(vmi).get("ioThreadsPolicy") or ""
    dedicated = has_dedicated_io_threads(vmi)
    if policy == "supplementalPool":
        return int((reading.domain(vmi).get("ioThreads") or {}).get("supplementalPoolThreadCount") or 1)
    if policy == "auto":
        sockets, cores, threads = reading.topology(vmi)
        wanted = max(1, len(reading.devices(vmi).get("disks") or []))
        return min(wanted, 2 * sockets * cores * threads)
    if policy == "shared":
        return 1 + dedicated
    return dedicated + 1 if dedicated else 0


def _target(entry: Object) -> tuple[str, Object]:
    for kind in ("disk", "cdrom", "lun"):
        if kind in entry:
            return kind, entry[kind] or {}
    return "disk", {}


def _disk(entry: Object, index: int, prepared: Prepared) -> Disk:
    path = f"spec.domain.devices.disks[{index}]"
    kind, target = _target(entry)
    volume = prepared.volume(entry["name"])
    if volume is None and kind != "cdrom":
        raise Unsupported(path, f"has no volume named {entry['name']}")
    if kind == "lun" and volume is not None and volume.source != "block":
        raise Unsupported(f"{path}.lun", "needs a block volume")
    block = (entry.get("blockSize") or {}).get("custom") or {}
    logical = int(block.get("logical") or 0)
    bus = target.get("bus") or "sata"
    read_only = bool(target.get("readonly")) or kind == "cdrom" or _is_held_read_only(volume, bus)
    return Disk(
        name=entry["name"],
        path=(volume.tracking or volume.path) if volume else "",
        format=("qcow2" if volume.tracking else volume.format) if volume else "raw",
        source=("file" if volume.tracking else volume.source) if volume else "file",
        device=kind,
        bus=bus,
        read_only=read_only,
        shareable=bool(entry.get("shareable")),
        boot_order=int(entry.get("bootOrder") or 0),
        serial=str(entry.get("serial") or ""),
        cache=_cache(entry, volume),
        io=_io(entry, volume),
        error_policy=entry.get("errorPolicy") or "stop",
        dedicated_io_thread=bool(entry.get("dedicatedIOThread")),
        base=volume.base if volume else "",
        base_format=volume.base_format if volume else "",
        data_file=volume.path if volume and volume.tracking else "",
        data_source=volume.source if volume else "file",
        logical_block_size=logical,
        physical_block_size=int(block.get("physical") or logical),
        pci_address=str(target.get("pciAddress") or ""),
        tray_open=target.get("tray") == "open",
    )


def _is_held_read_only(volume: PreparedVolume | None, bus: str) -> bool:
    """Whether a volume that cannot be written makes the disk read-only. libvirt knows no read-only SATA disk: there a
    disk that was made from objects is the machine's own copy and may be written, as in KubeVirt; a claim may not.
    """
    return volume is not None and volume.read_only and (bus != "sata" or bool(volume.claim))


def _cache(entry: Object, volume: PreparedVolume | None) -> str:
    if entry.get("cache"):
        return str(entry["cache"])
    if volume is None:
        return ""
    return "none" if volume.direct_io else "writethrough"


def _io(entry: Object, volume: PreparedVolume | None) -> str:
    if entry.get("io"):
        return str(entry["io"])
    if volume is None or entry.get("shareable"):
        return ""
    direct = _cache(entry, volume) == "none"
    native = direct and not volume.base and (volume.source == "block" or volume.preallocated)
    return "native" if native else "threads"
