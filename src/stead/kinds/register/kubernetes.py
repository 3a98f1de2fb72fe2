"""Kinds of Kubernetes' own that clients need."""

from __future__ import annotations

from stead.kinds import coordination, core, crd, policy, rbac, reviews, storage
from stead.kinds.register.shapes import CREATE_ONLY, builtin_kind

PERSISTENT_VOLUME_CLAIM = builtin_kind(
    "",
    "PersistentVolumeClaim",
    "persistentvolumeclaims",
    storage.PersistentVolumeClaim,
    short_names=("pvc",),
    status_subresource=True,
)
PERSISTENT_VOLUME = builtin_kind(
    "",
    "PersistentVolume",
    "persistentvolumes",
    storage.PersistentVolume,
    namespaced=False,
    short_names=("pv",),
    status_subresource=True,
)
STORAGE_CLASS = builtin_kind(
    "storage.k8s.io",
    "StorageClass",
    "storageclasses",
    storage.StorageClass,
    namespaced=False,
    short_names=("sc",),
)
NAMESPACE = builtin_kind(
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
NODE = builtin_kind(
    "",
    "Node",
    "nodes",
    core.Node,
    namespaced=False,
    short_names=("no",),
    status_subresource=True,
    field_selectors=("spec.unschedulable",),
)
SECRET = builtin_kind("", "Secret", "secrets", core.Secret, field_selectors=("type",))
CONFIG_MAP = builtin_kind("", "ConfigMap", "configmaps", core.ConfigMap, short_names=("cm",))
EVENT = builtin_kind(
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
SERVICE_ACCOUNT = builtin_kind("", "ServiceAccount", "serviceaccounts", core.ServiceAccount, short_names=("sa",))
RESOURCE_QUOTA = builtin_kind(
    "", "ResourceQuota", "resourcequotas", policy.ResourceQuota, short_names=("quota",), status_subresource=True
)
LIMIT_RANGE = builtin_kind("", "LimitRange", "limitranges", policy.LimitRange, short_names=("limits",))
PRIORITY_CLASS = builtin_kind(
    "scheduling.k8s.io",
    "PriorityClass",
    "priorityclasses",
    policy.PriorityClass,
    namespaced=False,
    short_names=("pc",),
    has_generation=True,
)
_RBAC_GROUP = "rbac.authorization.k8s.io"
ROLE = builtin_kind(_RBAC_GROUP, "Role", "roles", rbac.Role)
CLUSTER_ROLE = builtin_kind(_RBAC_GROUP, "ClusterRole", "clusterroles", rbac.ClusterRole, namespaced=False)
ROLE_BINDING = builtin_kind(_RBAC_GROUP, "RoleBinding", "rolebindings", rbac.RoleBinding)
CLUSTER_ROLE_BINDING = builtin_kind(
    _RBAC_GROUP, "ClusterRoleBinding", "clusterrolebindings", rbac.ClusterRoleBinding, namespaced=False
)
LEASE = builtin_kind("coordination.k8s.io", "Lease", "leases", coordination.Lease)
CONTROLLER_REVISION = builtin_kind("apps", "ControllerRevision", "controllerrevisions", coordination.ControllerRevision)
CUSTOM_RESOURCE_DEFINITION = builtin_kind(
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
EVENTS_EVENT = builtin_kind("events.k8s.io", "Event", "events", core.EventsV1Event, short_names=("ev",))
_AUTHZ, _AUTHN = "authorization.k8s.io", "authentication.k8s.io"
SUBJECT_ACCESS_REVIEW = builtin_kind(
    _AUTHZ,
    "SubjectAccessReview",
    "subjectaccessreviews",
    reviews.SubjectAccessReview,
    namespaced=False,
    verbs=CREATE_ONLY,
)
SELF_SUBJECT_ACCESS_REVIEW = builtin_kind(
    _AUTHZ,
    "SelfSubjectAccessReview",
    "selfsubjectaccessreviews",
    reviews.SelfSubjectAccessReview,
    namespaced=False,
    verbs=CREATE_ONLY,
)
SELF_SUBJECT_RULES_REVIEW = builtin_kind(
    _AUTHZ,
    "SelfSubjectRulesReview",
    "selfsubjectrulesreviews",
    reviews.SelfSubjectRulesReview,
    namespaced=False,
    verbs=CREATE_ONLY,
)
LOCAL_SUBJECT_ACCESS_REVIEW = builtin_kind(
    _AUTHZ,
    "LocalSubjectAccessReview",
    "localsubjectaccessreviews",
    reviews.LocalSubjectAccessReview,
    verbs=CREATE_ONLY,
)
SELF_SUBJECT_REVIEW = builtin_kind(
    _AUTHN,
    "SelfSubjectReview",
    "selfsubjectreviews",
    reviews.SelfSubjectReview,
    namespaced=False,
    verbs=CREATE_ONLY,
)
TOKEN_REVIEW = builtin_kind(
    _AUTHN, "TokenReview", "tokenreviews", reviews.TokenReview, namespaced=False, verbs=CREATE_ONLY
)
#: no collection of its own, so no URL finds it: the body of `serviceaccounts/<name>/token`
TOKEN_REQUEST = builtin_kind(_AUTHN, "TokenRequest", "tokenrequests", reviews.TokenRequest, verbs=CREATE_ONLY)
