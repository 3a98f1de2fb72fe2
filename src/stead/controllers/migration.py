"""Live migrations: which may begin, where to, how far each is, and the moment when an instance changes its host.

Started by `controllers.start`. Sole writer of a migration's status and, in the instance, of the label
`kubevirt.io/migrationTargetNodeName`, of `migrationState`'s plan (who, from where, to where, how) and abort request,
and of `nodeName` when a machine has moved; source and target agents write the rest of `migrationState`, see
docs/reference/ownership.md. One worker, so that limits hold. `decide` is pure: it looks at the objects as they are and
names one write. Source: KubeVirt's migration controller (notes 4.10).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from stead.client.informer import Key, key_of
from stead.controllers.conditions import (
    find_condition,
    has_finalizer,
    is_condition,
    is_deleting,
    labels_of,
    spec_of,
    status_of,
    text_from_time,
    time_from_text,
)
from stead.controllers.machine_status import is_final
from stead.controllers.migration_policy import Terms, terms_for
from stead.controllers.placement import Placement
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.writes import finalizer_steps, guarded_patch, write_status
from stead.kinds.register import KUBEVIRT, MIGRATION, MIGRATION_POLICY, NAMESPACE, NODE, VIRTUAL_MACHINE_INSTANCE

Object = dict[str, Any]

NODE_LABEL = "kubevirt.io/nodeName"
TARGET_LABEL = "kubevirt.io/migrationTargetNodeName"
FINALIZER = "kubevirt.io/migrationJobFinalize"
FINAL = ("Succeeded", "Failed")
PHASES = ("Pending", "Scheduling", "Scheduled", "PreparingTarget", "TargetReady", "Running")
#: how long a target may be looked for, and be in the making (KubeVirt's, shortened by these annotations)
UNSCHEDULABLE_SECONDS, PENDING_SECONDS = 300.0, 900.0
UNSCHEDULABLE_ANNOTATION = "kubevirt.io/migrationUnschedulablePodTimeoutSeconds"
PENDING_ANNOTATION = "kubevirt.io/migrationPendingPodTimeoutSeconds"
#: how long a source may keep silent once its machine runs at the target
SILENT_SECONDS = 15.0
RETRY_SECONDS = 5.0
_RANKS = {"system-critical": 0, "user-triggered": 1, "system-maintenance": 2}

#: (instance, added selector, hosts left out) → a host, or why none
Place = Callable[[Object, dict[str, str], set[str]], Placement]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass writes: the phase to be in, or a change of the instance. `again`: seconds until the next look."""

    phase: str = ""
    instance: tuple[Object, ...] = ()
    why: str = ""
    again: float | None = None


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """All that `decide` looks at. `is_next`: limits let it begin. `target_lives`: the chosen host's state."""

    migration: Object
    vmi: Object | None
    now: datetime
    is_next: bool = False
    terms: Terms = Terms()
    place: Callable[[], Placement] | None = None
    source_lives: bool = True
    target_lives: bool = True


def uid_of(obj: Object) -> str:
    return str(obj["metadata"]["uid"])


def phase_of(migration: Object) -> str:
    return str(status_of(migration).get("phase") or "")


def state_of(vmi: Object | None, migration: Object) -> Object:
    """The instance's state of just this migration; empty when it has none."""
    state: Object = status_of(vmi).get("migrationState") or {}
    return state if state.get("migrationUid") == uid_of(migration) else {}


def rank(migration: Object) -> tuple[int, str, str]:
    """Order of those that wait: priority, then age."""
    priority = str(spec_of(migration).get("priority") or "user-triggered")
    metadata = migration["metadata"]
    return _RANKS.get(priority, 1), str(metadata.get("creationTimestamp") or ""), str(metadata["name"])


def age(migration: Object, now: datetime, phase: str) -> float:
    """Seconds since the migration came into a phase (since its creation when no stamp says)."""
    stamps = status_of(migration).get("phaseTransitionTimestamps") or ()
    since = next((s.get("phaseTransitionTimestamp") for s in stamps if s.get("phase") == phase), None)
    text = since or migration["metadata"].get("creationTimestamp")
    return (now - time_from_text(text)).total_seconds() if text else 0.0


