"""Domain XML of a `Machine`: a pure function, the only place that writes libvirt's language for whole domains.

Called by the driver (`driver.py`) and by golden tests. `devices.py` writes the `<devices>` children. No I/O, no state.
Our `<metadata>` element carries namespace, name, fingerprint and the encoded Machine, so that a restarted agent knows
what a domain was made from, and whose it is: several Steads may share one libvirt, and `metadata["instance"]` of a
Machine tells them apart. Source: libvirt's domain format (formatdomain.html, 9.0), QEMU 7.2.

Under software emulation (`machine.software_emulation`) three things differ: the domain type is `qemu`; CPU modes
`host-model` and `host-passthrough` become `maximum`, the best that emulation offers; features and timers that exist
under KVM only (`kvm.*`, `hyperv.*`, kvmclock, hypervclock) are left out, since they speed up KVM and mean nothing else.
"""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ET

import msgspec

from stead.hypervisor.contract import Machine
from stead.hypervisor.libvirt.devices import add_devices

METADATA_URI = "https://stead.io/machine/1"
QEMU_URI = "http://libvirt.org/schemas/domain/qemu/1.0"
#: whose machines are that say nothing about it
USUAL_INSTANCE = "stead"
MEMORY_BLOCK_BYTES = 2 * 1024 * 1024  # unit in which virtio-mem grows; also its smallest alignment on x86
_QUOTA_PERIOD_US = 100_000  # the kernel's own default
_ONLY_UNDER_KVM = ("kvm", "hyperv")
_TIMERS_UNDER_KVM = ("kvmclock", "hypervclock")
# libvirt keeps each SMBIOS group together and in this order.
_SYSINFO_GROUPS = ("bios", "system", "baseBoard", "chassis", "oemStrings")

ET.register_namespace("stead", METADATA_URI)
ET.register_namespace("qemu", QEMU_URI)


class Mark(msgspec.Struct, frozen=True):
    """What our metadata element says of a domain. `machine` is None when its text is not a Machine any more;
    `instance` is the Stead that defined it, `domain` the name that libvirt knows it by.
    """

    uid: str
    namespace: str
    name: str
    fingerprint: str
    machine: Machine | None
    instance: str = USUAL_INSTANCE
    domain: str = ""


class _Told(msgspec.Struct):
    """The part of an encoded Machine of any release that says whose it is."""

    metadata: dict[str, str] = {}


def domain_name(machine: Machine) -> str:
    """`<namespace>_<name>`, after `<instance>_` unless that is the usual one: unique, as no part has underscores."""
    name = f"{machine.namespace}_{machine.name}"
    instance = instance_of(machine)
    return name if instance == USUAL_INSTANCE else f"{instance}_{name}"


def instance_of(machine: Machine) -> str:
    """Which Stead a machine belongs to."""
    return machine.metadata.get("instance") or USUAL_INSTANCE


def mark_of(machine: Machine) -> Mark:
    """The mark that `domain_xml` puts into the machine's domain."""
    return Mark(
        machine.uid, machine.namespace, machine.name, fingerprint(machine), machine, instance_of(machine),
        domain_name(machine),
    )  # fmt: skip


def fingerprint(machine: Machine) -> str:
    """32 hex digits that differ whenever any field of the Machine does."""
    return hashlib.sha256(msgspec.json.encode(machine, order="deterministic")).hexdigest()[:32]


def domain_xml(machine: Machine) -> str:
    """The complete domain definition of `machine`."""
    domain = ET.Element("domain", type="qemu" if machine.software_emulation else "kvm")
    _text(domain, "name", domain_name(machine))
    _text(domain, "uuid", machine.uid)
    _add_metadata(domain, machine)
    _add_memory(domain, machine)
    _add_vcpus(domain, machine)
    _add_tuning(domain, machine)
    _add_sysinfo(domain, machine)
    _add_os(domain, machine)
    _add_features(domain, machine)
    _add_cpu(domain, machine)
    _add_clock(domain, machine)
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", machine.reboot_action)
    _text(domain, "on_crash", "destroy")
    add_devices(domain, machine)
    _add_labels(domain, machine)
    _add_command_line(domain, machine)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def instance_in(text: str) -> str:
    """The instance in the text of a mark, written by whatever release."""
    try:
        told = msgspec.json.decode(text, type=_Told)
    except (msgspec.DecodeError, msgspec.ValidationError):
        told = _Told()
    return told.metadata.get("instance") or USUAL_INSTANCE


def mark_from_xml(text: str) -> Mark | None:
    """Our mark in a domain's XML, or None for a foreign domain."""
    return mark_from_element(ET.fromstring(text))  # noqa: S314  # from libvirt itself, which parsed it before


