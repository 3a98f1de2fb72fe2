"""The roles that every installation has, and the objects that must be there before anybody asks.

Called by `api` at every start through `ensure_defaults`: what is missing is made, what was changed in
default roles gets its rules back (R1). Names, aggregation labels and rules follow Kubernetes' and KubeVirt's own.
"""

from __future__ import annotations

from typing import Any

from stead.kinds import register
from stead.kinds.aggregation import aggregated_rules, is_aggregated
from stead.kinds.crds import custom_resource_definitions
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError
from stead.kube.schema import schema_from_struct
from stead.server.local import LocalVerbs
from stead.server.policy_rules import system_classes

Object = dict[str, Any]
Rule = dict[str, Any]

#: where shared images lie; whoever is known may clone from there
IMAGES_NAMESPACE = "kubevirt-os-images"
_LABELS = {"kubernetes.io/bootstrapping": "rbac-defaults"}
_ANNOTATIONS = {"rbac.authorization.kubernetes.io/autoupdate": "true"}
_READ = ["get", "list", "watch"]
_WRITE = ["create", "delete", "deletecollection", "patch", "update"]
_SUB = "subresources.kubevirt.io"
_OWN_SUB = "subresources.stead.io"

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease", "kubevirt", "kubevirt-os-images")


def _rule(groups: list[str], resources: list[str], verbs: list[str]) -> Rule:
    return {"apiGroups": groups, "resources": resources, "verbs": verbs}


def _role(name: str, rules: list[Rule], labels: dict[str, str] | None = None, aggregate: str = "") -> Object:
    role: Object = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": name, "labels": {**_LABELS, **(labels or {})}, "annotations": dict(_ANNOTATIONS)},
        "rules": rules,
    }  # fmt: skip
    if aggregate:
        selector = {"matchLabels": {f"rbac.authorization.k8s.io/aggregate-to-{aggregate}": "true"}}
        role["aggregationRule"] = {"clusterRoleSelectors": [selector]}
    return role


def _to(*names: str) -> dict[str, str]:
    return {f"rbac.authorization.k8s.io/aggregate-to-{name}": "true" for name in names}


_CORE = ["configmaps", "events", "persistentvolumeclaims", "serviceaccounts"]
_INSTANCE_READ = ["guestosinfo", "filesystemlist", "userlist"]
_INSTANCE_USE = [
    "console", "vnc", "vnc/screenshot", "portforward", "pause", "unpause", "addvolume", "removevolume", "freeze",
    "unfreeze", "softreboot",
    "reset", "usbredir", "evacuate/cancel",
]  # fmt: skip
_MACHINE_USE = [
    "start", "stop", "restart", "addvolume", "removevolume", "memorydump", "removememorydump", "evacuate/cancel",
    "portforward",
]  # fmt: skip
_KINDS = ["virtualmachines", "virtualmachineinstances"]
_TYPES = [
    "virtualmachineinstancetypes", "virtualmachineclusterinstancetypes", "virtualmachinepreferences",
    "virtualmachineclusterpreferences",
]  # fmt: skip
_BACKUPS = ["virtualmachinebackups", "virtualmachinebackuptrackers"]
_OWN_BACKUPS = ["backuprepositories", "backups", "backupschedules"]
_CDI = ["datavolumes", "datasources", "dataimportcrons"]
_CDI_CLUSTER = ["storageprofiles", "cdiconfigs", "cdis"]


def _of(kind: str, names: list[str]) -> list[str]:
    return [f"{kind}/{name}" for name in names]


def _kubevirt_rules(verbs: list[str], use: bool) -> list[Rule]:
    rules = [
        _rule(["kubevirt.io"], _KINDS, verbs),
        _rule(["instancetype.kubevirt.io"], _TYPES, verbs if use else _READ),
        _rule([_SUB], [*_of("virtualmachineinstances", _INSTANCE_READ), "virtualmachines/expand-spec"], ["get"]),
        _rule([_SUB], ["expand-vm-spec"], ["update"]),
        _rule([_OWN_SUB], ["virtualmachineinstances/stats"], ["get"]),
    ]
    if use:
        rules += [
            _rule([_SUB], _of("virtualmachineinstances", _INSTANCE_USE), ["get", "update"]),
            _rule([_SUB], _of("virtualmachines", _MACHINE_USE), ["get", "update"]),
            _rule([_OWN_SUB], ["virtualmachineinstances/xml"], ["get"]),
        ]
    return rules


