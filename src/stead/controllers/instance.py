"""The VirtualMachineInstance controller of rungs 1 and 2: from created to Scheduled, then the agent owns it.

Started by `controllers.start`. Sole writer of an instance until `status.nodeName` is set, and of the annotation
`volume.kubernetes.io/selected-node` on claims that wait for their first consumer (as kube-scheduler is on rung 3). One
worker, so that two machines are never placed on the same free memory; `residents` knows what was decided and is not yet
seen in the informer. In the normal case one patch takes an instance from Pending to Scheduled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from stead.client.informer import Key, key_of
from stead.controllers import volume_needs
from stead.controllers.addresses import ANNOTATION as ADDRESSES_ANNOTATION
from stead.controllers.addresses import Addresses, NoAddress
from stead.controllers.conditions import (
    condition,
    find_condition,
    has_finalizer,
    is_deleting,
    labels_of,
    merge_conditions,
    spec_of,
    status_of,
    text_from_time,
)
from stead.controllers.healing import is_surely_off
from stead.controllers.machine_build import INSTANCE_FINALIZER
from stead.controllers.machine_demand import Surroundings, bridges_of, demand_from
from stead.controllers.machine_status import is_final
from stead.controllers.placement import Demand, Placement
from stead.controllers.residents import Residents
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.volume_needs import Need
from stead.controllers.writes import annotation_steps, finalizer_steps, guarded_patch
from stead.kinds.register import (
    DATA_VOLUME,
    NAMESPACE,
    NETWORK_ATTACHMENT_DEFINITION,
    NODE,
    PERSISTENT_VOLUME,
    PERSISTENT_VOLUME_CLAIM,
    PRIORITY_CLASS,
    STORAGE_CLASS,
    VIRTUAL_MACHINE_INSTANCE,
)
from stead.kube.selectors import LabelSelector

Object = dict[str, Any]

NODE_LABEL = "kubevirt.io/nodeName"
#: conditions that this controller sets; all are dropped or turned when the instance is handed to the agent
_OURS = ("Provisioning", "DataVolumesReady", "PodScheduled", "Synchronized", "Ready")
RETRY_UNSCHEDULABLE_SECONDS = 10.0
#: waiting machines of a higher priority for which room is left by one decision
RESERVED = 64


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be written: the phase to be in, conditions beside Ready, and the host once it is known."""

    phase: str
    conditions: tuple[Object, ...] = ()
    host: str = ""
    again: float | None = None


def decide_waiting(needs: list[Need], namespace: str) -> Step | None:
    """The step for volumes that cannot be used yet; None when all are ready (or wait only for a host)."""
    absent = [n for n in needs if n.state == "absent"]
    waiting = [n for n in needs if n.state == "wait"]
    if absent:
        names = ", ".join(f"{namespace}/{n.claim}" for n in absent)
        text = f"PVC {names} does not exist, waiting for it to appear"
        return Step(phase="Pending", conditions=(condition("Synchronized", "False", "FailedPvcNotFound", text),))
    if not waiting:
        return None
    text = "; ".join(n.message for n in waiting)
    found = [condition("Provisioning", "True", "VolumesNotReady", text)]
    if any(n.of_data_volume for n in waiting):
        found.append(condition("DataVolumesReady", "False", "NotAllDVsReady", text))
    return Step(phase="Pending", conditions=tuple(found))


def decide_class(vmi: Object, priorities: dict[str, int]) -> Step | None:
    """The step for a priority class that is not there, in the words of Kubernetes' refusal of a launcher pod."""
    name = spec_of(vmi).get("priorityClassName") or ""
    if name in priorities or not name:
        return None
    pod = f"virt-launcher-{vmi['metadata']['name']}-"
    text = (
        f'failed to create virtual machine pod: pods "{pod}" is forbidden: no PriorityClass with name {name} was found'
    )
    return Step(phase="Pending", conditions=(condition("Synchronized", "False", "FailedCreate", text),))


