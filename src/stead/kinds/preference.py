"""Defaults that suit operating systems: preferences of instancetype.kubevirt.io/v1beta1.

Applied by `apply_instancetype`. Pure data. Source: KubeVirt 1.8; `preferredVideoType` and `preferredLaunchSecurity` are
later, and the shipped catalogue uses them.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import field

from stead.kinds.devices import BlockSize, FeatureState, InterfaceMasquerade, Rng, TPMDevice, VGPUOptions
from stead.kinds.domain import (
    EFI,
    ClockOffset,
    CPUFeature,
    FeatureAPIC,
    FeatureHyperv,
    FeatureKVM,
    LaunchSecurity,
    Timer,
)
from stead.kinds.meta import Int64, KubernetesObject, Model, Quantity, described


class VirtualMachinePreference(KubernetesObject, kw_only=True):
    """Defaults that suit an operating system, for this namespace."""

    spec: VirtualMachinePreferenceSpec


class VirtualMachineClusterPreference(KubernetesObject, kw_only=True):
    """Defaults that suit an operating system, for all namespaces."""

    spec: VirtualMachinePreferenceSpec


class VirtualMachinePreferenceSpec(Model, kw_only=True):
    """What to choose where a machine says nothing."""

    annotations: dict[str, str] | None = None
    clock: ClockPreferences | None = None
    cpu: CPUPreferences | None = None
    devices: DevicePreferences | None = None
    features: FeaturePreferences | None = None
    firmware: FirmwarePreferences | None = None
    machine: MachinePreferences | None = None
    prefer_spread_socket_to_core_ratio: Annotated[
        Int64 | None, described("older form of `cpu.spreadOptions.ratio`")
    ] = None
    preferred_architecture: str | None = None
    preferred_subdomain: str | None = None
    preferred_termination_grace_period_seconds: Int64 | None = None
    requirements: Annotated[PreferenceRequirements | None, described("the least that the operating system needs")] = (
        None
    )
    volumes: VolumePreferences | None = None
    preferred_launch_security: LaunchSecurity | None = None


class ClockPreferences(Model, kw_only=True):
    """Preferred clock."""

    preferred_clock_offset: ClockOffset | None = None
    preferred_timer: Timer | None = None


class CPUPreferences(Model, kw_only=True):
    """Preferred topology and features of the processors."""

    preferred_cpu_features: list[CPUFeature] | None = field(default=None, name="preferredCPUFeatures")
    preferred_cpu_topology: Annotated[
        str | None, described("sockets (the default), cores, threads, spread or any; older: preferSockets, …")
    ] = field(default=None, name="preferredCPUTopology")
    spread_options: SpreadOptions | None = None


class SpreadOptions(Model, kw_only=True):
    """How CPUs are spread."""

    across: Annotated[str | None, described("SocketsCores (the default), SocketsCoresThreads or CoresThreads")] = None
    ratio: Annotated[Int64 | None, described("cores for each socket, 2 when absent")] = None


class DevicePreferences(Model, kw_only=True):
    """Preferred devices."""

    preferred_autoattach_graphics_device: bool | None = None
    preferred_autoattach_input_device: bool | None = None
    preferred_autoattach_mem_balloon: bool | None = None
    preferred_autoattach_pod_interface: bool | None = None
    preferred_autoattach_serial_console: bool | None = None
    preferred_block_multi_queue: bool | None = None
    preferred_cdrom_bus: str | None = None
    preferred_disable_hotplug: bool | None = None
    preferred_disk_block_size: BlockSize | None = None
    preferred_disk_bus: str | None = None
    preferred_disk_cache: str | None = None
    preferred_disk_dedicated_io_thread: bool | None = None
    preferred_disk_io: str | None = field(default=None, name="preferredDiskIO")
    preferred_input_bus: str | None = None
    preferred_input_type: str | None = None
    preferred_interface_masquerade: InterfaceMasquerade | None = None
    preferred_interface_model: str | None = None
    preferred_lun_bus: str | None = None
    preferred_network_interface_multi_queue: bool | None = None
    preferred_panic_device_model: str | None = None
    preferred_rng: Rng | None = None
    preferred_sound_model: str | None = None
    preferred_tpm: TPMDevice | None = field(default=None, name="preferredTPM")
    preferred_use_virtio_transitional: bool | None = None
    preferred_virtual_gpu_options: VGPUOptions | None = field(default=None, name="preferredVirtualGPUOptions")
    preferred_video_type: str | None = None


class FeaturePreferences(Model, kw_only=True):
    """Preferred platform switches."""

    preferred_acpi: FeatureState | None = None
    preferred_apic: FeatureAPIC | None = None
    preferred_hyperv: FeatureHyperv | None = None
    preferred_kvm: FeatureKVM | None = None
    preferred_pvspinlock: FeatureState | None = None
    preferred_smm: FeatureState | None = None


class FirmwarePreferences(Model, kw_only=True):
    """Preferred firmware."""

    preferred_efi: EFI | None = None
    preferred_use_bios: bool | None = None
    preferred_use_bios_serial: bool | None = None
    preferred_use_efi: bool | None = None
    preferred_use_secure_boot: bool | None = None


class MachinePreferences(Model, kw_only=True):
    """Preferred machine type."""

    preferred_machine_type: str | None = None


class PreferenceRequirements(Model, kw_only=True):
    """The least that an operating system needs; a machine with less is refused."""

    architecture: str | None = None
    cpu: CPUPreferenceRequirement | None = None
    memory: MemoryPreferenceRequirement | None = None


class CPUPreferenceRequirement(Model, kw_only=True):
    """Virtual CPUs."""

    guest: Int64


class MemoryPreferenceRequirement(Model, kw_only=True):
    """Memory."""

    guest: Quantity


class VolumePreferences(Model, kw_only=True):
    """Preferred storage."""

    preferred_storage_class_name: str | None = None