def patience(migration: Object, annotation: str, usual: float) -> float:
    """A time-out, which an annotation may change."""
    text = (migration["metadata"].get("annotations") or {}).get(annotation, "")
    return float(text) if text.isdigit() else usual


def decide(scene: Scene) -> Step:
    """The one next write. A migration that is over is not asked about."""
    migration, vmi = scene.migration, scene.vmi
    state = state_of(vmi, migration)
    if vmi is None or is_final(vmi):
        return Step(phase="Failed", why="the instance does not run any more")
    if not state:
        return _decide_beginning(scene, vmi)
    if state.get("failed"):
        return _decide_cleared(vmi, state)
    if _has_arrived(scene, state):
        return _decide_handover(vmi, state, text_from_time(scene.now))
    if is_deleting(migration) and not state.get("abortRequested"):
        return _decide_abort(vmi, state, scene.now)
    return _decide_underway(scene, vmi, state)


def _decide_beginning(scene: Scene, vmi: Object) -> Step:
    migration, phase = scene.migration, phase_of(scene.migration)
    if is_deleting(migration):
        return Step(phase="Failed", why="the migration was deleted before it began")
    condition = find_condition(vmi, "LiveMigratable") or {}
    if condition.get("status") == "False":
        return Step(phase="Failed", why=f"{condition.get('reason', '')}: {condition.get('message', '')}")
    if spec_of(migration).get("sendTo") or spec_of(migration).get("receive"):
        return Step(phase="Failed", why="migration between two clusters is not supported by this release")
    if not phase:
        return Step(phase="Pending")
    if phase == "Pending":
        ready = scene.is_next and status_of(vmi).get("phase") == "Running"
        return Step(phase="Scheduling") if ready else Step(again=RETRY_SECONDS)
    chosen = scene.place() if scene.place is not None else Placement(None, {})
    if chosen.host is None:
        waited = age(migration, scene.now, "Scheduling")
        if waited >= patience(migration, UNSCHEDULABLE_ANNOTATION, UNSCHEDULABLE_SECONDS):
            return Step(phase="Failed", why=f"no host can take the machine: {chosen.message()}")
        return Step(again=min(RETRY_SECONDS, 1.0 + waited), why=chosen.message())
    plan: Object = {
        "migrationUid": uid_of(migration),
        "sourceNode": status_of(vmi).get("nodeName"),
        "targetNode": chosen.host,
        "sourcePod": f"virt-launcher-{vmi['metadata']['name']}",
        "migrationConfiguration": scene.terms.configuration,
    }
    if scene.terms.policy:
        plan["migrationPolicyName"] = scene.terms.policy
    return Step(instance=(_labels(vmi, {TARGET_LABEL: chosen.host}), _set_state(vmi, plan)))


def _has_arrived(scene: Scene, state: Object) -> bool:
    """The machine runs at the target: the source says so, or cannot say anything and the target does."""
    if state.get("completed"):
        return True
    ready = state.get("targetNodeDomainReadyTimestamp")
    if not ready:
        return False
    return not scene.source_lives or (scene.now - time_from_text(ready)).total_seconds() >= SILENT_SECONDS


def _decide_handover(vmi: Object, state: Object, now: str) -> Step:
    """The instance becomes the target's; after that, the migration has succeeded."""
    if status_of(vmi).get("nodeName") == state.get("targetNode") and TARGET_LABEL not in labels_of(vmi):
        return Step(phase="Succeeded")
    done = {**state, "completed": True, "endTimestamp": state.get("endTimestamp") or now}
    status = {**status_of(vmi), "nodeName": state["targetNode"], "migrationState": done}
    status.pop("evacuationNodeName", None)
    labels = {NODE_LABEL: str(state["targetNode"]), TARGET_LABEL: None}
    return Step(instance=(_labels(vmi, labels), {"op": "add", "path": "/status", "value": status}))


def _decide_cleared(vmi: Object, state: Object) -> Step:
    """It failed: the target hears of it by its label's end; after that, the migration says so."""
    if TARGET_LABEL in labels_of(vmi):
        return Step(instance=(_labels(vmi, {TARGET_LABEL: None}),))
    return Step(phase="Failed", why=str(state.get("failureReason") or "the migration failed"))


