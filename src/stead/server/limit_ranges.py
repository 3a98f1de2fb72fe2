"""LimitRanges and priority classes at the door: bounds for one object, and the one default class.

Called by `verbs` when an object of a namespace is admitted. A machine is held to the types Container and Pod with what
its launcher pod would ask for in KubeVirt; a claim to PersistentVolumeClaim. Reads memory only. Texts: Kubernetes'
admission plugins limitranger and priority.
"""

from __future__ import annotations

from typing import Any

from stead.kinds import register, usage
from stead.kinds.resource import Resource
from stead.kube.quantity import Quantity, parse
from stead.server.quota import refused
from stead.server.registry import Registry

Object = dict[str, Any]
Amounts = dict[str, Quantity]


class Ranges:
    """See the module's prose."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def admit(self, resource: Resource, obj: Object, old: Object | None) -> Object:
        """The object, with a default limit where a range gives one. Raises 403."""
        if resource is register.PRIORITY_CLASS:
            self._check_default(obj)
        if resource is register.VIRTUAL_MACHINE_INSTANCE and (old is None or old.get("spec") != obj.get("spec")):
            for item in self._items(obj):
                obj = _with_default(item, obj) if old is None else obj
            for item in self._items(obj):
                _refuse(resource, obj, machine_faults(item, obj))
        if resource is register.PERSISTENT_VOLUME_CLAIM and (old is None or old.get("spec") != obj.get("spec")):
            for item in self._items(obj):
                _refuse(resource, obj, claim_faults(item, obj))
        return obj

    def _items(self, obj: Object) -> list[Object]:
        found = self._registry.peek_all(register.LIMIT_RANGE, obj["metadata"].get("namespace") or "-")
        return [item for one in found for item in (one.get("spec") or {}).get("limits") or ()]

    def _check_default(self, obj: Object) -> None:
        name = obj["metadata"].get("name", "")
        for other in self._registry.peek_all(register.PRIORITY_CLASS) if obj.get("globalDefault") else ():
            if other.get("globalDefault") and other["metadata"]["name"] != name:
                known = other["metadata"]["name"]
                text = f"PriorityClass {known} is already marked as default. Only one default can exist"
                raise refused(register.PRIORITY_CLASS, name, text)


def _refuse(resource: Resource, obj: Object, faults: list[str]) -> None:
    if faults:
        text = faults[0] if len(faults) == 1 else "[" + ", ".join(faults) + "]"
        raise refused(resource, obj["metadata"].get("name", ""), text)


def _with_default(item: Object, vmi: Object) -> Object:
    """The machine with the range's default limit of processors, which its host then holds it to."""
    default = (item.get("default") or {}).get("cpu") if item.get("type") == "Container" else None
    if not default or usage.machine_limits(vmi)[0] is not None:
        return vmi
    spec = vmi.get("spec") or {}
    domain = spec.get("domain") or {}
    resources = domain.get("resources") or {}
    limits = {**(resources.get("limits") or {}), "cpu": default}
    return {**vmi, "spec": {**spec, "domain": {**domain, "resources": {**resources, "limits": limits}}}}


def machine_faults(item: Object, vmi: Object) -> list[str]:
    """What a machine breaks of a range for Container or Pod."""
    kind = item.get("type", "")
    if kind not in ("Container", "Pod"):
        return []
    requests = dict(zip(("cpu", "memory"), usage.machine_requests(vmi), strict=True))
    limits: Amounts = {n: v for n, v in zip(requests, usage.machine_limits(vmi), strict=True) if v is not None}
    for name, text in (item.get("default") or {}).items() if kind == "Container" else ():
        if name in requests:
            limits.setdefault(name, parse(text))
    faults = [
        f"must be less than or equal to {name} limit of {limits[name]}: the machine needs {requests[name]}"
        for name in requests
        if name in limits and name in (item.get("default") or {}) and requests[name] > limits[name]
    ]
    faults += _least(kind, _bounds(item, "min", requests), requests, limits)
    faults += _most(kind, _bounds(item, "max", requests), requests, limits)
    for name, ratio in _bounds(item, "maxLimitRequestRatio", requests).items():
        if name not in limits:
            faults.append(f"{name} max limit to request ratio per {kind} is {ratio}, but no limit is specified or "
                          "limit is 0")  # fmt: skip
        elif limits[name].value > ratio.value * requests[name].value:
            shown = float(limits[name].value / requests[name].value)
            faults.append(f"{name} max limit to request ratio per {kind} is {ratio}, but provided ratio is {shown:f}")
    return faults


def _bounds(item: Object, field: str, known: Amounts) -> Amounts:
    return {name: parse(text) for name, text in sorted((item.get(field) or {}).items()) if name in known}


def _least(kind: str, bounds: Amounts, requests: Amounts, limits: Amounts) -> list[str]:
    faults = []
    for name, bound in bounds.items():
        start = f"minimum {name} usage per {kind} is {bound}"
        if name in limits and limits[name] < bound:
            faults.append(f"{start}, but limit is {limits[name]}")
        elif requests[name] < bound:
            faults.append(f"{start}, but request is {requests[name]}")
    return faults


def _most(kind: str, bounds: Amounts, requests: Amounts, limits: Amounts) -> list[str]:
    faults = []
    for name, bound in bounds.items():
        start = f"maximum {name} usage per {kind} is {bound}"
        if name not in limits:
            faults.append(f"{start}.  No limit is specified")
        elif limits[name] > bound:
            faults.append(f"{start}, but limit is {limits[name]}")
        elif requests[name] > bound:
            faults.append(f"{start}, but request is {requests[name]}")
    return faults


def claim_faults(item: Object, claim: Object) -> list[str]:
    """What a claim breaks of a range for claims."""
    if item.get("type") != "PersistentVolumeClaim":
        return []
    asked = parse((((claim.get("spec") or {}).get("resources") or {}).get("requests") or {}).get("storage") or 0)
    faults = []
    for field, word in (("min", "minimum"), ("max", "maximum")):
        text = (item.get(field) or {}).get("storage")
        if text and (asked < parse(text) if field == "min" else asked > parse(text)):
            kind = "PersistentVolumeClaim"
            faults.append(f"{word} storage usage per {kind} is {parse(text)}, but request is {asked}")
    return faults