def mark_from_element(domain: ET.Element) -> Mark | None:
    """As `mark_from_xml`, of a parsed domain."""
    element = domain.find(f"metadata/{{{METADATA_URI}}}machine")
    if element is None:
        return None
    try:
        machine = msgspec.json.decode(element.text or "", type=Machine)
    except (msgspec.DecodeError, msgspec.ValidationError):
        machine = None
    return Mark(
        instance=instance_in(element.text or ""),
        domain=domain.findtext("name", ""),
        uid=domain.findtext("uuid", ""),
        namespace=element.get("namespace", ""),
        name=element.get("name", ""),
        fingerprint=element.get("fingerprint", ""),
        machine=machine,
    )


def definition_digest(text: str) -> str:
    """Digest of a domain's XML as libvirt prints it, without our metadata: changes when somebody else edits it."""
    domain = ET.fromstring(text)  # noqa: S314  # from libvirt itself
    for metadata in domain.findall("metadata"):
        domain.remove(metadata)
    return hashlib.sha256(ET.tostring(domain)).hexdigest()


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _add_metadata(domain: ET.Element, machine: Machine) -> None:
    metadata = ET.SubElement(domain, "metadata")
    mark = ET.SubElement(metadata, f"{{{METADATA_URI}}}machine")
    mark.set("namespace", machine.namespace)
    mark.set("name", machine.name)
    mark.set("fingerprint", fingerprint(machine))
    mark.text = msgspec.json.encode(machine, order="deterministic").decode()


def _add_memory(domain: ET.Element, machine: Machine) -> None:
    memory = machine.memory
    if memory.maximum > memory.size:
        _text(domain, "maxMemory", str(memory.maximum), slots="16", unit="b")
    _text(domain, "memory", str(memory.size), unit="b")
    if not (memory.hugepage_size or memory.shared):
        return
    backing = ET.SubElement(domain, "memoryBacking")
    if memory.hugepage_size:
        pages = ET.SubElement(backing, "hugepages")
        ET.SubElement(pages, "page", size=str(memory.hugepage_size), unit="b")
    if memory.shared:
        ET.SubElement(backing, "source", type="memfd")
        ET.SubElement(backing, "access", mode="shared")


def _vcpu_counts(machine: Machine) -> tuple[int, int]:
    """(present at start, at most)."""
    per_socket = machine.cpu.cores * machine.cpu.threads
    return machine.cpu.sockets * per_socket, max(machine.cpu.sockets, machine.cpu.max_sockets) * per_socket


def _add_vcpus(domain: ET.Element, machine: Machine) -> None:
    present, at_most = _vcpu_counts(machine)
    vcpu = _text(domain, "vcpu", str(at_most), placement="static")
    if present != at_most:
        vcpu.set("current", str(present))
    if machine.io_threads:
        _text(domain, "iothreads", str(machine.io_threads))


