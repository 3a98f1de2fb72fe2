"""The controller of VirtualMachineSnapshots: the machine's object and its disks, at one moment.

Started by `controllers.start`. Sole writer of VirtualMachineSnapshot.status and finalizer, and of the
VirtualMachineSnapshotContent and the VolumeSnapshots that it makes. It waits until the machine's status names the
snapshot (`machine_locks`), keeps the object, makes one VolumeSnapshot a claim, and waits for the host, which takes all
of them at one moment (`agent/snapshots.py`). Level-triggered: every name follows from the snapshot's uid, so a crash at
any line is repaired by looking again. Phases, reasons and indications are KubeVirt's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from stead.client.informer import Key
from stead.controllers import machine_locks
from stead.controllers.conditions import (
    annotations_of,
    condition,
    has_finalizer,
    is_deleting,
    merge_conditions,
    owner_reference,
    spec_of,
    status_of,
    text_from_time,
    time_from_text,
)
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.volume_snapshots import GROUP, INDICATIONS
from stead.controllers.writes import create_if_absent, delete_if_there, finalizer_steps, guarded_patch, write_status
from stead.kinds.register import (
    CONTROLLER_REVISION,
    MACHINE_SNAPSHOT,
    MACHINE_SNAPSHOT_CONTENT,
    PERSISTENT_VOLUME_CLAIM,
    VIRTUAL_MACHINE,
    VIRTUAL_MACHINE_INSTANCE,
    VOLUME_SNAPSHOT,
)
from stead.kube.duration import seconds_from_duration

Object = dict[str, Any]

FINALIZER = "snapshot.kubevirt.io/vmsnapshot-protection"
DEFAULT_DEADLINE_SECONDS = 300.0
LOOK_SECONDS = 5.0
_MEANINGS = {
    "Online": "Snapshot taken while the VM was running",
    "GuestAgent": "Guest agent was active and successfully quiesced the filesystem for application consistency",
    "NoGuestAgent": "Guest agent is not present, snapshot is crash-consistent and may not be application-consistent",
    "QuiesceTimeout": "Filesystem freeze failed or timed out, snapshot is crash-consistent",
    "Paused": "VM was paused, snapshot is crash-consistent and the filesystem was not quiesced",
}
#: fields of a running machine's spec that are kept as they are now, not as they were when it started
_PRESENT = ("running", "runStrategy", "instancetype", "preference")
_KEPT_METADATA = ("name", "namespace", "uid", "labels", "annotations", "generation", "creationTimestamp")


class View(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision about one snapshot may look at."""

    snapshot: Object
    machine: Object | None
    instance: Object | None
    content: Object | None
    #: VolumeSnapshots by name
    volume_snapshots: dict[str, Object] = {}
    now: datetime


def content_name(snapshot: Object) -> str:
    """Name of the content."""
    return f"vmsnapshot-content-{snapshot['metadata']['uid']}"


def volume_snapshot_name(snapshot: Object, volume: str) -> str:
    """Name of the snapshot of one volume."""
    return f"vmsnapshot-{snapshot['metadata']['uid']}-volume-{volume}"


def deadline_of(snapshot: Object) -> datetime | None:
    """When the snapshot has failed unless it is complete; None = never."""
    text = spec_of(snapshot).get("failureDeadline")
    seconds = DEFAULT_DEADLINE_SECONDS if text is None else seconds_from_duration(text)
    if seconds == 0:
        return None
    return time_from_text(snapshot["metadata"]["creationTimestamp"]) + timedelta(seconds=seconds)


def claim_of_volume(volume: Object) -> str:
    """The claim behind a volume; "" if it lies in none."""
    named = volume.get("persistentVolumeClaim") or {}
    return str((volume.get("dataVolume") or {}).get("name") or named.get("claimName") or "")


def volumes_of(machine: Object) -> list[Object]:
    """The volumes of a machine's template."""
    return list(spec_of(spec_of(machine).get("template")).get("volumes") or ())


