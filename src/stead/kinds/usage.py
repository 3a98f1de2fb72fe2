"""What objects count against a ResourceQuota, and which names of one can be counted.

Used by the server (to refuse) and by the quota controller (to report), so that both count alike. Pure. A machine counts
as its launcher pod does in KubeVirt: one of `pods`, with its requests and limits. Rules: Kubernetes' quota evaluators
(pkg/quota/v1/evaluator/core), KubeVirt's automatic limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from stead.kinds import machine_needs, register
from stead.kinds.resource import Resource
from stead.kube.quantity import Quantity, canonical, parse

Object = dict[str, Any]
Amounts = dict[str, Quantity]

MACHINE_NAMES = frozenset({
    "pods", "count/pods", "cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory",
})  # fmt: skip
#: kinds that Kubernetes counts by a name without `count/`; those that Stead does not serve are always 0
_OLD_NAMES = {
    "configmaps": register.CONFIG_MAP, "secrets": register.SECRET, "resourcequotas": register.RESOURCE_QUOTA,
    "persistentvolumeclaims": register.PERSISTENT_VOLUME_CLAIM, "services": None, "services.loadbalancers": None,
    "services.nodeports": None, "replicationcontrollers": None,
}  # fmt: skip
#: names that count whole objects
WHOLE_NAMES = frozenset({"pods", *_OLD_NAMES})
#: the kind that scopes tell apart
MACHINE = register.VIRTUAL_MACHINE_INSTANCE
_CLASS = ".storageclass.storage.k8s.io/"
#: KubeVirt's ratio of a memory limit that it sets where a quota asks for one
_LIMIT_RATIO = 2


def counted_kind(name: str) -> Resource | None:
    """The kind whose objects a quota's name counts; None when there is none of it. Raises KeyError for other names."""
    if name in MACHINE_NAMES or name.startswith(("requests.hugepages-", "hugepages-")):
        return register.VIRTUAL_MACHINE_INSTANCE
    if name == "requests.storage" or name.endswith((f"{_CLASS}requests.storage", f"{_CLASS}persistentvolumeclaims")):
        return register.PERSISTENT_VOLUME_CLAIM
    if name in _OLD_NAMES:
        return _OLD_NAMES[name]
    if name.startswith("requests.") and "/" in name:
        return register.VIRTUAL_MACHINE_INSTANCE
    if name.startswith("count/"):
        plural, _, group = name.removeprefix("count/").partition(".")
        for resource in register.ALL:
            listed = "list" in resource.verbs and resource.namespaced and resource.kind != "Event"
            if listed and (resource.plural, resource.group) == (plural, group):
                return resource
    raise KeyError(name)


def count_name(resource: Resource) -> str:
    """`count/plural.group`."""
    return f"count/{resource.plural}.{resource.group}".rstrip(".")


def amounts(resource: Resource, obj: Object) -> Amounts:
    """All that one object counts, by the quota's names."""
    one = Quantity(1)
    found: Amounts = {count_name(resource): one}
    if resource is register.VIRTUAL_MACHINE_INSTANCE:
        return found | _of_machine(obj)
    if _OLD_NAMES.get(resource.plural) is resource:
        found[resource.plural] = one
    if resource is register.PERSISTENT_VOLUME_CLAIM:
        spec = obj.get("spec") or {}
        size = parse(((spec.get("resources") or {}).get("requests") or {}).get("storage") or 0)
        found["requests.storage"] = size
        if spec.get("storageClassName"):
            found[f"{spec['storageClassName']}{_CLASS}requests.storage"] = size
            found[f"{spec['storageClassName']}{_CLASS}persistentvolumeclaims"] = one
    return found


