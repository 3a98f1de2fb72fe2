"""What a Node says of a host in Stead's use of it: taints, marks, and how its machines leave. Pure.

Asked by the command line, by placement and by what watches over hosts. Taints and their meaning are Kubernetes' and
KubeVirt's; eviction strategies are KubeVirt's (docs of EvictionStrategy in kubevirt.io/api).
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

#: KubeVirt's default `nodeDrainTaintKey`: machines that can move leave a host with it
DRAIN_TAINT = {"key": "kubevirt.io/drain", "value": "draining", "effect": "NoSchedule"}
#: Kubernetes' word for a host that is off for sure (non-graceful node shutdown)
OUT_OF_SERVICE_TAINT = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
#: annotation: since when an administrator keeps the host empty
MAINTENANCE = "stead.io/maintenance"


def is_cordoned(node: Object) -> bool:
    """Whether an administrator wants no more machines there."""
    return bool((node.get("spec") or {}).get("unschedulable"))


def ready_condition(node: Object) -> Object:
    """The Ready condition, or {}."""
    conditions = (node.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c.get("type") == "Ready"), {})


def has_taint(node: Object, key: str) -> bool:
    """Whether the host has a taint with that key."""
    return any(taint.get("key") == key for taint in (node.get("spec") or {}).get("taints") or [])


def taints_with(node: Object, taint: Object) -> list[Object]:
    """The host's taints with one more, or as they are."""
    present = list((node.get("spec") or {}).get("taints") or [])
    return present if has_taint(node, taint["key"]) else [*present, dict(taint)]


def taints_without(node: Object, *keys: str) -> list[Object]:
    """The host's taints without those keys."""
    return [taint for taint in (node.get("spec") or {}).get("taints") or [] if taint.get("key") not in keys]


def decide_leaving(vmi: Object) -> tuple[str, str]:
    """How a machine leaves a host that is drained: `move`, `shut down` or `stays`, and why."""
    strategy = (vmi.get("status") or {}).get("evictionStrategy") or (vmi.get("spec") or {}).get("evictionStrategy")
    conditions = (vmi.get("status") or {}).get("conditions") or []
    movable: Object = next((c for c in conditions if c.get("type") == "LiveMigratable"), {})
    can_move = movable.get("status") == "True"
    why_not = movable.get("message") or movable.get("reason") or "nothing says that it can move"
    if strategy == "External":
        return "stays", "eviction strategy External: something else moves it"
    if strategy == "LiveMigrate":
        return ("move", "eviction strategy LiveMigrate") if can_move else ("stays", f"LiveMigrate, and {why_not}")
    if strategy == "LiveMigrateIfPossible" and can_move:
        return "move", "eviction strategy LiveMigrateIfPossible"
    if strategy == "LiveMigrateIfPossible":
        return "shut down", f"LiveMigrateIfPossible, and {why_not}"
    return "shut down", f"eviction strategy {strategy or 'None'}"
