"""Defaults and validation of Kubernetes' own kinds that a schema cannot say.

Called by `verbs` after schema defaults and before validation; KubeVirt's and CDI's kinds have their rules in
`server.admission`. Pure: objects in, objects and causes out. Texts follow a recorded kube-apiserver 1.36 (B1, K1).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube import meta
from stead.kube.encoding import DecodeError, decode_json
from stead.kube.errors import cause
from stead.server import definition_rules, policy_rules, storage_rules

Object = dict[str, Any]
Causes = list[dict[str, str]]

PROTECTED_NAMESPACES = frozenset({"default", "kube-system", "kube-public"})
_SECRET_TOTAL_BYTES = 1024 * 1024
_KEY = re.compile(r"[-._a-zA-Z0-9]+")
_KEY_TEXT = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  "
    "or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)

#: kinds that a PUT may create, and built-in kinds that a PUT must give a resourceVersion
CREATED_BY_PUT = frozenset({"Lease", "Event", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"})
VERSION_REQUIRED = frozenset({"Lease"})
#: kinds whose DELETE answers with the object that went, not a Status
DELETE_RETURNS_OBJECT = frozenset(
    {"ServiceAccount", "PersistentVolumeClaim", "StorageClass", "PersistentVolume", "ResourceQuota"}
)


def name_rule(resource: Resource) -> Callable[[str], list[str]]:
    """The rule that names of a kind obey."""
    if resource.group == register.ROLE.group:
        return meta.path_segment_errors
    return meta.label_name_errors if resource.kind == "Namespace" and resource.builtin else meta.subdomain_errors


def prepare(resource: Resource, obj: Object, old: Object | None) -> Object:
    """A built-in object with its defaults; the input is not changed."""
    obj = dict(obj)
    if resource.edition:
        return obj
    special = _DEFAULTS.get(resource.kind) if resource.builtin else None
    return special(obj, old) if special else obj


def check(resource: Resource, obj: Object, old: Object | None) -> Causes:
    """Causes for what breaks a rule of a built-in kind."""
    special = _CHECKS.get(resource.kind) if resource.builtin else None
    return special(obj, old) if special else []


# --- defaults ---------------------------------------------------------------------------------------------------


def _namespace_defaults(obj: Object, old: Object | None) -> Object:
    if old is None:
        obj["spec"] = {"finalizers": ["kubernetes"]}
        obj["status"] = {"phase": "Active"}
    else:
        obj["spec"] = old.get("spec") or {}
    return obj


def _role_ref_defaults(obj: Object, _old: Object | None) -> Object:
    ref = dict(obj.get("roleRef") or {})
    if ref and not ref.get("apiGroup"):
        ref["apiGroup"] = register.ROLE.group
    if ref:
        obj["roleRef"] = ref
    subjects = []
    for subject in obj.get("subjects") or []:
        subject = dict(subject)
        if subject.get("kind") in ("User", "Group") and not subject.get("apiGroup"):
            subject["apiGroup"] = register.ROLE.group
        subjects.append(subject)
    if subjects:
        obj["subjects"] = subjects
    return obj


def _event_defaults(obj: Object, _old: Object | None) -> Object:
    obj.setdefault("reportingComponent", "")
    obj.setdefault("reportingInstance", "")
    obj.setdefault("source", {})
    for field in ("firstTimestamp", "lastTimestamp", "eventTime"):
        obj.setdefault(field, None)
    return obj


_DEFAULTS: dict[str, Callable[[Object, Object | None], Object]] = {
    "CustomResourceDefinition": definition_rules.prepare,
    "Namespace": _namespace_defaults,
    "PersistentVolumeClaim": storage_rules.claim_defaults,
    "PersistentVolume": storage_rules.volume_defaults,
    "RoleBinding": _role_ref_defaults,
    "ClusterRoleBinding": _role_ref_defaults,
    "Event": _event_defaults,
    "ResourceQuota": policy_rules.quota_defaults,
    "LimitRange": policy_rules.range_defaults,
    "PriorityClass": policy_rules.class_defaults,
}


# --- validation -------------------------------------------------------------------------------------------------


def _immutable(field: str, value: Any) -> dict[str, str]:
    shown = meta.go_quote(value) if isinstance(value, str) else str(value)
    return cause(field, f"Invalid value: {shown}: field is immutable")


def _data_causes(obj: Object, fields: tuple[str, ...]) -> Causes:
    causes: Causes = []
    for field in fields:
        for key in obj.get(field) or {}:
            if len(key) > 253 or key in (".", "..") or not _KEY.fullmatch(key):
                text = _KEY_TEXT
                if len(key) > 253:
                    text = "must be no more than 253 characters"
                elif key in (".", ".."):
                    text = f"must not be '{key}'"
                causes.append(cause(f"{field}[{key}]", f"Invalid value: {meta.go_quote(key)}: {text}"))
    return causes


def _frozen_causes(obj: Object, old: Object | None, fields: tuple[str, ...]) -> Causes:
    """Causes for changes to an object that was made immutable."""
    if old is None or not old.get("immutable"):
        return []
    causes: Causes = []
    if not obj.get("immutable"):
        causes.append(
            cause("immutable", "Forbidden: field is immutable when `immutable` is set", "FieldValueForbidden")
        )
    for field in fields:
        if (obj.get(field) or {}) != (old.get(field) or {}):
            causes.append(cause(field, "Forbidden: field is immutable when `immutable` is set", "FieldValueForbidden"))
    return causes


def _secret_causes(obj: Object, old: Object | None) -> Causes:
    causes = _data_causes(obj, ("data",))
    size = sum(len(base64.b64decode(value or "")) for value in (obj.get("data") or {}).values())
    if size > _SECRET_TOTAL_BYTES:
        text = f"Too long: may not be more than {_SECRET_TOTAL_BYTES} bytes"
        causes.append(cause("data", text, "FieldValueTooLong"))
    if old is not None and obj.get("type") != old.get("type"):
        causes.append(_immutable("type", obj.get("type", "")))
    required = {
        "kubernetes.io/tls": ("tls.crt", "tls.key"),
        "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
        "kubernetes.io/dockercfg": (".dockercfg",),
        "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    }
    kind, data = obj.get("type", ""), obj.get("data") or {}
    for key in required.get(kind, ()):
        if key not in data:
            causes.append(cause(f"data[{key}]", "Required value", "FieldValueRequired"))
        elif key.startswith(".docker"):
            causes += _json_causes(key, data[key])
    if kind == "kubernetes.io/basic-auth" and not {"username", "password"} & set(data):
        for key in ("username", "password"):
            causes.append(cause(f"data[{key}]", "Required value", "FieldValueRequired"))
    account = "kubernetes.io/service-account.name"
    if kind == "kubernetes.io/service-account-token" and not (obj["metadata"].get("annotations") or {}).get(account):
        causes.append(cause(f"metadata.annotations[{account}]", "Required value", "FieldValueRequired"))
    return causes + _frozen_causes(obj, old, ("data",))


def _json_causes(key: str, value: str) -> Causes:
    try:
        decode_json(base64.b64decode(value or ""))
    except DecodeError as error:
        return [cause(f"data[{key}]", f'Invalid value: "<secret contents redacted>": {error}')]
    return []


def _config_map_causes(obj: Object, old: Object | None) -> Causes:
    causes = _data_causes(obj, ("data", "binaryData"))
    for key in obj.get("data") or {}:
        if key in (obj.get("binaryData") or {}):
            text = f"Invalid value: {meta.go_quote(key)}: duplicate of key present in binaryData"
            causes.append(cause(f"data[{key}]", text))
    size = sum(len(str(value).encode()) for value in (obj.get("data") or {}).values())
    size += sum(len(value) * 3 // 4 for value in (obj.get("binaryData") or {}).values())
    if size > _SECRET_TOTAL_BYTES:
        text = f"Too long: may not be more than {_SECRET_TOTAL_BYTES} bytes"
        causes.append(cause("[]", text, "FieldValueTooLong"))
    return causes + _frozen_causes(obj, old, ("data", "binaryData"))


def _namespace_causes(obj: Object, _old: Object | None) -> Causes:
    causes: Causes = []
    for index, finalizer in enumerate((obj.get("spec") or {}).get("finalizers") or []):
        found = meta.validate_finalizers([finalizer])
        causes += [{**item, "field": f"spec.finalizers[{index}]"} for item in found]
    phase = (obj.get("status") or {}).get("phase", "Active")
    deleting = bool(obj["metadata"].get("deletionTimestamp"))
    if deleting and phase != "Terminating":
        text = "may only be 'Terminating' if `deletionTimestamp` is not empty"
        causes.append(cause("status.Phase", f"Invalid value: {meta.go_quote(phase)}: {text}"))
    elif not deleting and phase != "Active":
        text = "may only be 'Active' if `deletionTimestamp` is empty"
        causes.append(cause("status.Phase", f"Invalid value: {meta.go_quote(phase)}: {text}"))
    return causes


def _node_causes(obj: Object, old: Object | None) -> Causes:
    effects = ("NoSchedule", "PreferNoSchedule", "NoExecute")
    causes: Causes = []
    for index, taint in enumerate((obj.get("spec") or {}).get("taints") or []):
        at, key, effect = f"metadata.taints[{index}]", taint.get("key") or "", taint.get("effect") or ""
        why = meta.qualified_name_errors(key)
        causes += [cause(f"{at}.key", f"Invalid value: {meta.go_quote(key)}: {text}") for text in why]
        why = meta.label_value_errors(taint.get("value") or "")
        causes += [cause(f"{at}.value", f"Invalid value: {meta.go_quote(taint['value'])}: {text}") for text in why]
        if not effect:
            causes.append(cause(f"{at}.effect", "Required value", "FieldValueRequired"))
        elif effect not in effects:
            text = f"Unsupported value: {meta.go_quote(effect)}: supported values: " + ", ".join(
                meta.go_quote(name) for name in effects
            )
            causes.append(cause(f"{at}.effect", text, "FieldValueNotSupported"))
    # The original checks a change twice and lists what it finds as often.
    return causes * (1 if old is None else 2)


def _lease_causes(obj: Object, _old: Object | None) -> Causes:
    spec = obj.get("spec") or {}
    causes: Causes = []
    for field in ("leaseDurationSeconds", "leaseTransitions"):
        value, least = spec.get(field), 1 if field == "leaseDurationSeconds" else 0
        if isinstance(value, int) and value < least:
            why = "must be greater than 0" if least else "must be greater than or equal to 0"
            causes.append(cause(f"spec.{field}", f"Invalid value: {value}: {why}"))
    return causes


def _binding_causes(obj: Object, old: Object | None) -> Causes:
    causes: Causes = []
    ref = obj.get("roleRef") or {}
    allowed = ("ClusterRole",) if obj.get("kind") == "ClusterRoleBinding" else ("Role", "ClusterRole")
    if ref.get("kind") not in allowed:
        shown = ", ".join(meta.go_quote(kind) for kind in sorted(allowed))
        text = f"Unsupported value: {meta.go_quote(ref.get('kind', ''))}: supported values: {shown}"
        causes.append(cause("roleRef.kind", text, "FieldValueNotSupported"))
    if not ref.get("name"):
        causes.append(cause("roleRef.name", "Required value", "FieldValueRequired"))
    for index, subject in enumerate(obj.get("subjects") or []):
        if not subject.get("name"):
            causes.append(cause(f"subjects[{index}].name", "Required value", "FieldValueRequired"))
        if subject.get("kind") == "ServiceAccount" and not subject.get("namespace"):
            causes.append(cause(f"subjects[{index}].namespace", "Required value", "FieldValueRequired"))
    if old is not None and old.get("roleRef") != obj.get("roleRef"):
        shown = (
            "rbac.RoleRef{"
            + ", ".join(
                f'{name}:"{ref.get(key, "")}"'
                for name, key in (("APIGroup", "apiGroup"), ("Kind", "kind"), ("Name", "name"))
            )
            + "}"
        )
        causes.append(cause("roleRef", f"Invalid value: {shown}: cannot change roleRef"))
    return causes


def _role_causes(obj: Object, _old: Object | None) -> Causes:
    causes: Causes = []
    for index, rule in enumerate(obj.get("rules") or []):
        at = f"rules[{index}]"
        if not rule.get("verbs"):
            text = "Required value: verbs must contain at least one value"
            causes.append(cause(f"{at}.verbs", text, "FieldValueRequired"))
        if rule.get("nonResourceURLs"):
            if obj.get("kind") == "Role":
                text = "Invalid value: namespaced rules cannot apply to non-resource URLs"
                causes.append(cause(f"{at}.nonResourceURLs", text))
            continue
        if not rule.get("apiGroups"):
            text = "Required value: resource rules must supply at least one api group"
            causes.append(cause(f"{at}.apiGroups", text, "FieldValueRequired"))
        if not rule.get("resources"):
            text = "Required value: resource rules must supply at least one resource"
            causes.append(cause(f"{at}.resources", text, "FieldValueRequired"))
    return causes


def _revision_causes(obj: Object, old: Object | None) -> Causes:
    if old is not None and obj.get("data") != old.get("data"):
        return [cause("data", "Invalid value: field is immutable")]
    return []


_CHECKS: dict[str, Callable[[Object, Object | None], Causes]] = {
    "CustomResourceDefinition": definition_rules.check,
    "Secret": _secret_causes,
    "ConfigMap": _config_map_causes,
    "Namespace": _namespace_causes,
    "PersistentVolumeClaim": storage_rules.claim_causes,
    "PersistentVolume": storage_rules.volume_causes,
    "Node": _node_causes,
    "RoleBinding": _binding_causes,
    "ClusterRoleBinding": _binding_causes,
    "Lease": _lease_causes,
    "Role": _role_causes,
    "ClusterRole": _role_causes,
    "ControllerRevision": _revision_causes,
    "ResourceQuota": policy_rules.quota_causes,
    "LimitRange": policy_rules.range_causes,
    "PriorityClass": policy_rules.class_causes,
}
