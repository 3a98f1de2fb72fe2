"""The register of kinds: one `Resource` for each kind that Stead serves, found by kind or by path.

Everyone asks this module; nobody spells a plural, a short name or a verb by hand. Names, scopes, verbs and columns
follow the recorded discovery of KubeVirt 1.8, CDI 1.6x and Kubernetes 1.36. Kinds that are not here are not served: a
manifest that names one is refused with 404, never stored and ignored. Immutable after import; safe from every thread.
"""

from __future__ import annotations

from typing import Any

from stead.kinds import (
    backup,
    cdi,
    coordination,
    core,
    crd,
    export,
    instancetype,
    joins,
    kubevirt,
    machine,
    migration,
    network,
    policy,
    preference,
    rbac,
    reviews,
    snapshot,
    storage,
    volumesnapshot,
)
from stead.kinds.columns import AGE, BUILTIN_COLUMNS
from stead.kinds.resource import Column, Resource

_READY = Column("Ready", "string", ".status.conditions[?(@.type=='Ready')].status")
_CREATE_ONLY = ("create",)


def _kubevirt(kind: str, plural: str, struct: Any, **rest: Any) -> Resource:
    """A kind of kubevirt.io: served as v1 and, as KubeVirt does, as v1alpha3."""
    return Resource(
        group="kubevirt.io",
        version="v1",
        versions=("v1", "v1alpha3"),
        kind=kind,
        plural=plural,
        singular=kind.lower(),
        struct=struct,
        categories=("all",),
        **rest,
    )


def _custom(group: str, version: str, kind: str, plural: str, struct: Any, **rest: Any) -> Resource:
    """A custom kind with one served version."""
    return Resource(
        group=group,
        version=version,
        versions=(version,),
        kind=kind,
        plural=plural,
        singular=kind.lower(),
        struct=struct,
        **rest,
    )


def _builtin(group: str, kind: str, plural: str, struct: Any, **rest: Any) -> Resource:
    """A kind of Kubernetes itself, version v1. These count no generation unless said."""
    rest.setdefault("has_generation", False)
    rest.setdefault("columns", BUILTIN_COLUMNS.get((group, kind), ()))
    return _custom(group, "v1", kind, plural, struct, builtin=True, **rest)


VIRTUAL_MACHINE = _kubevirt(
    "VirtualMachine",
    "virtualmachines",
    machine.VirtualMachine,
    short_names=("vm", "vms"),
    status_subresource=True,
    columns=(AGE, Column("Status", "string", ".status.printableStatus"), _READY),
)
VIRTUAL_MACHINE_INSTANCE = _kubevirt(
    "VirtualMachineInstance",
    "virtualmachineinstances",
    machine.VirtualMachineInstance,
    short_names=("vmi", "vmis"),
    columns=(
        AGE,
        Column("Phase", "string", ".status.phase"),
        Column("IP", "string", ".status.interfaces[0].ipAddress"),
        Column("NodeName", "string", ".status.nodeName"),
        _READY,
        Column("Live-Migratable", "string", ".status.conditions[?(@.type=='LiveMigratable')].status", 1),
        Column("Paused", "string", ".status.conditions[?(@.type=='Paused')].status", 1),
    ),
)
KUBEVIRT = _kubevirt(
    "KubeVirt",
    "kubevirts",
    kubevirt.KubeVirt,
    short_names=("kv", "kvs"),
    status_subresource=True,
    columns=(AGE, Column("Phase", "string", ".status.phase")),
)
MIGRATION = _kubevirt(
    "VirtualMachineInstanceMigration",
    "virtualmachineinstancemigrations",
    migration.VirtualMachineInstanceMigration,
    short_names=("vmim", "vmims"),
    status_subresource=True,
    columns=(
        Column("Phase", "string", ".status.phase", description="The current phase of VM instance migration"),
        Column("VMI", "string", ".spec.vmiName", description="The name of the VMI to perform the migration on"),
    ),
)
MIGRATION_POLICY = _custom(
    "migrations.kubevirt.io",
    "v1alpha1",
    "MigrationPolicy",
    "migrationpolicies",
    migration.MigrationPolicy,
    namespaced=False,
    status_subresource=True,
)

