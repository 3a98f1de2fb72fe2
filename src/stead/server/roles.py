"""The roles that every installation has, and the objects that must be there before anybody asks.

Called by `api` at every start through `ensure_defaults`: what is missing is made, what was changed in
default roles gets its rules back (R1). Names, aggregation labels and rules follow Kubernetes' and KubeVirt's own.
"""

from __future__ import annotations

from typing import Any

from stead.kinds import register
from stead.kinds.aggregation import aggregated_rules, is_aggregated
from stead.kinds.crds import custom_resource_definitions
from stead.kinds.joins import GROUP as JOIN_GROUP
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

#: how often a default is looked at again that another plane has just made or changed
_TRIES = 5

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
_ALL = [*_WRITE, *_READ]
_EDIT = [verb for verb in _ALL if verb != "deletecollection"]
#: subresources by what they do: told to who views, opened or changed by who edits
_INSTANCE_TOLD = ["guestosinfo", "filesystemlist", "userlist", "objectgraph", "sev/fetchcertchain",
                  "sev/querylaunchmeasurement"]  # fmt: skip
_INSTANCE_OPENED = ["console", "vnc", "portforward", "usbredir"]
_INSTANCE_CHANGED = [
    "pause", "unpause", "addvolume", "removevolume", "freeze", "unfreeze", "softreboot", "reset", "evacuate/cancel",
    "sev/setupsession", "sev/injectlaunchsecret",
]  # fmt: skip
_MACHINE_TOLD = ["expand-spec", "objectgraph"]
_MACHINE_CHANGED = [
    "start", "stop", "restart", "addvolume", "removevolume", "memorydump", "removememorydump", "evacuate/cancel",
]  # fmt: skip
_CLUSTER_TYPES = ["virtualmachineclusterinstancetypes", "virtualmachineclusterpreferences"]
#: KubeVirt's kinds that who edits writes, by group; kinds that are not served are here too, as upstream has them
_OWNED = {
    "kubevirt.io": ["virtualmachines", "virtualmachineinstances", "virtualmachineinstancepresets",
                    "virtualmachineinstancereplicasets"],
    "instancetype.kubevirt.io": ["virtualmachineinstancetypes", "virtualmachinepreferences", *_CLUSTER_TYPES],
    "snapshot.kubevirt.io": ["virtualmachinesnapshots", "virtualmachinesnapshotcontents", "virtualmachinerestores"],
    "backup.kubevirt.io": ["virtualmachinebackups", "virtualmachinebackuptrackers"],
    "export.kubevirt.io": ["virtualmachineexports"],
    "clone.kubevirt.io": ["virtualmachineclones"],
    "pool.kubevirt.io": ["virtualmachinepools"],
}  # fmt: skip
_OWN_BACKUPS = ["backuprepositories", "backups", "backupschedules"]
_CDI = ["datavolumes", "datasources", "dataimportcrons", "volumeimportsources", "volumeuploadsources",
        "volumeclonesources"]  # fmt: skip
_CDI_CLUSTER = ["cdiconfigs", "storageprofiles"]


def _of(kind: str, names: list[str]) -> list[str]:
    return [f"{kind}/{name}" for name in names]


def _kubevirt_rules(verbs: list[str]) -> list[Rule]:
    """What all of KubeVirt's three roles have, with these verbs on the kinds that people own."""
    told = [*_of("virtualmachineinstances", _INSTANCE_TOLD), *_of("virtualmachines", _MACHINE_TOLD)]
    return [
        *(_rule([group], plurals, verbs) for group, plurals in _OWNED.items()),
        _rule(["kubevirt.io"], ["virtualmachineinstancemigrations"], _READ),
        _rule(["migrations.kubevirt.io"], ["migrationpolicies"], _READ),
        _rule([_SUB], told, ["get"]),
        _rule([_SUB], ["expand-vm-spec"], ["update"]),
        _rule([_OWN_SUB], ["virtualmachineinstances/stats"], ["get"]),
    ]


