"""The controller of VirtualMachineClones: a snapshot of the source (or the one that is named) as a new machine.

Started by `controllers.start`. Sole writer of VirtualMachineClone.status. The snapshot and the restore that it makes
are owned by the clone and deleted when it is done. What differs in the new machine is expressed as patches of the
restore (`clone_patches`), so that the machine appears complete or not at all. Phases and reasons are KubeVirt's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from stead.client.informer import Key
from stead.controllers.conditions import (
    condition,
    find_condition,
    is_deleting,
    merge_conditions,
    owner_reference,
    spec_of,
    status_of,
    text_from_time,
)
from stead.controllers.runner import Controller, Source, World, own_key, owner_keys
from stead.controllers.writes import create_if_absent, delete_if_there, write_status
from stead.kinds.register import (
    MACHINE_CLONE,
    MACHINE_RESTORE,
    MACHINE_SNAPSHOT,
    MACHINE_SNAPSHOT_CONTENT,
    VIRTUAL_MACHINE,
)
from stead.kube.errors import ApiError

Object = dict[str, Any]

LOOK_SECONDS = 5.0
_FINAL = ("Succeeded", "Failed")


class View(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision about one clone may look at."""

    clone: Object
    source: Object | None
    target: Object | None
    snapshot: Object | None
    content: Object | None
    restore: Object | None
    now: datetime


def snapshot_name(clone: Object) -> str:
    """Name of the snapshot that is used: a named one, or one of our own."""
    source = spec_of(clone).get("source") or {}
    if source.get("kind") == MACHINE_SNAPSHOT.kind:
        return str(source.get("name", ""))
    return f"tmp-snapshot-{clone['metadata']['uid']}"


def restore_name(clone: Object) -> str:
    """Name of the restore that is used."""
    return f"tmp-restore-{clone['metadata']['uid']}"


def is_selected(key: str, filters: Iterable[str]) -> bool:
    """Whether a label or annotation is kept: by some filter (none: by all), and left out by none."""
    wanted: list[str] = []
    unwanted: list[str] = []
    for text in filters:
        (unwanted if text.startswith("!") else wanted).append(text.removeprefix("!"))

    def matches(pattern: str) -> bool:
        return key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern

    return (not wanted or any(map(matches, wanted))) and not any(map(matches, unwanted))


def clone_patches(clone: Object, machine: Object) -> list[str]:
    """What makes the new machine differ, as JSON patches: filtered labels and annotations, MACs, identities."""
    spec, steps = spec_of(clone), list[Object]()

    def leave_out(metadata: Object, place: str, filters: Object) -> None:
        for field, chosen in (("labels", "labelFilters"), ("annotations", "annotationFilters")):
            for key in metadata.get(field) or {}:
                if filters.get(chosen) is not None and not is_selected(key, filters[chosen]):
                    path = key.replace("~", "~0").replace("/", "~1")
                    steps.append({"op": "remove", "path": f"{place}/{field}/{path}"})

    template: Object = spec_of(machine).get("template") or {}
    leave_out(machine.get("metadata") or {}, "/metadata", spec)
    leave_out(template.get("metadata") or {}, "/spec/template/metadata", spec.get("template") or {})
    domain: Object = spec_of(template).get("domain") or {}
    macs = spec.get("newMacAddresses") or {}
    for index, interface in enumerate((domain.get("devices") or {}).get("interfaces") or ()):
        path = f"/spec/template/spec/domain/devices/interfaces/{index}/macAddress"
        if interface["name"] in macs:
            steps.append({"op": "add", "path": path, "value": macs[interface["name"]]})
        elif interface.get("macAddress"):
            steps.append({"op": "remove", "path": path})
    steps += _identity_steps(domain.get("firmware") or {}, spec.get("newSMBiosSerial"), bool(domain.get("firmware")))
    return [msgspec.json.encode(step).decode() for step in steps] + list(spec.get("patches") or ())


