"""What the driver does to single domains: define, undefine, limit; what it knows of each. Blocking; in pool threads.

Called by `driver.py` only. Nothing here touches a domain that does not carry our mark.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

import libvirt
import msgspec

from stead.hypervisor.contract import Busy, Failed, Machine, NotFound, Unsupported
from stead.hypervisor.libvirt import process
from stead.hypervisor.libvirt.capabilities import unsupported_field
from stead.hypervisor.libvirt.xml import Mark, definition_digest, domain_xml, instance_of, mark_from_xml, mark_of

_UNDEFINE_FLAGS = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
)


class Known(msgspec.Struct):
    """Cache of one domain of ours. `digest` is of the definition as libvirt printed it when we had made it."""

    mark: Mark
    digest: str
    changed: bool = False
    pid: int = 0
    unconfined: str = ""  # why a limit could not be set


def subject_of(machine: Machine) -> str:
    return f"{machine.namespace}/{machine.name}"


def lookup(connection: libvirt.virConnect, uid: str) -> libvirt.virDomain:
    return connection.lookupByUUIDString(uid)


def inactive_xml(domain: libvirt.virDomain) -> str:
    return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def emulation_detail(machine: Machine | None) -> str:
    """What software emulation changed, for status; empty under KVM."""
    if machine is None or not machine.software_emulation:
        return ""
    if machine.cpu.mode in ("host-model", "host-passthrough"):
        return f"software emulation; CPU mode {machine.cpu.mode} runs as the best emulated CPU"
    return "software emulation"


def define(connection: libvirt.virConnect, machine: Machine) -> Known:
    """In a pool thread: define, refusing what this libvirt cannot do, and foreign or running domains."""
    refused = unsupported_field(machine, connection.getLibVersion())
    if refused is not None:
        raise Unsupported(f"define of {subject_of(machine)}: {refused[0]}: {refused[1]}", refused[0])
    try:
        domain = lookup(connection, machine.uid)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
    else:
        found = mark_from_xml(inactive_xml(domain))
        if found is None or found.instance != instance_of(machine):
            raise Failed(f"define of {subject_of(machine)}: a domain that is not ours has the uuid {machine.uid}")
        if domain.isActive():
            raise Busy(f"define of {subject_of(machine)}: the machine is running")
        if found.domain != mark_of(machine).domain:  # libvirt does not rename by a definition
            domain.undefineFlags(_UNDEFINE_FLAGS)
    domain = connection.defineXML(domain_xml(machine))
    return Known(mark_of(machine), definition_digest(inactive_xml(domain)))


def confine(domain: libvirt.virDomain, machine: Machine | None) -> int:
    """In a pool thread, after a start by somebody else: what the definition cannot say. Returns QEMU's pid."""
    pid = process.find_pid(domain.UUIDString(), domain.name())
    if machine is not None:
        process.confine(machine, pid)
        limit_memory(domain, machine)
    return pid


def limit_memory(domain: libvirt.virDomain, machine: Machine) -> None:
    if machine.isolation.memory_limit:
        limit = {"hard_limit": machine.isolation.memory_limit // 1024}
        domain.setMemoryParameters(limit, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def resize_disk(domain: libvirt.virDomain, name: str, size_bytes: int) -> None:
    """Show a running guest the new size of the disk with that alias. Libvirt knows disks by their target."""
    for disk in ET.fromstring(domain.XMLDesc(0)).iterfind("devices/disk"):  # noqa: S314  libvirt's own document
        alias, target = disk.find("alias"), disk.find("target")
        if alias is not None and target is not None and alias.get("name") == f"ua-{name}":
            domain.blockResize(str(target.get("dev")), size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
            return
    raise NotFound(f"resize of {domain.name()}: it has no disk {name}")


def undefine(connection: libvirt.virConnect, uid: str) -> None:
    domain = lookup(connection, uid)
    if domain.isActive():
        raise Busy(f"undefine of {domain.name()}: the machine is running")
    domain.undefineFlags(_UNDEFINE_FLAGS)
    process.release_limit(uid)
