"""The DataVolume controller: makes the claim that the host's agent fills, and mirrors how the filling goes.

Started by `controllers.start`. Sole writer of DataVolume.status; creates claims, never changes them. The transfer
itself is the agent's (`stead.io/transfer` on the claim). Phases, progress, conditions, reasons and events are CDI's: an
ordinary error leaves the phase, shows in `Running=False` and `restartCount`, and is tried again; Failed is for good.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from stead.client.informer import Key, key_of
from stead.controllers import disk_source, volume_needs
from stead.controllers.conditions import (
    annotations_of,
    condition,
    find_condition,
    is_deleting,
    is_owned_by,
    merge_conditions,
    spec_of,
    status_of,
    text_from_time,
)
from stead.controllers.disk_source import Lookups, Wait
from stead.controllers.instance import claims_used
from stead.controllers.machine_status import is_final
from stead.controllers.runner import Controller, Source, World, own_key, owner_keys
from stead.controllers.writes import create_if_absent, write_status
from stead.kinds.register import (
    DATA_SOURCE,
    DATA_VOLUME,
    PERSISTENT_VOLUME_CLAIM,
    STORAGE_CLASS,
    STORAGE_PROFILE,
    VIRTUAL_MACHINE_INSTANCE,
    VOLUME_SNAPSHOT,
)
from stead.kube.errors import ApiError

Object = dict[str, Any]

ADOPTION = "cdi.kubevirt.io/allowClaimAdoption"
#: reason of the agent: a scheduled import found the image that is here already
UNCHANGED = "Unchanged"
#: how soon a DataVolume that waits for a source is looked at without a notice
WAITING_SECONDS = 60.0

_EVENTS = {
    "ImportScheduled": "Import into {name} scheduled",
    "ImportInProgress": "Import into {name} in progress",
    "CloneScheduled": "Cloning from {source} into {name} scheduled",
    "CloneInProgress": "Cloning from {source} into {name} in progress",
    "UploadScheduled": "Upload into {name} scheduled",
    "UploadReady": "Upload into {name} ready",
}
_SUCCESS = {
    "Import": ("ImportSucceeded", "Successfully imported into PVC {name}"),
    "Clone": ("CloneSucceeded", "Successfully cloned from {source} into {name}"),
    "Upload": ("UploadSucceeded", "Successfully uploaded into {name}"),
}


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What the status is to say: phase, progress, restarts, and (status, reason, message) of the three conditions."""

    phase: str
    progress: str = "N/A"
    restarts: int = 0
    bound: tuple[str, str, str]
    running: tuple[str, str, str]
    claim_name: str = ""


def family(kind: str) -> str:
    """Import, Clone or Upload: what CDI calls the work for this source."""
    return {"pvc": "Clone", "ref": "Clone", "snapshot": "Clone", "upload": "Upload"}.get(kind, "Import")


def waiting(data_volume: Object, error: Wait) -> Progress:
    """No claim can be made yet."""
    return Progress(
        phase="Pending",
        bound=("False", "NotFound", "No PVC found"),
        running=("False", error.reason, str(error)),
        claim_name="",
    )


def decide_progress(data_volume: Object, claim: Object, storage_class: Object | None) -> Progress:
    """What the claim and the transfer on it mean for the DataVolume."""
    name, spec, phase = claim["metadata"]["name"], spec_of(claim), status_of(claim).get("phase") or "Pending"
    transfer, kind = volume_needs.transfer_of(claim), disk_source.source_kind(data_volume)
    bound = ("True", "Bound", f"PVC {name} Bound") if phase == "Bound" else ("False", "Pending", f"PVC {name} Pending")
    restarts = int(transfer.get("restarts") or 0)
    progress = str(transfer.get("progress") or "N/A")

    def say(phase_now: str, running: tuple[str, str, str], shown: str = progress) -> Progress:
        return Progress(
            phase=phase_now, progress=shown, restarts=restarts, bound=bound, running=running, claim_name=name
        )

    if phase == "Lost":
        bound = ("False", "ClaimLost", f"PVC {name} lost")
        return say("Failed", ("False", "ClaimLost", f"PVC {name} lost"))
    work = family(kind)
    state = transfer.get("phase")
    trouble = (str(transfer.get("reason") or "Error"), str(transfer.get("message") or ""))
    if volume_needs.SOURCE not in annotations_of(claim):
        # filled by somebody else (or nobody): ready as soon as it is bound
        return say("Succeeded", _COMPLETED, "100.0%") if phase == "Bound" else say("Pending", ("False", "", ""), "N/A")
    if state == "Succeeded":
        done = (_COMPLETED[0], _COMPLETED[1], f"{work} Complete")
        return say("Succeeded", done, "100.0%") if phase == "Bound" else say(f"{work}InProgress", done)
    if state == "Failed":
        return say("Failed", ("False", *trouble))
    if volume_needs.waits_for_consumer(claim, storage_class):
        return say("WaitForFirstConsumer", ("False", "", ""), "N/A")
    made = bool(spec.get("volumeName")) or volume_needs.HANDLE in annotations_of(claim)
    if work == "Upload":
        ready = made and state in ("Pending", "Running")
        return say("UploadReady" if ready else "UploadScheduled", _running(transfer, started=ready))
    started = state == "Running"
    return say(f"{work}InProgress" if started or restarts else f"{work}Scheduled", _running(transfer, started=started))


