"""Built-in kinds as Go's types read and print them, where a schema cannot say it.

Called by `verbs` on every write of a built-in kind, after types and unknown fields are checked and before the managed
fields are made: what Go leaves out belongs to nobody. Empty fields go, times and zero values that Go always prints
come, quantities get their canonical text, bytes must be base64 and times must parse. Pure; the input is not changed.
Texts follow a recorded kube-apiserver 1.36.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any

from stead.kinds.resource import Resource
from stead.kube import quantity
from stead.kube.errors import ApiError

Object = dict[str, Any]

#: fields that Go leaves out when they are empty
_OMIT_EMPTY: dict[str, tuple[str, ...]] = {
    "ConfigMap": ("data", "binaryData"),
    "Secret": ("data", "stringData"),
    "Namespace": ("status",),
    "ServiceAccount": ("secrets", "imagePullSecrets"),
    "RoleBinding": ("subjects",),
    "ClusterRoleBinding": ("subjects",),
}
_ZERO_NODE_INFO = dict.fromkeys((
    "machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion", "kubeletVersion",
    "kubeProxyVersion", "operatingSystem", "architecture",
), "")  # fmt: skip
#: times of a condition that are printed even when unset
_CONDITION_TIMES: dict[str, tuple[str, ...]] = {
    "Namespace": ("lastTransitionTime",),
    "Node": ("lastHeartbeatTime", "lastTransitionTime"),
    "PersistentVolumeClaim": ("lastProbeTime", "lastTransitionTime"),
}
#: where quantities stand: paths to maps of them
_QUANTITIES: dict[str, tuple[tuple[str, ...], ...]] = {
    "PersistentVolumeClaim": (
        ("spec", "resources", "requests"), ("spec", "resources", "limits"), ("status", "capacity"),
        ("status", "allocatedResources"),
    ),
    "PersistentVolume": (("spec", "capacity"),),
    "Node": (("status", "capacity"), ("status", "allocatable")),
}  # fmt: skip
_MICRO_TIMES: dict[str, tuple[str, ...]] = {"Lease": ("acquireTime", "renewTime")}
_MICRO_LAYOUT = "2006-01-02T15:04:05.000000Z07:00"
#: the parts of that layout, each with what it must match, in order
_MICRO_PARTS = (
    ("2006", r"\d{4}"), ("-", "-"), ("01", r"\d\d"), ("-", "-"), ("02", r"\d\d"), ("T", "T"), ("15", r"\d\d"),
    (":", ":"), ("04", r"\d\d"), (":", ":"), ("05", r"\d\d"), (".000000", r"\.\d{6}(?!\d)"),
    ("Z07:00", r"Z|[+-]\d\d:\d\d"),
)  # fmt: skip


#: what Go fills in while it reads: it belongs to the writer
_DEFAULTS: dict[str, Object] = {"Secret": {"type": "Opaque"}, "StorageClass": {
    "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate",
}}  # fmt: skip
_SPEC_DEFAULTS: dict[str, Object] = {
    "PersistentVolumeClaim": {"volumeMode": "Filesystem"},
    "PersistentVolume": {"volumeMode": "Filesystem", "persistentVolumeReclaimPolicy": "Retain"},
}


def as_typed(resource: Resource, obj: Object) -> Object:
    """The object as Go would print it. Raises 400 for what Go could not read."""
    kind = resource.kind
    obj = {key: value for key, value in obj.items() if value or key not in _OMIT_EMPTY.get(kind, ())}
    for field in _MICRO_TIMES.get(kind, ()):
        _check_micro_time(resource, (obj.get("spec") or {}).get(field))
    for path in _QUANTITIES.get(kind, ()):
        obj = _with_canonical(resource, obj, path)
    obj = {**obj, **{k: v for k, v in _DEFAULTS.get(kind, {}).items() if not obj.get(k)}}
    missing = {k: v for k, v in _SPEC_DEFAULTS.get(kind, {}).items() if not (obj.get("spec") or {}).get(k)}
    if missing:
        obj = {**obj, "spec": {**(obj.get("spec") or {}), **missing}}
    special = _SPECIAL.get(kind)
    if special is not None:
        obj = special(resource, obj)
    status = obj.get("status")
    if isinstance(status, dict) and status.get("conditions") and kind in _CONDITION_TIMES:
        times = dict.fromkeys(_CONDITION_TIMES[kind])
        conditions = [{**times, **condition} for condition in status["conditions"]]
        obj = {**obj, "status": {**status, "conditions": conditions}}
    return obj


def unreadable(resource: Resource, why: str) -> ApiError:
    """400 for a body that is no object of its kind."""
    kind = resource.kind
    return ApiError("BadRequest", f'{kind} in version "{resource.version}" cannot be handled as a {kind}: {why}')


def _check_micro_time(resource: Resource, text: Any) -> None:
    if not isinstance(text, str):
        return
    rest = text
    for part, pattern in _MICRO_PARTS:
        found = re.match(pattern, rest)
        if found is None:
            shown = f'parsing time "{text}" as "{_MICRO_LAYOUT}": cannot parse "{rest}" as "{part}"'
            raise unreadable(resource, shown)
        rest = rest[found.end() :]
    if rest:
        raise unreadable(resource, f'parsing time "{text}": extra text: "{rest}"')


def _with_canonical(resource: Resource, obj: Object, path: tuple[str, ...]) -> Object:
    key, *rest = path
    inner = obj.get(key)
    if not isinstance(inner, dict):
        return obj
    if rest:
        return {**obj, key: _with_canonical(resource, inner, tuple(rest))}
    try:
        return {**obj, key: {name: quantity.canonical(value) for name, value in inner.items()}}
    except ValueError as error:
        raise unreadable(resource, str(error)) from error


def _secret(resource: Resource, obj: Object) -> Object:
    data: Object = obj.get("data") or {}
    for value in data.values():
        _check_base64(resource, value or "")
    text = obj.get("stringData")
    if not isinstance(text, dict):
        return obj
    encoded = {key: base64.b64encode(str(value).encode()).decode() for key, value in text.items()}
    return {**{k: v for k, v in obj.items() if k != "stringData"}, "data": {**data, **encoded}}


def _config_map(resource: Resource, obj: Object) -> Object:
    for value in (obj.get("binaryData") or {}).values():
        _check_base64(resource, value or "")
    return obj


def _check_base64(resource: Resource, text: str) -> None:
    """Go's decoder names the byte at which it stops; line breaks are let through."""
    bare = text.replace("\n", "").replace("\r", "")
    good = re.match(r"[A-Za-z0-9+/]*", bare)
    length = good.end() if good else 0
    try:
        base64.b64decode(bare, validate=True)
    except (binascii.Error, ValueError) as error:
        # A body that ends too early is noticed at its last incomplete group.
        at = length if length < len(bare) and bare[length] != "=" else length - length % 4 or length
        raise unreadable(resource, f"illegal base64 data at input byte {at}") from error


