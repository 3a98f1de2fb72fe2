"""What `kubectl get` prints: the columns of each kind, and the cells of an object.

The server's table renderer calls `table_columns` once for a list and `cells` for every object. Columns of custom kinds
are JSON paths; those of built-in kinds are computed here, as kubectl's users know them. Pure: time is a parameter, and
no object is changed. Sources: recorded Tables of Kubernetes 1.36; apiextensions' table conversion.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import Any

from stead.kinds.resource import Column, Resource
from stead.kube.meta import first_at, parse_time, scalar_text

Object = dict[str, Any]
Cells = Callable[[Object, datetime.datetime], list[Any]]

NAME = Column("Name", "string", ".metadata.name", format="name")
AGE = Column("Age", "date", ".metadata.creationTimestamp")
CREATED_AT = Column("Created At", "date", "")


def table_columns(resource: Resource) -> tuple[Column, ...]:
    """All columns of the kind, the name among them. A kind that declares none shows name and age."""
    if (resource.group, resource.kind) in _EVENTS:
        return _EVENT_COLUMNS
    return (NAME, *(resource.columns or (AGE,)))


def cells(resource: Resource, obj: Object, now: datetime.datetime) -> list[Any]:
    """The cells of one object, in the order of `table_columns`. `now` must be aware (UTC)."""
    computed = _COMPUTED.get((resource.group, resource.kind))
    if computed:
        return computed(obj, now)
    return [_cell(column, obj, now) for column in table_columns(resource)]


def _cell(column: Column, obj: Object, now: datetime.datetime) -> Any:
    """A cell by JSON path: None when the path names nothing, or a value of another type."""
    try:
        value = first_at(obj, column.path)
    except ValueError:  # a path of a user's definition that we cannot read shows nothing
        return None
    if value is None:
        return None
    match column.type:
        case "string":
            return scalar_text(value)
        case "integer":
            return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        case "number":
            return value if isinstance(value, int | float) and not isinstance(value, bool) else None
        case "boolean":
            return value if isinstance(value, bool) else None
        case "date":
            return _age_of(value, now)
    return None


# --- ages -------------------------------------------------------------------------------------------------------


def human_duration(seconds: float) -> str:
    """A duration as kubectl writes it, two units at most: 90s, 5m10s, 3h, 2d5h, 400d. Negative: `<invalid>`."""
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    if whole < 120:
        return f"{max(whole, 0)}s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 10:
        return _two_units(minutes, "m", whole % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two_units(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two_units(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    years = days // 365
    return _two_units(years, "y", days % 365, "d") if years < 8 else f"{years}y"


def _two_units(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}{small}{small_unit}" if small else f"{large}{large_unit}"


def _age_of(timestamp: Any, now: datetime.datetime) -> str:
    if not timestamp:
        return "<unknown>"
    try:
        return human_duration((now - parse_time(str(timestamp))).total_seconds())
    except ValueError:
        return "<invalid>"


# --- built-in kinds ---------------------------------------------------------------------------------------------


def _columns(*names: str, wide: Iterable[str] = (), types: dict[str, str] | None = None) -> tuple[Column, ...]:
    """Computed columns after the name; `wide` ones show with `-o wide` only."""
    types = types or {}
    return tuple(Column(n, types.get(n, "string"), "", 0) for n in names) + tuple(
        Column(n, types.get(n, "string"), "", 1) for n in wide
    )


_DATED = {"Created At": "date"}
_EVENTS = {("", "Event"), ("events.k8s.io", "Event")}
_EVENT_COLUMNS = (
    Column("Last Seen", "string", ""),
    Column("Type", "string", ""),
    Column("Reason", "string", ""),
    Column("Object", "string", ""),
    Column("Subobject", "string", "", 1),
    Column("Source", "string", "", 1),
    Column("Message", "string", ""),
    Column("First Seen", "string", "", 1),
    Column("Count", "string", "", 1),
    Column("Name", "string", ".metadata.name", 1, "name"),
)
_BINDING_COLUMNS = _columns("Role", "Age", wide=("Users", "Groups", "ServiceAccounts"))

#: columns after the name of every built-in kind that has a table of its own, by (group, kind)
BUILTIN_COLUMNS: dict[tuple[str, str], tuple[Column, ...]] = {
    ("", "Namespace"): _columns("Status", "Age"),
    ("", "Secret"): _columns("Type", "Data", "Age"),
    ("", "ConfigMap"): _columns("Data", "Age"),
    ("", "ServiceAccount"): _columns("Age"),
    ("", "ResourceQuota"): _columns("Request", "Limit", "Age"),
    ("", "LimitRange"): _columns("Created At", types=_DATED),
    ("scheduling.k8s.io", "PriorityClass"): _columns(
        "Value", "Global-Default", "Age", "PreemptionPolicy", types={"Value": "integer", "Global-Default": "boolean"}
    ),
    ("", "Node"): _columns(
        "Status",
        "Roles",
        "Age",
        "Version",
        wide=("Internal-IP", "External-IP", "OS-Image", "Kernel-Version", "Container-Runtime"),
    ),
    ("", "PersistentVolumeClaim"): _columns(
        "Status",
        "Volume",
        "Capacity",
        "Access Modes",
        "StorageClass",
        "VolumeAttributesClass",
        "Age",
        wide=("VolumeMode",),
    ),
    ("", "PersistentVolume"): _columns(
        "Capacity",
        "Access Modes",
        "Reclaim Policy",
        "Status",
        "Claim",
        "StorageClass",
        "VolumeAttributesClass",
        "Reason",
        "Age",
        wide=("VolumeMode",),
    ),
    ("storage.k8s.io", "StorageClass"): _columns(
        "Provisioner",
        "ReclaimPolicy",
        "VolumeBindingMode",
        "AllowVolumeExpansion",
        "Age",
        types={"AllowVolumeExpansion": "boolean"},
    ),
    ("rbac.authorization.k8s.io", "Role"): _columns("Created At", types=_DATED),
    ("rbac.authorization.k8s.io", "ClusterRole"): _columns("Created At", types=_DATED),
    ("rbac.authorization.k8s.io", "RoleBinding"): _BINDING_COLUMNS,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _BINDING_COLUMNS,
    ("coordination.k8s.io", "Lease"): _columns("Holder", "Age"),
    ("apps", "ControllerRevision"): _columns("Controller", "Revision", "Age", types={"Revision": "integer"}),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _columns("Created At", types=_DATED),
    ("", "Event"): _EVENT_COLUMNS,
    ("events.k8s.io", "Event"): _EVENT_COLUMNS,
}


def _name(obj: Object) -> str:
    return str(obj.get("metadata", {}).get("name", ""))


def _age(obj: Object, now: datetime.datetime) -> str:
    return _age_of(obj.get("metadata", {}).get("creationTimestamp"), now)


def _spec(obj: Object) -> Object:
    return obj.get("spec") or {}


def _status(obj: Object) -> Object:
    return obj.get("status") or {}


def _phase(obj: Object) -> str:
    """The phase, or Terminating once deletion was asked for."""
    deleting = obj.get("metadata", {}).get("deletionTimestamp")
    return "Terminating" if deleting else str(_status(obj).get("phase", ""))


def _namespace(obj: Object, now: datetime.datetime) -> list[Any]:
    return [_name(obj), _status(obj).get("phase", ""), _age(obj, now)]


def _secret(obj: Object, now: datetime.datetime) -> list[Any]:
    return [_name(obj), obj.get("type", ""), len(obj.get("data") or {}), _age(obj, now)]


def _config_map(obj: Object, now: datetime.datetime) -> list[Any]:
    count = len(obj.get("data") or {}) + len(obj.get("binaryData") or {})
    return [_name(obj), count, _age(obj, now)]


def _name_and_age(obj: Object, now: datetime.datetime) -> list[Any]:
    return [_name(obj), _age(obj, now)]


def _name_and_creation(obj: Object, _now: datetime.datetime) -> list[Any]:
    return [_name(obj), obj.get("metadata", {}).get("creationTimestamp")]


_ROLE_PREFIX = "node-role.kubernetes.io/"


def _node(obj: Object, now: datetime.datetime) -> list[Any]:
    status, labels = _status(obj), obj.get("metadata", {}).get("labels") or {}
    states = [
        "Ready" if c.get("status") == "True" else "NotReady"
        for c in status.get("conditions") or []
        if c.get("type") == "Ready"
    ] or ["Unknown"]
    if _spec(obj).get("unschedulable"):
        states.append("SchedulingDisabled")
    roles = {label.removeprefix(_ROLE_PREFIX) for label in labels if label.startswith(_ROLE_PREFIX)}
    roles |= {value for label, value in labels.items() if label == "kubernetes.io/role" and value}
    info = status.get("nodeInfo") or {}
    return [
        _name(obj),
        ",".join(states),
        ",".join(sorted(roles)) or "<none>",
        _age(obj, now),
        info.get("kubeletVersion", ""),
        _address(status, "InternalIP"),
        _address(status, "ExternalIP"),
        info.get("osImage") or "<unknown>",
        info.get("kernelVersion") or "<unknown>",
        info.get("containerRuntimeVersion") or "<unknown>",
    ]


def _address(status: Object, kind: str) -> str:
    found = (a.get("address", "") for a in status.get("addresses") or [] if a.get("type") == kind)
    return next(found, "<none>")


_SHORT_MODES = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}


def _access_modes(modes: Iterable[str] | None) -> str:
    """Access modes in short, without duplicates, in kubectl's order: RWO,ROX,RWX,RWOP."""
    wanted = set(modes or ())
    return ",".join(short for mode, short in _SHORT_MODES.items() if mode in wanted)


