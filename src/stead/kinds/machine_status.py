"""What controllers and agents report of machines and instances.

One writer each: the VM controller for VirtualMachine, the instance controller until a host is chosen, then that host's
agent for VirtualMachineInstance. Pure data. Source: KubeVirt 1.8, kubevirt.io/v1.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from stead.kinds.devices import Disk
from stead.kinds.domain import Machine
from stead.kinds.kubevirt import MigrationConfiguration
from stead.kinds.meta import NULLABLE, Int32, Int64, Model, NullableTime, Quantity, Time, described, stored_default
from stead.kinds.volumes import DataVolumeReference, PersistentVolumeClaimVolumeSource


class VirtualMachineStatus(Model, kw_only=True):
    """What the controller sees of a machine."""

    changed_block_tracking: Annotated[ChangedBlockTrackingStatus | None, NULLABLE] = None
    conditions: list[VirtualMachineCondition] | None = None
    created: Annotated[bool | None, described("an instance exists")] = None
    desired_generation: Int64 | None = None
    instancetype_ref: Annotated[InstancetypeStatusRef | None, NULLABLE] = None
    memory_dump_request: Annotated[VirtualMachineMemoryDumpRequest | None, NULLABLE] = None
    observed_generation: Int64 | None = None
    preference_ref: Annotated[InstancetypeStatusRef | None, NULLABLE] = None
    printable_status: Annotated[
        str | None,
        described("one word for people: Running, Stopped, Provisioning, Starting, …"),
        stored_default("Stopped"),
    ] = None
    ready: Annotated[bool | None, described("the instance runs and is ready")] = None
    restore_in_progress: str | None = None
    run_strategy: Annotated[str | None, described("the strategy that was last obeyed")] = None
    snapshot_in_progress: str | None = None
    start_failure: Annotated[VirtualMachineStartFailure | None, NULLABLE] = None
    state_change_requests: Annotated[
        list[VirtualMachineStateChangeRequest] | None, described("pending orders to start or stop")
    ] = None
    volume_requests: Annotated[
        list[VirtualMachineVolumeRequest] | None, described("volumes that wait to be attached or detached")
    ] = None
    volume_snapshot_statuses: list[VolumeSnapshotStatus] | None = None
    volume_update_state: VolumeUpdateState | None = None


class VirtualMachineCondition(Model, kw_only=True):
    """One aspect of a machine's state."""

    status: str
    type: str
    last_probe_time: NullableTime | None = None
    last_transition_time: NullableTime | None = None
    message: str | None = None
    reason: str | None = None


class VirtualMachineInstanceCondition(Model, kw_only=True):
    """One aspect of an instance's state."""

    status: str
    type: str
    last_probe_time: NullableTime | None = None
    last_transition_time: NullableTime | None = None
    message: str | None = None
    reason: str | None = None


class ChangedBlockTrackingStatus(Model, kw_only=True):
    """Whether changed blocks are recorded for incremental backups."""

    state: str
    backup_status: Annotated[VirtualMachineInstanceBackupStatus | None, NULLABLE] = None


class VirtualMachineInstanceBackupStatus(Model, kw_only=True):
    """The backup that is running, or ran last."""

    backup_msg: str | None = None
    backup_name: str | None = None
    checkpoint_name: str | None = None
    completed: bool | None = None
    end_timestamp: Time | None = None
    failed: bool | None = None
    start_timestamp: Time | None = None
    volumes: list[BackupVolumeInfo] | None = None


class BackupVolumeInfo(Model, kw_only=True):
    """A volume that takes part in a backup."""

    disk_target: str
    volume_name: str
    data_endpoint: str | None = None
    map_endpoint: str | None = None


class InstancetypeStatusRef(Model, kw_only=True):
    """The instancetype or preference that is in effect."""

    controller_revision_ref: ControllerRevisionRef | None = None
    infer_from_volume: str | None = None
    infer_from_volume_failure_policy: str | None = None
    kind: str | None = None
    name: str | None = None


