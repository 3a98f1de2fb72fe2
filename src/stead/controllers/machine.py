"""The VirtualMachine controller: makes and ends instances as the run strategy says, and tells the VM's status.

Started by `controllers.start`. Sole writer of VirtualMachine.status (but for stateChangeRequests, which the API server
appends) and of VMI creation and deletion for VMs. One pass over one VM: `decide_run` says what is to happen to the
instance, `reconcile` does that, then writes the status once. A stop writes the status first, so that what must be
remembered about the ending instance (start failures, a start to follow) is stored before it goes. Source: KubeVirt 1.8,
pkg/virt-controller/watch/vm.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import structlog

from stead.client.informer import Key, key_of
from stead.controllers import machine_build as build
from stead.controllers import machine_status as state
from stead.controllers import tracking
from stead.controllers.conditions import (
    annotations_of,
    controller_of,
    find_condition,
    has_finalizer,
    is_deleting,
    is_owned_by,
    owner_reference,
    spec_of,
    status_of,
    text_from_time,
)
from stead.controllers.machine_locks import RESTORE, SNAPSHOT, is_held, machine_locks, volume_snapshot_statuses
from stead.controllers.machine_pins import Pins, resolve_pins
from stead.controllers.machine_status import Failure, View
from stead.controllers.runner import Controller, Source, World, own_key, owner_keys
from stead.controllers.writes import (
    create_if_absent,
    delete_if_there,
    finalizer_steps,
    guarded_patch,
    read,
    write_status,
)
from stead.kinds.apply_instancetype import apply, apply_annotations, complete_devices, conflict_message
from stead.kinds.register import (
    BACKUP_SCHEDULE,
    CONTROLLER_REVISION,
    DATA_VOLUME,
    KUBEVIRT,
    MACHINE_RESTORE,
    MACHINE_SNAPSHOT,
    NAMESPACE,
    PERSISTENT_VOLUME_CLAIM,
    VIRTUAL_MACHINE,
    VIRTUAL_MACHINE_INSTANCE,
)
from stead.kube.errors import ApiError, conflict

log = structlog.get_logger(__name__)

Object = dict[str, Any]
FINALIZER = "kubevirt.io/virtualMachineControllerFinalize"


class Run(msgspec.Struct, frozen=True):
    """What is to happen to the instance. `restart`: note a start request before it goes (RerunOnFailure)."""

    action: Literal["keep", "start", "stop"]
    restart: bool = False
    #: seconds until a start that is due may be tried
    wait: float = 0.0
    #: a start is due, and not done in this pass
    pending: bool = False


def decide_run(view: View) -> Run:
    """What the run strategy wants of the instance now (not for a VM that is being deleted)."""
    vm, vmi, strategy = view.vm, view.vmi, state.run_strategy(view.vm)
    if vmi is not None:
        return _decide_running(vm, vmi, strategy)
    if is_held(vm):
        return Run("keep")
    known = status_of(vm).get("runStrategy")
    asked = state.start_request(vm) is not None
    wanted = {
        "Always": True,
        "RerunOnFailure": asked or known != strategy,
        "Once": asked or known != strategy,
        "Manual": asked,
    }.get(strategy, False)
    if not wanted:
        return Run("keep")
    if strategy in state.BACKOFF_STRATEGIES:
        left = state.backoff_left(status_of(vm).get("startFailure"), view.now)
        if left > 0:
            return Run("keep", wait=left, pending=True)
    if not all(state.is_data_volume_ready(view, name) for name in state.relevant_data_volumes(vm)):
        return Run("keep", pending=True)
    return Run("start")


def is_halted_start(view: View) -> bool:
    """Whether a halted machine was asked to start paused: the one start that is a request and not a strategy."""
    return view.vmi is None and state.run_strategy(view.vm) == "Halted" and state.start_request(view.vm) is not None


def _decide_running(vm: Object, vmi: Object, strategy: str) -> Run:
    if is_deleting(vmi) or not is_owned_by(vmi, vm):
        return Run("keep", pending=is_deleting(vmi) and strategy == "Always")
    ended, stop = state.is_final(vmi), state.wants_stop_of(vm, vmi)
    if strategy == "Halted" or stop:
        return Run("stop")
    if strategy == "Always" and ended:
        return Run("stop")
    if strategy == "RerunOnFailure" and ended:
        return Run("stop", restart=state.phase(vmi) == "Failed")
    if strategy == "Manual" and ended and state.start_request(vm) is not None:
        return Run("stop")
    return Run("keep")


class Machines:
    """The controller's hands. `roll` and `clock` are replaced in tests."""

    def __init__(
        self,
        world: World,
        roll: Callable[[], float] = random.random,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._world = world
        self._client = world.client
        self._roll = roll
        self._clock = clock
        of = world.informers.of
        self._vms = of(VIRTUAL_MACHINE)
        self._vmis = of(VIRTUAL_MACHINE_INSTANCE)
        self._data_volumes = of(DATA_VOLUME)
        self._claims = of(PERSISTENT_VOLUME_CLAIM)
        self._revisions = of(CONTROLLER_REVISION)
        self._settings = of(KUBEVIRT)
        self._snapshots, self._restores = of(MACHINE_SNAPSHOT), of(MACHINE_RESTORE)
        self._namespaces, self._schedules = of(NAMESPACE), of(BACKUP_SCHEDULE)
        self._stopped: dict[Key, str] = {}  # uid of the instance that was last told to go, to tell it once
        self._revisions.add_index("owner", _owner_uids)
        self._vms.add_index("volume", _volume_names)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (
            Source(self._vms, own_key),
            Source(self._vmis, own_key),  # an instance has its machine's name, also when it is not owned (adoption)
            Source(self._data_volumes, self._users_of_volume),
            Source(self._claims, self._users_of_volume),
            Source(self._revisions, owner_keys("VirtualMachine")),
            Source(self._snapshots, lambda s: _named_machine(s, "source")),
            Source(self._restores, lambda r: _named_machine(r, "target")),
        )
        return Controller("machine", self.reconcile, sources, workers=4)

    def _default_binding(self) -> str:
        """The binding of an interface that nobody declared, as the KubeVirt object says."""
        for obj in self._settings.objects():
            network = (spec_of(obj).get("configuration") or {}).get("network") or {}
            return str(network.get("defaultNetworkInterface") or "bridge")
        return "bridge"

    def _users_of_volume(self, obj: Object) -> list[Key]:
        metadata = obj["metadata"]
        users = self._vms.by_index("volume", f"{metadata['namespace']}/{metadata['name']}")
        return [Key(u["metadata"]["namespace"], u["metadata"]["name"]) for u in users]

    # one pass ----------------------------------------------------------------------------------------------------

    async def reconcile(self, key: Key) -> float | None:
        """Bring one VirtualMachine nearer to what it declares."""
        vm = self._vms.get(*key)
        if vm is None:
            self._stopped.pop(key, None)
            return None
        if is_deleting(vm):
            return await self._delete(vm)
        steps = finalizer_steps(vm, add=FINALIZER)
        if steps:
            vm = await guarded_patch(self._client, VIRTUAL_MACHINE, vm, steps)
        view = self._view(vm)
        if is_halted_start(view):
            field, value = ("runStrategy", "Always") if spec_of(vm).get("running") is None else ("running", True)
            step = {"op": "add", "path": f"/spec/{field}", "value": value}
            await guarded_patch(self._client, VIRTUAL_MACHINE, vm, [step])
            return None
        if view.vmi is not None and controller_of(view.vmi) is None and not is_deleting(view.vmi):
            view = await self._adopt(view, view.vmi)
        pins, failure = await self._pin(view)
        failure = await self._make_data_volumes(view, pins) or failure
        return await self._run(view, pins, failure)

    async def _run(self, view: View, pins: Pins, failure: Failure | None) -> float | None:
        run = decide_run(view)
        if run.action == "stop" and view.vmi is not None:
            await self._stop(view, pins, run, failure)
            return None
        pending = run.pending
        if run.action == "start":
            if failure is None:
                view, failure = await self._start(view, pins)
            pending = failure is not None
        foreign = view.vmi is not None and not is_owned_by(view.vmi, view.vm)
        if foreign and failure is None:
            failure = Failure("FailedCreate", f"instance {view.vm['metadata']['name']} exists and has another owner")
        await self._tell(view, pins, failure, start_pending=pending)
        if failure is not None:
            return 15.0
        return run.wait or None

    async def _adopt(self, view: View, vmi: Object) -> View:
        """Take an instance without an owner; not if the VM is just being deleted and has orphaned it."""
        metadata = view.vm["metadata"]
        live = await read(self._client, VIRTUAL_MACHINE, metadata["namespace"], metadata["name"])
        if live is None or is_deleting(live) or live["metadata"]["uid"] != metadata["uid"]:
            raise conflict(VIRTUAL_MACHINE.plural, metadata["name"], VIRTUAL_MACHINE.group)
        adopted = {"op": "add", "path": "/metadata/ownerReferences", "value": [owner_reference(live)]}
        taken = await guarded_patch(self._client, VIRTUAL_MACHINE_INSTANCE, vmi, [adopted])
        return msgspec.structs.replace(view, vmi=taken)

    def _view(self, vm: Object) -> View:
        namespace, name = vm["metadata"]["namespace"], vm["metadata"]["name"]
        vmi = self._vmis.get(namespace, name)
        names = state.relevant_data_volumes(vm)
        claims = dict.fromkeys([*names, *(n for n, _ in state.volume_claims(vm))])
        return View(
            vm=vm,
            vmi=vmi,
            data_volumes={n: found for n in names if (found := self._data_volumes.get(namespace, n)) is not None},
            claims={n: found for n in claims if (found := self._claims.get(namespace, n)) is not None},
            started_spec=self._started_spec(vm, vmi),
            now=self._clock(),
            roll=self._roll(),
        )

    def _started_spec(self, vm: Object, vmi: Object | None) -> Object | None:
        name = status_of(vmi).get("virtualMachineRevisionName")
        if vmi is None:
            return None
        if not name:
            generation = annotations_of(vmi).get(build.GENERATION_ANNOTATION, "")
            name = f"{build.start_revision_prefix(vm)}{generation}"
        revision = self._revisions.get(vm["metadata"]["namespace"], name)
        spec: Object | None = ((revision or {}).get("data") or {}).get("spec")
        return spec

    async def _pin(self, view: View) -> tuple[Pins, Failure | None]:
        pins, failure = await resolve_pins(self._client, self._revisions, view.vm)
        if failure is not None:
            self._note(view, "Warning", failure)
        return pins, failure

    async def _make_data_volumes(self, view: View, pins: Pins) -> Failure | None:
        """Make the DataVolumes of the templates that do not exist (nor their claims)."""
        vm = view.vm
        if status_of(vm).get(RESTORE):
            return None  # what is missing now is being restored
        immediate = annotations_of(vm).get(build.IMMEDIATE_ANNOTATION) != "false"
        if not immediate and view.vmi is None and not state.is_start_expected(view, start_pending=False):
            return None
        for template in spec_of(vm).get("dataVolumeTemplates") or ():
            name = template["metadata"]["name"]
            if name in view.data_volumes or name in view.claims:
                continue
            made = build.data_volume(vm, template, pins.preference)
            try:
                if await create_if_absent(self._client, DATA_VOLUME, made):
                    self._world.recorder.event(vm, "Normal", "SuccessfulDataVolumeCreate", f"Created DataVolume {name}")
            except ApiError as error:
                failure = Failure("FailedCreate", f"Error creating DataVolume {name}: {error}")
                self._note(view, "Warning", failure)
                return failure
        return None

    async def _start(self, view: View, pins: Pins) -> tuple[View, Failure | None]:
        vm = view.vm
        sized, preferred = spec_of(pins.instancetype), spec_of(pins.preference)
        template = spec_of(vm).get("template") or {}
        completed = complete_devices(spec_of(template), preferred, binding=self._default_binding())
        spec, conflicts = apply(completed, sized, preferred)
        annotations, more = apply_annotations(annotations_of(template), sized, preferred)
        if conflicts or more:
            failure = Failure("FailedCreate", conflict_message([*conflicts, *more]))
            self._note(view, "Warning", failure)
            return view, failure
        revision = build.start_revision(vm)
        made = build.instance(vm, spec, annotations, revision["metadata"]["name"], text_from_time(view.now))
        if (asked := self._tracking(vm)) == tracking.INITIALIZING:
            made["status"]["changedBlockTracking"] = {"state": asked}
        try:
            await create_if_absent(self._client, CONTROLLER_REVISION, revision)
            created = await self._client.create(VIRTUAL_MACHINE_INSTANCE, made)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                raise  # our informer is behind: look again when it has caught up
            failure = Failure("FailedCreate", f"Error creating virtual machine instance: {error}")
            self._note(view, "Warning", failure)
            return view, failure
        name = vm["metadata"]["name"]
        message = f"Started the virtual machine by creating the new virtual machine instance {name}"
        self._world.recorder.event(vm, "Normal", "SuccessfulCreate", message)
        await self._drop_old_revisions(vm, revision["metadata"]["name"])
        return msgspec.structs.replace(view, vmi=created, started_spec=spec_of(vm)), None

    async def _drop_old_revisions(self, vm: Object, current: str) -> None:
        """Only the start revision of the live instance stays."""
        prefix = build.start_revision_prefix(vm)
        for revision in self._revisions.by_index("owner", vm["metadata"]["uid"]):
            name = revision["metadata"]["name"]
            if name.startswith(prefix) and name != current:
                await delete_if_there(self._client, CONTROLLER_REVISION, revision)

    async def _stop(self, view: View, pins: Pins, run: Run, failure: Failure | None) -> None:
        """Write the status first (it counts failures and notes the start to follow), then delete the instance."""
        assert view.vmi is not None  # the caller checked
        vm = await self._tell(view, pins, failure, start_pending=run.restart, ask_start=run.restart)
        key, uid = key_of(vm), view.vmi["metadata"]["uid"]
        if self._stopped.get(key) == uid:
            return  # done already; our informer does not show it yet
        if await delete_if_there(self._client, VIRTUAL_MACHINE_INSTANCE, view.vmi):
            self._stopped[key] = uid
            name = vm["metadata"]["name"]
            message = f"Stopped the virtual machine by deleting the virtual machine instance {name}"
            self._world.recorder.event(vm, "Normal", "SuccessfulDelete", message)

    async def _tell(
        self, view: View, pins: Pins, failure: Failure | None, *, start_pending: bool, ask_start: bool = False
    ) -> Object:
        status = state.decide_status(view, pins.references, failure, start_pending=start_pending)
        if found := tracking.state_of_machine(view.vm, view.vmi, self._tracking(view.vm)):
            status["changedBlockTracking"] = {"state": found}
        if ask_start:
            status["stateChangeRequests"] = [{"action": "Start"}]
        namespace = view.vm["metadata"]["namespace"]
        locks = machine_locks(view.vm, self._snapshots.objects(namespace), self._restores.objects(namespace))
        for field in (SNAPSHOT, RESTORE):
            status.pop(field, None)
        status |= locks
        if volumes := volume_snapshot_statuses(view.vm):
            status["volumeSnapshotStatuses"] = volumes
        else:
            status.pop("volumeSnapshotStatuses", None)
        return await write_status(self._client, VIRTUAL_MACHINE, view.vm, status)

    def _tracking(self, vm: Object) -> str:
        namespace = self._namespaces.get(None, vm["metadata"]["namespace"])
        kubevirt = next(iter(self._settings.objects()), None)
        return tracking.wanted(vm, namespace, kubevirt, list(self._schedules.objects()))

    async def _delete(self, vm: Object) -> float | None:
        """End the instance, wait until it is gone, let the VM go. Orphaned instances stay as they are."""
        if not has_finalizer(vm, FINALIZER):
            return None
        remove = finalizer_steps(vm, remove=FINALIZER)
        if has_finalizer(vm, "orphan"):
            await guarded_patch(self._client, VIRTUAL_MACHINE, vm, remove)
            return None
        metadata = vm["metadata"]
        # A live read: the informer may not yet show that an orphaning deletion has cut the reference.
        vmi = await read(self._client, VIRTUAL_MACHINE_INSTANCE, metadata["namespace"], metadata["name"])
        if vmi is None or not is_owned_by(vmi, vm):
            await guarded_patch(self._client, VIRTUAL_MACHINE, vm, remove)
            return None
        if not is_deleting(vmi):
            await delete_if_there(self._client, VIRTUAL_MACHINE_INSTANCE, vmi)
        view = self._view(vm)
        pins = Pins.recorded(vm)
        await self._tell(view, pins, None, start_pending=False)
        return None

    def _note(self, view: View, kind: str, failure: Failure) -> None:
        known = find_condition(view.vm, "Failure")
        if known is None or known.get("message") != failure.message:
            self._world.recorder.event(view.vm, kind, failure.reason, failure.message)


def _named_machine(obj: Object, field: str) -> list[Key]:
    reference = spec_of(obj).get(field) or {}
    named = reference.get("kind") == VIRTUAL_MACHINE.kind
    return [Key(obj["metadata"]["namespace"], str(reference.get("name", "")))] if named else []


def _owner_uids(obj: Object) -> list[str]:
    return [r["uid"] for r in obj["metadata"].get("ownerReferences") or ()]


def _volume_names(vm: Object) -> list[str]:
    names = [*state.relevant_data_volumes(vm), *(n for n, _ in state.volume_claims(vm))]
    return [f"{vm['metadata']['namespace']}/{n}" for n in dict.fromkeys(names)]
