"""Changes to a running domain in place: what can change does, what cannot is named for a restart.

Called by the driver's `apply` in a pool thread. `decide_changes` is pure: which fields differ and which of those this
module can carry out. Done here: CD-ROM media, disks added and removed, NICs added and removed, link state, sockets up
to `max_sockets`, memory up to `maximum`. The definition is renewed afterwards only when nothing is left over, so that a
fingerprint never claims what the running machine is not.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

import libvirt
import msgspec

from stead.hypervisor.contract import Disk, Machine, Nic, Unsupported
from stead.hypervisor.libvirt.devices import disk_element, disk_targets, nic_element
from stead.hypervisor.libvirt.xml import Mark, definition_digest, domain_xml, mark_of

_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
_IGNORED = ("metadata",)


class Changes(msgspec.Struct, frozen=True):
    """What `apply` does, in this order, and the dotted names of fields that need a restart."""

    media: tuple[Disk, ...] = ()
    detach_disks: tuple[Disk, ...] = ()
    attach_disks: tuple[Disk, ...] = ()
    detach_nics: tuple[Nic, ...] = ()
    attach_nics: tuple[Nic, ...] = ()
    links: tuple[Nic, ...] = ()
    vcpus: int = 0
    memory: int = 0
    restart: tuple[str, ...] = ()


def decide_changes(before: Machine, after: Machine) -> Changes:
    """Pure: how to come from one Machine to the other without a restart, as far as that goes."""
    restart = [
        field
        for field in Machine.__struct_fields__
        if field not in ("disks", "nics", "cpu", "memory", *_IGNORED)
        and getattr(before, field) != getattr(after, field)
    ]
    disks = _decide_disks(before, after, restart)
    attach_nics, detach_nics, links = _decide_nics(before, after, restart)
    vcpus = memory = 0
    if before.cpu != after.cpu:
        same = msgspec.structs.replace(after.cpu, sockets=before.cpu.sockets) == before.cpu
        if same and before.cpu.sockets < after.cpu.sockets <= before.cpu.max_sockets:
            vcpus = after.cpu.sockets * after.cpu.cores * after.cpu.threads
        else:
            restart.append("cpu")
    if before.memory != after.memory:
        same = msgspec.structs.replace(after.memory, size=before.memory.size) == before.memory
        if same and before.memory.size < after.memory.size <= before.memory.maximum:
            memory = after.memory.size - before.memory.size
        else:
            restart.append("memory")
    media, attach_disks, detach_disks = disks
    return Changes(
        media=media,
        detach_disks=detach_disks,
        attach_disks=attach_disks,
        detach_nics=detach_nics,
        attach_nics=attach_nics,
        links=links,
        vcpus=vcpus,
        memory=memory,
        restart=tuple(restart),
    )


def _decide_disks(before: Machine, after: Machine, restart: list[str]) -> tuple[tuple[Disk, ...], ...]:
    """(media to change, disks to attach, disks to detach)."""
    old = {disk.name: disk for disk in before.disks}
    new = {disk.name: disk for disk in after.disks}
    media, attach, detach = [], [], []
    for name, disk in new.items():
        previous = old.get(name)
        if previous is None:
            if disk.device == "disk" and disk.bus in ("virtio", "scsi"):
                attach.append(disk)
            else:
                restart.append(f"disks.{name}")
        elif previous != disk:
            emptied = msgspec.structs.replace(disk, path=previous.path, format=previous.format)
            if disk.device == "cdrom" and emptied == previous:
                media.append(disk)
            else:
                restart.append(f"disks.{name}")
    for name, disk in old.items():
        if name not in new:
            if disk.device == "disk" and disk.bus in ("virtio", "scsi"):
                detach.append(disk)
            else:
                restart.append(f"disks.{name}")
    return tuple(media), tuple(attach), tuple(detach)


def _decide_nics(before: Machine, after: Machine, restart: list[str]) -> tuple[tuple[Nic, ...], ...]:
    """(NICs to attach, NICs to detach, NICs whose link state changes)."""
    old = {nic.name: nic for nic in before.nics}
    new = {nic.name: nic for nic in after.nics}
    links = []
    for name, nic in new.items():
        if name in old and old[name] != nic:
            if msgspec.structs.replace(nic, link_up=old[name].link_up) == old[name]:
                links.append(nic)
            else:
                restart.append(f"nics.{name}")
    attach = tuple(nic for name, nic in new.items() if name not in old)
    detach = tuple(nic for name, nic in old.items() if name not in new)
    return attach, detach, tuple(links)


def apply_in_place(
    domain: libvirt.virDomain, before: Machine, after: Machine
) -> tuple[list[str], tuple[Mark, str] | None]:
    """Blocking. (field names that need a restart, the renewed mark and digest when none is left)."""
    changes = decide_changes(before, after)
    for disk in changes.media:
        domain.updateDeviceFlags(_text(disk_element(after, disk, _live_target(domain, disk.name))), _LIVE)
    for disk in changes.detach_disks:
        domain.detachDeviceAlias(f"ua-{disk.name}", _LIVE)
    for disk in changes.attach_disks:
        domain.attachDeviceFlags(_text(disk_element(after, disk, _free_target(domain, after, disk))), _LIVE)
    for nic in changes.detach_nics:
        domain.detachDeviceAlias(f"ua-{nic.name}", _LIVE)
    for nic in changes.attach_nics:
        domain.attachDeviceFlags(_text(nic_element(nic)), _LIVE)
    for nic in changes.links:
        domain.updateDeviceFlags(_text(nic_element(nic)), _LIVE)
    if changes.vcpus:
        domain.setVcpusFlags(changes.vcpus, _LIVE)
    if changes.memory:
        domain.updateDeviceFlags(_with_requested_memory(domain.XMLDesc(0), changes.memory), _LIVE)
    if changes.restart:
        return list(changes.restart), None
    defined = domain.connect().defineXML(domain_xml(after))
    text = defined.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    return [], (mark_of(after), definition_digest(text))


def _text(element: ET.Element) -> str:
    return ET.tostring(element, encoding="unicode")


def _live_targets(domain: libvirt.virDomain) -> dict[str, str]:
    """Target device by alias of the running domain."""
    found = {}
    for disk in ET.fromstring(domain.XMLDesc(0)).iterfind("devices/disk"):  # noqa: S314  # from libvirt itself
        target, alias = disk.find("target"), disk.find("alias")
        if target is not None:
            found["" if alias is None else alias.get("name", "")] = target.get("dev", "")
    return found


def _with_requested_memory(text: str, requested: int) -> str:
    """The running machine's virtio-mem device, as libvirt prints it, asked for `requested` bytes."""
    device = ET.fromstring(text).find("devices/memory[@model='virtio-mem']")  # noqa: S314  # from libvirt itself
    wanted = None if device is None else device.find("target/requested")
    if device is None or wanted is None:
        raise Unsupported("the running machine has no room for more memory", "memory.size")
    wanted.text = str(requested)
    wanted.set("unit", "b")
    return _text(device)


def _live_target(domain: libvirt.virDomain, name: str) -> str:
    return _live_targets(domain).get(f"ua-{name}", "")


def _free_target(domain: libvirt.virDomain, after: Machine, disk: Disk) -> str:
    """A device letter that is free now: the one of the new definition where possible."""
    used = set(_live_targets(domain).values())
    wanted = disk_targets(after)[disk.name]
    if wanted not in used:
        return wanted
    prefix = wanted[:2]
    return next(name for name in (prefix + chr(code) for code in range(ord("a"), ord("z") + 1)) if name not in used)