def _add_tuning(domain: ET.Element, machine: Machine) -> None:
    """The memory limit is not here but set after the start (`driver.py`): as a `<memtune>` it would also allow QEMU to
    lock that much memory, which no machine needs and a libvirtd without CAP_SYS_RESOURCE cannot grant.
    """
    isolation, cpu = machine.isolation, machine.cpu
    if isolation.cpu_shares or isolation.cpu_quota or cpu.dedicated or cpu.emulator_cpus:
        tune = ET.SubElement(domain, "cputune")
        if isolation.cpu_shares:
            _text(tune, "shares", str(isolation.cpu_shares))
        if isolation.cpu_quota:
            _text(tune, "global_period", str(_QUOTA_PERIOD_US))
            _text(tune, "global_quota", str(isolation.cpu_quota * _QUOTA_PERIOD_US // 1000))
        for index, host_cpu in enumerate(cpu.dedicated):
            ET.SubElement(tune, "vcpupin", vcpu=str(index), cpuset=str(host_cpu))
        if cpu.emulator_cpus:
            ET.SubElement(tune, "emulatorpin", cpuset=",".join(str(cpu) for cpu in cpu.emulator_cpus))
    if isolation.cgroup_parent:
        resource = ET.SubElement(domain, "resource")
        _text(resource, "partition", isolation.cgroup_parent)


def _sysinfo_entries(machine: Machine) -> dict[str, list[tuple[str, str]]]:
    """SMBIOS entries (name, value) by group. The serial of `firmware` is the system's."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, value in machine.firmware.sysinfo:
        group, _, entry = path.partition(".")
        groups.setdefault(group, []).append((entry, value))
    if machine.firmware.serial:
        groups.setdefault("system", []).append(("serial", machine.firmware.serial))
    return groups


def _add_sysinfo(domain: ET.Element, machine: Machine) -> None:
    groups = _sysinfo_entries(machine)
    if not groups:
        return
    sysinfo = ET.SubElement(domain, "sysinfo", type="smbios")
    for group in _SYSINFO_GROUPS:
        if group not in groups:
            continue
        element = ET.SubElement(sysinfo, group)
        for name, value in groups[group]:
            entry = _text(element, "entry", value)
            if group != "oemStrings":
                entry.set("name", name)


def _add_os(domain: ET.Element, machine: Machine) -> None:
    firmware = machine.firmware
    element = ET.SubElement(domain, "os")
    if firmware.kind == "efi":
        element.set("firmware", "efi")
    _text(element, "type", "hvm", arch=machine.architecture, machine=machine.machine_type)
    if firmware.kind == "efi":
        wanted = "yes" if firmware.secure_boot else "no"
        features = ET.SubElement(element, "firmware")
        ET.SubElement(features, "feature", enabled=wanted, name="enrolled-keys")
        ET.SubElement(features, "feature", enabled=wanted, name="secure-boot")
        if firmware.nvram:
            _text(element, "nvram", firmware.nvram)
    for tag, value in (("kernel", firmware.kernel), ("initrd", firmware.initrd), ("cmdline", firmware.cmdline)):
        if value:
            _text(element, tag, value)
    if firmware.acpi_tables:
        tables = ET.SubElement(element, "acpi")
        for signature, path in firmware.acpi_tables:
            _text(tables, "table", path, type=signature.lower())
    if firmware.bios_serial and machine.serial_socket:
        ET.SubElement(element, "bios", useserial="yes")
    if _sysinfo_entries(machine):
        ET.SubElement(element, "smbios", mode="sysinfo")


def _add_features(domain: ET.Element, machine: Machine) -> None:
    """`hyperv.relaxed` is written as `<hyperv><relaxed/></hyperv>`; a parent named alone gets its own attributes."""
    wanted = dict(machine.features) or {"acpi": (), "apic": ()}
    if machine.firmware.secure_boot:
        wanted.setdefault("smm", (("state", "on"),))
    element = ET.SubElement(domain, "features")
    for path, attributes in wanted.items():
        parts = path.split(".")
        if machine.software_emulation and parts[0] in _ONLY_UNDER_KVM:
            continue
        node = element
        for part in parts:
            child = node.find(part)
            node = ET.SubElement(node, part) if child is None else child
        for key, value in attributes:
            node.set(key, value)
    for group in element.findall("hyperv"):
        if "mode" not in group.attrib:
            group.set("mode", "custom")


def _add_cpu(domain: ET.Element, machine: Machine) -> None:
    cpu = machine.cpu
    mode = cpu.mode
    if machine.software_emulation and mode in ("host-model", "host-passthrough"):
        mode = "maximum"
    element = ET.SubElement(domain, "cpu", mode=mode)
    if mode == "custom":
        # Emulation offers part of most models; QEMU leaves out what it lacks instead of refusing.
        element.set("match", "exact")
        element.set("check", "none" if machine.software_emulation else "partial")
        _text(element, "model", cpu.model, fallback="allow" if machine.software_emulation else "forbid")
    sockets = max(cpu.sockets, cpu.max_sockets)
    ET.SubElement(element, "topology", sockets=str(sockets), cores=str(cpu.cores), threads=str(cpu.threads))
    for name, policy in cpu.features:
        ET.SubElement(element, "feature", policy=policy or "require", name=name)
    if machine.memory.maximum > machine.memory.size:
        _, at_most = _vcpu_counts(machine)
        numa = ET.SubElement(element, "numa")
        cell = ET.SubElement(numa, "cell", id="0", cpus=f"0-{at_most - 1}", memory=str(machine.memory.size), unit="b")
        if machine.memory.shared:
            cell.set("memAccess", "shared")


def _add_clock(domain: ET.Element, machine: Machine) -> None:
    """`clock_offset` is utc, localtime, `variable:<seconds>` (from UTC) or `timezone:<name>`."""
    kind, _, value = machine.clock_offset.partition(":")
    clock = ET.SubElement(domain, "clock", offset=kind)
    if kind == "variable":
        clock.set("adjustment", value or "0")
        clock.set("basis", "utc")
    elif kind == "timezone":
        clock.set("timezone", value)
    for name, attributes in machine.clock_timers:
        if machine.software_emulation and name in _TIMERS_UNDER_KVM:
            continue
        ET.SubElement(clock, "timer", {"name": name, **dict(attributes)})


def _add_labels(domain: ET.Element, machine: Machine) -> None:
    """A uid of its own for QEMU. libvirt changes no file's owner: whoever made a file gave it to the machine, and files
    that machines share (a kernel, a base image) belong to none of them.
    """
    isolation = machine.isolation
    if isolation.uid:
        label = ET.SubElement(domain, "seclabel", type="static", model="dac", relabel="no")
        _text(label, "label", f"+{isolation.uid}:+{isolation.gid or isolation.uid}")


def _add_command_line(domain: ET.Element, machine: Machine) -> None:
    """The guest's SMBIOS uuid where it differs from the domain's, which libvirt has no element for."""
    if machine.firmware.uuid and machine.firmware.uuid != machine.uid:
        line = ET.SubElement(domain, f"{{{QEMU_URI}}}commandline")
        for value in ("-smbios", f"type=1,uuid={machine.firmware.uuid}"):
            ET.SubElement(line, f"{{{QEMU_URI}}}arg", value=value)
