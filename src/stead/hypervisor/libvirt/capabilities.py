"""libvirt's capability documents turned into the contract's `Capabilities`. Pure but for `read`, which asks libvirt.

Called by the driver in a pool thread. Source: formatcaps.html and formatdomaincaps.html of libvirt 9.0.
"""

from __future__ import annotations

import platform
import xml.etree.ElementTree as ET

import libvirt
import msgspec

from stead.hypervisor.contract import Capabilities, Machine
from stead.hypervisor.libvirt.emulation import Probe

# Fields that `define` does not honour in every case; all others of Machine are features.
_TPM_STATE_SINCE = 10_010_000  # <source type='dir'> of an emulated TPM came with libvirt 10.10
_PASST_SINCE = 9_001_000  # 9.0.0's schema names passt, but its parser refuses it (seen on Debian 12)
_NOT_FEATURES = ("uid", "namespace", "name", "metadata", "software_emulation")


class Documents(msgspec.Struct, frozen=True):
    """What libvirt said: `host` of virConnectGetCapabilities, `domain` of virConnectGetDomainCapabilities."""

    host: str
    domain: str
    libvirt_version: int
    hypervisor_version: int
    #: the host's model with each of its features written out, or "" where libvirt cannot tell
    expanded: str = ""


def read(connection: libvirt.virConnect, software_emulation: bool) -> Documents:
    """Blocking: ask libvirt (seconds when it must probe QEMU first)."""
    kind = "qemu" if software_emulation else "kvm"
    domain = connection.getDomainCapabilities(None, platform.machine(), "q35", kind)
    return Documents(
        host=connection.getCapabilities(),
        domain=domain,
        expanded=_expanded(connection, domain, kind),
        libvirt_version=connection.getLibVersion(),
        hypervisor_version=connection.getVersion(),
    )


def _expanded(connection: libvirt.virConnect, domain: str, kind: str) -> str:
    """Blocking: the host model's features, those that its name implies included."""
    mode = ET.fromstring(domain).find("cpu/mode[@name='host-model']")  # noqa: S314  # from libvirt itself
    if mode is None or mode.get("supported") != "yes":
        return ""
    cpu = ET.Element("cpu")
    cpu.extend([element for element in mode if element.tag in ("model", "vendor", "feature")])
    flag = libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
    text = ET.tostring(cpu, encoding="unicode")
    try:
        return str(connection.baselineHypervisorCPU(None, platform.machine(), None, kind, [text], flag))
    except libvirt.libvirtError:
        return ""


def emulator_from_documents(host_xml: str) -> str:
    """Path of the QEMU binary that libvirt uses for this architecture."""
    root = ET.fromstring(host_xml)  # noqa: S314  # from libvirt itself
    for arch in root.findall("guest/arch"):
        if arch.get("name") == platform.machine():
            return arch.findtext("emulator", "")
    return f"/usr/bin/qemu-system-{platform.machine()}"


def capabilities_from_documents(documents: Documents, probe: Probe) -> Capabilities:
    """The contract's view. CPU models are those usable as they are; features all that the host model has."""
    host = ET.fromstring(documents.host)  # noqa: S314  # from libvirt itself
    domain = ET.fromstring(documents.domain)  # noqa: S314  # from libvirt itself
    model = domain.find("cpu/mode[@name='host-model']")
    usable = domain.findall("cpu/mode[@name='custom']/model[@usable='yes']")
    required = [] if model is None else model.findall("feature[@policy='require']")
    return Capabilities(
        driver="libvirt",
        version=version_text(documents.libvirt_version),
        hypervisor_version=f"QEMU {version_text(documents.hypervisor_version)}",
        architectures=(platform.machine(),),
        machine_types=_machine_types(host),
        cpu_models=tuple(sorted(element.text or "" for element in usable)),
        cpu_features=_all_features(documents.expanded),
        host_model_features=tuple(sorted(element.get("name", "") for element in required)),
        hyperv_features=tuple(sorted(value.text or "" for value in _hyperv(domain))),
        host_cpu_model=("" if model is None else model.findtext("model", "")) or host.findtext("host/cpu/model", ""),
        host_cpu_vendor=("" if model is None else model.findtext("vendor", "")) or host.findtext("host/cpu/vendor", ""),
        features=_features(documents, domain),
        software_emulation=probe.software_emulation,
        software_emulation_reason=probe.reason,
        live_migration=True,
    )


def _all_features(expanded: str) -> tuple[str, ...]:
    """Every feature of the host's model; none where libvirt could not tell, which placement takes for unknown."""
    if not expanded:
        return ()
    found = ET.fromstring(expanded).findall("feature")  # noqa: S314  # from libvirt itself
    wanted = {element.get("name", "") for element in found if element.get("policy") in (None, "require", "force")}
    return tuple(sorted(wanted))


def _hyperv(domain: ET.Element) -> list[ET.Element]:
    return domain.findall("features/hyperv[@supported='yes']/enum[@name='features']/value")


def _machine_types(host: ET.Element) -> tuple[str, ...]:
    names: set[str] = set()
    for arch in host.findall("guest/arch"):
        if arch.get("name") == platform.machine():
            names.update(element.text or "" for element in arch.iter("machine"))
    return tuple(sorted(names))


def _features(documents: Documents, domain: ET.Element) -> tuple[str, ...]:
    names = {field for field in Machine.__struct_fields__ if field not in _NOT_FEATURES}
    if documents.libvirt_version < _TPM_STATE_SINCE:
        names.discard("tpm_state")
    if domain.find("devices/tpm[@supported='yes']") is None:
        names.discard("tpm")
    loader = domain.find("os/loader/enum[@name='secure']")
    if loader is not None and "yes" in [value.text for value in loader]:
        names.add("firmware.secure_boot")
    firmware = domain.find("os/enum[@name='firmware']")
    if firmware is not None and "efi" in [value.text for value in firmware]:
        names.add("firmware.efi")
    return tuple(sorted(names))


def unsupported_field(machine: Machine, libvirt_version: int) -> tuple[str, str] | None:
    """The first field of `machine` that this libvirt cannot honour, with the reason; None when all are fine."""
    if machine.tpm_state and libvirt_version < _TPM_STATE_SINCE:
        return "tpm_state", "persistent TPM state in a folder of the machine's own needs libvirt 10.10"
    if machine.architecture != platform.machine():
        return "architecture", f"this host runs {platform.machine()} machines"
    for nic in machine.nics:
        if nic.backend not in ("tap", "bridge", "passt"):
            return "nics.backend", f"interface {nic.name} asks for {nic.backend!r}; tap, bridge and passt are known"
        if nic.backend == "passt" and libvirt_version < _PASST_SINCE:
            return "nics.backend", f"interface {nic.name}: passt needs libvirt 9.1"
    for disk in machine.disks:
        if disk.device == "lun" and disk.source != "block":
            return "disks.device", f"disk {disk.name} is a LUN, which only a block device can be"
    return None


def version_text(number: int) -> str:
    """libvirt's packed version: 9000000 → 9.0.0."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