def ahead_of(vmi: Object, waiting: Iterable[Object], priorities: dict[str, int]) -> list[Object]:
    """Waiting machines of a higher priority, the highest and oldest first."""

    def value(of: Object) -> int:
        return priorities.get(spec_of(of).get("priorityClassName") or "", 0)

    own = value(vmi)
    higher = [v for v in waiting if value(v) > own and not is_deleting(v) and not status_of(v).get("nodeName")]
    return sorted(higher, key=lambda v: (-value(v), str(v["metadata"].get("creationTimestamp", ""))))


def decide_placed(chosen: Placement, needs: list[Need]) -> Step:
    """The step once placement was asked."""
    if chosen.host is None:
        found = condition("PodScheduled", "False", "Unschedulable", chosen.message())
        return Step(phase="Scheduling", conditions=(found,), again=RETRY_UNSCHEDULABLE_SECONDS)
    if any(n.state == "place" for n in needs):
        text = "; ".join(f"claim {n.claim} is being made on {chosen.host}" for n in needs if n.state == "place")
        return Step(phase="Pending", conditions=(condition("Provisioning", "True", "VolumesNotReady", text),))
    ready: tuple[Object, ...] = ()
    if any(n.of_data_volume for n in needs):
        text = "All of the VMI's DVs are bound and ready"
        ready = (condition("DataVolumesReady", "True", "AllDVsReady", text),)
    return Step(phase="Scheduled", conditions=ready, host=chosen.host)


def status_after(vmi: Object, step: Step, now: str) -> Object:
    """The instance's whole status after a step. Phases passed over on the way get their timestamp too."""
    status = dict(status_of(vmi))
    stamps = list(status.get("phaseTransitionTimestamps") or ())
    seen = {s.get("phase") for s in stamps}
    order = ("Pending", "Scheduling", "Scheduled")
    for passed in order[: order.index(step.phase) + 1]:
        if passed not in seen:
            stamps.append({"phase": passed, "phaseTransitionTimestamp": now})
    status["phase"], status["phaseTransitionTimestamps"] = step.phase, stamps
    ready = condition("Ready", "False", "GuestNotRunning", "Guest VM is not reported as running")
    old = status.get("conditions") or ()
    foreign = [{k: v for k, v in c.items() if k != "lastTransitionTime"} for c in old if c.get("type") not in _OURS]
    status["conditions"] = merge_conditions(old, [ready, *step.conditions, *foreign], now)
    if step.host:
        status["nodeName"] = step.host
    return status


