"""Defaults and validation of ResourceQuota, LimitRange and PriorityClass.

Called through `core_rules`. Pure. What cannot be enforced here is refused by name, never stored for show. Rules and
texts: Kubernetes' pkg/apis/core/validation and pkg/apis/scheduling/validation.
"""

from __future__ import annotations

from typing import Any

from stead.kinds import usage
from stead.kube import meta, quantity
from stead.kube.errors import ApiError, cause

Object = dict[str, Any]
Causes = list[dict[str, str]]

#: classes that every installation has (scheduling.k8s.io), with their values
SYSTEM_CLASSES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
_HIGHEST = 1_000_000_000
_PREEMPTION = ("Never", "PreemptLowerPriority")
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
_TYPES = ("Container", "PersistentVolumeClaim", "Pod")


def quota_defaults(obj: Object, _old: Object | None) -> Object:
    """Amounts in canonical text."""
    spec = obj.get("spec") or {}
    if not isinstance(spec.get("hard"), dict):
        return {**obj, "spec": spec}
    return {**obj, "spec": {**spec, "hard": _canonical("ResourceQuota", spec["hard"])}}


def _canonical(kind: str, amounts: Object) -> Object:
    try:
        return {name: quantity.canonical(text) for name, text in amounts.items()}
    except ValueError as error:
        raise ApiError("BadRequest", f'{kind} in version "v1" cannot be handled as a {kind}: {error}') from error


def quota_causes(obj: Object, old: Object | None) -> Causes:
    """Names, amounts and scopes that can be counted."""
    spec = obj.get("spec") or {}
    scoped = bool(spec.get("scopes") or (spec.get("scopeSelector") or {}).get("matchExpressions"))
    causes = []
    for name, text in (spec.get("hard") or {}).items():
        causes += _hard_causes(name, text, scoped)
    for index, scope in enumerate(spec.get("scopes") or ()):
        causes += _scope_causes(f"spec.scopes[{index}]", scope)
    for index, expression in enumerate((spec.get("scopeSelector") or {}).get("matchExpressions") or ()):
        causes += _expression_causes(f"spec.scopeSelector.matchExpressions[{index}]", expression)
    before = (old or {}).get("spec") or {}
    for field in ("scopes", "scopeSelector"):
        if old is not None and before.get(field) != spec.get(field):
            causes.append(cause(f"spec.{field}", f"Invalid value: {_shown(spec.get(field))}: field is immutable"))
    return causes


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _hard_causes(name: str, text: str, scoped: bool) -> Causes:
    field, quoted = f"spec.hard[{name}]", meta.go_quote(name)
    try:
        counted = usage.counted_kind(name)
    except KeyError:
        if "ephemeral-storage" in name or name.startswith("count/"):
            why = "Forbidden: cannot be enforced: Stead counts machines, claims and the kinds that it serves"
            return [cause(field, why, "FieldValueForbidden")]
        kind = "resource for quotas" if "/" in name else "resource type or fully qualified"
        return [cause(field, f"Invalid value: {quoted}: must be a standard {kind}")]
    amount = quantity.parse(text)
    if amount.value < 0:
        return [cause(field, f"Invalid value: {meta.go_quote(text)}: must be greater than or equal to 0")]
    is_count = name.startswith("count/") or name.endswith("persistentvolumeclaims") or name in usage.WHOLE_NAMES
    if is_count and amount.value.denominator != 1:
        return [cause(field, f"Invalid value: {meta.go_quote(text)}: must be an integer")]
    if scoped and counted is not usage.MACHINE:
        return [cause("spec.scopes", f"Invalid value: {quoted}: unsupported scope applied to resource")]
    return []


def _scope_causes(field: str, scope: str) -> Causes:
    if scope == "PriorityClass":
        return []
    known = ("BestEffort", "NotBestEffort", "Terminating", "NotTerminating", "CrossNamespacePodAffinity",
             "VolumeAttributesClass")  # fmt: skip
    if scope in known:
        why = f"Forbidden: the scope {scope} cannot be enforced: it tells pods apart, not machines"
        return [cause(field, why, "FieldValueForbidden")]
    return [cause(field, f"Invalid value: {meta.go_quote(scope)}: unsupported scope")]


def _expression_causes(field: str, expression: Object) -> Causes:
    operator, values = expression.get("operator", ""), expression.get("values") or []
    causes = _scope_causes(f"{field}.scopeName", expression.get("scopeName", ""))
    if operator not in _OPERATORS:
        causes.append(cause(f"{field}.operator", f"Invalid value: {meta.go_quote(operator)}: not a valid selector "
                            "operator"))  # fmt: skip
    elif operator in ("In", "NotIn") and not values:
        why = "Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"
        causes.append(cause(f"{field}.values", why, "FieldValueRequired"))
    elif operator in ("Exists", "DoesNotExist") and values:
        why = "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector"
        causes.append(cause(f"{field}.values", f"Invalid value: {values}: {why}"))
    return causes