def _backup_rules(verbs: list[str]) -> list[Rule]:
    return [_rule(["backup.kubevirt.io"], _BACKUPS, verbs), _rule(["stead.io"], _OWN_BACKUPS, verbs)]


def _cdi_rules(verbs: list[str], upload: bool) -> list[Rule]:
    rules = [_rule(["cdi.kubevirt.io"], _CDI, verbs), _rule(["cdi.kubevirt.io"], _CDI_CLUSTER, _READ)]
    if upload:
        rules.append(_rule(["cdi.kubevirt.io"], ["datavolumes/source"], ["create"]))
        rules.append(_rule(["upload.cdi.kubevirt.io"], ["uploadtokenrequests"], ["create"]))
    return rules


def default_roles() -> list[Object]:
    """All ClusterRoles that must exist."""
    everything = [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]
    discovery = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ]
    public = ["/healthz", "/livez", "/readyz", "/version", "/version/"]
    local_review = _rule(["authorization.k8s.io"], ["localsubjectaccessreviews"], ["create"])
    reviews = [
        _rule(["authorization.k8s.io"], ["selfsubjectaccessreviews", "selfsubjectrulesreviews"], ["create"]),
        _rule(["authentication.k8s.io"], ["selfsubjectreviews"], ["create"]),
    ]
    rbac = _rule(["rbac.authorization.k8s.io"], ["rolebindings", "roles"], [*_WRITE, *_READ])
    core_edit = [
        _rule([""], _CORE, _WRITE),
        _rule([""], ["secrets"], [*_WRITE, *_READ]),
        _rule([""], ["serviceaccounts"], ["impersonate"]),
        _rule([""], ["serviceaccounts/token"], ["create"]),
        _rule(["events.k8s.io"], ["events"], _WRITE),
        _rule(["coordination.k8s.io"], ["leases"], [*_WRITE, *_READ]),
    ]
    core_view = [
        _rule([""], [*_CORE, "namespaces", "persistentvolumeclaims/status"], _READ),
        _rule([""], ["limitranges", "resourcequotas", "resourcequotas/status"], _READ),
        _rule(["events.k8s.io"], ["events"], _READ),
        _rule(["apps"], ["controllerrevisions"], _READ),
        _rule(["k8s.cni.cncf.io"], ["network-attachment-definitions"], _READ),
    ]
    # In no other role, so that moving machines is given on purpose (KubeVirt since 1.5).
    migrate = [
        _rule([_SUB], ["virtualmachines/migrate"], ["update"]),
        _rule(["kubevirt.io"], ["virtualmachineinstancemigrations"], [*_WRITE, *_READ]),
    ]
    nets = _rule(["k8s.cni.cncf.io"], ["network-attachment-definitions"], _WRITE)
    all_verbs = [*_WRITE, *_READ]
    return [
        _role("cluster-admin", everything),
        _role("system:discovery", [{"nonResourceURLs": discovery, "verbs": ["get"]}]),
        _role("system:public-info-viewer", [{"nonResourceURLs": public, "verbs": ["get"]}]),
        _role("system:basic-user", reviews),
        _role("system:node-bootstrapper", [_rule(["stead.io"], ["joins"], ["create"])]),
        _role("admin", [], aggregate="admin"),
        _role("edit", [], _to("admin"), aggregate="edit"),
        _role("view", [], _to("edit"), aggregate="view"),
        _role("system:aggregate-to-admin", [local_review, rbac], _to("admin")),
        _role("system:aggregate-to-edit", [*core_edit, nets], _to("edit")),
        _role("system:aggregate-to-view", core_view, _to("view")),
        _role("kubevirt.io:admin", _kubevirt_rules(all_verbs, use=True), _to("admin")),
        _role("kubevirt.io:edit", _kubevirt_rules(all_verbs, use=True), _to("edit")),
        _role("kubevirt.io:view", _kubevirt_rules(_READ, use=False), _to("view")),
        _role("backup.stead.io:admin", _backup_rules(all_verbs), _to("admin")),
        _role("backup.stead.io:edit", _backup_rules(all_verbs), _to("edit")),
        _role("backup.stead.io:view", _backup_rules(_READ), _to("view")),
        _role("kubevirt.io:default", [_rule([_SUB], ["version", "guestfs"], ["get", "list"])]),
        _role("kubevirt.io:migrate", migrate),
        _role("instancetype.kubevirt.io:view", [_rule(["instancetype.kubevirt.io"], _TYPES, _READ)]),
        _role("cdi.kubevirt.io:admin", _cdi_rules(all_verbs, upload=True), _to("admin")),
        _role("cdi.kubevirt.io:edit", _cdi_rules(all_verbs, upload=True), _to("edit")),
        _role("cdi.kubevirt.io:view", _cdi_rules(_READ, upload=False), _to("view")),
    ]  # fmt: skip