def _namespace(_resource: Resource, obj: Object) -> Object:
    metadata = obj["metadata"]
    if not metadata.get("name"):
        return obj
    labels = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata["name"]}
    return {**obj, "metadata": {**metadata, "labels": labels}}


def _role(_resource: Resource, obj: Object) -> Object:
    return {**obj, "rules": obj.get("rules") or None}


def _node(_resource: Resource, obj: Object) -> Object:
    status: Object = obj.get("status") or {}
    ports = {"kubeletEndpoint": {"Port": 0}} | (status.get("daemonEndpoints") or {})
    info = _ZERO_NODE_INFO | (status.get("nodeInfo") or {})
    status = {**status, "daemonEndpoints": ports, "nodeInfo": info}
    return {**obj, "spec": obj.get("spec") or {}, "status": status}


def _claim(_resource: Resource, obj: Object) -> Object:
    """`dataSource` and `dataSourceRef` say the same; a reference of an empty group prints it as null."""
    spec = dict(obj.get("spec") or {})
    old, new = spec.get("dataSource"), spec.get("dataSourceRef")
    if old and not new:
        if old.get("apiGroup") or old.get("kind") == "PersistentVolumeClaim":
            spec["dataSourceRef"] = {"apiGroup": None, **old}
            spec["dataSource"] = {"apiGroup": None, **old}
        else:
            # Nothing could fill a volume from it: the original drops it.
            del spec["dataSource"]
    elif new and not old and not new.get("namespace"):
        spec["dataSource"] = {"apiGroup": None, **new}
        spec["dataSourceRef"] = {"apiGroup": None, **new}
    return {**obj, "spec": spec}


def _volume(_resource: Resource, obj: Object) -> Object:
    path = (obj.get("spec") or {}).get("hostPath")
    if not isinstance(path, dict):
        return obj
    return {**obj, "spec": {**obj["spec"], "hostPath": {**path, "type": path.get("type") or ""}}}


_SPECIAL: dict[str, Callable[[Resource, Object], Object]] = {
    "Namespace": _namespace,
    "Secret": _secret,
    "ConfigMap": _config_map,
    "Role": _role,
    "ClusterRole": _role,
    "Node": _node,
    "PersistentVolumeClaim": _claim,
    "PersistentVolume": _volume,
}
