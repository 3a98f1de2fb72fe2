"""The virtual hardware but for its devices: CPU, memory, firmware, clock, platform switches.

Pure data. Source: KubeVirt 1.8, kubevirt.io/v1.
"""

from __future__ import annotations

from typing import Annotated, Literal

from stead.kinds.devices import Devices, FeatureState
from stead.kinds.meta import PRESERVED, Int32, Int64, Model, Quantity, described


class DomainSpec(Model, kw_only=True):
    """The virtual hardware of a guest."""

    devices: Devices
    chassis: Chassis | None = None
    clock: Annotated[Clock | None, PRESERVED] = None
    cpu: CPU | None = None
    features: Features | None = None
    firmware: Firmware | None = None
    io_threads: DiskIOThreads | None = None
    io_threads_policy: Annotated[str | None, described("shared, auto or supplementalPool")] = None
    launch_security: LaunchSecurity | None = None
    machine: Machine | None = None
    memory: Memory | None = None
    reboot_policy: Annotated[
        Literal["Reboot", "Terminate"] | None, described("what a reboot of the guest does: Reboot or Terminate")
    ] = None
    resources: Annotated[
        DomainResourceRequirements | None, described("resources of the process that runs the guest")
    ] = None


class CPU(Model, kw_only=True):
    """The guest's processors."""

    cores: Int64 | None = None
    dedicated_cpu_placement: Annotated[bool | None, described("gives every virtual CPU a host CPU of its own")] = None
    features: list[CPUFeature] | None = None
    isolate_emulator_thread: Annotated[bool | None, described("keeps the emulator off the guest's own host CPUs")] = (
        None
    )
    max_sockets: Annotated[Int64 | None, described("how many sockets can be reached without a restart")] = None
    model: Annotated[str | None, described("a model name, host-model or host-passthrough")] = None
    numa: NUMA | None = None
    realtime: Realtime | None = None
    sockets: Annotated[Int64 | None, described("processors to boot with, times cores, times threads")] = None
    threads: Int64 | None = None


class CPUFeature(Model, kw_only=True):
    """A CPU feature and what to do about it."""

    name: str
    policy: Annotated[str | None, described("force, require (the default), optional, disable or forbid")] = None


class NUMA(Model, kw_only=True):
    """How the guest sees memory zones."""

    guest_mapping_passthrough: NUMAGuestMappingPassthrough | None = None


class NUMAGuestMappingPassthrough(Model, kw_only=True):
    """Shows the guest the host's zones of its CPUs and memory."""


class Realtime(Model, kw_only=True):
    """Runs virtual CPUs with a real-time scheduler."""

    mask: Annotated[str | None, described("which virtual CPUs, for instance `0-3,^1`; all when absent")] = None


class Memory(Model, kw_only=True):
    """The guest's memory."""

    guest: Annotated[Quantity | None, described("what the guest boots with")] = None
    hugepages: Hugepages | None = None
    max_guest: Annotated[Quantity | None, described("how far it can grow without a restart")] = None
    reserved_overhead: ReservedOverhead | None = None


class Hugepages(Model, kw_only=True):
    """Backs the guest's memory with huge pages."""

    page_size: Annotated[str | None, described("size of a page, for instance 2Mi or 1Gi")] = None


class ReservedOverhead(Model, kw_only=True):
    """Memory on top of the guest's that is set aside for it."""

    added_overhead: Quantity | None = None
    mem_lock: Literal["NotRequired", "Required"] | None = None


class DomainResourceRequirements(Model, kw_only=True):
    """Resources of the process that runs the guest."""

    limits: dict[str, Quantity] | None = None
    overcommit_guest_overhead: Annotated[bool | None, described("does not count the overhead of virtualisation")] = None
    requests: dict[str, Quantity] | None = None


class Machine(Model, kw_only=True):
    """The chipset that is emulated."""

    type: Annotated[str | None, described("a machine type of the hypervisor, for instance q35")] = None


class Chassis(Model, kw_only=True):
    """What the firmware tells the guest about its case."""

    asset: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    sku: str | None = None
    version: str | None = None


class DiskIOThreads(Model, kw_only=True):
    """How many I/O threads all disks share."""

    supplemental_pool_thread_count: Int64 | None = None


class LaunchSecurity(Model, kw_only=True):
    """Encrypts the guest's memory. At most one kind."""

    sev: SEV | None = None
    snp: SEVSNP | None = None
    tdx: TDX | None = None


class SEV(Model, kw_only=True):
    """AMD SEV."""

    attestation: SEVAttestation | None = None
    dh_cert: str | None = None
    policy: SEVPolicy | None = None
    session: str | None = None


class SEVAttestation(Model, kw_only=True):
    """Waits for the owner's measurement before the start."""


class SEVPolicy(Model, kw_only=True):
    """What AMD SEV must enforce."""

    encrypted_state: bool | None = None


class SEVSNP(Model, kw_only=True):
    """AMD SEV-SNP."""


class TDX(Model, kw_only=True):
    """Intel TDX."""


class Clock(Model, kw_only=True):
    """The guest's clock."""

    timer: Timer | None = None
    timezone: str | None = None
    utc: ClockOffsetUTC | None = None