def _claim(obj: Object, now: datetime.datetime) -> list[Any]:
    spec, status = _spec(obj), _status(obj)
    bound = bool(spec.get("volumeName"))
    # Until it is bound, what was asked for would look like what was got; kubectl shows nothing.
    return [
        _name(obj),
        _phase(obj),
        spec.get("volumeName", ""),
        scalar_text((status.get("capacity") or {}).get("storage")) if bound else "",
        _access_modes(status.get("accessModes")) if bound else "",
        spec.get("storageClassName") or "",
        spec.get("volumeAttributesClassName") or "<unset>",
        _age(obj, now),
        spec.get("volumeMode") or "<unset>",
    ]


def _volume(obj: Object, now: datetime.datetime) -> list[Any]:
    spec = _spec(obj)
    claim = spec.get("claimRef") or {}
    return [
        _name(obj),
        scalar_text((spec.get("capacity") or {}).get("storage")),
        _access_modes(spec.get("accessModes")),
        spec.get("persistentVolumeReclaimPolicy", ""),
        _phase(obj),
        f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else "",
        spec.get("storageClassName") or "",
        spec.get("volumeAttributesClassName") or "<unset>",
        _status(obj).get("reason", ""),
        _age(obj, now),
        spec.get("volumeMode") or "<unset>",
    ]