class Instances:
    """The controller's hands."""

    def __init__(
        self, world: World, addresses: Addresses, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._world = world
        self._client = world.client
        self._addresses = addresses
        self._clock = clock
        of = world.informers.of
        self._vmis = of(VIRTUAL_MACHINE_INSTANCE)
        self._nodes = of(NODE)
        self._claims = of(PERSISTENT_VOLUME_CLAIM)
        self._volumes = of(PERSISTENT_VOLUME)
        self._data_volumes = of(DATA_VOLUME)
        self._classes = of(STORAGE_CLASS)
        self._priorities = of(PRIORITY_CLASS)
        self._namespaces = of(NAMESPACE)
        self._networks = of(NETWORK_ATTACHMENT_DEFINITION)
        self._vmis.add_index("claim", claims_used)
        self._vmis.add_index("unplaced", _is_waiting)
        self._residents = Residents(self._vmis, self._nodes, self._namespaces_of)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (
            Source(self._vmis, own_key),
            Source(self._claims, self._users),
            Source(self._data_volumes, self._users),
            Source(self._nodes, self._concerned),
            Source(self._priorities, lambda _: [key_of(v) for v in self._vmis.by_index("unplaced", "yes")]),
        )
        return Controller("instance", self.reconcile, sources, workers=1)

    def _users(self, obj: Object) -> list[Key]:
        metadata = obj["metadata"]
        return [key_of(v) for v in self._vmis.by_index("claim", f"{metadata['namespace']}/{metadata['name']}")]

    def _concerned(self, node: Object) -> list[Key]:
        """Machines that a change of a host may help; none when placement does not ask for what changed."""
        matters = self._residents.matters(node)
        return [key_of(v) for v in self._vmis.by_index("unplaced", "yes")] if matters else []

    async def reconcile(self, key: Key) -> float | None:
        """Take one instance nearer to Scheduled, or let a never-scheduled one go."""
        vmi = self._vmis.get(*key)
        if vmi is None:
            return None
        if is_deleting(vmi):
            await self._let_go(vmi)
            return None
        if status_of(vmi).get("nodeName") or is_final(vmi):
            return None
        needs = self._needs(vmi)
        step = decide_class(vmi, self._priority_values()) or decide_waiting(needs, key.namespace)
        if step is None:
            chosen = self._place(vmi, needs)
            step = decide_placed(chosen, needs)
            if chosen.host is not None and not step.host:
                await self._bind_claims(vmi, needs, chosen.host)
        return await self._apply(vmi, step)

    async def _apply(self, vmi: Object, step: Step) -> float | None:
        steps: list[Object] = []
        if step.host:
            try:
                addresses = await self._addresses.claim(vmi)
            except NoAddress as error:
                step = Step(
                    phase="Scheduling",
                    conditions=(condition("PodScheduled", "False", "Unschedulable", str(error)),),
                    again=RETRY_UNSCHEDULABLE_SECONDS,
                )
            else:
                steps += annotation_steps(vmi, {ADDRESSES_ANNOTATION: addresses})
                labels = {**labels_of(vmi), NODE_LABEL: step.host}
                steps.append({"op": "add", "path": "/metadata/labels", "value": labels})
        steps += finalizer_steps(vmi, add=INSTANCE_FINALIZER)
        status = status_after(vmi, step, text_from_time(self._clock()))
        if status != status_of(vmi):
            steps.append({"op": "add", "path": "/status", "value": status})
        if steps:
            self._tell(vmi, step)
            await guarded_patch(self._client, VIRTUAL_MACHINE_INSTANCE, vmi, steps)
        if step.host:
            self._residents.assume(vmi, step.host)
        return step.again

    def _tell(self, vmi: Object, step: Step) -> None:
        """An event for each condition that says something new went wrong."""
        reasons = {
            "Unschedulable": "FailedScheduling",
            "FailedPvcNotFound": "FailedPvcNotFound",
            "FailedCreate": "FailedCreate",
        }
        for found in step.conditions:
            before = find_condition(vmi, found["type"]) or {}
            reason = reasons.get(found.get("reason", ""))
            if reason and before.get("message") != found.get("message"):
                self._world.recorder.event(vmi, "Warning", reason, found["message"])

    def _needs(self, vmi: Object) -> list[Need]:
        namespace = vmi["metadata"]["namespace"]
        needs = []
        for volume in volume_needs.claim_names(vmi):
            claim = self._claims.get(namespace, volume[1])
            storage_class = self._classes.get(None, spec_of(claim).get("storageClassName") or "")
            data_volume = self._data_volumes.get(namespace, volume[1])
            needs.append(volume_needs.assess(volume, claim, data_volume, storage_class))
        return needs

    def _priority_values(self) -> dict[str, int]:
        """Value by class; under "" that of machines that name none."""
        classes = self._priorities.objects()
        values = {c["metadata"]["name"]: int(c.get("value") or 0) for c in classes}
        return {"": next((int(c["value"]) for c in classes if c.get("globalDefault")), 0), **values}

    def _place(self, vmi: Object, needs: list[Need]) -> Placement:
        """A host for the machine, room left for waiting machines of a higher priority."""
        residents, values, reserved = self._residents, self._priority_values(), []
        own = values.get(spec_of(vmi).get("priorityClassName") or "", 0)
        highest = residents.highest_waiting(values)
        try:
            if highest is not None and highest > own:
                for other in ahead_of(vmi, self._vmis.by_index("unplaced", "yes"), values)[:RESERVED]:
                    reserved += self._reserve(other)
            return residents.book.place(self._demand(vmi, needs))
        finally:
            for key in reserved:
                residents.book.drop_machine(key)

    def _reserve(self, other: Object) -> list[str]:
        """Keep room for a waiting machine that could start now; what to drop afterwards."""
        asked, uid = self._needs(other), other["metadata"]["uid"]
        if self._residents.is_assumed(uid) or decide_waiting(asked, key_of(other).namespace) is not None:
            return []
        chosen = self._residents.book.place(self._demand(other, asked))
        if chosen.host is None:
            return []
        key = f"{uid}@reserved"
        self._residents.reserve(key, chosen.host, other)
        return [key]

    def place_elsewhere(self, vmi: Object, selector: dict[str, str], without: set[str]) -> Placement:
        """A host for a running machine to move to: as for a new one, but that its own disks go along."""
        demand = self._demand(vmi, [])
        demand = msgspec.structs.replace(demand, node_selector={**demand.node_selector, **selector})
        return self._residents.book.place(demand, without)

    def _demand(self, vmi: Object, needs: list[Need]) -> Demand:
        namespace = vmi["metadata"]["namespace"]
        affinities, pools = [], []
        for need in needs:
            claim = self._claims.get(namespace, need.claim)
            volume = self._volumes.get(None, spec_of(claim).get("volumeName") or "")
            required = (spec_of(volume).get("nodeAffinity") or {}).get("required")
            if required:
                affinities.append(required)
            if need.state == "place":
                storage_class = self._classes.get(None, spec_of(claim).get("storageClassName") or "") or {}
                pools.append((storage_class.get("parameters") or {}).get("pool", "default"))
        bridges = bridges_of(vmi, lambda where, name: spec_of(self._networks.get(where, name)).get("config", ""))
        around = Surroundings(volume_affinities=tuple(affinities), pools=tuple(pools), bridges=bridges)
        return demand_from(vmi, around, self._namespaces_of)

    def _namespaces_of(self, selector: LabelSelector) -> frozenset[str]:
        """Namespaces that a selector selects."""
        found = self._namespaces.objects()
        return frozenset(n["metadata"]["name"] for n in found if selector.matches(labels_of(n)))

    async def _bind_claims(self, vmi: Object, needs: list[Need], host: str) -> None:
        """Tell the volumes controller and the agent where the waiting claims shall be made."""
        for need in needs:
            claim = self._claims.get(vmi["metadata"]["namespace"], need.claim)
            if need.state == "place" and claim is not None:
                steps = annotation_steps(claim, {volume_needs.SELECTED_NODE: host})
                await guarded_patch(self._client, PERSISTENT_VOLUME_CLAIM, claim, steps)

    async def _let_go(self, vmi: Object) -> None:
        """Remove our finalizer from an instance that no agent ever had, or whose host is gone or surely off."""
        host = status_of(vmi).get("nodeName")
        node = self._nodes.get(None, host) if host else None
        if (node is not None and not is_surely_off(node)) or not has_finalizer(vmi, INSTANCE_FINALIZER):
            return
        await guarded_patch(
            self._client, VIRTUAL_MACHINE_INSTANCE, vmi, finalizer_steps(vmi, remove=INSTANCE_FINALIZER)
        )


def _is_waiting(vmi: Object) -> list[str]:
    """Index: instances that a change of hosts may concern: without a host yet, or going."""
    placed = bool(status_of(vmi).get("nodeName")) or is_final(vmi)
    return ["yes"] if is_deleting(vmi) or not placed else []


def claims_used(vmi: Object) -> list[str]:
    """namespace/name of the claims that an instance's volumes name."""
    namespace = vmi["metadata"]["namespace"]
    return [f"{namespace}/{claim}" for _, claim, _ in volume_needs.claim_names(vmi)]