_COMPLETED = ("False", "Completed", "Import Complete")


def _running(transfer: Object, *, started: bool) -> tuple[str, str, str]:
    """The Running condition while the work goes on: an error that is being tried again shows as False/Error."""
    if transfer.get("reason") and transfer.get("phase") != "Succeeded":
        return ("False", str(transfer["reason"]), str(transfer.get("message") or ""))
    return ("True", "Pod is running", "") if started else ("False", "Pending", "")


def status_from(data_volume: Object, progress: Progress, now: str) -> Object:
    """The DataVolume's whole status."""
    old = status_of(data_volume)
    ready = "True" if progress.phase == "Succeeded" else "False"
    reason, message = ("", "") if ready == "True" else ("TransferRunning", "")
    if ready == "False" and progress.running[0] == "False":
        reason, message = progress.running[1], progress.running[2]
    wanted = [
        condition("Bound", *progress.bound),
        condition("Ready", ready, reason, message),
        condition("Running", *progress.running),
    ]
    status: Object = {
        "phase": progress.phase,
        "progress": progress.progress,
        "conditions": merge_conditions(old.get("conditions"), wanted, now, heartbeat="lastHeartbeatTime"),
    }
    if progress.restarts:
        status["restartCount"] = progress.restarts
    if progress.claim_name:
        status["claimName"] = progress.claim_name
    return status


