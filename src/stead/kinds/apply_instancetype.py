"""How an instancetype and a preference become part of a machine: pure, JSON in and JSON out.

The VM controller calls `complete_devices` and `apply` when it makes an instance, admission calls them to find
conflicts, and the server for `expand-spec`. An instancetype decides: a field that it sets must not be set by the
machine, or there is a conflict. A preference only fills what the machine leaves open. Inputs are never changed; results
share nothing with them. Field paths and texts are those of KubeVirt 1.8 (recorded cases `vm-instancetype-*`,
`vm-requirements-*`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from stead.kinds.apply_preference import apply_preference, autoattach_preferences, spread_options, topology_of
from stead.kube.encoding import own_copy
from stead.kube.quantity import Quantity, parse

Object = dict[str, Any]

#: where a VirtualMachine keeps the spec of its instance
TEMPLATE = "spec.template.spec"


class Conflict(str):
    """The path of a field that is in conflict. `message` is what the user reads."""

    message: str

    def __new__(cls, path: str, message: str | None = None) -> Conflict:
        conflict = super().__new__(cls, path)
        conflict.message = message or conflict_message([path])
        return conflict


class Unmet(NamedTuple):
    """A requirement that is not met: the fields to blame, and the sentence."""

    fields: list[str]
    message: str


def conflict_message(paths: list[str]) -> str:
    """One sentence about conflicting fields, as `expand-spec` says it; admission says one for each field."""
    return f"VM field(s) {', '.join(paths)} conflicts with selected instance type"


def apply(
    vmi_spec: Object, instancetype_spec: Object | None, preference_spec: Object | None
) -> tuple[Object, list[str]]:
    """The instance's spec with both applied, and the paths in conflict (each a `Conflict`), in KubeVirt's order.

    Paths are those in a VirtualMachine (`spec.template.spec.domain.…`). With conflicts the spec comes back as it was.
    """
    spec, sized, preference = own_copy(vmi_spec), own_copy(instancetype_spec or {}), own_copy(preference_spec or {})
    if sized:
        conflicts: list[str] = []
        for part in _INSTANCETYPE_PARTS:
            conflicts += part(spec, sized, preference)
        if conflicts:
            return own_copy(vmi_spec), conflicts
    if preference:
        apply_preference(spec, preference)
    return own_copy(spec), []


def apply_annotations(
    annotations: dict[str, str] | None, instancetype_spec: Object | None, preference_spec: Object | None
) -> tuple[dict[str, str], list[str]]:
    """The instance's annotations with those of both, and the conflicts: an instancetype's must not differ."""
    merged = dict(annotations or {})
    conflicts: list[str] = []
    for key, value in ((instancetype_spec or {}).get("annotations") or {}).items():
        if merged.setdefault(key, value) != value:
            conflicts.append(Conflict(f"annotations.{key}"))
    for key, value in ((preference_spec or {}).get("annotations") or {}).items():
        merged.setdefault(key, value)
    return merged, conflicts


def apply_to_templates(templates: list[Object], preference_spec: Object | None) -> list[Object]:
    """DataVolume templates with the preferred storage class where they name none."""
    preferred = ((preference_spec or {}).get("volumes") or {}).get("preferredStorageClassName")
    result: list[Object] = own_copy(templates)
    for template in result if preferred else ():
        for kind in ("pvc", "storage"):
            wanted = template.get("spec", {}).get(kind)
            if wanted is not None and wanted.get("storageClassName") is None:
                wanted["storageClassName"] = preferred
    return result


def complete_devices(vmi_spec: Object, preference_spec: Object | None, *, binding: str = "bridge") -> Object:
    """The spec with the devices that KubeVirt adds before preferences are applied, so that they apply to these too.

    A disk for every volume without one, the default interface (bound by `binding`, or as the preference says) when
    there is neither interface nor network, and an input device if one is to be attached.
    """
    spec: Object = own_copy(vmi_spec)
    devices = spec.setdefault("domain", {}).setdefault("devices", {})
    preferred = (preference_spec or {}).get("devices") or {}
    autoattach_preferences(devices, preferred)
    used = {d["name"] for key in ("disks", "filesystems") for d in devices.get(key) or ()}
    missing = [v for v in spec.get("volumes") or () if v["name"] not in used and "containerPath" not in v]
    if missing:
        devices["disks"] = [*(devices.get("disks") or ()), *({"name": v["name"]} for v in missing)]
    if devices.get("autoattachInputDevice") and not devices.get("inputs"):
        devices["inputs"] = [{"name": "default-0"}]
    wants_network = devices.get("autoattachPodInterface") is not False
    if wants_network and not spec.get("networks") and not devices.get("interfaces"):
        method = "masquerade" if preferred.get("preferredInterfaceMasquerade") is not None else binding
        devices["interfaces"] = [{"name": "default", method: {}}]
        spec["networks"] = [{"name": "default", "pod": {}}]
    return spec


# --- instancetype -----------------------------------------------------------------------------------------------


def _at(path: str) -> Conflict:
    return Conflict(f"{TEMPLATE}.{path}")


def _take(spec: Object, field: str, sized: Object, path: str | None = None) -> Iterator[Conflict]:
    """Moves one field of the instancetype into `spec`; a conflict if both have it."""
    if not sized.get(field):
        return
    if spec.get(field):
        yield _at(path or field)
    else:
        spec[field] = sized[field]


def _node_selector(spec: Object, sized: Object, _preference: Object) -> list[Conflict]:
    return list(_take(spec, "nodeSelector", sized))


def _scheduler_name(spec: Object, sized: Object, _preference: Object) -> list[Conflict]:
    return list(_take(spec, "schedulerName", sized))


def _resource_conflicts(spec: Object, resource: str) -> Iterator[Conflict]:
    resources = spec.get("domain", {}).get("resources") or {}
    for kind in ("requests", "limits"):
        if resource in (resources.get(kind) or {}):
            yield _at(f"domain.resources.{kind}.{resource}")


#: fields of an instancetype's CPU that a machine's CPU may not have too: (instancetype, machine)
_CPU_FIELDS = (
    ("model", "model"),
    ("dedicatedCPUPlacement", "dedicatedCpuPlacement"),
    ("isolateEmulatorThread", "isolateEmulatorThread"),
    ("numa", "numa"),
    ("realtime", "realtime"),
)


def _is_set(value: Any) -> bool:
    """Whether a user said something: {} counts, false and "" do not (KubeVirt cannot tell them from absent)."""
    return value is not None and value is not False and value != ""


def _cpu(spec: Object, sized: Object, preference: Object) -> list[Conflict]:
    domain = spec.setdefault("domain", {})
    cpu, wanted = dict(domain.get("cpu") or {}), sized.get("cpu") or {}
    conflicts = list(_resource_conflicts(spec, "cpu"))
    conflicts += [_at(f"domain.cpu.{field}") for field in ("sockets", "cores", "threads") if cpu.get(field)]
    conflicts += [
        _at(f"domain.cpu.{theirs}")
        for theirs, ours in _CPU_FIELDS
        if _is_set(cpu.get(ours)) and wanted.get(theirs) is not None
    ]
    if conflicts:
        return conflicts
    cpu |= {ours: wanted[theirs] for theirs, ours in _CPU_FIELDS if wanted.get(theirs) is not None}
    if wanted.get("maxSockets") is not None:
        cpu["maxSockets"] = wanted["maxSockets"]
    problem = spread_error(sized, preference)
    if problem:
        return [Conflict("instancetype.spec.cpu.guest", problem)]
    domain["cpu"] = cpu | topology(int(wanted.get("guest", 0)), preference)
    return []


def topology(vcpus: int, preference: Object) -> dict[str, int]:
    """Sockets, cores and threads for a number of CPUs, as the preference would have it."""
    shape = {"sockets": 1, "cores": 1, "threads": 1}
    if vcpus == 1:
        return shape
    wanted = topology_of(preference)
    if wanted in ("cores", "threads"):
        return shape | {wanted: vcpus}
    if wanted != "spread":
        return shape | {"sockets": vcpus}
    ratio, across = spread_options(preference)
    match across:
        case "CoresThreads":
            return shape | {"threads": ratio, "cores": vcpus // ratio}
        case "SocketsCoresThreads":
            return {"threads": 2, "cores": ratio, "sockets": vcpus // 2 // ratio}
    return shape | {"cores": ratio, "sockets": vcpus // ratio}


def spread_error(instancetype_spec: Object | None, preference_spec: Object | None) -> str | None:
    """Why the instancetype's CPUs cannot be spread as the preference wants; None if they can."""
    if not instancetype_spec or topology_of(preference_spec or {}) != "spread":
        return None
    vcpus = int((instancetype_spec.get("cpu") or {}).get("guest", 0))
    ratio, across = spread_options(preference_spec or {})
    start = f"{vcpus} vCPUs provided by the instance type are not divisible by the "
    named = f"Spec.PreferSpreadSocketToCoreRatio or Spec.CPU.PreferSpreadOptions.Ratio of {ratio}"
    if across == "SocketsCores" and vcpus % ratio:
        return f"{start}{named} provided by the preference"
    if across == "CoresThreads" and vcpus % ratio:
        return f"{start}number of threads per core {ratio}"
    if across == "SocketsCoresThreads" and (vcpus % 2 or (vcpus // 2) % ratio):
        return f"{start}number of threads per core 2 and {named}"
    return None


def _memory(spec: Object, sized: Object, _preference: Object) -> list[Conflict]:
    domain = spec.setdefault("domain", {})
    memory, wanted = dict(domain.get("memory") or {}), sized.get("memory") or {}
    # KubeVirt names only the first of these.
    if memory.get("guest") is not None:
        return [_at("domain.memory.guest")]
    for field in ("hugepages", "maxGuest"):
        if memory.get(field) is not None and wanted.get(field) is not None:
            return [_at(f"domain.memory.{field}")]
    conflicts = list(_resource_conflicts(spec, "memory"))
    if conflicts:
        return conflicts[:1]
    fields = ("guest", "hugepages", "maxGuest", "reservedOverhead")
    domain["memory"] = memory | {f: wanted[f] for f in fields if wanted.get(f) is not None}
    percent = int(wanted.get("overcommitPercent") or 0)
    if percent > 0 and wanted.get("guest") is not None:
        resources = domain.setdefault("resources", {})
        request = _overcommitted(parse(wanted["guest"]), percent)
        resources["requests"] = {**(resources.get("requests") or {}), "memory": str(request)}
    return []


def _single(value: float) -> float:
    """The nearest single-precision number: KubeVirt computes the share in these, and so must we to agree on bytes."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _overcommitted(guest: Quantity, percent: int) -> Quantity:
    share = _single(1 - _single(_single(percent) / 100))
    return Quantity(int(_single(_single(int(guest)) * share)), guest.format)


def _io_threads(spec: Object, sized: Object, _preference: Object) -> list[Conflict]:
    domain = spec.setdefault("domain", {})
    fields = ("ioThreadsPolicy", "ioThreads", "launchSecurity")
    conflicts = [_at(f"domain.{f}") for f in fields if sized.get(f) is not None and domain.get(f) is not None]
    if not conflicts:
        domain |= {f: sized[f] for f in fields if sized.get(f) is not None}
    return conflicts


def _host_devices(spec: Object, sized: Object, _preference: Object) -> list[Conflict]:
    devices = spec.setdefault("domain", {}).setdefault("devices", {})
    return [c for f in ("gpus", "hostDevices") for c in _take(devices, f, sized, f"domain.devices.{f}")]


_INSTANCETYPE_PARTS: tuple[Callable[[Object, Object, Object], list[Conflict]], ...] = (
    _node_selector,
    _scheduler_name,
    _cpu,
    _memory,
    _io_threads,
    _host_devices,
)


# --- requirements -----------------------------------------------------------------------------------------------


def requirements_error(
    vmi_spec: Object, instancetype_spec: Object | None, preference_spec: Object | None
) -> Unmet | None:
    """What the preference requires and the machine lacks; None if all is met.

    `vmi_spec` is the machine's own template, before anything was applied. Admission refuses with reason
    FieldValueNotFound for each field, and `failure checking preference requirements: ` before the message.
    """
    required = (preference_spec or {}).get("requirements") or {}
    preference = preference_spec or {}
    if required.get("cpu"):
        unmet = _cpu_unmet(vmi_spec, instancetype_spec, preference)
        if unmet:
            return unmet
    if required.get("memory"):
        unmet = _memory_unmet(vmi_spec, instancetype_spec, required["memory"]["guest"])
        if unmet:
            return unmet
    wanted, has = required.get("architecture"), vmi_spec.get("architecture", "")
    if wanted is not None and has != wanted:
        text = f"preference requires architecture {wanted} but {has} is being requested"
        return Unmet([f"{TEMPLATE}.architecture"], text)
    return None


def _cpu_unmet(vmi_spec: Object, instancetype_spec: Object | None, preference: Object) -> Unmet | None:
    needed = int(preference["requirements"]["cpu"].get("guest", 0))
    if instancetype_spec:
        has = int((instancetype_spec.get("cpu") or {}).get("guest", 0))
        text = f"insufficient CPU resources of {has} vCPU provided by instance type, preference requires {needed} vCPU"
        return Unmet(["spec.instancetype"], text) if has < needed else None
    cpu = vmi_spec.get("domain", {}).get("cpu")
    if cpu is None:
        text = f"no CPU resources provided by VirtualMachine, preference requires {needed} vCPU"
        return Unmet([f"{TEMPLATE}.domain.cpu"], text)
    fields, shown = _counted_fields(preference)
    has = 1
    for field in fields:
        has *= int(cpu.get(field) or 0)
    if has >= needed:
        return None
    text = (
        f"insufficient CPU resources of {has} vCPU provided by VirtualMachine, "
        f"preference requires {needed} vCPU provided as {shown}"
    )
    return Unmet([f"{TEMPLATE}.domain.cpu.{field}" for field in fields], text)


def _counted_fields(preference: Object) -> tuple[tuple[str, ...], str]:
    """Which fields of the machine's CPU count towards the requirement, and how the message calls them."""
    wanted = topology_of(preference)
    if wanted == "any":
        return ("cores", "sockets", "threads"), "cores, sockets and threads"
    if wanted == "spread":
        across = spread_options(preference)[1]
        spread = {
            "SocketsCores": ("sockets", "cores"),
            "CoresThreads": ("cores", "threads"),
            "SocketsCoresThreads": ("sockets", "cores", "threads"),
        }
        return spread.get(across, ("sockets", "cores")), across
    return (wanted,), wanted


def _memory_unmet(vmi_spec: Object, instancetype_spec: Object | None, needed: Any) -> Unmet | None:
    source, fields, memory = "VirtualMachine", [f"{TEMPLATE}.domain.memory"], vmi_spec.get("domain", {}).get("memory")
    if instancetype_spec:
        source, fields, memory = "instance type", ["spec.instancetype"], instancetype_spec.get("memory") or {}
    if memory is None:
        return None
    has, least = parse(memory.get("guest") or 0), parse(needed)
    if has >= least:
        return None
    return Unmet(fields, f"insufficient Memory resources of {has} provided by {source}, preference requires {least}")
