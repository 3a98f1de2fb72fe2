"""How GitOps tools judge an object, written anew from what they publish.

`kstatus` follows the rules of Kubernetes' cli-utils, by which Flux and `kubectl`'s successors wait; `argo` follows the
health checks that Argo CD ships for KubeVirt's and CDI's kinds. Pure.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]


def condition_of(obj: Object, kind: str) -> Object:
    """The condition of a type, or nothing."""
    conditions: list[Object] = obj.get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == kind), {})


def kstatus(obj: Object) -> str:
    """Terminating, InProgress, Failed or Current."""
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    generation, observed = obj["metadata"].get("generation"), obj.get("status", {}).get("observedGeneration")
    if generation is not None and observed is not None and generation != observed:
        return "InProgress"
    if condition_of(obj, "Reconciling").get("status") == "True":
        return "InProgress"
    if condition_of(obj, "Stalled").get("status") == "True":
        return "Failed"
    if obj["kind"] == "PersistentVolumeClaim":
        return "Current" if obj.get("status", {}).get("phase") == "Bound" else "InProgress"
    return "Current" if condition_of(obj, "Ready").get("status", "True") == "True" else "InProgress"


def argo(obj: Object) -> str:
    """Healthy, Progressing, Suspended or Degraded."""
    if obj["metadata"].get("deletionTimestamp"):
        return "Progressing"
    return {"VirtualMachine": _machine, "DataVolume": _data_volume}[obj["kind"]](obj)


def _machine(obj: Object) -> str:
    if condition_of(obj, "Paused").get("status") == "True":
        return "Suspended"
    ready = condition_of(obj, "Ready").get("status")
    if ready is None:
        return "Progressing"
    if ready == "True":
        return "Healthy"
    return "Progressing" if obj["status"].get("created") else "Suspended"


def _data_volume(obj: Object) -> str:
    phase = obj.get("status", {}).get("phase")
    known = {"Succeeded": "Healthy", "Failed": "Degraded", "Unknown": "Degraded", "Paused": "Suspended"}
    running = condition_of(obj, "Running")
    if phase not in ("Succeeded", "Paused") and (running.get("status"), running.get("reason")) == ("False", "Error"):
        return "Degraded"
    return known.get(str(phase), "Progressing")