class ControllerRevisionRef(Model, kw_only=True):
    """The ControllerRevision that pins it."""

    name: str | None = None


class VirtualMachineMemoryDumpRequest(Model, kw_only=True):
    """A dump of the guest's memory to a volume."""

    claim_name: str
    phase: str
    end_timestamp: Time | None = None
    file_name: str | None = None
    message: str | None = None
    remove: bool | None = None
    start_timestamp: Time | None = None


class VirtualMachineStartFailure(Model, kw_only=True):
    """Starts that failed in a row, and when the next one is due."""

    consecutive_fail_count: Int32 | None = None
    last_failed_vmiuid: str | None = field(default=None, name="lastFailedVMIUID")
    retry_after_timestamp: Time | None = None


class VirtualMachineStateChangeRequest(Model, kw_only=True):
    """An order to start or stop that waits to be carried out."""

    action: Annotated[str, described("Start or Stop")]
    data: dict[str, str] | None = None
    uid: str | None = None


class VirtualMachineVolumeRequest(Model, kw_only=True):
    """An order to attach or detach a volume."""

    add_volume_options: AddVolumeOptions | None = None
    remove_volume_options: RemoveVolumeOptions | None = None


class AddVolumeOptions(Model, kw_only=True):
    """A disk to attach while the guest runs."""

    disk: Disk
    name: str
    volume_source: HotplugVolumeSource
    dry_run: list[str] | None = None


class RemoveVolumeOptions(Model, kw_only=True):
    """A disk to detach while the guest runs."""

    name: str
    dry_run: list[str] | None = None


class HotplugVolumeSource(Model, kw_only=True):
    """What backs a disk that is attached while the guest runs."""

    data_volume: DataVolumeReference | None = None
    persistent_volume_claim: PersistentVolumeClaimVolumeSource | None = None


class VolumeSnapshotStatus(Model, kw_only=True):
    """Whether a volume can be part of a snapshot, and if not, why."""

    enabled: bool
    name: str
    reason: str | None = None


class VolumeUpdateState(Model, kw_only=True):
    """Volumes that are being changed."""

    volume_migration_state: VolumeMigrationState | None = None


class VolumeMigrationState(Model, kw_only=True):
    """Volumes that are being moved to other storage."""

    migrated_volumes: list[StorageMigratedVolumeInfo] | None = None


class StorageMigratedVolumeInfo(Model, kw_only=True):
    """One volume that moves: from where to where."""

    volume_name: str
    destination_pvc_info: PersistentVolumeClaimInfo | None = field(default=None, name="destinationPVCInfo")
    source_pvc_info: PersistentVolumeClaimInfo | None = field(default=None, name="sourcePVCInfo")


class PersistentVolumeClaimInfo(Model, kw_only=True):
    """What matters of the claim behind a volume."""

    access_modes: list[str] | None = None
    capacity: dict[str, Quantity] | None = None
    claim_name: str | None = None
    filesystem_overhead: Annotated[str, Meta(pattern=r"^(0(?:\.\d{1,3})?|1)$")] | None = None
    preallocated: bool | None = None
    requests: dict[str, Quantity] | None = None
    volume_mode: Literal["Block", "Filesystem", "FromStorageProfile"] | None = None


