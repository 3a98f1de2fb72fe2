"""The controller of VirtualMachineRestores: new disks from a snapshot's, and the machine as it was.

Started by `controllers.start`. Sole writer of VirtualMachineRestore.status; makes claims, and writes the target machine
only while that names the restore in `status.restoreInProgress`. Steps, each of which is found done by looking: plan the
claims (`status.restores`), wait until the target stands still (by `targetReadinessPolicy`), make the claims, wait until
their hosts have filled them, write the machine, hand it its claims, complete. The old disks stay until then, but for
InPlace, whose names must become free. `restore_plan` is the pure part. Reasons and events are KubeVirt's.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from stead.client.informer import Key
from stead.controllers import machine_locks, volume_needs
from stead.controllers import restore_plan as plan
from stead.controllers.conditions import (
    annotations_of,
    condition,
    is_condition,
    is_deleting,
    is_owned_by,
    merge_conditions,
    owner_reference,
    spec_of,
    status_of,
    text_from_time,
    time_from_text,
)
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.writes import annotation_steps, create_if_absent, delete_if_there, guarded_patch, write_status
from stead.kinds.register import (
    CONTROLLER_REVISION,
    DATA_VOLUME,
    MACHINE_RESTORE,
    MACHINE_SNAPSHOT,
    MACHINE_SNAPSHOT_CONTENT,
    PERSISTENT_VOLUME_CLAIM,
    VIRTUAL_MACHINE,
    VIRTUAL_MACHINE_INSTANCE,
    VOLUME_SNAPSHOT,
)
from stead.kinds.snapshot import RUNS_STILL
from stead.kube.errors import ApiError

Object = dict[str, Any]

GRACE_SECONDS = 300.0
LOOK_SECONDS = 2.0
_WAITING = "Waiting for target VM to be powered off. Please stop the restore target to proceed with restore"


class Step(msgspec.Struct, frozen=True):
    """What comes next. `message` says what is waited for, or why it failed."""

    action: Literal["wait", "fail", "plan", "stop-target", "make-claims", "write-machine", "complete", "done"]
    message: str = ""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision about one restore may look at."""

    restore: Object
    snapshot: Object | None
    content: Object | None
    target: Object | None
    instance: Object | None
    #: claims by name
    claims: dict[str, Object] = {}
    now: datetime


def decide_step(view: View) -> Step:
    """The next step of a restore that is neither complete nor failed."""
    restore, content = view.restore, view.content
    status = status_of(restore)
    if is_deleting(restore):
        return Step("done")
    if status.get("complete") or is_condition(restore, "Failure"):
        return Step("done")
    name = spec_of(restore).get("virtualMachineSnapshotName")
    if view.snapshot is None:
        return Step("wait", f"VMSnapshot {name} does not exist")
    if status_of(view.snapshot).get("phase") == "Failed":
        return Step("fail", f"VMSnapshot {name} failed and is invalid to use")
    if not status_of(view.snapshot).get("readyToUse") or content is None:
        return Step("wait", f"VMSnapshot {name} not ready")
    if "restores" not in status:
        return Step("plan")
    if view.target is not None:
        if status_of(view.target).get(machine_locks.RESTORE) != restore["metadata"]["name"] and not _is_written(view):
            return Step("wait", "Waiting for target VM to be locked for the restore")
        if view.instance is not None:
            return _decide_running(view)
    if not all(_is_made(view, r) for r in status["restores"]):
        return Step("make-claims")
    unready = [r["persistentVolumeClaim"] for r in status["restores"] if not is_filled(view, r)]
    if unready:
        return Step("wait", f"Waiting for new PVCs: {', '.join(unready)}")
    if not _is_written(view):
        return Step("write-machine")
    return Step("complete")


def _decide_running(view: View) -> Step:
    policy = spec_of(view.restore).get("targetReadinessPolicy") or "WaitGracePeriod"
    if policy == "StopTarget":
        return Step("stop-target", "Automatically stopping restore target for restore operation")
    if policy == "WaitEventually":
        return Step("wait", _WAITING)
    if policy == "FailImmediate":
        return Step("fail", RUNS_STILL)
    begun = time_from_text(view.restore["metadata"]["creationTimestamp"])
    if view.now >= begun + timedelta(seconds=GRACE_SECONDS):
        return Step("fail", "Restore target failed to be ready within 5m0s")
    return Step("wait", _WAITING)


def _is_written(view: View) -> bool:
    return annotations_of(view.target).get(plan.LAST_RESTORE) == plan.mark_of(view.restore)


def _is_made(view: View, planned: Object) -> bool:
    claim = view.claims.get(planned["persistentVolumeClaim"])
    return annotations_of(claim).get(plan.RESTORE_NAME) == plan.mark_of(view.restore)


def is_filled(view: View, planned: Object) -> bool:
    """Whether the claim of a volume is bound and holds the snapshot's content."""
    claim = view.claims.get(planned["persistentVolumeClaim"])
    return status_of(claim).get("phase") == "Bound" and volume_needs.transfer_of(claim).get("phase") == "Succeeded"