def _identity_steps(firmware: Object, serial: str | None, has_firmware: bool) -> list[Object]:
    """A firmware UUID of its own (made up by the server), and a serial number only if one is given."""
    here = "/spec/template/spec/domain/firmware"
    steps: list[Object] = []
    if firmware.get("uuid"):
        steps.append({"op": "remove", "path": f"{here}/uuid"})
    if serial:
        if not has_firmware:
            steps.append({"op": "add", "path": here, "value": {}})
        steps.append({"op": "add", "path": f"{here}/serial", "value": serial})
    elif firmware.get("serial"):
        steps.append({"op": "remove", "path": f"{here}/serial"})
    return steps


def build_snapshot(clone: Object) -> Object:
    """The snapshot of the source machine."""
    return _helper(
        clone, MACHINE_SNAPSHOT.api_version, MACHINE_SNAPSHOT.kind, snapshot_name(clone),
        {"source": spec_of(clone)["source"]},
    )  # fmt: skip


def build_restore(clone: Object, content: Object) -> Object:
    """The restore to the new machine."""
    machine = spec_of(content)["source"]["virtualMachine"]
    spec: Object = {
        "target": spec_of(clone)["target"],
        "virtualMachineSnapshotName": snapshot_name(clone),
        "patches": clone_patches(clone, machine),
    }
    if policy := spec_of(clone).get("volumeNamePolicy"):
        spec["volumeRestorePolicy"] = policy
    return _helper(clone, MACHINE_RESTORE.api_version, MACHINE_RESTORE.kind, restore_name(clone), spec)


def _helper(clone: Object, api_version: str, kind: str, name: str, spec: Object) -> Object:
    metadata = {
        "namespace": clone["metadata"]["namespace"],
        "name": name,
        "ownerReferences": [owner_reference(clone)],
    }
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}


def decide_status(view: View) -> Object:
    """The clone's whole status."""
    clone, status = view.clone, dict(status_of(view.clone))
    if status.get("phase") in _FINAL:
        return status
    status.setdefault("creationTime", text_from_time(view.now))
    of_machine = (spec_of(clone).get("source") or {}).get("kind") == VIRTUAL_MACHINE.kind
    reason, phase = "Still processing", "SnapshotInProgress"
    trouble = ""
    if of_machine and view.source is None and view.snapshot is None:
        reason = f"Source doesn't exist: {spec_of(clone)['source'].get('name')}"
    elif not of_machine and view.snapshot is None:
        reason = f"Source doesn't exist: {snapshot_name(clone)}"
    status["snapshotName"] = snapshot_name(clone)
    if status_of(view.snapshot).get("phase") == "Failed":
        why = (status_of(view.snapshot).get("error") or {}).get("message", "")
        trouble = f"Snapshot {snapshot_name(clone)} failed: {why}"
    if status_of(view.snapshot).get("readyToUse"):
        phase = "RestoreInProgress"
        if view.restore is None and view.target is not None:
            trouble = f"Target VM {view.target['metadata']['name']} exists already"
    if view.restore is not None:
        status["restoreName"] = restore_name(clone)
        if failure := find_condition(view.restore, "Failure"):
            trouble = f"Restore failed: {failure.get('reason')}"
        elif status_of(view.restore).get("complete"):
            phase = "Succeeded" if view.target is not None else "CreatingTargetVM"
    done = phase == "Succeeded"
    if trouble:
        phase, reason = "Failed", trouble
    elif done:
        reason = "Operation complete"
        status["targetName"] = spec_of(clone)["target"]["name"]
        for field in ("snapshotName", "restoreName"):
            status.pop(field, None)
    status["phase"] = phase
    wanted = [
        condition("Progressing", "False" if phase in _FINAL else "True", reason),
        condition("Ready", "True" if done else "False", reason),
    ]
    status["conditions"] = merge_conditions(status.get("conditions"), wanted, text_from_time(view.now))
    return status


def refused(view: View, clone: Object, why: str) -> Object:
    """The status of a clone whose patches the server does not take."""
    wanted = [condition("Progressing", "False", why), condition("Ready", "False", why)]
    dated = merge_conditions(status_of(clone).get("conditions"), wanted, text_from_time(view.now))
    return {**status_of(clone), "phase": "Failed", "conditions": dated}