class Disks:
    """The controller's hands."""

    def __init__(self, world: World, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._world = world
        self._client = world.client
        self._clock = clock
        of = world.informers.of
        self._data_volumes = of(DATA_VOLUME)
        self._data_sources = of(DATA_SOURCE)
        self._claims = of(PERSISTENT_VOLUME_CLAIM)
        self._classes = of(STORAGE_CLASS)
        self._snapshots = of(VOLUME_SNAPSHOT)
        self._profiles = of(STORAGE_PROFILE)
        self._vmis = of(VIRTUAL_MACHINE_INSTANCE)
        self._vmis.add_index("claim", claims_used)
        self._data_volumes.add_index("unfinished", lambda d: [] if _is_settled(d) else ["yes"])

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (
            Source(self._data_volumes, own_key),
            Source(self._claims, owner_keys("DataVolume")),
            Source(self._claims, self._waiting),
            Source(self._data_sources, self._waiting),
            Source(self._classes, self._waiting),
            Source(self._snapshots, self._waiting),
            Source(self._profiles, self._waiting),
            Source(self._vmis, lambda v: self._waiting(v) if is_final(v) or is_deleting(v) else []),
        )
        return Controller("disk", self.reconcile, sources, workers=2)

    def _waiting(self, changed: Object) -> list[Key]:
        """DataVolumes that have no claim yet: anything may be what they wait for."""
        pending = self._data_volumes.by_index("unfinished", "yes")
        return [k for k in map(key_of, pending) if self._claims.get(*k) is None]

    async def reconcile(self, key: Key) -> float | None:
        """Bring one DataVolume nearer to Succeeded and tell how far it is."""
        data_volume = self._data_volumes.get(*key)
        if data_volume is None or is_deleting(data_volume):
            return None
        claim = self._claims.get(*key)
        again: float | None = None
        if claim is None:
            if _is_settled(data_volume):
                return None  # the claim was deleted after the work was done; CDI does not fill it again
            claim, failure = await self._make_claim(data_volume)
            if failure is not None:
                progress, again = waiting(data_volume, failure), WAITING_SECONDS
                self._note(data_volume, failure)
                await self._write(data_volume, progress)
                return again
        assert claim is not None  # made or found above
        if not is_owned_by(claim, data_volume) and ADOPTION not in annotations_of(data_volume):
            failure = Wait(
                "ErrResourceExists", f'Resource "{key.name}" already exists and is not managed by DataVolume'
            )
            self._note(data_volume, failure)
            await self._write(data_volume, waiting(data_volume, failure))
            return WAITING_SECONDS
        storage_class = self._classes.get(None, spec_of(claim).get("storageClassName") or "")
        await self._write(data_volume, decide_progress(data_volume, claim, storage_class))
        return again

    async def _make_claim(self, data_volume: Object) -> tuple[Object | None, Wait | None]:
        try:
            made = self._claim_for(data_volume)
        except Wait as error:
            return None, error
        try:
            created = await create_if_absent(self._client, PERSISTENT_VOLUME_CLAIM, made)
        except ApiError as error:
            if error.code == 403:
                return None, Wait("ErrExceededQuota", error.message)
            if error.code == 422:
                return None, Wait("ErrClaimNotValid", error.message)
            raise
        if not created:
            metadata = made["metadata"]
            return await self._client.get(PERSISTENT_VOLUME_CLAIM, metadata["namespace"], metadata["name"]), None
        return made, None

    def _claim_for(self, data_volume: Object) -> Object:
        """The claim to make. Raises `Wait`."""
        spec = spec_of(data_volume)
        face = spec.get("storage") or spec.get("pvc") or {}
        resolved = disk_source.resolve(data_volume, self._lookups())
        name = face.get("storageClassName")
        if name:
            storage_class = self._classes.get(None, name)
            if storage_class is None and "storage" in spec:
                raise Wait("ErrClaimNotValid", f"storage class {name} not found")
        else:
            storage_class = disk_source.default_class(self._classes.objects(), virt="storage" in spec)
        profile = self._profiles.get(None, storage_class["metadata"]["name"]) if storage_class else None
        return disk_source.build_claim(data_volume, resolved, storage_class, profile)

    def _lookups(self) -> Lookups:
        return Lookups(
            self._data_sources.get, self._data_volumes.get, self._claims.get, self._in_use_by, self._snapshots.get
        )

    def _in_use_by(self, namespace: str, name: str) -> str:
        users = [v for v in self._vmis.by_index("claim", f"{namespace}/{name}") if not is_final(v)]
        return users[0]["metadata"]["name"] if users else ""

    async def _write(self, data_volume: Object, progress: Progress) -> None:
        status = status_from(data_volume, progress, text_from_time(self._clock()))
        before = status_of(data_volume).get("phase")
        if status == status_of(data_volume):
            return
        await write_status(self._client, DATA_VOLUME, data_volume, status)
        if progress.phase != before:
            self._tell_phase(data_volume, progress)
        old_running = find_condition(data_volume, "Running") or {}
        trouble = progress.running[1] not in ("", "Pending", "Completed", "Pod is running", UNCHANGED)
        if trouble and progress.claim_name and old_running.get("message", "") != progress.running[2]:
            work = family(disk_source.source_kind(data_volume))
            self._world.recorder.event(data_volume, "Warning", f"{work}Failed", progress.running[2])

    def _tell_phase(self, data_volume: Object, progress: Progress) -> None:
        name, kind = data_volume["metadata"]["name"], disk_source.source_kind(data_volume)
        source = _source_text(data_volume)
        reason, text = progress.phase, _EVENTS.get(progress.phase, "")
        if progress.phase == "Succeeded":
            reason, text = _SUCCESS[family(kind)]
        if progress.phase == "Failed" and progress.running[1] == "ClaimLost":
            self._world.recorder.event(data_volume, "Warning", "ErrClaimLost", progress.running[2])
        elif text:
            self._world.recorder.event(data_volume, "Normal", reason, text.format(name=name, source=source))

    def _note(self, data_volume: Object, failure: Wait) -> None:
        """Say once why a DataVolume waits."""
        known = find_condition(data_volume, "Running") or {}
        if known.get("message") != str(failure):
            self._world.recorder.event(data_volume, "Warning", failure.reason, str(failure))


def _is_settled(data_volume: Object) -> bool:
    return status_of(data_volume).get("phase") in ("Succeeded", "Failed")


def _source_text(data_volume: Object) -> str:
    spec, namespace = spec_of(data_volume), data_volume["metadata"]["namespace"]
    reference = spec.get("sourceRef") or _kept(spec.get("source") or {})
    return f"{reference.get('namespace') or namespace}/{reference.get('name', '')}"


def _kept(source: Object) -> Object:
    found: Object = source.get("pvc") or source.get("snapshot") or {}
    return found