def decide_status(view: View, step: Step) -> Object:
    """The whole status for a step that waits, fails or goes on."""
    status = {**status_of(view.restore), "complete": False}
    waiting = step.message or "Creating new PVCs"
    wanted = [condition("Progressing", "True", waiting), condition("Ready", "False", waiting)]
    if step.action == "fail":
        wanted = [
            condition("Progressing", "False", step.message),
            condition("Ready", "False", step.message),
            condition("Failure", "True", step.message),
        ]
    status["conditions"] = merge_conditions(status.get("conditions"), wanted, text_from_time(view.now))
    return status


class Restores:
    """The controller's hands."""

    def __init__(self, world: World, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._world = world
        self._client = world.client
        self._clock = clock
        of = world.informers.of
        self._restores = of(MACHINE_RESTORE)
        self._snapshots = of(MACHINE_SNAPSHOT)
        self._contents = of(MACHINE_SNAPSHOT_CONTENT)
        self._volume_snapshots = of(VOLUME_SNAPSHOT)
        self._claims = of(PERSISTENT_VOLUME_CLAIM)
        self._data_volumes = of(DATA_VOLUME)
        self._vms = of(VIRTUAL_MACHINE)
        self._vmis = of(VIRTUAL_MACHINE_INSTANCE)
        self._revisions = of(CONTROLLER_REVISION)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (
            Source(self._restores, own_key),
            Source(self._snapshots, lambda s: self._concerned(s, "virtualMachineSnapshotName")),
            Source(self._vms, lambda m: self._concerned(m, "target")),
            Source(self._vmis, lambda m: self._concerned(m, "target")),
            Source(self._claims, self._of_claim),
        )
        return Controller("restore", self.reconcile, sources, workers=2)

    def _concerned(self, obj: Object, field: str) -> list[Key]:
        namespace, name = obj["metadata"]["namespace"], obj["metadata"]["name"]
        found = []
        for restore in self._restores.objects(namespace):
            named = spec_of(restore).get(field)
            if name == (named.get("name") if isinstance(named, dict) else named):
                found.append(Key(namespace, restore["metadata"]["name"]))
        return found

    def _of_claim(self, claim: Object) -> list[Key]:
        mark, namespace = annotations_of(claim).get(plan.RESTORE_NAME), claim["metadata"]["namespace"]
        restores = self._restores.objects(namespace) if mark else []
        return [Key(namespace, r["metadata"]["name"]) for r in restores if plan.mark_of(r) == mark]

    async def reconcile(self, key: Key) -> float | None:
        """Bring one restore nearer to complete."""
        restore = self._restores.get(*key)
        if restore is None or is_deleting(restore):
            return None
        view = self._view(restore)
        if status_of(restore).get("complete"):
            return await self._give_strategy(view)
        step = decide_step(view)
        if step.action == "done":
            return None
        if step.action == "fail":
            self._world.recorder.event(restore, "Warning", "VirtualMachineRestoreError", step.message)
        elif step.message == _WAITING and not is_condition(restore, "Progressing", reason=_WAITING):
            self._world.recorder.event(restore, "Normal", "RestoreTargetNotReady", _WAITING)
        if step.action == "complete":
            await self._complete(view)
            return LOOK_SECONDS
        status = decide_status(view, step)
        try:
            await self._carry_out(view, step, status)
        except ValueError as error:
            failed = decide_status(view, Step("fail", str(error)))
            self._world.recorder.event(restore, "Warning", "VirtualMachineRestoreError", str(error))
            await write_status(self._client, MACHINE_RESTORE, restore, failed)
            return None
        await write_status(self._client, MACHINE_RESTORE, restore, status)
        return LOOK_SECONDS if step.action != "fail" else None

    async def _carry_out(self, view: View, step: Step, status: Object) -> None:
        if step.action == "plan" and view.content is not None:
            status["restores"] = plan.plan_volumes(view.restore, view.content)
        elif step.action == "stop-target":
            await self._stop_target(view, step.message)
        elif step.action == "make-claims":
            await self._make_claims(view)
        elif step.action == "write-machine":
            await self._write_machine(view)

    def _view(self, restore: Object) -> View:
        namespace, spec = restore["metadata"]["namespace"], spec_of(restore)
        snapshot = self._snapshots.get(namespace, spec.get("virtualMachineSnapshotName", ""))
        content_name = str(status_of(snapshot).get("virtualMachineSnapshotContentName") or "")
        names = [r["persistentVolumeClaim"] for r in status_of(restore).get("restores") or ()]
        target = plan.target_name(restore)
        return View(
            restore=restore,
            snapshot=snapshot,
            content=self._contents.get(namespace, content_name) if content_name else None,
            target=self._vms.get(namespace, target),
            instance=self._vmis.get(namespace, target),
            claims={n: c for n in names if (c := self._claims.get(namespace, n)) is not None},
            now=self._clock(),
        )

    # steps -------------------------------------------------------------------------------------------------------

    async def _stop_target(self, view: View, message: str) -> None:
        assert view.target is not None  # decided so
        if spec_of(view.target).get("runStrategy") == "Halted":
            return
        steps = [{"op": "add", "path": "/spec/runStrategy", "value": "Halted"}]
        if "running" in spec_of(view.target):
            steps.append({"op": "remove", "path": "/spec/running"})
        await guarded_patch(self._client, VIRTUAL_MACHINE, view.target, steps)
        self._world.recorder.event(view.restore, "Normal", "RestoreTargetNotReady", message)

    async def _make_claims(self, view: View) -> None:
        assert view.content is not None  # decided so
        backups = {b["volumeName"]: b for b in spec_of(view.content).get("volumeBackups") or ()}
        for planned in status_of(view.restore)["restores"]:
            if _is_made(view, planned):
                continue
            claim = view.claims.get(planned["persistentVolumeClaim"])
            if claim is not None:
                await self._free_name(view, claim)
                continue
            snapshot = self._volume_snapshots.get(view.restore["metadata"]["namespace"], planned["volumeSnapshotName"])
            if snapshot is None:
                raise ValueError(f"VolumeSnapshot {planned['volumeSnapshotName']} does not exist")
            made = plan.build_claim(view.restore, backups[planned["volumeName"]], planned, snapshot)
            await create_if_absent(self._client, PERSISTENT_VOLUME_CLAIM, made)

    async def _free_name(self, view: View, claim: Object) -> None:
        """A claim has the name that a restored one is to have: InPlace takes its place, else that is an error."""
        name = claim["metadata"]["name"]
        if spec_of(view.restore).get("volumeRestorePolicy") != "InPlace":
            raise ValueError(f"PVC {name} exists already and is not of this restore")
        data_volume = self._data_volumes.get(claim["metadata"]["namespace"], name)
        if data_volume is not None and not is_deleting(data_volume):
            await delete_if_there(self._client, DATA_VOLUME, data_volume)
        if not is_deleting(claim):
            await delete_if_there(self._client, PERSISTENT_VOLUME_CLAIM, claim)

    async def _write_machine(self, view: View) -> None:
        assert view.content is not None  # decided so
        known = {r["metadata"]["name"] for r in self._revisions.objects(view.restore["metadata"]["namespace"])}
        made = plan.restored_machine(view.restore, view.content, view.target, known)
        try:
            if view.target is None:
                await create_if_absent(self._client, VIRTUAL_MACHINE, made)
            else:
                await self._client.update(VIRTUAL_MACHINE, made)
        except ApiError as error:
            if error.code in (400, 422):
                raise ValueError(f"the machine is refused: {error.message}") from error
            raise

    async def _complete(self, view: View) -> None:
        """Hand the claims to the machine, drop the DataVolumes that it no longer has, and tell."""
        target, restore = view.target, view.restore
        assert target is not None  # it was written
        assert view.content is not None
        keep = spec_of(restore).get("volumeOwnershipPolicy") == "None"
        owners = [] if keep else [owner_reference(target)]
        for planned in status_of(restore)["restores"]:
            claim = view.claims[planned["persistentVolumeClaim"]]
            if claim["metadata"].get("ownerReferences") != owners:
                step = {"op": "add", "path": "/metadata/ownerReferences", "value": owners}
                await guarded_patch(self._client, PERSISTENT_VOLUME_CLAIM, claim, [step])
        gone = []
        templates = {t["metadata"]["name"] for t in spec_of(target).get("dataVolumeTemplates") or ()}
        for data_volume in self._data_volumes.objects(restore["metadata"]["namespace"]):
            name = data_volume["metadata"]["name"]
            if is_owned_by(data_volume, target) and name not in templates:
                await delete_if_there(self._client, DATA_VOLUME, data_volume)
                gone.append(name)
        now = text_from_time(view.now)
        status = {**status_of(restore), "complete": True, "restoreTime": now}
        if gone:
            status["deletedDataVolumes"] = sorted({*gone, *(status.get("deletedDataVolumes") or ())})
        wanted = [
            condition("Progressing", "False", "Operation complete"),
            condition("Ready", "True", "Operation complete"),
        ]
        status["conditions"] = merge_conditions(status.get("conditions"), wanted, now)
        await write_status(self._client, MACHINE_RESTORE, restore, status)
        text = f"Successfully completed VirtualMachineRestore {restore['metadata']['name']}"
        self._world.recorder.event(restore, "Normal", "VirtualMachineRestoreComplete", text)

    async def _give_strategy(self, view: View) -> float | None:
        """The restored machine runs as the snapshot's did, once it is let go."""
        target = view.target
        strategy = annotations_of(target).get(plan.RUN_STRATEGY)
        if target is None or strategy is None or not _is_written(view):
            return None
        if status_of(target).get(machine_locks.RESTORE):
            return LOOK_SECONDS
        steps = [
            {"op": "add", "path": "/spec/runStrategy", "value": strategy},
            *annotation_steps(target, {plan.RUN_STRATEGY: None}),
        ]
        await guarded_patch(self._client, VIRTUAL_MACHINE, target, steps)
        return None
