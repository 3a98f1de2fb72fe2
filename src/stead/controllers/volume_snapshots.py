"""The controller of VolumeSnapshots on rungs 1 and 2: hands each to the host that holds its source.

Started by `controllers.start`. Writes annotation `stead.io/host`, our finalizer and the class that was left open, in
one patch; until then it also writes status, which is the agent's from then on. What a user may not set by hand is
guarded in `server/references.py`. Names are those of the Kubernetes snapshot controller.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from stead.client.informer import Key, key_of
from stead.controllers import volume_needs
from stead.controllers.conditions import annotations_of, has_finalizer, is_deleting, spec_of, status_of, text_from_time
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.writes import annotation_steps, finalizer_steps, guarded_patch, write_status
from stead.kinds.register import NODE, PERSISTENT_VOLUME_CLAIM, VOLUME_SNAPSHOT, VOLUME_SNAPSHOT_CLASS

Object = dict[str, Any]

HOST, GROUP, INDICATIONS = "stead.io/host", "stead.io/snapshot-group", "stead.io/indications"
FINALIZER = "stead.io/snapshot"
DEFAULT_CLASS = "snapshot.storage.kubernetes.io/is-default-class"
CLASS_NAME = "stead"
WAIT_SECONDS = 15.0


def local_snapshot_class() -> Object:
    """The class that every installation has."""
    return {
        "apiVersion": VOLUME_SNAPSHOT_CLASS.api_version,
        "kind": VOLUME_SNAPSHOT_CLASS.kind,
        "metadata": {"name": CLASS_NAME, "annotations": {DEFAULT_CLASS: "true"}},
        "driver": volume_needs.PROVISIONER,
        "deletionPolicy": "Delete",
    }


class Placed(msgspec.Struct, frozen=True):
    """The host and class of a snapshot, or why there is none (yet)."""

    host: str = ""
    class_name: str = ""
    trouble: str = ""


def decide_placed(snapshot: Object, claim: Object | None, classes: list[Object]) -> Placed:
    """Which host takes the snapshot."""
    source = (spec_of(snapshot).get("source") or {}).get("persistentVolumeClaimName", "")
    named = spec_of(snapshot).get("volumeSnapshotClassName")
    if not named:
        named = next((c["metadata"]["name"] for c in classes if annotations_of(c).get(DEFAULT_CLASS) == "true"), "")
        if not named:
            return Placed(trouble="no volume snapshot class is named and none is the default")
    found = next((c for c in classes if c["metadata"]["name"] == named), None)
    if found is None:
        return Placed(trouble=f"volume snapshot class {named} not found")
    if found.get("driver") != volume_needs.PROVISIONER:
        return Placed(trouble=f"volume snapshot class {named} is for driver {found.get('driver')}, not for pools here")
    if claim is None or is_deleting(claim):
        return Placed(trouble=f"claim {source} not found")
    if status_of(claim).get("phase") != "Bound" or volume_needs.HANDLE not in annotations_of(claim):
        return Placed(trouble=f"claim {source} is not bound to a volume of a host's pool")
    return Placed(host=annotations_of(claim).get(volume_needs.SELECTED_NODE, ""), class_name=named)


class VolumeSnapshots:
    """The controller's hands."""

    def __init__(self, world: World) -> None:
        self._client = world.client
        of = world.informers.of
        self._snapshots = of(VOLUME_SNAPSHOT)
        self._classes = of(VOLUME_SNAPSHOT_CLASS)
        self._claims = of(PERSISTENT_VOLUME_CLAIM)
        self._nodes = of(NODE)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (
            Source(self._snapshots, own_key),
            Source(self._claims, self._waiting),
            Source(self._classes, lambda _: self._waiting(None)),
        )
        return Controller("volume snapshot", self.reconcile, sources, workers=2)

    def _waiting(self, claim: Object | None) -> list[Key]:
        """Snapshots that no host has yet, of that claim."""
        name = claim["metadata"]["name"] if claim else ""
        return [
            key_of(s)
            for s in self._snapshots.objects()
            if HOST not in annotations_of(s)
            and name in ("", (spec_of(s).get("source") or {}).get("persistentVolumeClaimName"))
        ]

    async def reconcile(self, key: Key) -> float | None:
        """Give one snapshot to its host, or let it go when no host has it."""
        snapshot = self._snapshots.get(*key)
        if snapshot is None:
            return None
        host = annotations_of(snapshot).get(HOST, "")
        if is_deleting(snapshot):
            lost = not host or self._nodes.get(None, host) is None
            if lost and has_finalizer(snapshot, FINALIZER):
                steps = finalizer_steps(snapshot, remove=FINALIZER)
                await guarded_patch(self._client, VOLUME_SNAPSHOT, snapshot, steps)
            return None
        if host:
            return None
        source = spec_of(snapshot).get("source") or {}
        claim = self._claims.get(key.namespace, str(source.get("persistentVolumeClaimName", "")))
        placed = decide_placed(snapshot, claim, self._classes.objects())
        if placed.trouble or not placed.host:
            await self._tell(snapshot, placed.trouble or "the volume of its claim has no host")
            return WAIT_SECONDS
        given: dict[str, str | None] = {HOST: placed.host}
        steps = annotation_steps(snapshot, given) + finalizer_steps(snapshot, add=FINALIZER)
        if not spec_of(snapshot).get("volumeSnapshotClassName"):
            steps.append({"op": "add", "path": "/spec/volumeSnapshotClassName", "value": placed.class_name})
        await guarded_patch(self._client, VOLUME_SNAPSHOT, snapshot, steps)
        return None

    async def _tell(self, snapshot: Object, trouble: str) -> None:
        known = status_of(snapshot).get("error") or {}
        if known.get("message") != trouble:
            error = {"message": trouble, "time": text_from_time(datetime.now(UTC))}
            await write_status(self._client, VOLUME_SNAPSHOT, snapshot, {"readyToUse": False, "error": error})