_INSTANCETYPE_GROUP = "instancetype.kubevirt.io"
INSTANCETYPE = _custom(
    _INSTANCETYPE_GROUP,
    "v1beta1",
    "VirtualMachineInstancetype",
    "virtualmachineinstancetypes",
    instancetype.VirtualMachineInstancetype,
    short_names=("vminstancetype", "vminstancetypes", "vmf", "vmfs"),
    categories=("all",),
)
CLUSTER_INSTANCETYPE = _custom(
    _INSTANCETYPE_GROUP,
    "v1beta1",
    "VirtualMachineClusterInstancetype",
    "virtualmachineclusterinstancetypes",
    instancetype.VirtualMachineClusterInstancetype,
    namespaced=False,
    short_names=("vmclusterinstancetype", "vmclusterinstancetypes", "vmcf", "vmcfs"),
)
PREFERENCE = _custom(
    _INSTANCETYPE_GROUP,
    "v1beta1",
    "VirtualMachinePreference",
    "virtualmachinepreferences",
    preference.VirtualMachinePreference,
    short_names=("vmpref", "vmprefs", "vmp", "vmps"),
    categories=("all",),
)
CLUSTER_PREFERENCE = _custom(
    _INSTANCETYPE_GROUP,
    "v1beta1",
    "VirtualMachineClusterPreference",
    "virtualmachineclusterpreferences",
    preference.VirtualMachineClusterPreference,
    namespaced=False,
    short_names=("vmcp", "vmcps"),
)

_CDI_GROUP = "cdi.kubevirt.io"
DATA_VOLUME = _custom(
    _CDI_GROUP,
    "v1beta1",
    "DataVolume",
    "datavolumes",
    cdi.DataVolume,
    short_names=("dv", "dvs"),
    categories=("all",),
    status_subresource=True,
    columns=(
        Column("Phase", "string", ".status.phase"),
        Column("Progress", "string", ".status.progress"),
        Column("Restarts", "integer", ".status.restartCount"),
        AGE,
    ),
)
DATA_SOURCE = _custom(
    _CDI_GROUP,
    "v1beta1",
    "DataSource",
    "datasources",
    cdi.DataSource,
    short_names=("das",),
    categories=("all",),
)
DATA_IMPORT_CRON = _custom(
    _CDI_GROUP,
    "v1beta1",
    "DataImportCron",
    "dataimportcrons",
    cdi.DataImportCron,
    short_names=("dic", "dics"),
    categories=("all",),
    columns=(Column("Format", "string", ".status.sourceFormat"),),
)
STORAGE_PROFILE = _custom(
    _CDI_GROUP,
    "v1beta1",
    "StorageProfile",
    "storageprofiles",
    cdi.StorageProfile,
    namespaced=False,
    status_subresource=True,
)
CDI = _custom(
    _CDI_GROUP,
    "v1beta1",
    "CDI",
    "cdis",
    cdi.CDI,
    namespaced=False,
    short_names=("cdi", "cdis"),
    columns=(AGE, Column("Phase", "string", ".status.phase")),
)
CDI_CONFIG = _custom(_CDI_GROUP, "v1beta1", "CDIConfig", "cdiconfigs", cdi.CDIConfig, namespaced=False)
JOIN = _custom(
    "stead.io",
    "v1alpha1",
    "Join",
    "joins",
    joins.Join,
    namespaced=False,
    verbs=_CREATE_ONLY,
    has_generation=False,
)
UPLOAD_TOKEN_REQUEST = _custom(
    "upload.cdi.kubevirt.io",
    "v1beta1",
    "UploadTokenRequest",
    "uploadtokenrequests",
    cdi.UploadTokenRequest,
    verbs=_CREATE_ONLY,
    has_generation=False,
)

_PHASE = Column("Phase", "string", ".status.phase")
_READY_TO_USE = Column("ReadyToUse", "boolean", ".status.readyToUse")
_TAKEN = Column("CreationTime", "date", ".status.creationTime")
_ERROR = Column("Error", "string", ".status.error.message")
_SOURCE = (
    Column("SourceKind", "string", ".spec.source.kind"),
    Column("SourceName", "string", ".spec.source.name"),
)


