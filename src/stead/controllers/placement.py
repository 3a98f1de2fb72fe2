"""Which host a machine goes to: what it demands, what a host offers, and why the two do not fit. Pure.

Called by `controllers.instance` on rungs 1 and 2 (on rung 3 kube-scheduler decides) through `placement_book`, which
keeps the books and chooses. Filters follow kube-scheduler's meaning of nodeSelector, affinity, taints, spreading and PV
node affinity; processors are overcommitted 10:1 as KubeVirt's cpuAllocationRatio does, memory is not. What a host does
not state (no allocatable, no capabilities) counts as unlimited: its agent has the last word.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec

from stead.controllers.conditions import annotations_of, is_condition, labels_of, spec_of, status_of
from stead.controllers.placement_rules import is_tolerated, matches_terms
from stead.controllers.placement_terms import PREFERRED, REQUIRED, Wishes
from stead.kinds.hosts import OUT_OF_SERVICE_TAINT
from stead.kube.quantity import parse

Object = dict[str, Any]

MIB = 1024 * 1024
SCHEDULABLE_LABEL = "kubevirt.io/schedulable"
HOSTNAME_LABEL = "kubernetes.io/hostname"
CAPABILITIES = "stead.io/capabilities"
#: KubeVirt's resource of which every machine takes one: how many machines a host takes
MACHINES = "devices.kubevirt.io/kvm"
#: resource that a host has for each of its bridges (as KubeVirt's bridge-marker)
BRIDGE = "bridge.network.kubevirt.io/"
#: hosts that a message names one by one; of further ones it counts the reasons
NAMED_HOSTS = 40
#: taints that keep new machines off; PreferNoSchedule does not
_HARD = ("NoSchedule", "NoExecute")


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine needs. `cpu_milli` is what it may count on, after overcommitment; memory in bytes."""

    cpu_milli: int
    memory: int
    #: further resources by name: hugepages-2Mi in bytes, devices in pieces
    extra: dict[str, int] = {}
    node_selector: dict[str, str] = {}
    #: (prefix, name, what it is to people): the label `prefix/name`, of hosts that have any with this prefix
    offers: tuple[tuple[str, str, str], ...] = ()
    #: fields of `hypervisor.contract.Machine` that the driver must honour
    features: tuple[str, ...] = ()
    #: bridges of the host that its networks use
    bridges: tuple[str, ...] = ()
    affinity: Object = {}
    tolerations: tuple[Object, ...] = ()
    #: nodeAffinity.required of the bound volumes: each must match
    volume_affinities: tuple[Object, ...] = ()
    #: pools that must be present for volumes still to be made
    pools: tuple[str, ...] = ()
    #: hosts already chosen for volumes that are being made
    pinned_hosts: tuple[str, ...] = ()
    namespace: str = ""
    labels: dict[str, str] = {}
    wishes: Wishes = Wishes()


class Use(msgspec.Struct, frozen=True):
    """What one machine takes of its host."""

    cpu_milli: int = 0
    memory: int = 0
    extra: dict[str, int] = {}


def use_of(demand: Demand) -> Use:
    """What a machine with this demand takes."""
    return Use(demand.cpu_milli, demand.memory, demand.extra)


