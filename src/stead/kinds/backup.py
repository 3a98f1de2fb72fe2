"""Backups: KubeVirt's own kinds (backup.kubevirt.io/v1alpha1), and Stead's (stead.io/v1alpha1).

A BackupRepository says where backups lie and which Secret has their key; a Backup is one run for one machine; a
BackupSchedule makes Backups. Pure data. Source of KubeVirt's: its CRDs of 1.8.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from stead.kinds.core import TypedLocalObjectReference
from stead.kinds.machine_status import BackupVolumeInfo
from stead.kinds.meta import (
    ATOMIC,
    ATOMIC_LIST,
    Duration,
    Int32,
    Int64,
    KubernetesObject,
    LabelSelector,
    Model,
    Time,
    described,
    merged_by,
    one_of,
    rule,
    rules,
)

_IMMUTABLE = rule("self == oldSelf", "spec is immutable after creation")


class BackupRepository(KubernetesObject, kw_only=True):
    """Where backups lie. What is in it is sealed with a key that only the Secret has."""

    spec: BackupRepositorySpec


class BackupRepositorySpec(Model, kw_only=True):
    """Exactly one place, and the key."""

    key_secret_name: Annotated[
        str, described("Secret whose entry `key` is the key, as `stead backup create-key` prints it")
    ]
    directory: Annotated[
        BackupDirectory | None, described("a folder that the host of the machine sees, also on NFS")
    ] = None
    s3: Annotated[BackupBucket | None, described("a bucket of an S3 server")] = None


class BackupDirectory(Model, kw_only=True):
    """A folder."""

    path: Annotated[str, described("below a folder of the setting `backup_roots`")]


class BackupBucket(Model, kw_only=True):
    """A bucket, or a part of one."""

    endpoint: Annotated[str, described("`https://host[:port]`")]
    bucket: str
    credentials_secret_name: Annotated[str, described("Secret with accessKeyId and secretKey")]
    prefix: str | None = None
    region: Annotated[str | None, described("us-east-1 when absent")] = None


class BackupRetention(Model, kw_only=True):
    """How many points of a machine are kept; a point that any rule keeps is kept. Without a rule all are."""

    keep_last: Annotated[Int32, Meta(ge=0)] | None = None
    keep_daily: Annotated[Int32, Meta(ge=0)] | None = None
    keep_weekly: Annotated[Int32, Meta(ge=0)] | None = None
    keep_monthly: Annotated[Int32, Meta(ge=0)] | None = None
    keep_yearly: Annotated[Int32, Meta(ge=0)] | None = None


class Backup(KubernetesObject, kw_only=True):
    """One backup of one machine, made once. To delete it while it runs ends it; the point itself stays."""

    spec: Annotated[BackupSpec, _IMMUTABLE]
    status: BackupStatus | None = None


class BackupSpec(Model, kw_only=True):
    """What to back up, and where to."""

    machine: Annotated[str, described("VirtualMachine of this namespace")]
    repository: Annotated[str, described("BackupRepository of this namespace")]
    force_full: Annotated[bool | None, described("reads everything, whatever is known of changes")] = None
    skip_quiesce: Annotated[
        bool | None, described("does not freeze the guest's file systems at the moment of the point")
    ] = None
    retention: Annotated[BackupRetention | None, described("older points of this machine are removed afterwards")] = (
        None
    )


class BackupStatus(Model, kw_only=True):
    """How it goes. The controller writes `host` and `manifests`, that host's agent the rest."""

    phase: Annotated[str | None, described("Pending, Running, Succeeded or Failed")] = None
    reason: str | None = None
    message: str | None = None
    host: str | None = None
    manifests: Annotated[str | None, described("the machine's manifests as JSON, kept with the point")] = None
    type: Annotated[str | None, described("Full or Incremental")] = None
    point: Annotated[str | None, described("name of the point in the repository")] = None
    quiesced: bool | None = None
    progress: Annotated[str | None, described("`45.30%`")] = None
    changed_bytes: Int64 | None = None
    stored_bytes: Annotated[Int64 | None, described("by how much the repository grew")] = None
    removed_points: Int32 | None = None
    start_time: Time | None = None
    completion_time: Time | None = None


class BackupSchedule(KubernetesObject, kw_only=True):
    """Makes Backups of machines at set times."""

    spec: BackupScheduleSpec
    status: BackupScheduleStatus | None = None


