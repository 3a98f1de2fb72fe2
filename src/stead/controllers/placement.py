"""Which host a machine goes to: filters that say why not, then scores. Pure; one machine a call.

Called by `controllers.instance` on rungs 1 and 2 (on rung 3 kube-scheduler decides). Filters follow kube-scheduler's
meaning of nodeSelector, node affinity, taints and PV node affinity; processors are overcommitted 10:1 as KubeVirt's
cpuAllocationRatio does, memory is not overcommitted. The scores prefer a host by the machine's preferred affinity, then
the host with most memory left, then by name, so that equal questions get equal answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from stead.controllers.conditions import is_condition, labels_of, spec_of, status_of
from stead.kube.quantity import parse

Object = dict[str, Any]

MIB = 1024 * 1024
SCHEDULABLE_LABEL = "kubevirt.io/schedulable"
HOSTNAME_LABEL = "kubernetes.io/hostname"


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine needs. `cpu_milli` is what it may count on, after overcommitment; memory in bytes."""

    cpu_milli: int
    memory: int
    node_selector: dict[str, str] = {}
    affinity: Object = {}
    tolerations: tuple[Object, ...] = ()
    #: nodeAffinity.required of the bound volumes: each must match
    volume_affinities: tuple[Object, ...] = ()
    #: pools that must be present for volumes still to be made
    pools: tuple[str, ...] = ()
    #: hosts already chosen for volumes that are being made
    pinned_hosts: tuple[str, ...] = ()


class Use(msgspec.Struct, frozen=True):
    """What machines on a host take already."""

    cpu_milli: int = 0
    memory: int = 0


class Placement(msgspec.Struct, frozen=True):
    """The chosen host, or None and for each host the reason why not."""

    host: str | None
    reasons: dict[str, str]

    def message(self) -> str:
        """One line a host, as people read it in the ErrorUnschedulable condition."""
        if not self.reasons:
            return "no host is registered"
        lines = [f"{host}: {why}" for host, why in sorted(self.reasons.items())]
        return f"0/{len(lines)} hosts are available\n" + "\n".join(lines)


def place(demand: Demand, hosts: Iterable[Object], used: dict[str, Use]) -> Placement:
    """Choose among Node objects; `used` by host name."""
    reasons: dict[str, str] = {}
    best: tuple[float, float, str] | None = None
    for host in hosts:
        name = host["metadata"]["name"]
        taken = used.get(name, Use())
        why = why_not(demand, host, taken)
        if why:
            reasons[name] = why
            continue
        rank = (-preference(demand, host), -_memory_left(demand, host, taken), name)
        if best is None or rank < best:
            best = rank
    return Placement(best[2] if best else None, reasons)


def why_not(demand: Demand, host: Object, used: Use) -> str:
    """The first reason why the machine cannot run on this host; "" if it can."""
    labels = labels_of(host)
    if not is_condition(host, "Ready"):
        return "host is not ready"
    if labels.get(SCHEDULABLE_LABEL, "true") != "true":
        return f"label {SCHEDULABLE_LABEL} is not true"
    if spec_of(host).get("unschedulable"):
        return "host is cordoned"
    taint = next((t for t in spec_of(host).get("taints") or () if not _is_tolerated(t, demand.tolerations)), None)
    if taint is not None:
        return f"untolerated taint {{{taint.get('key')}: {taint.get('value', '')}}}"
    for key, value in sorted(demand.node_selector.items()):
        if labels.get(key) != value:
            return f"label {key}={value} of nodeSelector is missing"
    return _why_not_affinity(demand, host) or _why_not_volumes(demand, host) or _why_not_room(demand, host, used)


def _why_not_affinity(demand: Demand, host: Object) -> str:
    required = (demand.affinity.get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if required and not matches_terms(required.get("nodeSelectorTerms") or (), host):
        return "node affinity does not match"
    return ""


def _why_not_volumes(demand: Demand, host: Object) -> str:
    name = host["metadata"]["name"]
    for affinity in demand.volume_affinities:
        if not matches_terms(affinity.get("nodeSelectorTerms") or (), host):
            return "a volume of the machine lies on another host"
    for pinned in demand.pinned_hosts:
        if pinned != name:
            return f"a volume of the machine is being made on {pinned}"
    for pool in demand.pools:
        if f"pool.stead.io/{pool}" not in labels_of(host):
            return f"host has no pool {pool}"
    return ""


def _why_not_room(demand: Demand, host: Object, used: Use) -> str:
    cpu, memory = capacity(host)
    if cpu and used.cpu_milli + demand.cpu_milli > cpu:
        return f"insufficient cpu: needs {demand.cpu_milli}m, {max(0, cpu - used.cpu_milli)}m of {cpu}m left"
    if memory and used.memory + demand.memory > memory:
        left = max(0, memory - used.memory) // MIB
        return f"insufficient memory: needs {demand.memory // MIB}Mi, {left}Mi of {memory // MIB}Mi left"
    return ""


def capacity(host: Object) -> tuple[int, int]:
    """(cpu in milli, memory in bytes) that machines may use; 0 = not stated."""
    status = status_of(host)
    offered = status.get("allocatable") or status.get("capacity") or {}
    return parse(offered.get("cpu", 0)).milli(), int(parse(offered.get("memory", 0)))


def _memory_left(demand: Demand, host: Object, used: Use) -> float:
    _, memory = capacity(host)
    return (memory - used.memory - demand.memory) / memory if memory else 0.0


def preference(demand: Demand, host: Object) -> float:
    """Sum of the weights of the preferred node affinity terms that this host matches."""
    preferred = (demand.affinity.get("nodeAffinity") or {}).get("preferredDuringSchedulingIgnoredDuringExecution")
    return sum(float(p.get("weight", 0)) for p in preferred or () if matches_terms((p.get("preference") or {},), host))


def matches_terms(terms: Iterable[Object], host: Object) -> bool:
    """Whether any NodeSelectorTerm matches; a term without requirements matches nothing."""
    return any(_matches_term(term, host) for term in terms)


def _matches_term(term: Object, host: Object) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    names = {"metadata.name": host["metadata"]["name"]}
    return all(_matches(e, labels_of(host)) for e in expressions) and all(_matches(f, names) for f in fields)


def _matches(requirement: Object, labels: dict[str, str]) -> bool:
    value, values = labels.get(requirement.get("key", "")), requirement.get("values") or []
    match requirement.get("operator"):
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            try:
                number, bound = int(value or ""), int(values[0])
            except (ValueError, IndexError):
                return False
            return number > bound if operator == "Gt" else number < bound
    return False


def _is_tolerated(taint: Object, tolerations: Iterable[Object]) -> bool:
    if taint.get("effect") == "PreferNoSchedule":
        return True
    for toleration in tolerations:
        if toleration.get("effect") not in (None, "", taint.get("effect")):
            continue
        if toleration.get("key") not in (None, "", taint.get("key")):
            continue
        if toleration.get("operator") == "Exists":
            return True
        if toleration.get("key") and toleration.get("value", "") == taint.get("value", ""):
            return True
    return False
