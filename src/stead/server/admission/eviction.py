"""What an eviction of a machine's pod, or a drain of its host, does to the machine.

Follows KubeVirt's eviction interceptor (notes 6.10, recordings `evict-*`, observed 50): a machine that can move is
marked for evacuation and the caller told to come again; one that must not be stopped and cannot move refuses. Pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stead.kube.errors import ApiError
from stead.server.admission.contract import Json


class Eviction(msgspec.Struct, frozen=True):
    """Decision: `patch` (JSON patch of the instance, empty = none) and then `refusal`, or None to let it pass."""

    patch: tuple[dict[str, Any], ...] = ()
    refusal: ApiError | None = None


def decide_eviction(instance: Json, cluster_strategy: str, dry_run: bool) -> Eviction:
    """Whether an instance may be evicted. `cluster_strategy` serves an instance that names none."""
    metadata: Json = instance.get("metadata") or {}
    status: Json = instance.get("status") or {}
    strategy = (instance.get("spec") or {}).get("evictionStrategy") or cluster_strategy
    name = str(metadata.get("name"))
    migratable = any(
        c.get("type") == "LiveMigratable" and c.get("status") == "True" for c in status.get("conditions") or ()
    )
    if strategy == "LiveMigrate" and not migratable:
        text = f"VMI {name} is configured with an eviction strategy but is not live-migratable"
        return Eviction(refusal=ApiError("", text, code=429))
    if strategy == "None" or (strategy == "LiveMigrateIfPossible" and not migratable):
        return Eviction()
    text = f'Eviction triggered evacuation of VMI "{metadata.get("namespace")}/{name}"'
    if status.get("evacuationNodeName"):
        return Eviction(refusal=ApiError("", f"Evacuation in progress: {text}", code=429))
    mark = {"op": "add", "path": "/status/evacuationNodeName", "value": status.get("nodeName") or ""}
    return Eviction(() if dry_run else (mark,), ApiError("", text, code=429))