class BackupScheduleSpec(Model, kw_only=True):
    """When, of which, where to, and for how long."""

    schedule: Annotated[str, described("cron text in UTC")]
    repository: str
    selector: Annotated[LabelSelector, ATOMIC, described("machines of this namespace, by their labels; {} is all")]
    retention: BackupRetention | None = None
    skip_quiesce: bool | None = None
    suspend: bool | None = None
    keep_backups: Annotated[Int32 | None, described("Backup objects kept for each machine; 5 when absent")] = None


class BackupScheduleStatus(Model, kw_only=True):
    """What it did last."""

    last_schedule_time: Time | None = None
    next_schedule_time: Time | None = None
    machines: Annotated[Int32 | None, described("how many it selects")] = None
    message: Annotated[str | None, described("what is wrong with the schedule")] = None


# KubeVirt's ----------------------------------------------------------------------------------------------------------


class VirtualMachineBackup(KubernetesObject, kw_only=True):
    """One backup of a machine in KubeVirt's own form."""

    spec: Annotated[
        VirtualMachineBackupSpec,
        rules(
            ("self == oldSelf", "spec is immutable after creation"),
            ('has(self.pvcName) && self.pvcName != ""', "pvcName is required"),
            (
                "!has(self.mode) || self.mode != 'Pull' || (has(self.tokenSecretRef) && self.tokenSecretRef != \"\")",
                "tokenSecretRef is required when mode is Pull",
            ),
        ),
    ]
    status: VirtualMachineBackupStatus | None = None


class VirtualMachineBackupSpec(Model, kw_only=True):
    """What to back up, how, and where to."""

    source: Annotated[
        TypedLocalObjectReference,
        ATOMIC,
        rules(
            ("has(self.apiGroup)", "apiGroup is required"),
            (
                "!has(self.apiGroup) || self.apiGroup == 'kubevirt.io' || self.apiGroup == 'backup.kubevirt.io'",
                "apiGroup must be kubevirt.io or backup.kubevirt.io",
            ),
            (
                "!has(self.apiGroup) || (self.apiGroup == 'kubevirt.io' && self.kind == 'VirtualMachine') || "
                "(self.apiGroup == 'backup.kubevirt.io' && self.kind == 'VirtualMachineBackupTracker')",
                "kind must be VirtualMachine for kubevirt.io or VirtualMachineBackupTracker for backup.kubevirt.io",
            ),
            ("self.name != ''", "name is required"),
        ),
    ]
    force_full_backup: bool | None = None
    mode: Annotated[str | None, one_of("Push", "Pull"), described("Push (the default) or Pull")] = None
    pvc_name: Annotated[str | None, described("claim that takes the backup")] = None
    skip_quiesce: bool | None = None
    token_secret_ref: str | None = None
    ttl_duration: Duration | None = None


class VirtualMachineBackupStatus(Model, kw_only=True):
    """How it went."""

    checkpoint_name: str | None = None
    conditions: Annotated[list[BackupCondition] | None, merged_by("type")] = None
    endpoint_cert: str | None = None
    included_volumes: Annotated[list[BackupVolumeInfo] | None, ATOMIC_LIST] = None
    type: str | None = None


class BackupCondition(Model, kw_only=True):
    """One aspect of a backup's state."""

    last_transition_time: Time
    message: Annotated[str, Meta(max_length=32768)]
    reason: Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    status: Literal["True", "False", "Unknown"]
    type: Annotated[str, Meta(max_length=316)]
    observed_generation: Annotated[Int64, Meta(ge=0)] | None = None


class VirtualMachineBackupTracker(KubernetesObject, kw_only=True):
    """A chain of incremental backups of a machine."""

    spec: Annotated[VirtualMachineBackupTrackerSpec, _IMMUTABLE]
    status: VirtualMachineBackupTrackerStatus | None = None


class VirtualMachineBackupTrackerSpec(Model, kw_only=True):
    """Whose changes are followed."""

    source: Annotated[
        TypedLocalObjectReference,
        ATOMIC,
        rules(
            ("has(self.apiGroup) && self.apiGroup == 'kubevirt.io'", "apiGroup must be kubevirt.io"),
            ("self.kind == 'VirtualMachine'", "kind must be VirtualMachine"),
            ("self.name != ''", "name is required"),
        ),
    ]


class VirtualMachineBackupTrackerStatus(Model, kw_only=True):
    """The checkpoint that the next increment begins at."""

    checkpoint_redefinition_required: bool | None = None
    latest_checkpoint: BackupCheckpoint | None = None


class BackupCheckpoint(Model, kw_only=True):
    """Since when changes are recorded."""

    creation_time: Time | None = None
    name: str | None = None
    volumes: Annotated[list[BackupVolumeInfo] | None, ATOMIC_LIST] = None
