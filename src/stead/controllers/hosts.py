"""Hosts that fall silent: a Node whose Lease is not renewed for 40 s becomes Ready=Unknown.

Started by `controllers.start` on rungs 1 and 2. Writes only the Ready condition of a Node, and only to Unknown; the
host's agent writes it otherwise, so it comes back by itself. Time is the observer's: what counts is for how long *we*
have seen the Lease unchanged. Reason and message are Kubernetes' node lifecycle controller's. No machine is stopped or
moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from stead.client.informer import Key
from stead.controllers.conditions import find_condition, is_deleting, spec_of, status_of, text_from_time
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.writes import write_status
from stead.kinds.register import LEASE, NODE

Object = dict[str, Any]

LEASE_NAMESPACE = "kube-node-lease"
GRACE_SECONDS = 40.0
MESSAGE = "Kubelet stopped posting node status."


class Hosts:
    """The controller's hands."""

    def __init__(
        self, world: World, *, grace_seconds: float = GRACE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._world = world
        self._grace = grace_seconds
        self._clock = clock
        self._nodes = world.informers.of(NODE)
        self._leases = world.informers.of(LEASE)
        self._seen: dict[str, tuple[str, float]] = {}  # host → renewTime, when we saw it first

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        leases = Source(self._leases, _host_of)
        return Controller("host", self.reconcile, (Source(self._nodes, own_key), leases), workers=1)

    async def reconcile(self, key: Key) -> float | None:
        """Judge one host; look again when its grace would end."""
        node = self._nodes.get(*key)
        if node is None or is_deleting(node):
            self._seen.pop(key.name, None)
            return None
        lease = self._leases.get(LEASE_NAMESPACE, key.name)
        renewed, now = str(spec_of(lease).get("renewTime", "")), self._clock()
        if self._seen.get(key.name, ("?", 0.0))[0] != renewed:
            self._seen[key.name] = (renewed, now)
        left = self._seen[key.name][1] + self._grace - now
        if left > 0:
            return left + 0.1
        await self._mark_unknown(node)
        return self._grace

    async def _mark_unknown(self, node: Object) -> None:
        ready = find_condition(node, "Ready")
        if ready and ready.get("status") == "Unknown":
            return
        moment = text_from_time(datetime.now(UTC))
        unknown = {
            "type": "Ready",
            "status": "Unknown",
            "reason": "NodeStatusUnknown",
            "message": MESSAGE,
            "lastTransitionTime": moment,
            "lastHeartbeatTime": (ready or {}).get("lastHeartbeatTime", moment),
        }
        status = status_of(node)
        others = [c for c in status.get("conditions") or () if c.get("type") != "Ready"]
        await write_status(self._world.client, NODE, node, {**status, "conditions": [*others, unknown]})
        self._world.recorder.event(node, "Warning", "NodeNotReady", f"host {node['metadata']['name']} fell silent")


def _host_of(lease: Object) -> list[Key]:
    metadata = lease["metadata"]
    return [Key("", metadata["name"])] if metadata.get("namespace") == LEASE_NAMESPACE else []