def build_content(snapshot: Object, machine: Object, spec: Object, claims: dict[str, Object]) -> Object:
    """The content: the machine with the spec that it runs by, and the claims of its volumes."""
    kept = {k: v for k, v in machine["metadata"].items() if k in _KEPT_METADATA}
    body: Object = {"metadata": kept, "spec": copy.deepcopy(spec)}
    backups = []
    for volume in volumes_of(body):
        claim = claims.get(claim_of_volume(volume))
        if claim is None:
            continue
        metadata = {k: v for k, v in claim["metadata"].items() if k in _KEPT_METADATA}
        metadata["annotations"] = {
            k: v for k, v in annotations_of(claim).items() if not k.startswith(("stead.io/", "volume.", "pv."))
        }
        backups.append({
            "volumeName": volume["name"],
            "persistentVolumeClaim": {"metadata": metadata, "spec": spec_of(claim)},
            "volumeSnapshotName": volume_snapshot_name(snapshot, volume["name"]),
        })  # fmt: skip
    return {
        "apiVersion": MACHINE_SNAPSHOT_CONTENT.api_version,
        "kind": MACHINE_SNAPSHOT_CONTENT.kind,
        "metadata": {"namespace": snapshot["metadata"]["namespace"], "name": content_name(snapshot)},
        "spec": {
            "virtualMachineSnapshotName": snapshot["metadata"]["name"],
            "source": {"virtualMachine": body},
            "volumeBackups": backups,
        },
    }


def build_volume_snapshots(snapshot: Object, content: Object) -> list[Object]:
    """One VolumeSnapshot a claim, all of one moment."""
    backups = spec_of(content).get("volumeBackups") or ()
    deadline = deadline_of(snapshot)
    group = {"id": content["metadata"]["name"], "size": len(backups), "quiesce": True}
    if deadline is not None:
        group["deadline"] = text_from_time(deadline)
    return [
        {
            "apiVersion": VOLUME_SNAPSHOT.api_version,
            "kind": VOLUME_SNAPSHOT.kind,
            "metadata": {
                "namespace": content["metadata"]["namespace"],
                "name": backup["volumeSnapshotName"],
                "annotations": {GROUP: msgspec.json.encode(group).decode()},
                "ownerReferences": [owner_reference(content)],
            },
            "spec": {"source": {"persistentVolumeClaimName": backup["persistentVolumeClaim"]["metadata"]["name"]}},
        }
        for backup in backups
    ]


def content_status(view: View) -> Object:
    """The status of the content, from its VolumeSnapshots."""
    content = view.content or {}
    told: list[Object] = []
    for backup in spec_of(content).get("volumeBackups") or ():
        name = backup["volumeSnapshotName"]
        status = status_of(view.volume_snapshots.get(name))
        one: Object = {"volumeSnapshotName": name, "readyToUse": bool(status.get("readyToUse"))}
        one |= {k: status[k] for k in ("creationTime", "error") if status.get(k)}
        told.append(one)
    ready = all(one["readyToUse"] for one in told)
    status = {"readyToUse": ready, "volumeSnapshotStatus": told}
    moments = [one["creationTime"] for one in told if one.get("creationTime")]
    if ready:
        known = status_of(content).get("creationTime")
        status["creationTime"] = max(moments) if moments else known or text_from_time(view.now)
    elif trouble := next((one["error"] for one in told if one.get("error")), None):
        status["error"] = trouble
    return status


def indications_of(view: View) -> list[str]:
    """How it was taken, in KubeVirt's words."""
    found: list[str] = []
    for snapshot in view.volume_snapshots.values():
        for word in annotations_of(snapshot).get(INDICATIONS, "").split(","):
            if word and word not in found:
                found.append(word)
    if not view.volume_snapshots and view.instance is not None and status_of(view.instance).get("phase") == "Running":
        found = ["Online", "NoGuestAgent"]
    return found