def _kubevirt_use() -> list[Rule]:
    """What who edits machines may do to them, beside writing the objects."""
    opened = [*_of("virtualmachineinstances", _INSTANCE_OPENED), "virtualmachines/portforward"]
    changed = [*_of("virtualmachineinstances", _INSTANCE_CHANGED), *_of("virtualmachines", _MACHINE_CHANGED)]
    return [
        _rule([_SUB], opened, ["get"]),
        _rule([_SUB], changed, ["update"]),
        _rule([_OWN_SUB], ["virtualmachineinstances/xml"], ["get"]),
    ]


def _backup_rules(verbs: list[str]) -> list[Rule]:
    return [_rule(["stead.io"], _OWN_BACKUPS, verbs)]


def _cdi_rules(verbs: list[str], upload: bool) -> list[Rule]:
    rules = [_rule(["cdi.kubevirt.io"], _CDI, verbs), _rule(["cdi.kubevirt.io"], ["datavolumes/source"], ["create"])]
    if upload:
        return [*rules, _rule(["upload.cdi.kubevirt.io"], ["uploadtokenrequests"], ["*"])]
    return [*rules, _rule(["cdi.kubevirt.io"], [*_CDI_CLUSTER, "objecttransfers"], _READ)]


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
    kubevirts = _rule(["kubevirt.io"], ["kubevirts"], ["get", "list"])
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
        _role("backup.stead.io:admin", _backup_rules(_ALL), _to("admin")),
        _role("backup.stead.io:edit", _backup_rules(_ALL), _to("edit")),
        _role("backup.stead.io:view", _backup_rules(_READ), _to("view")),
        _role("kubevirt.io:admin", [
            *_kubevirt_rules(_ALL), *_kubevirt_use(),
            _rule([_SUB], ["virtualmachineinstances/vnc/screenshot"], ["get"]),
            _rule(["plugin.kubevirt.io"], ["plugins"], _ALL),
        ], _to("admin")),
        _role("kubevirt.io:edit", [*_kubevirt_rules(_EDIT), *_kubevirt_use(), kubevirts], _to("edit")),
        _role("kubevirt.io:view", [
            *_kubevirt_rules(_READ), kubevirts, _rule(["plugin.kubevirt.io"], ["plugins"], _READ)
        ], _to("view")),
        _role("kubevirt.io:default", [_rule([_SUB], ["version", "guestfs"], ["get", "list"]), kubevirts]),
        _role("kubevirt.io:migrate", migrate),
        _role("instancetype.kubevirt.io:view", [_rule(["instancetype.kubevirt.io"], _CLUSTER_TYPES, _READ)]),
        _role("cdi.kubevirt.io:admin", _cdi_rules(["*"], upload=True), _to("admin")),
        _role("cdi.kubevirt.io:edit", _cdi_rules(["*"], upload=True), _to("edit")),
        _role("cdi.kubevirt.io:view", _cdi_rules(_READ, upload=False), _to("view")),
        *(
            _role(f"stead.io:volumesnapshots:{who}", [_rule(["snapshot.storage.k8s.io"], ["volumesnapshots"], verbs)],
                  _to(who))
            for who, verbs in (("edit", _ALL), ("view", _READ))
        ),
        _role("cdi.kubevirt.io:config-reader", [_rule(["cdi.kubevirt.io"], _CDI_CLUSTER, _READ)]),
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
        ("cdi.kubevirt.io:config-reader", "cdi.kubevirt.io:config-reader", "system:authenticated"),
        ("system:node-bootstrapper", "system:node-bootstrapper", JOIN_GROUP),
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
    for _ in range(_TRIES):
        try:
            await _ensure_once(verbs, resource, wanted, fields, subresource)
            return
        except ApiError as error:
            if error.code != 409:  # else another plane does the same at this moment
                raise


async def _ensure_once(
    verbs: LocalVerbs, resource: Resource, wanted: Object, fields: tuple[str, ...], subresource: str
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
