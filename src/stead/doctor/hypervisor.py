"""Can this host run machines well: virtualisation, devices, cgroups, QEMU, libvirt, firmware.

The ids up to `secure-guest` are those of `virt-host-validate qemu`; its KVM checks trust CPU flags and a device node,
ours also times a real guest, since some hosts have both and run guests many times slower than emulation.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

from stead.config import Settings
from stead.doctor.finding import Finding, first_line, output_of, read

#: Versions that incremental backup and the rest of the driver need.
MIN_QEMU, MIN_LIBVIRT = (6, 1), (7, 6)


def hardware_virtualization(settings: Settings) -> Finding:
    title = "hardware virtualization"
    flags = set(re.findall(r"\b(vmx|svm|sie)\b", read("/proc/cpuinfo")))
    if flags:
        return Finding("hardware-virtualization", title, "pass", f"CPU flag {', '.join(sorted(flags))}")
    return Finding(
        "hardware-virtualization", title, "warn", "no vmx or svm in /proc/cpuinfo",
        "enable VT-x/AMD-V in the firmware, or nested virtualisation on the host above; else guests are emulated",
    )  # fmt: skip


def kvm_device(settings: Settings) -> Finding:
    title = "device /dev/kvm exists and is accessible"
    if not Path("/dev/kvm").exists():
        return Finding("kvm-device", title, "warn", "/dev/kvm is absent", "modprobe kvm-intel (or kvm-amd)")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Finding("kvm-device", title, "warn", "no permission for /dev/kvm", "adduser $USER kvm, or run as root")
    if Path("/dev/kvm").group() != "kvm":
        return Finding(
            "kvm-device", title, "warn", "/dev/kvm does not belong to the group kvm: libvirt probes QEMU at each call",
            "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm",
        )  # fmt: skip
    return Finding("kvm-device", title, "pass", "/dev/kvm can be opened")


def kvm_speed(settings: Settings) -> Finding:
    title = "KVM runs guests fast (timed)"
    from stead.hypervisor.libvirt import emulation

    probe = asyncio.run(emulation.probe("/usr/bin/qemu-system-x86_64"))
    if not probe.software_emulation:
        return Finding("kvm-speed", title, "pass", "a timed guest ran at hardware speed")
    return Finding(
        "kvm-speed", title, "warn", probe.reason,
        "guests run under software emulation (TCG): correct, but slow; use a host with hardware virtualisation",
    )  # fmt: skip


def _device(path: str, identifier: str, level: str, mend: str) -> Finding:
    title = f"device {path} exists"
    if Path(path).exists():
        return Finding(identifier, title, "pass", f"{path} is there")
    return Finding(identifier, title, level, f"{path} is absent", mend)


def vhost_net(settings: Settings) -> Finding:
    return _device("/dev/vhost-net", "vhost-net", "warn", "modprobe vhost_net (guest networking is quicker with it)")


def tun(settings: Settings) -> Finding:
    return _device("/dev/net/tun", "tun", "fail", "modprobe tun")


def cgroups(settings: Settings) -> Finding:
    title = "cgroup controllers cpu, cpuset, memory, io, pids"
    wanted = {"cpu", "cpuset", "memory", "io", "pids"}
    unified = set(read("/sys/fs/cgroup/cgroup.controllers").split())
    legacy = {line.split()[0] for line in read("/proc/cgroups").splitlines()[1:] if line.split()[3:4] == ["1"]}
    mounted = {part for part in legacy if Path(f"/sys/fs/cgroup/{part}").is_dir()}
    have = unified | mounted | ({"io"} if "blkio" in mounted else set())
    missing = wanted - have
    if not missing:
        return Finding("cgroups", title, "pass", "all present" + ("" if unified else " (cgroup v1)"))
    return Finding(
        "cgroups", title, "warn", f"missing: {', '.join(sorted(missing))}",
        "mount the unified hierarchy (systemd.unified_cgroup_hierarchy=1); without it machines run without limits",
    )  # fmt: skip


def iommu(settings: Settings) -> Finding:
    title = "device assignment (IOMMU)"
    groups = Path("/sys/kernel/iommu_groups")
    if groups.is_dir() and any(groups.iterdir()):
        return Finding("iommu", title, "pass", "IOMMU groups exist")
    tables = [name for name in ("DMAR", "IVRS", "IORT") if Path(f"/sys/firmware/acpi/tables/{name}").exists()]
    if tables:
        return Finding("iommu", title, "warn", f"{tables[0]} present, no groups", "boot with intel_iommu=on iommu=pt")
    return Finding("iommu", title, "warn", "no IOMMU found", "only needed to pass PCI devices to guests")


def secure_guest(settings: Settings) -> Finding:
    title = "secure guest support (SEV, TDX)"
    found = [
        name
        for name, path in (
            ("SEV", "/sys/module/kvm_amd/parameters/sev"),
            ("TDX", "/sys/module/kvm_intel/parameters/tdx"),
        )
        if read(path) in ("1", "Y")
    ]
    if found:
        return Finding("secure-guest", title, "pass", ", ".join(found))
    return Finding("secure-guest", title, "warn", "neither SEV nor TDX", "only needed for confidential guests")


def qemu(settings: Settings) -> Finding:
    return _version("qemu", "QEMU", ("qemu-system-x86_64", "--version"), MIN_QEMU, "apt-get install qemu-system-x86")


def qemu_img(settings: Settings) -> Finding:
    return _version("qemu-img", "qemu-img", ("qemu-img", "--version"), MIN_QEMU, "apt-get install qemu-utils")


def _version(identifier: str, title: str, command: tuple[str, ...], least: tuple[int, int], mend: str) -> Finding:
    code, text = output_of(*command)
    found = re.search(r"(\d+)\.(\d+)", text)
    if code or not found:
        return Finding(identifier, title, "fail", first_line(text), mend)
    if (int(found[1]), int(found[2])) < least:
        return Finding(identifier, title, "fail", f"{found[0]} is older than {least[0]}.{least[1]}", mend)
    return Finding(identifier, title, "pass", first_line(text))


def libvirt(settings: Settings) -> Finding:
    title = f"libvirt answers at {settings.libvirt_uri}"
    code, text = output_of("virsh", "-c", settings.libvirt_uri, "version")
    if code:
        return Finding(
            "libvirt", title, "fail", first_line(text), "systemctl enable --now libvirtd, or run ./quickstart"
        )
    found = re.search(r"library: libvirt (\d+)\.(\d+)", text)
    if found and (int(found[1]), int(found[2])) < MIN_LIBVIRT:
        return Finding("libvirt", title, "fail", found[0], "upgrade the distribution: libvirt 7.6 is the least")
    return Finding("libvirt", title, "pass", found[0].removeprefix("library: ") if found else first_line(text))


def _is_own(metadata: str, instance: str) -> bool:
    """Whether our metadata element, as virsh prints it (without its namespace), is there and names this Stead."""
    from stead.hypervisor.libvirt.xml import instance_in

    try:
        element = ElementTree.fromstring(metadata)  # noqa: S314  # from libvirt itself
    except ElementTree.ParseError:
        return False
    return element.tag == "machine" and instance_in(element.text or "") == instance


def foreign_machines(settings: Settings) -> Finding:
    title = "machines of libvirt that this Stead does not manage"
    code, text = output_of("virsh", "-c", settings.libvirt_uri, "list", "--all", "--name")
    if code:
        return Finding("foreign-machines", title, "warn", first_line(text), "see the check `libvirt`")
    foreign = []
    for name in filter(None, text.splitlines()):
        _, xml = output_of("virsh", "-c", settings.libvirt_uri, "metadata", name, "https://stead.io/machine/1")
        if not _is_own(xml, settings.instance):
            foreign.append(name)
    if not foreign:
        return Finding("foreign-machines", title, "pass", "none")
    return Finding("foreign-machines", title, "pass", f"{len(foreign)}, left alone: {', '.join(sorted(foreign)[:5])}")


def firmware(settings: Settings) -> Finding:
    title = "UEFI firmware with descriptors"
    descriptors = [*Path("/usr/share/qemu/firmware").glob("*.json")]
    if descriptors and Path("/usr/share/OVMF").is_dir():
        return Finding("firmware", title, "pass", f"{len(descriptors)} descriptors")
    return Finding("firmware", title, "fail", "no OVMF", "apt-get install ovmf")


def _program(name: str, package: str, level: str, purpose: str) -> Finding:
    found = shutil.which(name)
    if found:
        return Finding(name, f"{name} ({purpose})", "pass", found)
    return Finding(name, f"{name} ({purpose})", level, "not installed", f"apt-get install {package}")


def swtpm(settings: Settings) -> Finding:
    return _program("swtpm", "swtpm swtpm-tools", "warn", "TPM devices")


def passt(settings: Settings) -> Finding:
    return _program("passt", "passt", "warn", "passt binding")


def xorriso(settings: Settings) -> Finding:
    return _program("xorriso", "xorriso", "fail", "cloud-init disks")


def memory(settings: Settings) -> Finding:
    title = "memory for machines"
    found = re.search(r"MemAvailable:\s+(\d+) kB", read("/proc/meminfo"))
    available = int(found[1]) * 1024 if found else 0
    text = f"{available / 2**30:.1f} GiB available"
    if available < 2 * 2**30:
        return Finding("memory", title, "warn", text, "machines need at least 1 GiB each; stop something or add memory")
    return Finding("memory", title, "pass", text)


def hugepages(settings: Settings) -> Finding:
    title = "hugepages"
    free = {
        folder.name.removeprefix("hugepages-"): read(f"{folder}/free_hugepages")
        for folder in sorted(Path("/sys/kernel/mm/hugepages").glob("hugepages-*"))
    }
    text = ", ".join(f"{name} {count} free" for name, count in free.items()) or "none"
    return Finding("hugepages", title, "pass", text)


def nested(settings: Settings) -> Finding:
    title = "nested virtualisation"
    values = [read(f"/sys/module/{name}/parameters/nested") for name in ("kvm_intel", "kvm_amd")]
    on = any(value in ("1", "Y") for value in values)
    return Finding("nested", title, "pass", "on" if on else "off (only needed for hypervisors inside guests)")


CHECKS = (
    hardware_virtualization, kvm_device, kvm_speed, vhost_net, tun, cgroups, iommu, secure_guest, qemu, qemu_img,
    libvirt, foreign_machines, firmware, swtpm, passt, xorriso, memory, hugepages, nested,
)  # fmt: skip