def _versioned(resource: tuple[str, str, str], struct: Any, versions: tuple[str, ...], **rest: Any) -> Resource:
    """A kind of KubeVirt's (group, kind, plural) with status and several served versions, the stored one first."""
    group, kind, plural = resource
    return Resource(
        group=group,
        version=versions[0],
        versions=versions,
        kind=kind,
        plural=plural,
        singular=kind.lower(),
        struct=struct,
        categories=("all",),
        status_subresource=True,
        **rest,
    )


_SNAPSHOT_GROUP, _SNAPSHOT_VERSIONS = "snapshot.kubevirt.io", ("v1beta1", "v1alpha1")
MACHINE_SNAPSHOT = _versioned(
    (_SNAPSHOT_GROUP, "VirtualMachineSnapshot", "virtualmachinesnapshots"),
    snapshot.VirtualMachineSnapshot,
    _SNAPSHOT_VERSIONS,
    short_names=("vmsnapshot", "vmsnapshots"),
    columns=(*_SOURCE, _PHASE, _READY_TO_USE, _TAKEN, _ERROR),
)
MACHINE_SNAPSHOT_CONTENT = _versioned(
    (_SNAPSHOT_GROUP, "VirtualMachineSnapshotContent", "virtualmachinesnapshotcontents"),
    snapshot.VirtualMachineSnapshotContent,
    _SNAPSHOT_VERSIONS,
    short_names=("vmsnapshotcontent", "vmsnapshotcontents"),
    columns=(_READY_TO_USE, _TAKEN, _ERROR),
)
MACHINE_RESTORE = _versioned(
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
MACHINE_CLONE = _versioned(
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
MACHINE_EXPORT = _versioned(
    ("export.kubevirt.io", "VirtualMachineExport", "virtualmachineexports"),
    export.VirtualMachineExport,
    ("v1", "v1beta1"),
    short_names=("vmexport", "vmexports"),
    columns=(*_SOURCE, _PHASE),
)

VOLUME_SNAPSHOT = _custom(
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
VOLUME_SNAPSHOT_CLASS = _custom(
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

PERSISTENT_VOLUME_CLAIM = _builtin(
    "",
    "PersistentVolumeClaim",
    "persistentvolumeclaims",
    storage.PersistentVolumeClaim,
    short_names=("pvc",),
    status_subresource=True,
)
PERSISTENT_VOLUME = _builtin(
    "",
    "PersistentVolume",
    "persistentvolumes",
    storage.PersistentVolume,
    namespaced=False,
    short_names=("pv",),
    status_subresource=True,
)
STORAGE_CLASS = _builtin(
    "storage.k8s.io",
    "StorageClass",
    "storageclasses",
    storage.StorageClass,
    namespaced=False,
    short_names=("sc",),
)
NAMESPACE = _builtin(
    "",
    "Namespace",
    "namespaces",
    core.Namespace,
    namespaced=False,
    short_names=("ns",),
    status_subresource=True,
    verbs=("create", "delete", "get", "list", "patch", "update", "watch"),
    field_selectors=("status.phase",),
)
NODE = _builtin(
    "",
    "Node",
    "nodes",
    core.Node,
    namespaced=False,
    short_names=("no",),
    status_subresource=True,
    field_selectors=("spec.unschedulable",),
)
SECRET = _builtin("", "Secret", "secrets", core.Secret, field_selectors=("type",))
CONFIG_MAP = _builtin("", "ConfigMap", "configmaps", core.ConfigMap, short_names=("cm",))
EVENT = _builtin(
    "",
    "Event",
    "events",
    core.Event,
    short_names=("ev",),
    field_selectors=(
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
)
SERVICE_ACCOUNT = _builtin("", "ServiceAccount", "serviceaccounts", core.ServiceAccount, short_names=("sa",))
RESOURCE_QUOTA = _builtin(
    "", "ResourceQuota", "resourcequotas", policy.ResourceQuota, short_names=("quota",), status_subresource=True
)
LIMIT_RANGE = _builtin("", "LimitRange", "limitranges", policy.LimitRange, short_names=("limits",))
PRIORITY_CLASS = _builtin(
    "scheduling.k8s.io",
    "PriorityClass",
    "priorityclasses",
    policy.PriorityClass,
    namespaced=False,
    short_names=("pc",),
    has_generation=True,
)
_RBAC_GROUP = "rbac.authorization.k8s.io"
ROLE = _builtin(_RBAC_GROUP, "Role", "roles", rbac.Role)
CLUSTER_ROLE = _builtin(_RBAC_GROUP, "ClusterRole", "clusterroles", rbac.ClusterRole, namespaced=False)
ROLE_BINDING = _builtin(_RBAC_GROUP, "RoleBinding", "rolebindings", rbac.RoleBinding)
CLUSTER_ROLE_BINDING = _builtin(
    _RBAC_GROUP, "ClusterRoleBinding", "clusterrolebindings", rbac.ClusterRoleBinding, namespaced=False
)
LEASE = _builtin("coordination.k8s.io", "Lease", "leases", coordination.Lease)
CONTROLLER_REVISION = _builtin("apps", "ControllerRevision", "controllerrevisions", coordination.ControllerRevision)
CUSTOM_RESOURCE_DEFINITION = _builtin(
    "apiextensions.k8s.io",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    crd.CustomResourceDefinition,
    namespaced=False,
    short_names=("crd", "crds"),
    categories=("api-extensions",),
    status_subresource=True,
    has_generation=True,
)
#: the second face of EVENT: the same objects, converted by `kinds.events`
EVENTS_EVENT = _builtin("events.k8s.io", "Event", "events", core.EventsV1Event, short_names=("ev",))

NETWORK_ATTACHMENT_DEFINITION = _custom(
    "k8s.cni.cncf.io",
    "v1",
    "NetworkAttachmentDefinition",
    "network-attachment-definitions",
    network.NetworkAttachmentDefinition,
    short_names=("net-attach-def",),
)
ADDRESS_CLAIM = _custom(
    "stead.io",
    "v1alpha1",
    "AddressClaim",
    "addressclaims",
    network.AddressClaim,
    namespaced=False,
    columns=(
        Column("MAC", "string", ".spec.mac"),
        Column("Namespace", "string", ".spec.machine.namespace"),
        Column("Machine", "string", ".spec.machine.name"),
        AGE,
    ),
)

_BACKUP_GROUP = "backup.kubevirt.io"
_SOURCE_COLUMNS = (
    Column("SourceKind", "string", ".spec.source.kind"),
    Column("SourceName", "string", ".spec.source.name"),
)
VIRTUAL_MACHINE_BACKUP = _custom(
    _BACKUP_GROUP,
    "v1alpha1",
    "VirtualMachineBackup",
    "virtualmachinebackups",
    backup.VirtualMachineBackup,
    short_names=("vmbackup", "vmbackups"),
    categories=("all",),
    status_subresource=True,
    columns=(
        *_SOURCE_COLUMNS,
        Column("Type", "string", ".status.type"),
        Column("CheckpointName", "string", ".status.checkpointName"),
    ),
)
VIRTUAL_MACHINE_BACKUP_TRACKER = _custom(
    _BACKUP_GROUP,
    "v1alpha1",
    "VirtualMachineBackupTracker",
    "virtualmachinebackuptrackers",
    backup.VirtualMachineBackupTracker,
    short_names=("vmbackuptracker", "vmbackuptrackers"),
    categories=("all",),
    status_subresource=True,
    columns=(
        *_SOURCE_COLUMNS,
        Column("LatestCheckpoint", "string", ".status.latestCheckpoint.name"),
        Column("CheckpointTime", "date", ".status.latestCheckpoint.creationTime"),
    ),
)
BACKUP_REPOSITORY = _custom(
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
BACKUP = _custom(
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
BACKUP_SCHEDULE = _custom(
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

_AUTHZ, _AUTHN = "authorization.k8s.io", "authentication.k8s.io"
SUBJECT_ACCESS_REVIEW = _builtin(
    _AUTHZ,
    "SubjectAccessReview",
    "subjectaccessreviews",
    reviews.SubjectAccessReview,
    namespaced=False,
    verbs=_CREATE_ONLY,
)
SELF_SUBJECT_ACCESS_REVIEW = _builtin(
    _AUTHZ,
    "SelfSubjectAccessReview",
    "selfsubjectaccessreviews",
    reviews.SelfSubjectAccessReview,
    namespaced=False,
    verbs=_CREATE_ONLY,
)
SELF_SUBJECT_RULES_REVIEW = _builtin(
    _AUTHZ,
    "SelfSubjectRulesReview",
    "selfsubjectrulesreviews",
    reviews.SelfSubjectRulesReview,
    namespaced=False,
    verbs=_CREATE_ONLY,
)
LOCAL_SUBJECT_ACCESS_REVIEW = _builtin(
    _AUTHZ,
    "LocalSubjectAccessReview",
    "localsubjectaccessreviews",
    reviews.LocalSubjectAccessReview,
    verbs=_CREATE_ONLY,
)
SELF_SUBJECT_REVIEW = _builtin(
    _AUTHN,
    "SelfSubjectReview",
    "selfsubjectreviews",
    reviews.SelfSubjectReview,
    namespaced=False,
    verbs=_CREATE_ONLY,
)
TOKEN_REVIEW = _builtin(
    _AUTHN, "TokenReview", "tokenreviews", reviews.TokenReview, namespaced=False, verbs=_CREATE_ONLY
)
#: no collection of its own, so no URL finds it: the body of `serviceaccounts/<name>/token`
TOKEN_REQUEST = _builtin(_AUTHN, "TokenRequest", "tokenrequests", reviews.TokenRequest, verbs=_CREATE_ONLY)

#: every served kind, in the order in which a user would look for them
ALL: tuple[Resource, ...] = (
    VIRTUAL_MACHINE,
    VIRTUAL_MACHINE_INSTANCE,
    KUBEVIRT,
    MIGRATION,
    MIGRATION_POLICY,
    INSTANCETYPE,
    CLUSTER_INSTANCETYPE,
    PREFERENCE,
    CLUSTER_PREFERENCE,
    DATA_VOLUME,
    DATA_SOURCE,
    DATA_IMPORT_CRON,
    STORAGE_PROFILE,
    CDI,
    CDI_CONFIG,
    UPLOAD_TOKEN_REQUEST,
    MACHINE_SNAPSHOT,
    MACHINE_SNAPSHOT_CONTENT,
    MACHINE_RESTORE,
    MACHINE_CLONE,
    MACHINE_EXPORT,
    VOLUME_SNAPSHOT,
    VOLUME_SNAPSHOT_CLASS,
    JOIN,
    NAMESPACE,
    NODE,
    PERSISTENT_VOLUME_CLAIM,
    PERSISTENT_VOLUME,
    STORAGE_CLASS,
    SECRET,
    CONFIG_MAP,
    EVENT,
    EVENTS_EVENT,
    SERVICE_ACCOUNT,
    RESOURCE_QUOTA,
    LIMIT_RANGE,
    PRIORITY_CLASS,
    ROLE,
    CLUSTER_ROLE,
    ROLE_BINDING,
    CLUSTER_ROLE_BINDING,
    LEASE,
    CONTROLLER_REVISION,
    CUSTOM_RESOURCE_DEFINITION,
    NETWORK_ATTACHMENT_DEFINITION,
    ADDRESS_CLAIM,
    VIRTUAL_MACHINE_BACKUP,
    VIRTUAL_MACHINE_BACKUP_TRACKER,
    BACKUP_REPOSITORY,
    BACKUP,
    BACKUP_SCHEDULE,
    SUBJECT_ACCESS_REVIEW,
    SELF_SUBJECT_ACCESS_REVIEW,
    SELF_SUBJECT_RULES_REVIEW,
    LOCAL_SUBJECT_ACCESS_REVIEW,
    SELF_SUBJECT_REVIEW,
    TOKEN_REVIEW,
    TOKEN_REQUEST,
)

_BY_KIND = {(r.group, r.kind): r for r in ALL}
_BY_PATH = {(r.group, v, r.plural): r for r in ALL if r is not TOKEN_REQUEST for v in r.versions}


def resource_for(kind: str, group: str = "") -> Resource:
    """The kind of that name. Raises KeyError when Stead does not serve it."""
    return _BY_KIND[(group, kind)]


def find(group: str, version: str, plural: str) -> Resource | None:
    """What a URL path names, in any served version; None when Stead does not serve it."""
    return _BY_PATH.get((group, version, plural))


def groups() -> dict[str, tuple[str, ...]]:
    """Every served group ("" is the core group) with its versions, preferred first."""
    found: dict[str, list[str]] = {}
    for resource in ALL:
        versions = found.setdefault(resource.group, [])
        versions.extend(v for v in resource.versions if v not in versions)
    return {group: tuple(versions) for group, versions in found.items()}