class ClockOffset(Model, kw_only=True):
    """What the clock shows at boot."""

    timezone: str | None = None
    utc: ClockOffsetUTC | None = None


class ClockOffsetUTC(Model, kw_only=True):
    """UTC, shifted by some seconds."""

    offset_seconds: Int32 | None = None


class Timer(Model, kw_only=True):
    """The timers that the guest has."""

    hpet: HPETTimer | None = None
    hyperv: HypervTimer | None = None
    kvm: KVMTimer | None = None
    pit: PITTimer | None = None
    rtc: RTCTimer | None = None


class HPETTimer(Model, kw_only=True):
    """High-precision event timer."""

    present: bool | None = None
    tick_policy: str | None = None


class HypervTimer(Model, kw_only=True):
    """Hyper-V's reference clock."""

    present: bool | None = None


class KVMTimer(Model, kw_only=True):
    """KVM's paravirtual clock."""

    present: bool | None = None


class PITTimer(Model, kw_only=True):
    """Programmable interval timer."""

    present: bool | None = None
    tick_policy: str | None = None


class RTCTimer(Model, kw_only=True):
    """Real-time clock."""

    present: bool | None = None
    tick_policy: str | None = None
    track: str | None = None


class Features(Model, kw_only=True):
    """Switches of the virtual platform."""

    acpi: FeatureState | None = None
    apic: FeatureAPIC | None = None
    hyperv: FeatureHyperv | None = None
    hyperv_passthrough: HyperVPassthrough | None = None
    kvm: FeatureKVM | None = None
    pvspinlock: FeatureState | None = None
    smm: FeatureState | None = None


class FeatureAPIC(Model, kw_only=True):
    """Interrupt controller."""

    enabled: bool | None = None
    end_of_interrupt: bool | None = None


class FeatureKVM(Model, kw_only=True):
    """What the guest sees of KVM."""

    hidden: Annotated[bool | None, described("true hides from the guest that it runs under KVM")] = None


class FeatureHyperv(Model, kw_only=True):
    """Enlightenments for Windows guests."""

    evmcs: FeatureState | None = None
    frequencies: FeatureState | None = None
    ipi: FeatureState | None = None
    reenlightenment: FeatureState | None = None
    relaxed: FeatureState | None = None
    reset: FeatureState | None = None
    runtime: FeatureState | None = None
    spinlocks: FeatureSpinlocks | None = None
    synic: FeatureState | None = None
    synictimer: SyNICTimer | None = None
    tlbflush: TLBFlush | None = None
    vapic: FeatureState | None = None
    vendorid: FeatureVendorID | None = None
    vpindex: FeatureState | None = None


class FeatureSpinlocks(Model, kw_only=True):
    """How often a guest spins before it tells the host."""

    enabled: bool | None = None
    spinlocks: Annotated[Int64 | None, described("tries, 4096 when absent")] = None


class SyNICTimer(Model, kw_only=True):
    """Synthetic timers."""

    direct: FeatureState | None = None
    enabled: bool | None = None


class TLBFlush(Model, kw_only=True):
    """Paravirtual TLB flush."""

    direct: FeatureState | None = None
    enabled: bool | None = None
    extended: FeatureState | None = None


class FeatureVendorID(Model, kw_only=True):
    """Vendor name shown to the guest."""

    enabled: bool | None = None
    vendorid: Annotated[str | None, described("12 characters at most")] = None


class HyperVPassthrough(Model, kw_only=True):
    """Turns on all enlightenments that the host has."""

    enabled: bool | None = None


class Firmware(Model, kw_only=True):
    """BIOS or UEFI, and what it tells the guest."""

    acpi: ACPI | None = None
    bootloader: Bootloader | None = None
    kernel_boot: KernelBoot | None = None
    serial: Annotated[str | None, described("serial number in SMBIOS")] = None
    uuid: Annotated[str | None, described("the machine's identity in SMBIOS; random at creation when absent")] = None


class ACPI(Model, kw_only=True):
    """Tables that carry licences of the guest."""

    msdm_name_ref: str | None = None
    slic_name_ref: str | None = None


class Bootloader(Model, kw_only=True):
    """Exactly one of BIOS and UEFI; BIOS when absent on amd64."""

    bios: BIOS | None = None
    efi: EFI | None = None


class BIOS(Model, kw_only=True):
    """Starts the guest with a BIOS."""

    use_serial: Annotated[bool | None, described("shows the BIOS on the serial console")] = None


class EFI(Model, kw_only=True):
    """Starts the guest with UEFI."""

    persistent: Annotated[bool | None, described("keeps UEFI's variables over restarts")] = None
    secure_boot: Annotated[bool | None, described("refuses unsigned boot loaders (the default); needs SMM")] = None


class KernelBoot(Model, kw_only=True):
    """Starts a kernel directly, without a boot loader."""

    container: KernelBootContainer | None = None
    kernel_args: str | None = None


class KernelBootContainer(Model, kw_only=True):
    """The container image that has the kernel and initrd."""

    image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secret: str | None = None
    initrd_path: str | None = None
    kernel_path: str | None = None