class VirtualMachineInstanceStatus(Model, kw_only=True):
    """What is known of a running guest."""

    vsock_cid: Annotated[
        Annotated[Int64, Meta(ge=0, le=4294967295)] | None, described("its address for vsock connections")
    ] = field(default=None, name="VSOCKCID")
    active_pods: Annotated[dict[str, str] | None, described("unit uid to host")] = None
    changed_block_tracking: Annotated[ChangedBlockTrackingStatus | None, NULLABLE] = None
    conditions: list[VirtualMachineInstanceCondition] | None = None
    current_cpu_topology: CPUTopology | None = field(default=None, name="currentCPUTopology")
    evacuation_node_name: str | None = None
    fs_freeze_status: str | None = None
    guest_os_info: VirtualMachineInstanceGuestOSInfo | None = field(default=None, name="guestOSInfo")
    interfaces: Annotated[
        list[VirtualMachineInstanceNetworkInterface] | None,
        described("addresses, as assigned and as the guest agent reports them"),
    ] = None
    kernel_boot_status: KernelBootStatus | None = None
    launcher_container_image_version: str | None = None
    machine: Machine | None = None
    memory: MemoryStatus | None = None
    migrated_volumes: list[StorageMigratedVolumeInfo] | None = None
    migration_method: str | None = None
    migration_state: VirtualMachineInstanceMigrationState | None = None
    migration_transport: str | None = None
    node_name: Annotated[str | None, described("the host that it runs on")] = None
    phase: Annotated[str | None, described("Pending, Scheduling, Scheduled, Running, Succeeded, Failed or Unknown")] = (
        None
    )
    phase_transition_timestamps: list[VirtualMachineInstancePhaseTransitionTimestamp] | None = None
    qos_class: Literal["BestEffort", "Burstable", "Guaranteed"] | None = None
    reason: str | None = None
    runtime_user: Annotated[Int64 | None, described("uid of the process that runs the guest")] = None
    selinux_context: str | None = None
    topology_hints: TopologyHints | None = None
    virtual_machine_revision_name: str | None = None
    volume_status: list[VolumeStatus] | None = None


class VirtualMachineInstanceGuestOSInfo(Model, kw_only=True):
    """The guest's operating system, as its agent reports it."""

    id: str | None = None
    kernel_release: str | None = None
    kernel_version: str | None = None
    machine: str | None = None
    name: str | None = None
    pretty_name: str | None = None
    version: str | None = None
    version_id: str | None = None


class VirtualMachineInstanceNetworkInterface(Model, kw_only=True):
    """An interface as it really is."""

    info_source: Annotated[str | None, described("who reported it: domain, guest-agent, multus-status")] = None
    interface_name: str | None = None
    ip_address: Annotated[str | None, described("the first of the addresses")] = None
    ip_addresses: list[str] | None = None
    link_state: str | None = None
    mac: str | None = None
    name: str | None = None
    pod_interface_name: str | None = None
    queue_count: Int32 | None = None


class VirtualMachineInstancePhaseTransitionTimestamp(Model, kw_only=True):
    """When a phase was entered."""

    phase: str | None = None
    phase_transition_timestamp: Time | None = None


class CPUTopology(Model, kw_only=True):
    """How many sockets, cores and threads the guest has now."""

    cores: Int64 | None = None
    sockets: Int64 | None = None
    threads: Int64 | None = None


class KernelBootStatus(Model, kw_only=True):
    """Checksums of the kernel and initrd in use."""

    initrd_info: InitrdInfo | None = None
    kernel_info: KernelInfo | None = None


class KernelInfo(Model, kw_only=True):
    """Checksum of the kernel."""

    checksum: Annotated[Int64, Meta(ge=0, le=4294967295)] | None = None


class InitrdInfo(Model, kw_only=True):
    """Checksum of the initrd."""

    checksum: Annotated[Int64, Meta(ge=0, le=4294967295)] | None = None


class MemoryStatus(Model, kw_only=True):
    """Guest memory at boot, now, and as asked for."""

    guest_at_boot: Quantity | None = None
    guest_current: Quantity | None = None
    guest_requested: Quantity | None = None
    memory_overhead: Quantity | None = None


class TopologyHints(Model, kw_only=True):
    """Facts about the host that a migration target must share."""

    tsc_frequency: Int64 | None = None


class VolumeStatus(Model, kw_only=True):
    """A volume as it is attached."""

    name: str
    target: Annotated[str, described("device name in the guest")]
    container_disk_volume: ContainerDiskInfo | None = None
    hotplug_volume: HotplugVolumeStatus | None = None
    memory_dump_volume: DomainMemoryDumpInfo | None = None
    message: str | None = None
    persistent_volume_claim_info: PersistentVolumeClaimInfo | None = None
    phase: Annotated[
        str | None,
        described(
            "while it is attached or detached: Pending, Bound, AttachedToNode, MountedToPod, Ready, Detaching, …"
        ),
    ] = None
    reason: str | None = None
    size: Int64 | None = None


