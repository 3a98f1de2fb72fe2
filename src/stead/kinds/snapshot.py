"""Snapshots of whole machines and what is made of them: snapshot.kubevirt.io and clone.kubevirt.io, v1beta1.

Carried out by the controllers of the same names. Pure data. Source: KubeVirt 1.8.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import field

from stead.kinds.core import TypedLocalObjectReference
from stead.kinds.machine import VirtualMachineSpec
from stead.kinds.machine_status import VirtualMachineStatus
from stead.kinds.meta import (
    AS_SET,
    ATOMIC,
    Duration,
    EmbeddedMetadata,
    KubernetesObject,
    Model,
    NullableTime,
    Time,
    described,
    one_of,
    stored_default,
)
from stead.kinds.storage import PersistentVolumeClaimSpec

#: a restore's failure, in KubeVirt's words, when its machine runs and it shall not wait
RUNS_STILL = "Restore target VMI still exists"


class VirtualMachineSnapshot(KubernetesObject, kw_only=True):
    """A machine and its disks as they were at one moment."""

    spec: VirtualMachineSnapshotSpec
    status: VirtualMachineSnapshotStatus | None = None


class VirtualMachineSnapshotSpec(Model, kw_only=True):
    """Which machine, and what becomes of the content."""

    source: Annotated[TypedLocalObjectReference, ATOMIC]
    deletion_policy: Annotated[
        str | None, described("Delete (the default) or Retain: whether the content goes with the snapshot")
    ] = None
    failure_deadline: Annotated[Duration | None, described("after which it has failed; 5m when absent, 0 for none")] = (
        None
    )


class VirtualMachineSnapshotStatus(Model, kw_only=True):
    """How far it is."""

    source_uid: str | None = field(default=None, name="sourceUID")
    virtual_machine_snapshot_content_name: str | None = None
    creation_time: Annotated[NullableTime, described("the moment that it shows")] = None
    phase: Annotated[str | None, described("InProgress, Succeeded, Failed, Deleting or Unknown")] = None
    ready_to_use: bool | None = None
    error: SnapshotError | None = None
    conditions: list[SnapshotCondition] | None = None
    indications: Annotated[
        list[str] | None,
        AS_SET,
        described("how it was taken: Online, GuestAgent, NoGuestAgent, QuiesceTimeout, Paused"),
    ] = None
    source_indications: list[SourceIndication] | None = None
    snapshot_volumes: SnapshotVolumesLists | None = None


class SnapshotError(Model, kw_only=True):
    """What went wrong."""

    message: str | None = None
    time: Time | None = None


class SnapshotCondition(Model, kw_only=True):
    """One aspect of the state."""

    status: str
    type: str
    last_probe_time: NullableTime = None
    last_transition_time: NullableTime = None
    message: str | None = None
    reason: str | None = None


class SourceIndication(Model, kw_only=True):
    """One indication in words."""

    indication: str
    message: str


class SnapshotVolumesLists(Model, kw_only=True):
    """Names of the machine's volumes."""

    included_volumes: Annotated[list[str] | None, AS_SET] = None
    excluded_volumes: Annotated[list[str] | None, AS_SET, described("those that lie in no claim")] = None


class VirtualMachineSnapshotContent(KubernetesObject, kw_only=True):
    """What a snapshot consists of: the machine's object and a snapshot of each of its claims."""

    spec: VirtualMachineSnapshotContentSpec
    status: VirtualMachineSnapshotContentStatus | None = None


class VirtualMachineSnapshotContentSpec(Model, kw_only=True):
    """What was kept."""

    source: SourceSpec
    virtual_machine_snapshot_name: str | None = None
    volume_backups: list[VolumeBackup] | None = None


class SourceSpec(Model, kw_only=True):
    """The machine's object."""

    virtual_machine: KeptMachine | None = None


class KeptMachine(Model, kw_only=True):
    """A VirtualMachine as it was."""

    metadata: EmbeddedMetadata | None = None
    spec: VirtualMachineSpec | None = None
    status: VirtualMachineStatus | None = None


class VolumeBackup(Model, kw_only=True):
    """One volume: its claim as it was, and the VolumeSnapshot of it."""

    volume_name: str
    persistent_volume_claim: KeptClaim
    volume_snapshot_name: str | None = None