def _of_machine(vmi: Object) -> Amounts:
    if (vmi.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return {}
    domain = (vmi.get("spec") or {}).get("domain") or {}
    cpu, memory = machine_requests(vmi)
    most_cpu, most_memory = machine_limits(vmi)
    one = Quantity(1)
    found: Amounts = {
        "pods": one, "count/pods": one, "cpu": cpu, "requests.cpu": cpu, "memory": memory, "requests.memory": memory,
        "limits.cpu": most_cpu or Quantity(machine_needs.vcpus(vmi)),
        "limits.memory": most_memory or Quantity(memory.value * _LIMIT_RATIO, "BinarySI"),
    }  # fmt: skip
    page = ((domain.get("memory") or {}).get("hugepages") or {}).get("pageSize")
    if page:
        guest = Quantity(machine_needs.guest_bytes(vmi), "BinarySI")
        found[f"hugepages-{page}"] = found[f"requests.hugepages-{page}"] = guest
    devices = domain.get("devices") or {}
    for device in [*(devices.get("gpus") or ()), *(devices.get("hostDevices") or ())]:
        if device.get("deviceName"):
            name = f"requests.{device['deviceName']}"
            found[name] = found.get(name, Quantity(0)) + one
    return found


def machine_requests(vmi: Object) -> tuple[Quantity, Quantity]:
    """(cpu, memory with QEMU's own need) that a machine may count on."""
    cpu = Quantity(Fraction(machine_needs.machine_cpu_milli(vmi), 1000))
    return cpu, Quantity(machine_needs.machine_memory(vmi), "BinarySI")


def machine_limits(vmi: Object) -> tuple[Quantity | None, Quantity | None]:
    """(cpu, memory with QEMU's own need) that a machine states as its most, None where it states nothing."""
    domain = (vmi.get("spec") or {}).get("domain") or {}
    limits = (domain.get("resources") or {}).get("limits") or {}
    cpu = parse(limits["cpu"]) if limits.get("cpu") else None
    if (domain.get("cpu") or {}).get("dedicatedCpuPlacement"):
        cpu = Quantity(machine_needs.vcpus(vmi))
    if not limits.get("memory"):
        return cpu, None
    most = int(parse(limits["memory"])) + machine_needs.memory_overhead(vmi)
    return cpu, Quantity(most, "BinarySI")


def concerns(quota: Object, resource: Resource, obj: Object) -> bool:
    """Whether an object is in the quota's scope."""
    spec = quota.get("spec") or {}
    expressions = list((spec.get("scopeSelector") or {}).get("matchExpressions") or ())
    expressions += [{"operator": "Exists"} for _ in spec.get("scopes") or ()]
    if not expressions:
        return True
    if resource is not register.VIRTUAL_MACHINE_INSTANCE:
        return False
    name = (obj.get("spec") or {}).get("priorityClassName") or ""
    return all(_holds(expression, name) for expression in expressions)


def _holds(expression: Object, name: str) -> bool:
    values = expression.get("values") or ()
    match expression.get("operator"):
        case "In":
            return name in values
        case "NotIn":
            return name not in values
        case "Exists":
            return bool(name)
    return not name


def kinds_of(quota: Object) -> list[Resource]:
    """The kinds that a quota counts, each once."""
    found: dict[str, Resource] = {}
    for name in (quota.get("spec") or {}).get("hard") or {}:
        try:
            resource = counted_kind(name)
        except KeyError:
            continue
        if resource is not None:
            found[count_name(resource)] = resource
    return list(found.values())


def reported(quota: Object, taken: Amounts) -> Object:
    """The status of a quota of which so much is taken."""
    hard = (quota.get("spec") or {}).get("hard") or {}
    return {
        "hard": {name: canonical(text) for name, text in hard.items()},
        "used": {name: str(amount) for name, amount in taken.items()},
    }


def used(quota: Object, objects: Callable[[Resource], Iterable[Object]]) -> Amounts:
    """What is taken of each name of a quota; `objects` gives those of a kind in its namespace."""
    hard = (quota.get("spec") or {}).get("hard") or {}
    total: Amounts = {name: Quantity(0, parse(bound).format) for name, bound in hard.items()}
    for resource in kinds_of(quota):
        for obj in objects(resource):
            if concerns(quota, resource, obj):
                for name, amount in amounts(resource, obj).items():
                    if name in total:
                        total[name] = total[name] + amount
    return total