class Clones:
    """The controller's hands."""

    def __init__(self, world: World, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._world = world
        self._client = world.client
        self._clock = clock
        of = world.informers.of
        self._clones = of(MACHINE_CLONE)
        self._snapshots = of(MACHINE_SNAPSHOT)
        self._contents = of(MACHINE_SNAPSHOT_CONTENT)
        self._restores = of(MACHINE_RESTORE)
        self._vms = of(VIRTUAL_MACHINE)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (
            Source(self._clones, own_key),
            Source(self._snapshots, owner_keys(MACHINE_CLONE.kind)),
            Source(self._snapshots, self._waiting),
            Source(self._restores, owner_keys(MACHINE_CLONE.kind)),
            Source(self._vms, self._waiting),
        )
        return Controller("clone", self.reconcile, sources, workers=2)

    def _waiting(self, obj: Object) -> list[Key]:
        """Clones under way that name the object."""
        namespace, name = obj["metadata"]["namespace"], obj["metadata"]["name"]
        return [
            Key(namespace, c["metadata"]["name"])
            for c in self._clones.objects(namespace)
            if status_of(c).get("phase") not in _FINAL
            and name in ((spec_of(c).get(f) or {}).get("name") for f in ("source", "target"))
        ]

    async def reconcile(self, key: Key) -> float | None:
        """Bring one clone nearer to Succeeded."""
        clone = self._clones.get(*key)
        if clone is None or is_deleting(clone):
            return None
        view = self._view(clone)
        before = status_of(clone).get("phase")
        status = decide_status(view)
        clone = await write_status(self._client, MACHINE_CLONE, clone, status)
        if status["phase"] in _FINAL:
            if before not in _FINAL:
                self._say(clone, status)
            await self._clear(view)
            return None
        if view.snapshot is None and view.source is not None:
            await create_if_absent(self._client, MACHINE_SNAPSHOT, build_snapshot(clone))
        ready = status_of(view.snapshot).get("readyToUse")
        if ready and view.restore is None and view.content is not None:
            try:
                await create_if_absent(self._client, MACHINE_RESTORE, build_restore(clone, view.content))
            except ApiError as error:
                if error.code != 422:
                    raise
                await write_status(self._client, MACHINE_CLONE, clone, refused(view, clone, error.message))
        return LOOK_SECONDS

    def _view(self, clone: Object) -> View:
        namespace, spec = clone["metadata"]["namespace"], spec_of(clone)
        source = spec.get("source") or {}
        snapshot = self._snapshots.get(namespace, snapshot_name(clone))
        content_name = str(status_of(snapshot).get("virtualMachineSnapshotContentName") or "")
        of_machine = source.get("kind") == VIRTUAL_MACHINE.kind
        return View(
            clone=clone,
            source=self._vms.get(namespace, source.get("name", "")) if of_machine else None,
            target=self._vms.get(namespace, (spec.get("target") or {}).get("name", "")),
            snapshot=snapshot,
            content=self._contents.get(namespace, content_name) if content_name else None,
            restore=self._restores.get(namespace, restore_name(clone)),
            now=self._clock(),
        )

    async def _clear(self, view: View) -> None:
        """The helpers are not needed any more."""
        for resource, obj in ((MACHINE_RESTORE, view.restore), (MACHINE_SNAPSHOT, view.snapshot)):
            owned = obj is not None and any(
                o["uid"] == view.clone["metadata"]["uid"] for o in obj["metadata"].get("ownerReferences") or ()
            )
            if owned and obj is not None and not is_deleting(obj):
                await delete_if_there(self._client, resource, obj)

    def _say(self, clone: Object, status: Object) -> None:
        if status["phase"] == "Succeeded":
            text = f"Successfully created target VM {status['targetName']}"
            self._world.recorder.event(clone, "Normal", "VMCloneSucceeded", text)
        else:
            reason = (find_condition({"status": status}, "Ready") or {}).get("reason", "")
            self._world.recorder.event(clone, "Warning", "VMCloneFailed", reason)