class KeptClaim(Model, kw_only=True):
    """A PersistentVolumeClaim as it was."""

    metadata: EmbeddedMetadata | None = None
    spec: PersistentVolumeClaimSpec | None = None


class VirtualMachineSnapshotContentStatus(Model, kw_only=True):
    """How far it is."""

    creation_time: NullableTime = None
    ready_to_use: bool | None = None
    error: SnapshotError | None = None
    volume_snapshot_status: list[KeptVolumeStatus] | None = None


class KeptVolumeStatus(Model, kw_only=True):
    """One VolumeSnapshot."""

    volume_snapshot_name: str
    creation_time: NullableTime = None
    ready_to_use: bool | None = None
    error: SnapshotError | None = None


class VirtualMachineRestore(KubernetesObject, kw_only=True):
    """Makes a machine what it was when a snapshot was taken, or another machine from it."""

    spec: VirtualMachineRestoreSpec
    status: VirtualMachineRestoreStatus | None = None


class VirtualMachineRestoreSpec(Model, kw_only=True):
    """From what, to where, and how."""

    target: Annotated[TypedLocalObjectReference, ATOMIC]
    virtual_machine_snapshot_name: str
    target_readiness_policy: Annotated[
        str | None,
        described("what to do while the target runs"),
        one_of("StopTarget", "WaitGracePeriod", "FailImmediate", "WaitEventually"),
        stored_default("WaitGracePeriod"),
    ] = None
    volume_restore_policy: Annotated[
        str | None, described("names of the new claims: RandomizeNames (the default), InPlace or PrefixTargetName")
    ] = None
    volume_ownership_policy: Annotated[
        str | None, described("Vm (the default): the new claims go with the machine; None: they stay")
    ] = None
    volume_restore_overrides: list[VolumeRestoreOverride] | None = None
    patches: Annotated[
        list[str] | None, described("JSON patch steps for the machine, below /spec, or its labels and annotations")
    ] = None


class VolumeRestoreOverride(Model, kw_only=True):
    """How one volume's claim differs."""

    volume_name: str | None = None
    restore_name: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class VirtualMachineRestoreStatus(Model, kw_only=True):
    """How far it is."""

    restores: list[VolumeRestore] | None = None
    restore_time: Time | None = None
    deleted_data_volumes: Annotated[list[str] | None, AS_SET] = None
    complete: bool | None = None
    conditions: list[SnapshotCondition] | None = None


class VolumeRestore(Model, kw_only=True):
    """One volume and the claim that it gets."""

    volume_name: str
    persistent_volume_claim: str
    volume_snapshot_name: str
    data_volume_name: str | None = None


class VirtualMachineClone(KubernetesObject, kw_only=True):
    """Makes a machine like another one."""

    spec: VirtualMachineCloneSpec
    status: VirtualMachineCloneStatus | None = None


class VirtualMachineCloneSpec(Model, kw_only=True):
    """From what, to where, and what differs."""

    source: Annotated[TypedLocalObjectReference, ATOMIC, described("a VirtualMachine or VirtualMachineSnapshot")]
    target: Annotated[TypedLocalObjectReference | None, ATOMIC, described("a name is made up when there is none")] = (
        None
    )
    annotation_filters: Annotated[
        list[str] | None, described("keys to keep; `*` at the end matches all, `!` in front leaves out")
    ] = None
    label_filters: list[str] | None = None
    template: VirtualMachineCloneTemplateFilters | None = None
    new_mac_addresses: Annotated[dict[str, str] | None, described("by interface; others are made up")] = None
    new_sm_bios_serial: str | None = field(default=None, name="newSMBiosSerial")
    patches: list[str] | None = None
    volume_name_policy: Annotated[str | None, one_of("RandomizeNames", "PrefixTargetName")] = None


class VirtualMachineCloneTemplateFilters(Model, kw_only=True):
    """The same filters for the instance's template."""

    annotation_filters: list[str] | None = None
    label_filters: list[str] | None = None


class VirtualMachineCloneStatus(Model, kw_only=True):
    """How far it is."""

    phase: Annotated[
        str | None,
        described("SnapshotInProgress, RestoreInProgress, CreatingTargetVM, Succeeded, Failed or Unknown"),
    ] = None
    conditions: list[SnapshotCondition] | None = None
    creation_time: NullableTime = None
    snapshot_name: Annotated[str | None, described("the snapshot that is in use meanwhile")] = None
    restore_name: str | None = None
    target_name: str | None = None
