"""Kinds of copies of machines and disks: snapshots, restores, clones, exports, backups."""

from __future__ import annotations

from stead.kinds import backup, export, snapshot, volumesnapshot
from stead.kinds.columns import AGE
from stead.kinds.register.shapes import custom_kind, versioned_kind
from stead.kinds.resource import Column

_PHASE = Column("Phase", "string", ".status.phase")
_READY_TO_USE = Column("ReadyToUse", "boolean", ".status.readyToUse")
_TAKEN = Column("CreationTime", "date", ".status.creationTime")
_ERROR = Column("Error", "string", ".status.error.message")
_SOURCE = (
    Column("SourceKind", "string", ".spec.source.kind"),
    Column("SourceName", "string", ".spec.source.name"),
)
_SNAPSHOT_GROUP, _SNAPSHOT_VERSIONS = "snapshot.kubevirt.io", ("v1beta1", "v1alpha1")
MACHINE_SNAPSHOT = versioned_kind(
    (_SNAPSHOT_GROUP, "VirtualMachineSnapshot", "virtualmachinesnapshots"),
    snapshot.VirtualMachineSnapshot,
    _SNAPSHOT_VERSIONS,
    short_names=("vmsnapshot", "vmsnapshots"),
    columns=(*_SOURCE, _PHASE, _READY_TO_USE, _TAKEN, _ERROR),
)
MACHINE_SNAPSHOT_CONTENT = versioned_kind(
    (_SNAPSHOT_GROUP, "VirtualMachineSnapshotContent", "virtualmachinesnapshotcontents"),
    snapshot.VirtualMachineSnapshotContent,
    _SNAPSHOT_VERSIONS,
    short_names=("vmsnapshotcontent", "vmsnapshotcontents"),
    columns=(_READY_TO_USE, _TAKEN, _ERROR),
)
MACHINE_RESTORE = versioned_kind(
    (_SNAPSHOT_GROUP, "VirtualMachineRestore", "virtualmachinerestores"),
    snapshot.VirtualMachineRestore,
    _SNAPSHOT_VERSIONS,
    short_names=("vmrestore", "vmrestores"),
    columns=(
        Column("TargetKind", "string", ".spec.target.kind"),
        Column("TargetName", "string", ".spec.target.name"),
        Column("Complete", "boolean", ".status.complete"),
        Column("RestoreTime", "date", ".status.restoreTime"),
    ),
)
MACHINE_CLONE = versioned_kind(
    ("clone.kubevirt.io", "VirtualMachineClone", "virtualmachineclones"),
    snapshot.VirtualMachineClone,
    ("v1beta1", "v1alpha1"),
    short_names=("vmclone", "vmclones"),
    columns=(
        _PHASE,
        Column("SourceVirtualMachine", "string", ".spec.source.name"),
        Column("TargetVirtualMachine", "string", ".spec.target.name"),
    ),
)
MACHINE_EXPORT = versioned_kind(
    ("export.kubevirt.io", "VirtualMachineExport", "virtualmachineexports"),
    export.VirtualMachineExport,
    ("v1", "v1beta1"),
    short_names=("vmexport", "vmexports"),
    columns=(*_SOURCE, _PHASE),
)
VOLUME_SNAPSHOT = custom_kind(
    "snapshot.storage.k8s.io",
    "v1",
    "VolumeSnapshot",
    "volumesnapshots",
    volumesnapshot.VolumeSnapshot,
    short_names=("vs",),
    status_subresource=True,
    columns=(
        _READY_TO_USE,
        Column("SourcePVC", "string", ".spec.source.persistentVolumeClaimName"),
        Column("SourceSnapshotContent", "string", ".spec.source.volumeSnapshotContentName"),
        Column("RestoreSize", "string", ".status.restoreSize"),
        Column("SnapshotClass", "string", ".spec.volumeSnapshotClassName"),
        Column("SnapshotContent", "string", ".status.boundVolumeSnapshotContentName"),
        _TAKEN,
        AGE,
    ),
)
VOLUME_SNAPSHOT_CLASS = custom_kind(
    "snapshot.storage.k8s.io",
    "v1",
    "VolumeSnapshotClass",
    "volumesnapshotclasses",
    volumesnapshot.VolumeSnapshotClass,
    namespaced=False,
    short_names=("vsclass", "vsclasses"),
    columns=(
        Column("Driver", "string", ".driver"),
        Column("DeletionPolicy", "string", ".deletionPolicy"),
        AGE,
    ),
)
_BACKUP_GROUP = "backup.kubevirt.io"
VIRTUAL_MACHINE_BACKUP = custom_kind(
    _BACKUP_GROUP,
    "v1alpha1",
    "VirtualMachineBackup",
    "virtualmachinebackups",
    backup.VirtualMachineBackup,
    short_names=("vmbackup", "vmbackups"),
    categories=("all",),
    status_subresource=True,
    columns=(
        *_SOURCE,
        Column("Type", "string", ".status.type"),
        Column("CheckpointName", "string", ".status.checkpointName"),
    ),
)
VIRTUAL_MACHINE_BACKUP_TRACKER = custom_kind(
    _BACKUP_GROUP,
    "v1alpha1",
    "VirtualMachineBackupTracker",
    "virtualmachinebackuptrackers",
    backup.VirtualMachineBackupTracker,
    short_names=("vmbackuptracker", "vmbackuptrackers"),
    categories=("all",),
    status_subresource=True,
    columns=(
        *_SOURCE,
        Column("LatestCheckpoint", "string", ".status.latestCheckpoint.name"),
        Column("CheckpointTime", "date", ".status.latestCheckpoint.creationTime"),
    ),
)
BACKUP_REPOSITORY = custom_kind(
    "stead.io",
    "v1alpha1",
    "BackupRepository",
    "backuprepositories",
    backup.BackupRepository,
    columns=(
        Column("Directory", "string", ".spec.directory.path"),
        Column("Bucket", "string", ".spec.s3.bucket"),
        AGE,
    ),
)
BACKUP = custom_kind(
    "stead.io",
    "v1alpha1",
    "Backup",
    "backups",
    backup.Backup,
    status_subresource=True,
    columns=(
        Column("Machine", "string", ".spec.machine"),
        Column("Phase", "string", ".status.phase"),
        Column("Type", "string", ".status.type"),
        Column("Point", "string", ".status.point", 1),
        Column("Message", "string", ".status.message", 1),
        AGE,
    ),
)
BACKUP_SCHEDULE = custom_kind(
    "stead.io",
    "v1alpha1",
    "BackupSchedule",
    "backupschedules",
    backup.BackupSchedule,
    status_subresource=True,
    columns=(
        Column("Schedule", "string", ".spec.schedule"),
        Column("Repository", "string", ".spec.repository"),
        Column("Last", "date", ".status.lastScheduleTime"),
        Column("Machines", "integer", ".status.machines"),
        AGE,
    ),
)