def _decide_abort(vmi: Object, state: Object, now: datetime) -> Step:
    """Whoever has it in hand is asked to end it; when nobody has begun, it is over at once."""
    if state.get("startTimestamp"):
        return Step(instance=(_set_state(vmi, {**state, "abortRequested": True}),))
    ended = {"abortRequested": True, "abortStatus": "Succeeded", "failureReason": "the migration was cancelled"}
    return Step(instance=(_set_state(vmi, {**state, **ended, **_failed(now)}),))


def _decide_underway(scene: Scene, vmi: Object, state: Object) -> Step:
    migration = scene.migration
    if not state.get("startTimestamp"):
        waited = age(migration, scene.now, "Scheduling")
        reason = ""
        if not scene.target_lives:
            reason = f"host {state.get('targetNode')} is not ready any more"
        elif waited >= patience(migration, PENDING_ANNOTATION, PENDING_SECONDS):
            reason = f"host {state.get('targetNode')} was not ready for the machine within {waited:.0f} s"
        if reason:
            return Step(instance=(_set_state(vmi, {**state, **_failed(scene.now), "failureReason": reason}),))
    wanted = "PreparingTarget"
    if state.get("startTimestamp"):
        wanted = "Running"
    elif state.get("targetNodeAddress"):
        wanted = "TargetReady"
    if phase_of(migration) == wanted:
        return Step(again=RETRY_SECONDS)
    return Step(phase=wanted, again=RETRY_SECONDS)


def _failed(now: datetime) -> Object:
    return {"failed": True, "endTimestamp": text_from_time(now)}


def _labels(vmi: Object, changes: dict[str, str | None]) -> Object:
    labels = {key: value for key, value in {**labels_of(vmi), **changes}.items() if value is not None}
    return {"op": "add", "path": "/metadata/labels", "value": labels}


def _set_state(vmi: Object, state: Object) -> Object:
    return {"op": "add", "path": "/status/migrationState", "value": state}


def status_after(migration: Object, vmi: Object | None, step: Step, now: str) -> Object:
    """The migration's whole status in a phase; phases passed over get their time, too."""
    status = dict(status_of(migration))
    stamps = list(status.get("phaseTransitionTimestamps") or ())
    known = {stamp.get("phase") for stamp in stamps}
    passed = PHASES if step.phase == "Succeeded" else PHASES[: PHASES.index(step.phase)] if step.phase in PHASES else ()
    for phase in (*passed, step.phase):
        if phase not in known:
            stamps.append({"phase": phase, "phaseTransitionTimestamp": now})
    state = state_of(vmi, migration)
    status |= {"phase": step.phase, "phaseTransitionTimestamps": stamps}
    if state:
        status["migrationState"] = state
    elif step.phase == "Failed":
        status["migrationState"] = {"failed": True, "failureReason": step.why, "endTimestamp": now}
    return status


def chosen_next(waiting: Iterable[Object], running: Iterable[tuple[Object, str]], terms: Terms,
                host_of: Callable[[Object], str]) -> set[str]:  # fmt: skip
    """Uids of the migrations that may begin: `running` are those under way with their source host."""
    under_way = list(running)
    free = terms.per_cluster - len(under_way)
    out: dict[str, int] = {}
    for _, host in under_way:
        out[host] = out.get(host, 0) + 1
    found: set[str] = set()
    for migration in sorted(waiting, key=rank):
        host = host_of(migration)
        if free > 0 and out.get(host, 0) < terms.per_node:
            free -= 1
            out[host] = out.get(host, 0) + 1
            found.add(uid_of(migration))
    return found


