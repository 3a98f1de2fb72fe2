"""What a claim and a volume must say, and what of them may change.

Called by `core_rules` (defaults, causes) and `verbs` (`check_resize`, which needs to know the class). Pure: objects in,
objects and causes out. Texts follow a recorded kube-apiserver 1.36; a specification that may not change is compared in
Go's names, as there.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube import meta, quantity
from stead.kube.errors import ApiError, cause

Object = dict[str, Any]
Causes = list[dict[str, str]]

_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
_POLICIES = ("Delete", "Recycle", "Retain")
_FROZEN_CLAIM = (
    "Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound "
    "claims"
)
#: where a volume may be, in the order in which Go lists the fields
_SOURCES = {
    "gcePersistentDisk": "GCEPersistentDisk", "awsElasticBlockStore": "AWSElasticBlockStore", "hostPath": "HostPath",
    "glusterfs": "Glusterfs", "nfs": "NFS", "rbd": "RBD", "quobyte": "Quobyte", "iscsi": "ISCSI",
    "flexVolume": "FlexVolume", "cinder": "Cinder", "cephfs": "CephFS", "fc": "FC", "flocker": "Flocker",
    "azureFile": "AzureFile", "vsphereVolume": "VsphereVolume", "azureDisk": "AzureDisk",
    "photonPersistentDisk": "PhotonPersistentDisk", "portworxVolume": "PortworxVolume", "scaleIO": "ScaleIO",
    "local": "Local", "storageos": "StorageOS", "csi": "CSI",
}  # fmt: skip


# --- claims -----------------------------------------------------------------------------------------------------


def claim_defaults(obj: Object, old: Object | None) -> Object:
    """A claim with its defaults."""
    if old is None:
        obj["status"] = {"phase": "Pending"}
        obj["metadata"] = _with_finalizer(obj["metadata"], "kubernetes.io/pvc-protection")
    return obj


def claim_causes(obj: Object, old: Object | None) -> Causes:
    """Causes for what breaks a rule of claims."""
    spec = obj.get("spec") or {}
    causes: Causes = []
    if not spec.get("accessModes"):
        text = "Required value: at least 1 access mode is required"
        causes.append(cause("spec.accessModes", text, "FieldValueRequired"))
    causes += _mode_causes(spec)
    asked = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    if asked is None:
        causes.append(cause("spec.resources[storage]", "Required value", "FieldValueRequired"))
    elif _amount(asked) <= 0:
        text = f"Invalid value: {meta.go_quote(str(asked))}: must be greater than zero"
        causes.append(cause("spec.resources[storage]", text))
    if old is not None:
        causes += _claim_change_causes(obj, old)
    return causes


def _claim_change_causes(obj: Object, old: Object) -> Causes:
    """A claim's size changes once it is bound; its volume and its class may be named once."""
    before, after = dict(old.get("spec") or {}), dict(obj.get("spec") or {})
    asked, had = _storage(after), _storage(before)
    if not before.get("volumeName"):
        before["volumeName"] = after.get("volumeName")
    if not before.get("storageClassName"):
        before["storageClassName"] = after.get("storageClassName")
    if (obj.get("status") or {}).get("phase") == "Bound":
        before["volumeAttributesClassName"] = after.get("volumeAttributesClassName")
        if had is not None:
            resources = after.get("resources") or {}
            requests = {**(resources.get("requests") or {}), "storage": had}
            after["resources"] = {**resources, "requests": requests}
    causes: Causes = []
    if _go_claim(before) != _go_claim(after):
        text = f"{_FROZEN_CLAIM}\n{_difference(_go_claim(before), _go_claim(after))}"
        causes.append(cause("spec", text, "FieldValueForbidden"))
    held = ((old.get("status") or {}).get("capacity") or {}).get("storage")
    if asked is not None and had is not None and _amount(asked) < _amount(had) and _amount(asked) <= _amount(held or 0):
        text = "Forbidden: field can not be less than status.capacity"
        causes.append(cause("spec.resources.requests.storage", text, "FieldValueForbidden"))
    return causes


def check_resize(resource: Resource, obj: Object, old: Object | None, peek: Callable[..., Object | None]) -> None:
    """A bound claim grows only where its class allows that. `peek` finds a class. Raises 403."""
    if resource is not register.PERSISTENT_VOLUME_CLAIM or old is None:
        return
    spec = obj.get("spec") or {}
    asked, had = _storage(spec), _storage(old.get("spec") or {})
    if asked is None or had is None or _amount(asked) <= _amount(had):
        return
    found = peek(register.STORAGE_CLASS, "", spec.get("storageClassName") or "")
    if found is None or not found.get("allowVolumeExpansion"):
        name = obj["metadata"]["name"]
        text = (
            f'persistentvolumeclaims "{name}" is forbidden: only dynamically provisioned pvc can be resized and the '
            "storageclass that provisions the pvc must support resize"
        )
        raise ApiError("Forbidden", text, {"name": name, "kind": "persistentvolumeclaims"})


def _storage(spec: Object) -> Any:
    return ((spec.get("resources") or {}).get("requests") or {}).get("storage")