_DEFAULT_CLASS = ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")


def _storage_class(obj: Object, now: datetime.datetime) -> list[Any]:
    annotations = obj.get("metadata", {}).get("annotations") or {}
    is_default = any(annotations.get(key) == "true" for key in _DEFAULT_CLASS)
    return [
        _name(obj) + (" (default)" if is_default else ""),
        obj.get("provisioner", ""),
        obj.get("reclaimPolicy") or "Delete",
        obj.get("volumeBindingMode") or "<unset>",
        bool(obj.get("allowVolumeExpansion")),
        _age(obj, now),
    ]


def _binding(obj: Object, now: datetime.datetime) -> list[Any]:
    role, subjects = obj.get("roleRef") or {}, obj.get("subjects") or []

    def names(kind: str) -> str:
        return ", ".join(s.get("name", "") for s in subjects if s.get("kind") == kind)

    accounts = (f"{s.get('namespace', '')}/{s.get('name', '')}" for s in subjects if s.get("kind") == "ServiceAccount")
    return [
        _name(obj),
        f"{role.get('kind', '')}/{role.get('name', '')}",
        _age(obj, now),
        names("User"),
        names("Group"),
        ", ".join(accounts),
    ]


def _lease(obj: Object, now: datetime.datetime) -> list[Any]:
    return [_name(obj), _spec(obj).get("holderIdentity") or "", _age(obj, now)]