class ContainerDiskInfo(Model, kw_only=True):
    """Checksum of a container disk."""

    checksum: Annotated[Int64, Meta(ge=0, le=4294967295)] | None = None


class HotplugVolumeStatus(Model, kw_only=True):
    """Who attached the volume."""

    attach_pod_name: str | None = None
    attach_pod_uid: str | None = field(default=None, name="attachPodUID")


class DomainMemoryDumpInfo(Model, kw_only=True):
    """A dump of the guest's memory."""

    claim_name: str | None = None
    end_timestamp: Time | None = None
    start_timestamp: Time | None = None
    target_file_name: str | None = None


class VirtualMachineInstanceMigrationState(Model, kw_only=True):
    """A live migration: source, target and how it goes."""

    abort_requested: bool | None = None
    abort_status: str | None = None
    completed: bool | None = None
    end_timestamp: Annotated[Time | None, NULLABLE] = None
    failed: bool | None = None
    failure_reason: str | None = None
    migration_configuration: MigrationConfiguration | None = None
    migration_network_type: str | None = None
    migration_policy_name: str | None = None
    migration_uid: str | None = None
    mode: str | None = None
    source_node: str | None = None
    source_persistent_state_pvc_name: str | None = field(default=None, name="sourcePersistentStatePVCName")
    source_pod: str | None = None
    source_state: VirtualMachineInstanceMigrationSourceState | None = None
    start_timestamp: Annotated[Time | None, NULLABLE] = None
    target_attachment_pod_uid: str | None = field(default=None, name="targetAttachmentPodUID")
    target_cpu_set: list[Int32] | None = field(default=None, name="targetCPUSet")
    target_direct_migration_node_ports: dict[str, Int32] | None = None
    target_memory_overhead: Quantity | None = None
    target_node: str | None = None
    target_node_address: str | None = None
    target_node_domain_detected: bool | None = None
    target_node_domain_ready_timestamp: Time | None = None
    target_node_topology: str | None = None
    target_persistent_state_pvc_name: str | None = field(default=None, name="targetPersistentStatePVCName")
    target_pod: str | None = None
    target_state: VirtualMachineInstanceMigrationTargetState | None = None


class VirtualMachineInstanceMigrationSourceState(Model, kw_only=True):
    """The source's side of a migration."""

    domain_name: str | None = None
    domain_namespace: str | None = None
    migration_uid: str | None = field(default=None, name="migrationUID")
    node: str | None = None
    node_selectors: dict[str, str] | None = None
    persistent_state_pvc_name: str | None = field(default=None, name="persistentStatePVCName")
    pod: str | None = None
    selinux_context: str | None = None
    sync_address: str | None = None
    virtual_machine_instance_uid: str | None = field(default=None, name="virtualMachineInstanceUID")


class VirtualMachineInstanceMigrationTargetState(Model, kw_only=True):
    """The target's side of a migration."""

    attachment_pod_uid: str | None = field(default=None, name="attachmentPodUID")
    cpu_set: list[Int32] | None = None
    direct_migration_node_ports: dict[str, Int32] | None = None
    domain_detected: bool | None = None
    domain_name: str | None = None
    domain_namespace: str | None = None
    domain_ready_timestamp: Time | None = None
    migration_uid: str | None = field(default=None, name="migrationUID")
    node: str | None = None
    node_address: str | None = None
    node_topology: str | None = None
    persistent_state_pvc_name: str | None = field(default=None, name="persistentStatePVCName")
    pod: str | None = None
    selinux_context: str | None = None
    sync_address: str | None = None
    virtual_machine_instance_uid: str | None = field(default=None, name="virtualMachineInstanceUID")