class Migrations:
    """The controller's hands."""

    def __init__(self, world: World, place: Place, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._world = world
        self._place = place
        self._clock = clock
        of = world.informers.of
        self._migrations = of(MIGRATION)
        self._vmis = of(VIRTUAL_MACHINE_INSTANCE)
        self._nodes = of(NODE)
        self._policies = of(MIGRATION_POLICY)
        self._namespaces = of(NAMESPACE)
        self._kubevirts = of(KUBEVIRT)
        self._migrations.add_index("vmi", lambda m: [f"{m['metadata']['namespace']}/{spec_of(m).get('vmiName')}"])
        self._migrations.add_index("open", lambda m: [] if phase_of(m) in FINAL else ["yes"])

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (
            Source(self._migrations, self._with_waiting),
            Source(self._vmis, self._of_instance),
            Source(self._nodes, lambda _: self._open()),
        )
        return Controller("migration", self.reconcile, sources, workers=1)

    def _open(self) -> list[Key]:
        return [key_of(m) for m in self._migrations.by_index("open", "yes")]

    def _with_waiting(self, migration: Object) -> list[Key]:
        """Itself, and when its place becomes free those that wait for one."""
        return own_key(migration) if phase_of(migration) not in FINAL else [*own_key(migration), *self._open()]

    def _of_instance(self, vmi: Object) -> list[Key]:
        metadata = vmi["metadata"]
        return [key_of(m) for m in self._migrations.by_index("vmi", f"{metadata['namespace']}/{metadata['name']}")]

    async def reconcile(self, key: Key) -> float | None:
        """Take one migration a step further."""
        migration = self._migrations.get(*key)
        if migration is None:
            return None
        if phase_of(migration) in FINAL:
            if is_deleting(migration) and has_finalizer(migration, FINALIZER):
                steps = finalizer_steps(migration, remove=FINALIZER)
                await guarded_patch(self._world.client, MIGRATION, migration, steps)
            return None
        vmi = self._vmis.get(key.namespace, str(spec_of(migration).get("vmiName")))
        scene = self._scene(migration, vmi)
        step = decide(scene)
        if step.instance and vmi is not None:
            await guarded_patch(self._world.client, VIRTUAL_MACHINE_INSTANCE, vmi, step.instance)
            return 0.2  # the instance comes back by its informer; sooner than the phase needs it
        if step.phase:
            status = status_after(migration, vmi, step, text_from_time(scene.now))
            await write_status(self._world.client, MIGRATION, migration, status)
            self._tell(migration, step)
        return step.again

    def _tell(self, migration: Object, step: Step) -> None:
        if step.phase == "Failed":
            self._world.recorder.event(migration, "Warning", "FailedMigration", step.why)
        elif step.phase == "Succeeded":
            self._world.recorder.event(
                migration, "Normal", "SuccessfulMigration", "Source node reported migration succeeded"
            )

    def _scene(self, migration: Object, vmi: Object | None) -> Scene:
        terms = self._terms(vmi)
        state = state_of(vmi, migration)
        source = str(status_of(vmi).get("nodeName") or "")
        selector = dict(spec_of(migration).get("addedNodeSelector") or {})
        return Scene(
            migration=migration,
            vmi=vmi,
            now=self._clock(),
            is_next=uid_of(migration) in self._next(terms),
            terms=terms,
            place=lambda: self._place(vmi or {}, selector, {source}),
            source_lives=self._lives(str(state.get("sourceNode") or source)),
            target_lives=self._lives(str(state.get("targetNode") or "")),
        )

    def _lives(self, host: str) -> bool:
        return not host or is_condition(self._nodes.get(None, host), "Ready")

    def _terms(self, vmi: Object | None) -> Terms:
        kubevirt = next(iter(self._kubevirts.objects()), None)
        namespace = self._namespaces.get(None, (vmi or {}).get("metadata", {}).get("namespace", ""))
        return terms_for(kubevirt, self._policies.objects(), vmi, namespace)

    def _next(self, terms: Terms) -> set[str]:
        found = self._migrations.by_index("open", "yes")
        running = [(m, self._host(m)) for m in found if phase_of(m) not in ("", "Pending")]
        return chosen_next([m for m in found if phase_of(m) == "Pending"], running, terms, self._host)

    def _host(self, migration: Object) -> str:
        vmi = self._vmis.get(migration["metadata"]["namespace"], str(spec_of(migration).get("vmiName")))
        return str(status_of(vmi).get("nodeName") or "")