class Placement(msgspec.Struct, frozen=True):
    """The chosen host, or None and for each host the reason why not."""

    host: str | None
    reasons: dict[str, str]

    def message(self) -> str:
        """One line a host, as people read it in the ErrorUnschedulable condition."""
        if not self.reasons:
            return "no host is registered"
        lines = [f"{host}: {why}" for host, why in sorted(self.reasons.items())]
        rest = Counter(line.partition(": ")[2].partition(":")[0] for line in lines[NAMED_HOSTS:])
        more = [f"and {count} more: {why}" for why, count in rest.most_common()]
        return f"0/{len(lines)} hosts are available\n" + "\n".join([*lines[:NAMED_HOSTS], *more])


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a Node says that placement asks for; it stays equal while nothing of that changes. 0 = not stated."""

    name: str
    labels: dict[str, str]
    taints: tuple[Object, ...] = ()
    is_ready: bool = False
    is_cordoned: bool = False
    cpu_milli: int = 0
    memory: int = 0
    #: all other resources of allocatable
    extra: dict[str, int] = {}
    #: fields that the driver honours; None = it has not told
    features: frozenset[str] | None = None


def facts_from(node: Object) -> Facts:
    """The facts of a Node."""
    status = status_of(node)
    offered = status.get("allocatable") or status.get("capacity") or {}
    others = {key: value for key, value in offered.items() if key not in ("cpu", "memory", "ephemeral-storage", "pods")}
    return Facts(
        name=node["metadata"]["name"],
        labels=labels_of(node),
        taints=tuple(spec_of(node).get("taints") or ()),
        is_ready=is_condition(node, "Ready"),
        is_cordoned=bool(spec_of(node).get("unschedulable")),
        cpu_milli=parse(offered.get("cpu", 0)).milli(),
        memory=int(parse(offered.get("memory", 0))),
        extra={key: int(parse(value)) for key, value in others.items()},
        features=_features(node),
    )


def _features(node: Object) -> frozenset[str] | None:
    try:
        found = json.loads(annotations_of(node).get(CAPABILITIES) or "{}")
        return frozenset(found["features"])
    except (ValueError, TypeError, KeyError):
        return None


def why_not_host(demand: Demand, host: Facts) -> str:
    """The first reason, apart from room, volumes and neighbours, why a host cannot run the machine; "" if it can."""
    if not host.is_ready:
        return "host is not ready"
    if any(taint.get("key") == OUT_OF_SERVICE_TAINT["key"] for taint in host.taints):
        return "host is confirmed dead"
    if host.labels.get(SCHEDULABLE_LABEL, "true") != "true":
        return f"label {SCHEDULABLE_LABEL} is not true"
    if host.is_cordoned:
        return "host is cordoned"
    taint = first_untolerated(demand, host)
    if taint is not None:
        return f"untolerated taint {{{taint.get('key')}: {taint.get('value', '')}}}"
    for key, value in sorted(demand.node_selector.items()):
        if host.labels.get(key) != value:
            return f"label {key}={value} of nodeSelector is missing"
    required = (demand.affinity.get("nodeAffinity") or {}).get(REQUIRED)
    if required and not matches_terms(required.get("nodeSelectorTerms") or (), host.name, host.labels):
        return "node affinity does not match"
    return _why_not_offered(demand, host)


def first_untolerated(demand: Demand, host: Facts) -> Object | None:
    """A taint that keeps the machine off the host."""
    for taint in host.taints:
        if taint.get("effect") in _HARD and not is_tolerated(taint, demand.tolerations):
            return taint
    return None


def _why_not_offered(demand: Demand, host: Facts) -> str:
    for pool in demand.pools:
        if f"pool.stead.io/{pool}" not in host.labels:
            return f"host has no pool {pool}"
    for prefix, name, what in demand.offers:
        if f"{prefix}/{name}" not in host.labels and any(key.startswith(f"{prefix}/") for key in host.labels):
            return f"host does not offer {what} {name}"
    if host.features is not None:
        lacking = [feature for feature in demand.features if feature not in host.features]
        if lacking:
            return f"the hypervisor of the host does not offer {', '.join(lacking)}"
    if demand.bridges and any(key.startswith(BRIDGE) for key in host.extra):
        for bridge in demand.bridges:
            if BRIDGE + bridge not in host.extra:
                return f"host has no bridge {bridge}"
    return ""


def why_not_volumes(demand: Demand, host: Facts) -> str:
    """Why the machine's volumes keep it off a host; "" if they do not."""
    for affinity in demand.volume_affinities:
        if not matches_terms(affinity.get("nodeSelectorTerms") or (), host.name, host.labels):
            return "a volume of the machine lies on another host"
    for pinned in demand.pinned_hosts:
        if pinned != host.name:
            return f"a volume of the machine is being made on {pinned}"
    return ""


def why_no_room(demand: Demand, host: Facts, used: Use, machines: int) -> str:
    """Which resource of a host is short; "" if none is."""
    if host.cpu_milli and used.cpu_milli + demand.cpu_milli > host.cpu_milli:
        left = max(0, host.cpu_milli - used.cpu_milli)
        return f"insufficient cpu: needs {demand.cpu_milli}m, {left}m of {host.cpu_milli}m left"
    if host.memory and used.memory + demand.memory > host.memory:
        left = max(0, host.memory - used.memory) // MIB
        return f"insufficient memory: needs {demand.memory // MIB}Mi, {left}Mi of {host.memory // MIB}Mi left"
    for name, wanted in sorted(demand.extra.items()):
        offered, taken = host.extra.get(name, 0), used.extra.get(name, 0)
        if taken + wanted > offered:
            return f"insufficient {name}: needs {wanted}, {max(0, offered - taken)} of {offered} left"
    if MACHINES in host.extra and machines >= host.extra[MACHINES]:
        return f"the host is full: {machines} machines of {host.extra[MACHINES]}"
    return ""


def preference(demand: Demand, host: Facts) -> float:
    """How much the machine likes a host for itself: weights of preferred node affinity, less one a soft taint."""
    preferred = (demand.affinity.get("nodeAffinity") or {}).get(PREFERRED)
    liked = sum(
        float(p.get("weight", 0))
        for p in preferred or ()
        if matches_terms((p.get("preference") or {},), host.name, host.labels)
    )
    soft = [t for t in host.taints if t.get("effect") == "PreferNoSchedule"]
    return liked - sum(1 for taint in soft if not is_tolerated(taint, demand.tolerations))