def _revision(obj: Object, now: datetime.datetime) -> list[Any]:
    owner: Object = next((o for o in obj.get("metadata", {}).get("ownerReferences") or [] if o.get("controller")), {})
    group = str(owner.get("apiVersion", "")).rpartition("/")[0]
    kind = str(owner.get("kind", "")).lower()
    controller = f"{kind}.{group}/{owner.get('name')}" if group else f"{kind}/{owner.get('name')}"
    return [_name(obj), controller if owner else "<none>", obj.get("revision", 0), _age(obj, now)]


def _event(obj: Object, now: datetime.datetime) -> list[Any]:
    """Either face of an event: core's fields first, else those of events.k8s.io."""
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    reporter = source.get("component") or obj.get("reportingComponent") or obj.get("reportingController") or ""
    instance = source.get("host") or obj.get("reportingInstance") or ""
    series = obj.get("series") or {}
    first = obj.get("firstTimestamp") or obj.get("deprecatedFirstTimestamp") or obj.get("eventTime")
    last = series.get("lastObservedTime") or obj.get("lastTimestamp") or obj.get("deprecatedLastTimestamp")
    count = series.get("count") or obj.get("count") or obj.get("deprecatedCount") or 1
    kind, name = str(about.get("kind", "")).lower(), about.get("name", "")
    return [
        _age_of(last or first, now),
        obj.get("type", ""),
        obj.get("reason", ""),
        f"{kind}/{name}" if name else kind,
        about.get("fieldPath", ""),
        f"{reporter}, {instance}" if instance else reporter,
        str(obj.get("message") or obj.get("note") or "").strip(),
        _age_of(first, now),
        count,
        _name(obj),
    ]


def _quota(obj: Object, now: datetime.datetime) -> list[Any]:
    hard, used = ((obj.get("status") or {}).get(part) or {} for part in ("hard", "used"))
    shown = {name: f"{name}: {used.get(name, '0')}/{hard[name]}" for name in sorted(hard)}
    limits = ", ".join(text for name, text in shown.items() if name.startswith("limits."))
    return [
        _name(obj),
        ", ".join(t for n, t in shown.items() if not n.startswith("limits.")),
        limits,
        _age(obj, now),
    ]


def _priority_class(obj: Object, now: datetime.datetime) -> list[Any]:
    default, policy = bool(obj.get("globalDefault")), obj.get("preemptionPolicy") or "PreemptLowerPriority"
    return [_name(obj), obj.get("value", 0), default, _age(obj, now), policy]


_COMPUTED: dict[tuple[str, str], Cells] = {
    ("", "Namespace"): _namespace,
    ("", "Secret"): _secret,
    ("", "ConfigMap"): _config_map,
    ("", "ServiceAccount"): _name_and_age,
    ("", "ResourceQuota"): _quota,
    ("", "LimitRange"): _name_and_creation,
    ("scheduling.k8s.io", "PriorityClass"): _priority_class,
    ("", "Node"): _node,
    ("", "PersistentVolumeClaim"): _claim,
    ("", "PersistentVolume"): _volume,
    ("storage.k8s.io", "StorageClass"): _storage_class,
    ("rbac.authorization.k8s.io", "Role"): _name_and_creation,
    ("rbac.authorization.k8s.io", "ClusterRole"): _name_and_creation,
    ("rbac.authorization.k8s.io", "RoleBinding"): _binding,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _binding,
    ("coordination.k8s.io", "Lease"): _lease,
    ("apps", "ControllerRevision"): _revision,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _name_and_creation,
    ("", "Event"): _event,
    ("events.k8s.io", "Event"): _event,
}
