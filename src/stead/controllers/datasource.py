"""The DataSource controller: whether what a DataSource points at can be cloned, told in its status.

Started by `controllers.start`; sole writer of DataSource.status. Source, chain depth and reasons are CDI's.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from stead.client.informer import Key, key_of
from stead.controllers import volume_needs
from stead.controllers.conditions import (
    annotations_of,
    condition,
    find_condition,
    is_deleting,
    merge_conditions,
    spec_of,
    status_of,
    text_from_time,
)
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.writes import write_status
from stead.kinds.register import DATA_SOURCE, DATA_VOLUME, PERSISTENT_VOLUME_CLAIM, VOLUME_SNAPSHOT

Object = dict[str, Any]
Lookup = Callable[[str, str], Object | None]


def decide_source(
    data_source: Object,
    data_sources: Lookup,
    data_volumes: Lookup,
    claims: Lookup,
    snapshots: Lookup = lambda _namespace, _name: None,
) -> tuple[Object | None, Object]:
    """(resolved source, Ready condition)."""
    namespace = data_source["metadata"]["namespace"]
    source = spec_of(data_source).get("source") or {}
    if source.get("dataSource"):
        place = source["dataSource"].get("namespace") or namespace
        name = source["dataSource"].get("name", "")
        target = data_sources(place, name)
        if target is None:
            return None, condition("Ready", "False", "NotFound", f"DataSource {place}/{name} not found")
        source, namespace = spec_of(target).get("source") or {}, place
        if source.get("dataSource"):
            text = "DataSource reference chain exceeds maximum depth of 1"
            return None, condition("Ready", "False", "MaxReferenceDepthReached", text)
    if source.get("pvc"):
        place, name = source["pvc"].get("namespace") or namespace, source["pvc"].get("name", "")
        return {"pvc": {"namespace": place, "name": name}}, _claim_ready(place, name, data_volumes, claims)
    if source.get("snapshot"):
        place, name = source["snapshot"].get("namespace") or namespace, source["snapshot"].get("name", "")
        return {"snapshot": {"namespace": place, "name": name}}, _snapshot_ready(place, name, snapshots)
    return None, condition("Ready", "False", "NoSource", "No source is specified")


def _claim_ready(namespace: str, name: str, data_volumes: Lookup, claims: Lookup) -> Object:
    claim, data_volume = claims(namespace, name), data_volumes(namespace, name)
    if data_volume is not None and status_of(data_volume).get("phase") != "Succeeded":
        phase = status_of(data_volume).get("phase") or "Pending"
        running = find_condition(data_volume, "Running") or {}
        trouble = running.get("message") if running.get("status") == "False" else ""
        text = f"Import DataVolume {namespace}/{name} is {phase}"
        return condition("Ready", "False", phase, f"{text}: {trouble}" if trouble else text)
    if claim is None or is_deleting(claim):
        return condition("Ready", "False", "NotFound", f"PVC {namespace}/{name} not found")
    if volume_needs.SOURCE in annotations_of(claim) and volume_needs.transfer_of(claim).get("phase") != "Succeeded":
        return condition("Ready", "False", "ImportInProgress", f"PVC {namespace}/{name} is not populated yet")
    return condition("Ready", "True", "Ready", "DataSource is ready to be consumed")


def _snapshot_ready(namespace: str, name: str, snapshots: Lookup) -> Object:
    snapshot = snapshots(namespace, name)
    if snapshot is None or is_deleting(snapshot):
        return condition("Ready", "False", "NotFound", f"VolumeSnapshot {namespace}/{name} not found")
    if not status_of(snapshot).get("readyToUse"):
        return condition("Ready", "False", "SnapshotNotReady", f"VolumeSnapshot {namespace}/{name} is not ready")
    return condition("Ready", "True", "Ready", "DataSource is ready to be consumed")


class DataSources:
    """The controller's hands."""

    def __init__(self, world: World) -> None:
        self._client = world.client
        of = world.informers.of
        self._data_sources, self._data_volumes, self._claims = (
            of(DATA_SOURCE),
            of(DATA_VOLUME),
            of(PERSISTENT_VOLUME_CLAIM),
        )
        self._snapshots = of(VOLUME_SNAPSHOT)
        self._data_sources.add_index("target", _targets)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (
            Source(self._data_sources, lambda d: [*own_key(d), *self._pointing(d)]),
            Source(self._data_volumes, self._pointing),
            Source(self._claims, self._pointing),
            Source(self._snapshots, self._pointing),
        )
        return Controller("datasource", self.reconcile, sources, workers=1)

    def _pointing(self, target: Object) -> list[Key]:
        metadata = target["metadata"]
        return [key_of(d) for d in self._data_sources.by_index("target", f"{metadata['namespace']}/{metadata['name']}")]

    async def reconcile(self, key: Key) -> float | None:
        """Write one DataSource's status if it changed."""
        data_source = self._data_sources.get(*key)
        if data_source is None or is_deleting(data_source):
            return None
        source, ready = decide_source(
            data_source, self._data_sources.get, self._data_volumes.get, self._claims.get, self._snapshots.get
        )
        now = text_from_time(datetime.now(UTC))
        old = status_of(data_source)
        dated = merge_conditions(old.get("conditions"), [ready], now, heartbeat="lastHeartbeatTime")
        status: Object = {"conditions": dated}
        if source is not None:
            status["source"] = source
        await write_status(self._client, DATA_SOURCE, data_source, status)
        return None


def _targets(data_source: Object) -> list[str]:
    namespace, found = data_source["metadata"]["namespace"], []
    for reference in (spec_of(data_source).get("source") or {}).values():
        if isinstance(reference, dict) and reference.get("name"):
            found.append(f"{reference.get('namespace') or namespace}/{reference['name']}")
    return found