def range_defaults(obj: Object, _old: Object | None) -> Object:
    """Canonical amounts; Container's default limit is its max, its default request the limit or min."""
    spec = obj.get("spec") or {}
    limits = []
    for item in spec.get("limits") or ():
        made = {key: _canonical("LimitRange", value) if isinstance(value, dict) else value
                for key, value in item.items()}  # fmt: skip
        if made.get("type") == "Container":
            default = {**(made.get("max") or {}), **(made.get("default") or {})}
            request = {**(made.get("min") or {}), **default, **(made.get("defaultRequest") or {})}
            made.update({k: v for k, v in (("default", default), ("defaultRequest", request)) if v})
        limits.append(made)
    return {**obj, "spec": {**spec, "limits": limits}}


def range_causes(obj: Object, _old: Object | None) -> Causes:
    """Types, names and the order of the amounts."""
    causes: Causes = []
    for index, item in enumerate((obj.get("spec") or {}).get("limits") or ()):
        field = f"spec.limits[{index}]"
        if item.get("type") not in _TYPES:
            shown = ", ".join(meta.go_quote(kind) for kind in _TYPES)
            text = f"Unsupported value: {meta.go_quote(item.get('type', ''))}: supported values: {shown}"
            causes.append(cause(f"{field}.type", text, "FieldValueNotSupported"))
            continue
        causes += _item_causes(field, item)
    return causes


def _item_causes(field: str, item: Object) -> Causes:
    causes: Causes = []
    names = ("storage",) if item["type"] == "PersistentVolumeClaim" else ("cpu", "memory")
    parts = {p: item.get(p) or {} for p in ("max", "min", "default", "defaultRequest", "maxLimitRequestRatio")}
    for part, amounts in parts.items():
        causes += [
            cause(f"{field}.{part}[{name}]", f"Forbidden: {name} cannot be enforced per {item['type']}: only "
                  f"{' and '.join(names)}", "FieldValueForbidden")
            for name in amounts if name not in names
        ]  # fmt: skip
    if item["type"] == "Pod":
        causes += [
            cause(f"{field}.{part}", "Forbidden: may not be specified when `type` is 'Pod'", "FieldValueForbidden")
            for part in ("default", "defaultRequest") if parts[part]
        ]  # fmt: skip
    for low, high in (("min", "max"), ("default", "max"), ("min", "default"), ("defaultRequest", "default")):
        for name in names:
            one, other = parts[low].get(name), parts[high].get(name)
            if one and other and quantity.parse(one) > quantity.parse(other):
                text = f"Invalid value: {meta.go_quote(one)}: {low} value {one} is greater than {high} value {other}"
                causes.append(cause(f"{field}.{low}[{name}]", text))
    return causes


def class_defaults(obj: Object, _old: Object | None) -> Object:
    """Preempting is Kubernetes' default."""
    made = {key: value for key, value in obj.items() if key != "globalDefault" or value}
    return {**made, "preemptionPolicy": obj.get("preemptionPolicy") or "PreemptLowerPriority"}


def class_causes(obj: Object, old: Object | None) -> Causes:
    """Reserved names and values, and what may not change."""
    causes: Causes = []
    name, value = obj["metadata"].get("name", ""), obj.get("value", 0)
    if name.startswith("system-") and (SYSTEM_CLASSES.get(name) != value or obj.get("globalDefault")):
        why = (
            "Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: "
            f"{name} is not a known system priority class"
        )
        causes.append(cause("metadata.name", why, "FieldValueForbidden"))
    elif not name.startswith("system-") and value > _HIGHEST:
        why = f"Forbidden: maximum allowed value of a user defined priority is {_HIGHEST}"
        causes.append(cause("value", why, "FieldValueForbidden"))
    policy = obj.get("preemptionPolicy")
    if policy not in _PREEMPTION:
        shown = ", ".join(meta.go_quote(p) for p in reversed(_PREEMPTION))
        text = f"Unsupported value: {meta.go_quote(str(policy))}: supported values: {shown}"
        causes.append(cause("preemptionPolicy", text, "FieldValueNotSupported"))
    if old is not None and old.get("value") != value:
        causes.append(cause("value", "Forbidden: may not be changed in an update.", "FieldValueForbidden"))
    if old is not None and old.get("preemptionPolicy") != policy:
        causes.append(cause("preemptionPolicy", f"Invalid value: {meta.go_quote(str(policy))}: field is immutable"))
    return causes


def system_classes() -> list[Object]:
    """The PriorityClasses that are always there."""
    texts = {
        "system-cluster-critical": "Used for system critical pods that must run in the cluster, but can be moved to "
        "another node if necessary.",
        "system-node-critical": "Used for system critical pods that must not be moved from their current node.",
    }
    return [
        {"metadata": {"name": name}, "value": value, "description": texts[name]}
        for name, value in SYSTEM_CLASSES.items()
    ]