def decide_status(view: View) -> Object:
    """The snapshot's whole status. A snapshot that succeeded or failed keeps it."""
    snapshot, content = view.snapshot, view.content
    status = dict(status_of(snapshot))
    if is_deleting(snapshot):
        return {**status, "phase": "Deleting"}
    if status.get("phase") in ("Succeeded", "Failed"):
        return status
    status |= {"phase": "InProgress", "readyToUse": False}
    if view.machine is not None:
        status["sourceUID"] = view.machine["metadata"]["uid"]
    progressing, ready = ("True", "Source locked and operation in progress"), ("False", "Not ready")
    extra: list[Object] = []
    deadline = deadline_of(snapshot)
    if content is not None and status_of(content).get("readyToUse"):
        included = [b["volumeName"] for b in spec_of(content).get("volumeBackups") or ()]
        kept = spec_of(content)["source"]["virtualMachine"]
        excluded = [v["name"] for v in volumes_of(kept) if v["name"] not in included]
        how = indications_of(view)
        status |= {
            "phase": "Succeeded",
            "readyToUse": True,
            "virtualMachineSnapshotContentName": content["metadata"]["name"],
            "creationTime": status_of(content).get("creationTime"),
            "snapshotVolumes": {k: v for k, v in (("includedVolumes", included), ("excludedVolumes", excluded)) if v},
        }
        if how:
            status["indications"] = how
            status["sourceIndications"] = [{"indication": w, "message": _MEANINGS.get(w, w)} for w in how]
        status.pop("error", None)
        progressing, ready = ("False", "Operation complete"), ("True", "Operation complete")
    elif deadline is not None and view.now >= deadline:
        why = str((status_of(content).get("error") or {}).get("message") or "")
        text = "snapshot deadline exceeded" + (f": {why}" if why else "")
        status |= {"phase": "Failed", "error": {"message": text, "time": text_from_time(view.now)}}
        progressing = ("False", "Operation failed")
        extra = [condition("Failure", "True", text)]
    elif view.machine is None:
        progressing = ("False", "Source does not exist")
    elif content is None and not holds_lock(view):
        progressing = ("False", "Source not locked and not available")
    elif content is not None and status_of(content).get("error"):
        status["error"] = status_of(content)["error"]
    if content is not None:
        status["virtualMachineSnapshotContentName"] = content["metadata"]["name"]
    wanted = [condition("Progressing", *progressing), condition("Ready", *ready), *extra]
    status["conditions"] = merge_conditions(status.get("conditions"), wanted, text_from_time(view.now))
    return status


def holds_lock(view: View) -> bool:
    """Whether the machine stands still for this snapshot."""
    return bool(status_of(view.machine).get(machine_locks.SNAPSHOT) == view.snapshot["metadata"]["name"])


