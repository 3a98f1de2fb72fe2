"""Which snapshot or restore holds a machine still: `status.snapshotInProgress` and `status.restoreInProgress`. Pure.

Called by `controllers.machine`, which writes them and so hands the lock to one at a time; the controllers of snapshots
and restores wait until they read their own name there. While one is held, admission refuses changes of the machine that
would disturb (KubeVirt's texts), and no instance is started.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stead.controllers.conditions import is_condition, is_deleting, spec_of, status_of
from stead.kinds.register import VIRTUAL_MACHINE

Object = dict[str, Any]

SNAPSHOT, RESTORE = "snapshotInProgress", "restoreInProgress"


def names_machine(reference: Object | None, name: str) -> bool:
    """Whether a reference in the machine's own namespace means the machine."""
    return bool(reference and reference.get("kind") == VIRTUAL_MACHINE.kind and reference.get("name") == name)


def is_snapshot_open(snapshot: Object) -> bool:
    """Whether a snapshot is still to be taken."""
    return not is_deleting(snapshot) and status_of(snapshot).get("phase") not in ("Succeeded", "Failed")


def is_restore_open(restore: Object) -> bool:
    """Whether a restore is neither complete nor failed."""
    return not (is_deleting(restore) or status_of(restore).get("complete") or is_condition(restore, "Failure"))


def machine_locks(vm: Object, snapshots: Iterable[Object], restores: Iterable[Object]) -> dict[str, str]:
    """The locks that are held from now on: who holds one keeps it while it is open, else the oldest gets it.

    A snapshot and a restore exclude each other.
    """
    namespace, name = vm["metadata"]["namespace"], vm["metadata"]["name"]
    wanting: dict[str, list[Object]] = {
        SNAPSHOT: [s for s in snapshots if is_snapshot_open(s) and names_machine(spec_of(s).get("source"), name)],
        RESTORE: [r for r in restores if is_restore_open(r) and names_machine(spec_of(r).get("target"), name)],
    }
    held: dict[str, str] = {}
    for lock, objects in wanting.items():
        mine = [o["metadata"] for o in objects if o["metadata"]["namespace"] == namespace]
        if status_of(vm).get(lock) in [m["name"] for m in mine]:
            held[lock] = status_of(vm)[lock]
    if held:
        return held
    for lock, objects in wanting.items():
        mine = [o["metadata"] for o in objects if o["metadata"]["namespace"] == namespace]
        if mine:
            oldest = min(mine, key=lambda m: (m.get("creationTimestamp", ""), m["name"]))
            return {lock: oldest["name"]}
    return {}


def is_held(vm: Object) -> bool:
    """Whether a snapshot or restore holds the machine."""
    status = status_of(vm)
    return bool(status.get(SNAPSHOT) or status.get(RESTORE))


def volume_snapshot_statuses(vm: Object) -> list[Object]:
    """For each volume of the template, whether a snapshot can hold it."""
    found: list[Object] = []
    for volume in spec_of(spec_of(vm).get("template")).get("volumes") or ():
        name = volume.get("name", "")
        if "dataVolume" in volume or "persistentVolumeClaim" in volume:
            found.append({"name": name, "enabled": True})
        else:
            text = f"Snapshot is not supported for this volumeSource type [{name}]"
            found.append({"name": name, "enabled": False, "reason": text})
    return found
