"""From a VMI and what was prepared for it to the hypervisor's complete `Machine`. Pure: the same input, the same
value.

Called by `bringup.py` before a start and, for comparison, after an agent's restart. What cannot be honoured raises
`Unsupported` with the VMI's field path. Topics: `plan_fields` (which fields are known), `plan_disks`, `plan_devices`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.agent import plan_devices, plan_disks
from stead.agent import vmi as reading
from stead.agent.plan_fields import check_honoured
from stead.agent.prepared import Prepared, Unsupported
from stead.hypervisor.contract import Capabilities, Isolation, Machine
from stead.kube import quantity as quantities

Object = dict[str, Any]

MI = 1024 * 1024

#: VMI path of each Machine field, so that a driver's `Unsupported` can be told in the user's words
FIELD_PATHS: dict[str, str] = {
    "cpu": "spec.domain.cpu",
    "memory": "spec.domain.memory",
    "memory.hugepage_size": "spec.domain.memory.hugepages.pageSize",
    "firmware": "spec.domain.firmware",
    "firmware.secure_boot": "spec.domain.firmware.bootloader.efi.secureBoot",
    "firmware.kind": "spec.domain.firmware.bootloader",
    "firmware.acpi_tables": "spec.domain.firmware.acpi",
    "disks": "spec.domain.devices.disks",
    "nics": "spec.domain.devices.interfaces",
    "graphics": "spec.domain.devices.video",
    "rng": "spec.domain.devices.rng",
    "tpm": "spec.domain.devices.tpm",
    "tpm_state": "spec.domain.devices.tpm.persistent",
    "vsock_cid": "spec.domain.devices.autoattachVSOCK",
    "serial_log": "spec.domain.devices.logSerialConsole",
    "watchdog": "spec.domain.devices.watchdog",
    "inputs": "spec.domain.devices.inputs",
    "sound": "spec.domain.devices.sound",
    "io_threads": "spec.domain.ioThreadsPolicy",
    "clock_offset": "spec.domain.clock",
    "clock_timers": "spec.domain.clock.timer",
    "features": "spec.domain.features",
    "panic_devices": "spec.domain.devices.panicDevices",
    "machine_type": "spec.domain.machine.type",
    "architecture": "spec.architecture",
    "reboot_action": "spec.domain.rebootPolicy",
}


class HostSide(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of the host that the plan needs. `instance` names this Stead (for cgroups and metadata)."""

    instance: str
    capabilities: Capabilities
    pids_limit: int = 4096
    vsock: bool = False


def machine_from(vmi: Object, prepared: Prepared, host: HostSide) -> Machine:
    """The machine to define. Raises Unsupported for anything that would otherwise be dropped in silence."""
    check_honoured(reading.spec(vmi))
    tpm, tpm_state = plan_devices.tpm_from(vmi, prepared)
    offset, timers = plan_devices.clock_from(vmi)
    emulated = host.capabilities.software_emulation
    return Machine(
        uid=reading.uid(vmi),
        namespace=reading.namespace(vmi),
        name=reading.name(vmi),
        cpu=plan_devices.cpu_from(vmi, host.capabilities),
        memory=plan_devices.memory_from(vmi),
        run_dir=prepared.run_dir,
        machine_type=str((reading.domain(vmi).get("machine") or {}).get("type") or "q35"),
        architecture=plan_devices.architecture(vmi),
        firmware=plan_devices.firmware_from(vmi, prepared),
        disks=plan_disks.disks_from(vmi, prepared),
        nics=prepared.nics,
        graphics=plan_devices.graphics_from(vmi, prepared),
        serial_socket=prepared.serial_socket if reading.has_serial_console(vmi) else "",
        serial_log=prepared.serial_log if reading.logs_serial_console(vmi) else "",
        guest_agent=True,
        rng=reading.devices(vmi).get("rng") is not None,
        tpm=tpm,
        tpm_state=tpm_state,
        watchdog=plan_devices.watchdog_from(vmi),
        inputs=plan_devices.inputs_from(vmi),
        sound=plan_devices.sound_from(vmi),
        io_threads=plan_disks.io_threads(vmi),
        clock_offset=offset,
        clock_timers=timers,
        features=plan_devices.features_from(vmi),
        panic_devices=plan_devices.panic_devices_from(vmi),
        vsock_cid=vsock_cid(vmi, prepared, host),
        reboot_action="destroy" if reading.domain(vmi).get("rebootPolicy") == "Terminate" else "restart",
        isolation=isolation_from(vmi, prepared, host),
        metadata={"instance": host.instance, "namespace": reading.namespace(vmi), "name": reading.name(vmi)},
        software_emulation=emulated,
    )


def vsock_cid(vmi: Object, prepared: Prepared, host: HostSide) -> int:
    """Address of the vsock device; Unsupported where the host's kernel has none to give."""
    if not reading.has_vsock(vmi):
        return 0
    if not host.vsock:
        raise Unsupported("spec.domain.devices.autoattachVSOCK", "this host has no /dev/vhost-vsock")
    return prepared.vsock_cid


def memory_overhead(vmi: Object) -> int:
    """Bytes that a machine's process takes beyond guest memory: KubeVirt's formula without its launcher and daemons.

    30 Mi for QEMU, 1/512 of the guest's memory for page tables, 8 Mi a vCPU and an I/O thread, 32 Mi for video.
    """
    sockets, cores, threads = reading.topology(vmi)
    total = 30 * MI + reading.guest_memory(vmi) // 512 + 8 * MI * (sockets * cores * threads) + 8 * MI
    if reading.has_graphics(vmi):
        total += 32 * MI
    if reading.devices(vmi).get("tpm") is not None:
        total += 53 * MI
    return total


def isolation_from(vmi: Object, prepared: Prepared, host: HostSide) -> Isolation:
    """Limits of the process. The memory limit leaves room for what QEMU maps beyond the formula (an emulator's
    translation buffer alone may take 1 GiB), so that it stops a runaway and never a healthy guest."""
    spare = (1024 if host.capabilities.software_emulation else 0) + 512
    sockets, cores, threads = reading.topology(vmi)
    limits = (reading.domain(vmi).get("resources") or {}).get("limits") or {}
    most = max(reading.guest_memory(vmi), reading.size_in_bytes(limits.get("memory") or 0))
    quota = quantities.parse(limits.get("cpu") or 0).milli()
    return Isolation(
        uid=prepared.uid,
        gid=prepared.gid,
        memory_limit=most + memory_overhead(vmi) + spare * MI,
        cpu_shares=min(262144, 1024 * sockets * cores * threads),
        cpu_quota=quota if quota < 1000 * sockets * cores * threads else 0,
        pids_limit=host.pids_limit,
    )


def field_path(field: str) -> str:
    """The VMI's path of a Machine field or its nearest known ancestor; `spec.domain` where none was named."""
    probe = field
    while probe:
        if probe in FIELD_PATHS:
            return FIELD_PATHS[probe]
        probe = probe.rpartition(".")[0]
    return field or "spec.domain"