class MachineSnapshots:
    """The controller's hands."""

    def __init__(self, world: World, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._world = world
        self._client = world.client
        self._clock = clock
        of = world.informers.of
        self._snapshots = of(MACHINE_SNAPSHOT)
        self._contents = of(MACHINE_SNAPSHOT_CONTENT)
        self._volume_snapshots = of(VOLUME_SNAPSHOT)
        self._vms = of(VIRTUAL_MACHINE)
        self._vmis = of(VIRTUAL_MACHINE_INSTANCE)
        self._claims = of(PERSISTENT_VOLUME_CLAIM)
        self._revisions = of(CONTROLLER_REVISION)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (
            Source(self._snapshots, own_key),
            Source(self._contents, _snapshot_of_content),
            Source(self._volume_snapshots, self._of_volume_snapshot),
            Source(self._vms, self._of_machine),
        )
        return Controller("snapshot", self.reconcile, sources, workers=2)

    def _of_volume_snapshot(self, volume_snapshot: Object) -> list[Key]:
        namespace = volume_snapshot["metadata"]["namespace"]
        owners = volume_snapshot["metadata"].get("ownerReferences") or ()
        contents = [
            self._contents.get(namespace, o["name"]) for o in owners if o["kind"] == "VirtualMachineSnapshotContent"
        ]
        return [key for content in contents if content for key in _snapshot_of_content(content)]

    def _of_machine(self, machine: Object) -> list[Key]:
        namespace, name = machine["metadata"]["namespace"], machine["metadata"]["name"]
        return [
            Key(namespace, s["metadata"]["name"])
            for s in self._snapshots.objects(namespace)
            if machine_locks.is_snapshot_open(s) and machine_locks.names_machine(spec_of(s).get("source"), name)
        ]

    async def reconcile(self, key: Key) -> float | None:
        """Bring one snapshot nearer to Succeeded, or let it go."""
        snapshot = self._snapshots.get(*key)
        if snapshot is None:
            return None
        if not is_deleting(snapshot) and (steps := finalizer_steps(snapshot, add=FINALIZER)):
            snapshot = await guarded_patch(self._client, MACHINE_SNAPSHOT, snapshot, steps)
        view = self._view(snapshot)
        before = status_of(snapshot).get("phase")
        if view.content is not None and before not in ("Succeeded", "Failed") and not is_deleting(snapshot):
            for wanted in build_volume_snapshots(snapshot, view.content):
                if wanted["metadata"]["name"] not in view.volume_snapshots:
                    await create_if_absent(self._client, VOLUME_SNAPSHOT, wanted)
            content = await write_status(self._client, MACHINE_SNAPSHOT_CONTENT, view.content, content_status(view))
            view = msgspec.structs.replace(view, content=content)
        status = decide_status(view)
        snapshot = await write_status(self._client, MACHINE_SNAPSHOT, snapshot, status)
        view = msgspec.structs.replace(view, snapshot=snapshot)
        self._say(snapshot, before, status)
        if is_deleting(snapshot):
            return await self._let_go(view)
        if status["phase"] == "Failed" and view.content is not None:
            await delete_if_there(self._client, MACHINE_SNAPSHOT_CONTENT, view.content)
        if status["phase"] != "InProgress":
            return None
        if view.content is None and view.machine is not None and holds_lock(view):
            await self._keep(view)
        deadline = deadline_of(snapshot)
        left = (deadline - view.now).total_seconds() if deadline else LOOK_SECONDS
        return max(0.05, min(left, LOOK_SECONDS))

    def _view(self, snapshot: Object) -> View:
        namespace = snapshot["metadata"]["namespace"]
        name = str((spec_of(snapshot).get("source") or {}).get("name", ""))
        content = self._contents.get(namespace, content_name(snapshot))
        names = [b["volumeSnapshotName"] for b in spec_of(content).get("volumeBackups") or ()]
        found = {n: s for n in names if (s := self._volume_snapshots.get(namespace, n)) is not None}
        return View(
            snapshot=snapshot,
            machine=self._vms.get(namespace, name),
            instance=self._vmis.get(namespace, name),
            content=content,
            volume_snapshots=found,
            now=self._clock(),
        )

    async def _keep(self, view: View) -> None:
        """Make the content."""
        assert view.machine is not None  # the caller checked
        namespace = view.snapshot["metadata"]["namespace"]
        spec = self._running_spec(view) or spec_of(view.machine)
        body = {"spec": spec}
        names = [claim_of_volume(v) for v in volumes_of(body)]
        claims = {n: c for n in names if n and (c := self._claims.get(namespace, n)) is not None}
        await create_if_absent(
            self._client, MACHINE_SNAPSHOT_CONTENT, build_content(view.snapshot, view.machine, spec, claims)
        )

    def _running_spec(self, view: View) -> Object | None:
        """The spec that the running instance was made from, with the machine's present run strategy."""
        name = status_of(view.instance).get("virtualMachineRevisionName")
        if not name or view.machine is None:
            return None
        revision = self._revisions.get(view.snapshot["metadata"]["namespace"], name)
        spec: Object | None = ((revision or {}).get("data") or {}).get("spec")
        if spec is None:
            return None
        present = {
            k: v
            for k, v in spec_of(view.machine).items()
            if k in ("running", "runStrategy", "instancetype", "preference")
        }
        return {**{k: v for k, v in spec.items() if k not in ("running", "runStrategy")}, **present}

    async def _let_go(self, view: View) -> float | None:
        """Delete the content unless it is to stay, then let the snapshot go."""
        if not has_finalizer(view.snapshot, FINALIZER):
            return None
        retained = spec_of(view.snapshot).get("deletionPolicy") == "Retain"
        if view.content is not None and not retained and not is_deleting(view.content):
            await delete_if_there(self._client, MACHINE_SNAPSHOT_CONTENT, view.content)
        await guarded_patch(
            self._client, MACHINE_SNAPSHOT, view.snapshot, finalizer_steps(view.snapshot, remove=FINALIZER)
        )
        return None

    def _say(self, snapshot: Object, before: str | None, status: Object) -> None:
        phase = status.get("phase")
        if phase == before or phase not in ("Succeeded", "Failed"):
            return
        if phase == "Succeeded":
            text = f"Successfully took snapshot {snapshot['metadata']['name']}"
            self._world.recorder.event(snapshot, "Normal", "SuccessfulVirtualMachineSnapshot", text)
        else:
            self._world.recorder.event(snapshot, "Warning", "VirtualMachineSnapshotFailed", status["error"]["message"])


def _snapshot_of_content(content: Object) -> list[Key]:
    name = spec_of(content).get("virtualMachineSnapshotName")
    return [Key(content["metadata"]["namespace"], name)] if name else []