def _mode_causes(spec: Object) -> Causes:
    listed = ", ".join(f'"{name}"' for name in _MODES)
    return [
        cause(
            "spec.accessModes",
            f"Unsupported value: {meta.go_quote(mode)}: supported values: {listed}",
            "FieldValueNotSupported",
        )
        for mode in spec.get("accessModes") or []
        if mode not in _MODES
    ]


def _amount(text: Any) -> Fraction:
    """A quantity as a number. Raises 400 in the API server's words."""
    try:
        return quantity.parse(str(text)).value
    except ValueError as error:
        kind = "PersistentVolumeClaim"
        text = f'{kind} in version "v1" cannot be handled as a {kind}: {error}'
        raise ApiError("BadRequest", text) from error


# --- volumes ----------------------------------------------------------------------------------------------------


def volume_defaults(obj: Object, old: Object | None) -> Object:
    """A volume with its defaults."""
    if old is None:
        obj["status"] = {"phase": "Pending", "lastPhaseTransitionTime": meta.now()}
        obj["metadata"] = _with_finalizer(obj["metadata"], "kubernetes.io/pv-protection")
    return obj


def volume_causes(obj: Object, old: Object | None) -> Causes:
    """Causes for what breaks a rule of volumes."""
    spec = obj.get("spec") or {}
    causes: Causes = []
    if not spec.get("accessModes"):
        causes.append(cause("spec.accessModes", "Required value", "FieldValueRequired"))
    causes += _mode_causes(spec) + _capacity_causes(spec.get("capacity"))
    policy = spec.get("persistentVolumeReclaimPolicy") or "Retain"
    if policy not in _POLICIES:
        listed = ", ".join(f'"{name}"' for name in _POLICIES)
        text = f"Unsupported value: {meta.go_quote(policy)}: supported values: {listed}"
        causes.append(cause("spec.persistentVolumeReclaimPolicy", text, "FieldValueNotSupported"))
    named = [name for name in _SOURCES if spec.get(name) is not None]
    for name in named[1:]:
        text = "Forbidden: may not specify more than 1 volume type"
        causes.append(cause(f"spec.{name}", text, "FieldValueForbidden"))
    if not named:
        causes.append(cause("spec", "Required value: must specify a volume type", "FieldValueRequired"))
    if old is not None:
        causes += _volume_change_causes(spec, old.get("spec") or {})
    return causes


def _volume_change_causes(spec: Object, before: Object) -> Causes:
    causes: Causes = []
    was, now = _go_source(before), _go_source(spec)
    if was != now:
        text = f"Forbidden: spec.persistentvolumesource is immutable after creation\n{_difference(was, now)}"
        causes.append(cause("spec.persistentvolumesource", text, "FieldValueForbidden"))
    if (before.get("volumeMode") or "Filesystem") != (spec.get("volumeMode") or "Filesystem"):
        text = f"Invalid value: {meta.go_quote(spec.get('volumeMode') or '')}: field is immutable"
        causes.append(cause("volumeMode", text))
    return causes


def _capacity_causes(capacity: Any) -> Causes:
    causes: Causes = []
    if not capacity:
        causes.append(cause("spec.capacity", "Required value", "FieldValueRequired"))
    if not capacity or set(capacity) != {"storage"}:
        shown = json.dumps(capacity or None, separators=(",", ":"))
        text = f'Unsupported value: {shown}: supported values: "storage"'
        causes.append(cause("spec.capacity", text, "FieldValueNotSupported"))
    for name, value in (capacity or {}).items():
        if _amount(value) <= 0:
            text = f"Invalid value: {meta.go_quote(str(value))}: must be greater than zero"
            causes.append(cause(f"spec.capacity[{name}]", text))
    return causes


def _with_finalizer(metadata: Object, name: str) -> Object:
    finalizers = list(metadata.get("finalizers") or [])
    return metadata if name in finalizers else {**metadata, "finalizers": [*finalizers, name]}


# --- as Go prints them ------------------------------------------------------------------------------------------


def _go_claim(spec: Object) -> Object:
    resources = spec.get("resources") or {}
    return {
        "AccessModes": spec.get("accessModes"), "Selector": _go(spec.get("selector")),
        "Resources": {"Limits": resources.get("limits"), "Requests": resources.get("requests")},
        "VolumeName": spec.get("volumeName") or "", "StorageClassName": spec.get("storageClassName"),
        "VolumeMode": spec.get("volumeMode"), "DataSource": _go(spec.get("dataSource")),
        "DataSourceRef": _go(spec.get("dataSourceRef")),
        "VolumeAttributesClassName": spec.get("volumeAttributesClassName"),
    }  # fmt: skip


def _go_source(spec: Object) -> Object:
    return {title: _go(spec.get(name)) for name, title in _SOURCES.items()}


def _go(value: Any) -> Any:
    """A value with the names that Go gives the fields, near enough."""
    if isinstance(value, dict):
        return {name[:1].upper() + name[1:]: _go(inner) for name, inner in value.items()}
    return [_go(inner) for inner in value] if isinstance(value, list) else value


def _difference(before: Object, after: Object) -> str:
    was, now = (json.dumps(value, indent=1, ensure_ascii=False).splitlines() for value in (before, after))
    return "".join(f"{line}\n" for line in [*difflib.unified_diff(was, now, lineterm="")][2:])