def default_bindings() -> list[Object]:
    """All ClusterRoleBindings that must exist."""
    pairs = (
        ("cluster-admin", "cluster-admin", "system:masters"),
        ("system:discovery", "system:discovery", "system:authenticated"),
        ("system:basic-user", "system:basic-user", "system:authenticated"),
        ("system:public-info-viewer", "system:public-info-viewer", "system:authenticated"),
        ("kubevirt.io:default", "kubevirt.io:default", "system:authenticated"),
        ("instancetype.kubevirt.io:view", "instancetype.kubevirt.io:view", "system:authenticated"),
    )
    group = "rbac.authorization.k8s.io"
    return [
        {
            "apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name, "labels": dict(_LABELS), "annotations": dict(_ANNOTATIONS)},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": group, "kind": "Group", "name": subject}],
        }
        for name, role, subject in pairs
    ]  # fmt: skip


def image_roles() -> list[Object]:
    """The Role and RoleBinding by which everybody may make machines from the shared images."""
    group = "rbac.authorization.k8s.io"
    name = "os-images.stead.io:view"
    metadata = {"name": name, "namespace": IMAGES_NAMESPACE, "labels": dict(_LABELS), "annotations": dict(_ANNOTATIONS)}
    rules = [
        _rule(["cdi.kubevirt.io"], ["datasources", "datavolumes", "dataimportcrons"], _READ),
        _rule(["cdi.kubevirt.io"], ["datavolumes/source"], ["create"]),
    ]
    return [
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"apiGroup": group, "kind": "Group", "name": "system:authenticated"}],
        },
    ]  # fmt: skip


async def ensure_defaults(verbs: LocalVerbs) -> None:
    """Make the namespaces, roles and bindings that are missing and restore rules of default roles that were changed."""
    for name in NAMESPACES:
        await _ensure(verbs, register.NAMESPACE, {"metadata": {"name": name}})
    for role in with_aggregation(default_roles()):
        # The rules of an aggregated role, to which users add, are kept by its controller.
        fields = ("aggregationRule",) if is_aggregated(role) else ("rules", "aggregationRule")
        await _ensure(verbs, register.CLUSTER_ROLE, role, fields)
    for binding in default_bindings():
        await _ensure(verbs, register.CLUSTER_ROLE_BINDING, binding, ("subjects",))
    for priority in system_classes():
        await _ensure(verbs, register.PRIORITY_CLASS, priority)
    for definition in custom_resource_definitions(schema_from_struct):
        await _ensure(verbs, register.CUSTOM_RESOURCE_DEFINITION, definition, ("spec",))
        await _ensure(verbs, register.CUSTOM_RESOURCE_DEFINITION, definition, ("status",), "status")


def with_aggregation(roles: list[Object]) -> list[Object]:
    """Roles with the rules that they aggregate written out, so that readers see them."""
    filled = {role["metadata"]["name"]: role for role in roles}
    for name in ("view", "edit", "admin"):  # each may be part of the next
        filled[name] = {**filled[name], "rules": aggregated_rules(filled[name], filled.values())}
    return list(filled.values())


async def _ensure(
    verbs: LocalVerbs, resource: Resource, wanted: Object, fields: tuple[str, ...] = (), subresource: str = ""
) -> None:
    try:
        found = await verbs.get(resource, "", wanted["metadata"]["name"])
    except ApiError as error:
        if error.reason != "NotFound":
            raise
        await verbs.create(resource, wanted)
        return
    changed = {field: wanted[field] for field in fields if found.get(field) != wanted.get(field) and field in wanted}
    if changed:
        await verbs.update(resource, {**found, **changed}, subresource)
