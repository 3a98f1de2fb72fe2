"""The register of kinds: one `Resource` for each kind that Stead serves, found by kind or by path.

Everyone asks this module; nobody spells a plural, a short name or a verb by hand. Names, scopes, verbs and columns follow
the recorded discovery of KubeVirt 1.8, CDI 1.6x and Kubernetes 1.36. Kinds that are not here are not served: a manifest
that names one is refused with 404, never stored and ignored. Immutable after import; safe from every thread.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.kinds.resource import Column, Resource


class Permissive(msgspec.Struct):
    """Stand-in until the typed modules land."""

    metadata: dict[str, Any] = {}


_AGE = Column("Age", "date", ".metadata.creationTimestamp")
_READY = Column("Ready", "string", ".status.conditions[?(@.type=='Ready')].status")
_CREATE_ONLY = ("create",)


def _kubevirt(kind: str, plural: str, struct: Any, **rest: Any) -> Resource:
    """A kind of kubevirt.io: served as v1 and, as KubeVirt does, as v1alpha3."""
    return Resource(
        group="kubevirt.io", version="v1", versions=("v1", "v1alpha3"), kind=kind, plural=plural,
        singular=kind.lower(), struct=struct, categories=("all",), **rest,
    )  # fmt: skip


def _custom(group: str, version: str, kind: str, plural: str, struct: Any, **rest: Any) -> Resource:
    """A custom kind with one served version."""
    return Resource(
        group=group, version=version, versions=(version,), kind=kind, plural=plural, singular=kind.lower(),
        struct=struct, **rest,
    )  # fmt: skip


def _builtin(group: str, kind: str, plural: str, struct: Any, **rest: Any) -> Resource:
    """A kind of Kubernetes itself, version v1. These count no generation unless said."""
    rest.setdefault("has_generation", False)
    return _custom(group, "v1", kind, plural, struct, builtin=True, **rest)


VIRTUAL_MACHINE = _kubevirt(
    "VirtualMachine", "virtualmachines", Permissive, short_names=("vm", "vms"), status_subresource=True,
    columns=(_AGE, Column("Status", "string", ".status.printableStatus"), _READY),
)  # fmt: skip
VIRTUAL_MACHINE_INSTANCE = _kubevirt(
    "VirtualMachineInstance", "virtualmachineinstances", Permissive, short_names=("vmi", "vmis"),
    columns=(
        _AGE,
        Column("Phase", "string", ".status.phase"),
        Column("IP", "string", ".status.interfaces[0].ipAddress"),
        Column("NodeName", "string", ".status.nodeName"),
        _READY,
        Column("Live-Migratable", "string", ".status.conditions[?(@.type=='LiveMigratable')].status", 1),
        Column("Paused", "string", ".status.conditions[?(@.type=='Paused')].status", 1),
    ),
)  # fmt: skip
KUBEVIRT = _kubevirt(
    "KubeVirt", "kubevirts", Permissive, short_names=("kv", "kvs"), status_subresource=True,
    columns=(_AGE, Column("Phase", "string", ".status.phase")),
)  # fmt: skip

_INSTANCETYPE_GROUP = "instancetype.kubevirt.io"
INSTANCETYPE = _custom(
    _INSTANCETYPE_GROUP, "v1beta1", "VirtualMachineInstancetype", "virtualmachineinstancetypes", Permissive,
    short_names=("vminstancetype", "vminstancetypes", "vmf", "vmfs"), categories=("all",),
)  # fmt: skip
CLUSTER_INSTANCETYPE = _custom(
    _INSTANCETYPE_GROUP, "v1beta1", "VirtualMachineClusterInstancetype", "virtualmachineclusterinstancetypes",
    Permissive, namespaced=False, short_names=("vmclusterinstancetype", "vmclusterinstancetypes", "vmcf", "vmcfs"),
)  # fmt: skip
PREFERENCE = _custom(
    _INSTANCETYPE_GROUP, "v1beta1", "VirtualMachinePreference", "virtualmachinepreferences", Permissive,
    short_names=("vmpref", "vmprefs", "vmp", "vmps"), categories=("all",),
)  # fmt: skip
CLUSTER_PREFERENCE = _custom(
    _INSTANCETYPE_GROUP, "v1beta1", "VirtualMachineClusterPreference", "virtualmachineclusterpreferences", Permissive,
    namespaced=False, short_names=("vmcp", "vmcps"),
)  # fmt: skip

_CDI_GROUP = "cdi.kubevirt.io"
DATA_VOLUME = _custom(
    _CDI_GROUP, "v1beta1", "DataVolume", "datavolumes", Permissive, short_names=("dv", "dvs"), categories=("all",),
    status_subresource=True,
    columns=(
        Column("Phase", "string", ".status.phase"),
        Column("Progress", "string", ".status.progress"),
        Column("Restarts", "integer", ".status.restartCount"),
        _AGE,
    ),
)  # fmt: skip
DATA_SOURCE = _custom(
    _CDI_GROUP, "v1beta1", "DataSource", "datasources", Permissive, short_names=("das",), categories=("all",),
    status_subresource=True,
)  # fmt: skip
DATA_IMPORT_CRON = _custom(
    _CDI_GROUP, "v1beta1", "DataImportCron", "dataimportcrons", Permissive, short_names=("dic", "dics"),
    categories=("all",), status_subresource=True,
)  # fmt: skip
STORAGE_PROFILE = _custom(
    _CDI_GROUP, "v1beta1", "StorageProfile", "storageprofiles", Permissive, namespaced=False, status_subresource=True,
)  # fmt: skip
CDI = _custom(
    _CDI_GROUP, "v1beta1", "CDI", "cdis", Permissive, namespaced=False, short_names=("cdi", "cdis"),
    columns=(_AGE, Column("Phase", "string", ".status.phase")),
)  # fmt: skip
CDI_CONFIG = _custom(_CDI_GROUP, "v1beta1", "CDIConfig", "cdiconfigs", Permissive, namespaced=False)
UPLOAD_TOKEN_REQUEST = _custom(
    "upload.cdi.kubevirt.io", "v1beta1", "UploadTokenRequest", "uploadtokenrequests", Permissive, verbs=_CREATE_ONLY,
    has_generation=False,
)  # fmt: skip

PERSISTENT_VOLUME_CLAIM = _builtin(
    "", "PersistentVolumeClaim", "persistentvolumeclaims", Permissive, short_names=("pvc",), status_subresource=True,
)  # fmt: skip
PERSISTENT_VOLUME = _builtin(
    "", "PersistentVolume", "persistentvolumes", Permissive, namespaced=False, short_names=("pv",),
    status_subresource=True,
)  # fmt: skip
STORAGE_CLASS = _builtin(
    "storage.k8s.io", "StorageClass", "storageclasses", Permissive, namespaced=False, short_names=("sc",),
)  # fmt: skip
NAMESPACE = _builtin(
    "", "Namespace", "namespaces", Permissive, namespaced=False, short_names=("ns",), status_subresource=True,
    verbs=("create", "delete", "get", "list", "patch", "update", "watch"), field_selectors=("status.phase",),
)  # fmt: skip
NODE = _builtin(
    "", "Node", "nodes", Permissive, namespaced=False, short_names=("no",), status_subresource=True,
    field_selectors=("spec.unschedulable",),
)  # fmt: skip
SECRET = _builtin("", "Secret", "secrets", Permissive, field_selectors=("type",))
CONFIG_MAP = _builtin("", "ConfigMap", "configmaps", Permissive, short_names=("cm",))
EVENT = _builtin(
    "", "Event", "events", Permissive, short_names=("ev",),
    field_selectors=(
        "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
        "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason",
        "reportingComponent", "source", "type",
    ),
)  # fmt: skip
SERVICE_ACCOUNT = _builtin("", "ServiceAccount", "serviceaccounts", Permissive, short_names=("sa",))
_RBAC_GROUP = "rbac.authorization.k8s.io"
ROLE = _builtin(_RBAC_GROUP, "Role", "roles", Permissive)
CLUSTER_ROLE = _builtin(_RBAC_GROUP, "ClusterRole", "clusterroles", Permissive, namespaced=False)
ROLE_BINDING = _builtin(_RBAC_GROUP, "RoleBinding", "rolebindings", Permissive)
CLUSTER_ROLE_BINDING = _builtin(_RBAC_GROUP, "ClusterRoleBinding", "clusterrolebindings", Permissive, namespaced=False)
LEASE = _builtin("coordination.k8s.io", "Lease", "leases", Permissive)
CONTROLLER_REVISION = _builtin("apps", "ControllerRevision", "controllerrevisions", Permissive)
CUSTOM_RESOURCE_DEFINITION = _builtin(
    "apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions", Permissive, namespaced=False,
    short_names=("crd", "crds"), categories=("api-extensions",), status_subresource=True, has_generation=True,
)  # fmt: skip
EVENTS_EVENT = _builtin("events.k8s.io", "Event", "events", Permissive, short_names=("ev",))

NETWORK_ATTACHMENT_DEFINITION = _custom(
    "k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition", "network-attachment-definitions", Permissive,
    short_names=("net-attach-def",),
)  # fmt: skip
ADDRESS_CLAIM = _custom(
    "stead.io", "v1alpha1", "AddressClaim", "addressclaims", Permissive, namespaced=False,
    columns=(
        Column("MAC", "string", ".spec.mac"),
        Column("Namespace", "string", ".spec.machine.namespace"),
        Column("Machine", "string", ".spec.machine.name"),
        _AGE,
    ),
)  # fmt: skip

_AUTHZ, _AUTHN = "authorization.k8s.io", "authentication.k8s.io"
SUBJECT_ACCESS_REVIEW = _builtin(
    _AUTHZ, "SubjectAccessReview", "subjectaccessreviews", Permissive, namespaced=False, verbs=_CREATE_ONLY,
)  # fmt: skip
SELF_SUBJECT_ACCESS_REVIEW = _builtin(
    _AUTHZ, "SelfSubjectAccessReview", "selfsubjectaccessreviews", Permissive, namespaced=False, verbs=_CREATE_ONLY,
)  # fmt: skip
SELF_SUBJECT_RULES_REVIEW = _builtin(
    _AUTHZ, "SelfSubjectRulesReview", "selfsubjectrulesreviews", Permissive, namespaced=False, verbs=_CREATE_ONLY,
)  # fmt: skip
LOCAL_SUBJECT_ACCESS_REVIEW = _builtin(
    _AUTHZ, "LocalSubjectAccessReview", "localsubjectaccessreviews", Permissive, verbs=_CREATE_ONLY,
)  # fmt: skip
SELF_SUBJECT_REVIEW = _builtin(
    _AUTHN, "SelfSubjectReview", "selfsubjectreviews", Permissive, namespaced=False, verbs=_CREATE_ONLY,
)  # fmt: skip
TOKEN_REVIEW = _builtin(_AUTHN, "TokenReview", "tokenreviews", Permissive, namespaced=False, verbs=_CREATE_ONLY)
#: Not a collection of its own: the body of `serviceaccounts/<name>/token`. `find` answers it for schema and decoding.
TOKEN_REQUEST = _builtin(_AUTHN, "TokenRequest", "tokenrequests", Permissive, verbs=_CREATE_ONLY)

#: every served kind, in the order in which a user would look for them
ALL: tuple[Resource, ...] = (
    VIRTUAL_MACHINE, VIRTUAL_MACHINE_INSTANCE, KUBEVIRT, INSTANCETYPE, CLUSTER_INSTANCETYPE, PREFERENCE,
    CLUSTER_PREFERENCE, DATA_VOLUME, DATA_SOURCE, DATA_IMPORT_CRON, STORAGE_PROFILE, CDI, CDI_CONFIG,
    UPLOAD_TOKEN_REQUEST, NAMESPACE, NODE, PERSISTENT_VOLUME_CLAIM, PERSISTENT_VOLUME, STORAGE_CLASS, SECRET, CONFIG_MAP,
    EVENT, EVENTS_EVENT, SERVICE_ACCOUNT, ROLE, CLUSTER_ROLE, ROLE_BINDING, CLUSTER_ROLE_BINDING, LEASE,
    CONTROLLER_REVISION, CUSTOM_RESOURCE_DEFINITION, NETWORK_ATTACHMENT_DEFINITION, ADDRESS_CLAIM,
    SUBJECT_ACCESS_REVIEW, SELF_SUBJECT_ACCESS_REVIEW, SELF_SUBJECT_RULES_REVIEW, LOCAL_SUBJECT_ACCESS_REVIEW,
    SELF_SUBJECT_REVIEW, TOKEN_REVIEW, TOKEN_REQUEST,
)  # fmt: skip

_BY_KIND = {(r.group, r.kind): r for r in ALL}
_BY_PATH = {(r.group, version, r.plural): r for r in ALL for version in r.versions}


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
