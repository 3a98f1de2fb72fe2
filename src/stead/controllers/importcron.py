"""The DataImportCron controller: golden images that are brought in once and again on a schedule.

Started by `controllers.start`; sole writer of DataImportCron.status and of the DataSource it manages. Each import is
one DataVolume named `<managedDataSource>-<mark>`: the first 12 hex digits of the digest when the URL is pinned to one,
else the time of the scheduled tick, so that a crash never starts an import twice. The DataSource moves only when an
import is complete. A failed import says why in the conditions; the transfer is tried again by the agent, and at the
next tick one that failed for good is made anew. An import carries the digest that the last one brought; the host's
worker, which asks the registry for the present one first, then gives it up as Unchanged, and it is removed. While an
import is under way (its registry cannot be reached, say) no other is begun. Names, labels, annotations and reasons are
CDI's.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from stead.client.informer import Key
from stead.controllers import cron
from stead.controllers.conditions import (
    annotations_of,
    condition,
    find_condition,
    is_deleting,
    labels_of,
    merge_conditions,
    spec_of,
    status_of,
    text_from_time,
    time_from_text,
)
from stead.controllers.disk import UNCHANGED
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.writes import create_if_absent, delete_if_there, guarded_patch, write_status
from stead.kinds.register import DATA_IMPORT_CRON, DATA_SOURCE, DATA_VOLUME, PERSISTENT_VOLUME_CLAIM

Object = dict[str, Any]

LABEL = "cdi.kubevirt.io/dataImportCron"
#: written on the claim by the agent: the digest that a tag stood for
IMAGE_DIGEST = "stead.io/image-digest"
DIGEST = "cdi.kubevirt.io/storage.import.sourceDigest"
IMMEDIATE = "cdi.kubevirt.io/storage.bind.immediate.requested"
DEFAULT_KEEP = 3
#: read by the host's worker
KNOWN_DIGEST = "stead.io/known-digest"
_PINNED = re.compile(r"@sha256:([0-9a-f]{64})")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass is to do: an import to start, imports to remove, the name the DataSource shall point to."""

    start: str = ""
    digest: str = ""
    remove: tuple[str, ...] = ()
    point_to: str = ""
    #: the import that the conditions speak of
    current: str = ""
    #: digest of the newest complete import, "" while there is none
    known: str = ""
    #: the tick that `start` stands for
    tick: datetime | None = None
    #: next tick, if there is one
    next_tick: datetime | None = None
    error: str = ""


def managed_name(import_cron: Object) -> str:
    """Name of the DataSource that this cron keeps."""
    return str(spec_of(import_cron).get("managedDataSource") or import_cron["metadata"]["name"])


def pinned_digest(import_cron: Object) -> str:
    """The digest in the template's URL; "" if it names a tag or is no registry URL."""
    source = spec_of(spec_of(import_cron).get("template")).get("source") or {}
    found = _PINNED.search(str((source.get("registry") or {}).get("url", "")))
    return found[1] if found else ""


def decide_imports(
    import_cron: Object, imports: list[Object], now: datetime, digest_of: Callable[[str], str] = lambda _name: ""
) -> Plan:
    """`imports`: the DataVolumes of this cron that exist; `digest_of` what one of that name has brought."""
    unchanged = tuple(d["metadata"]["name"] for d in imports if _is_unchanged(d))
    imports = [d for d in imports if d["metadata"]["name"] not in unchanged]
    name, digest = managed_name(import_cron), pinned_digest(import_cron)
    tick, next_tick, error = _ticks(import_cron, imports, now)
    wanted = f"{name}-{digest[:12]}" if digest else f"{name}-{tick:%Y%m%d%H%M}" if tick else ""
    exists = {d["metadata"]["name"]: d for d in imports}
    ordered = sorted(imports, key=lambda d: (d["metadata"].get("creationTimestamp", ""), d["metadata"]["name"]))
    done = [d for d in ordered if status_of(d).get("phase") == "Succeeded"]
    failed = [d["metadata"]["name"] for d in ordered if status_of(d).get("phase") == "Failed"]
    under_way = not digest and any(status_of(d).get("phase") not in ("Succeeded", "Failed") for d in imports)
    start = wanted if tick is not None and not under_way and wanted not in {*exists, *unchanged} else ""
    if tick is not None and wanted in failed:
        return Plan(remove=(wanted, *unchanged), next_tick=next_tick, error=error, current=wanted)
    point_to = done[-1]["metadata"]["name"] if done else ""
    current = start or (ordered[-1]["metadata"]["name"] if ordered else "")
    remove = _outdated(import_cron, [d["metadata"]["name"] for d in done], keep_also=current)
    remove += (*(n for n in failed if n != current), *unchanged)
    return Plan(
        start=start,
        digest=digest,
        remove=remove,
        point_to=point_to,
        current=current,
        known=digest_of(point_to) if point_to and not digest else "",
        tick=tick,
        next_tick=next_tick,
        error=error,
    )


def _is_unchanged(data_volume: Object) -> bool:
    running = find_condition(data_volume, "Running") or {}
    return status_of(data_volume).get("phase") == "Failed" and running.get("reason") == UNCHANGED


def _ticks(import_cron: Object, imports: list[Object], now: datetime) -> tuple[datetime | None, datetime | None, str]:
    """(the tick that is due, the next one, what is wrong with the schedule)."""
    last_text = status_of(import_cron).get("lastExecutionTimestamp")
    last = time_from_text(last_text) if last_text else None
    tick: datetime | None = None
    next_tick: datetime | None = None
    error = ""
    try:
        schedule = cron.parse(spec_of(import_cron)["schedule"]) if spec_of(import_cron).get("schedule") else None
    except ValueError as failure:
        schedule, error = None, str(failure)
    if last is None:
        tick = time_from_text(import_cron["metadata"]["creationTimestamp"])
    elif schedule is not None:
        tick = _latest_due(schedule, last, now)
    elif not error and not imports and not status_of(import_cron).get("lastImportedPVC"):
        tick = time_from_text(import_cron["metadata"]["creationTimestamp"])  # its only import was removed: try again
    if schedule is not None:
        next_tick = schedule.after(max(now, tick or now))
    return tick, next_tick, error


def _latest_due(schedule: cron.Schedule, last: datetime, now: datetime) -> datetime | None:
    """The newest tick after `last` and not after `now`: those that were missed before it are not made up for."""
    for span in (timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=366), now - last):
        due = schedule.after(max(last, now - span))
        if due is not None and due <= now:
            while (later := schedule.after(due)) is not None and later <= now:
                due = later
            return due
    return None


def _outdated(import_cron: Object, done: list[str], *, keep_also: str) -> tuple[str, ...]:
    spec = spec_of(import_cron)
    if spec.get("garbageCollect") == "Never":
        return ()
    keep = max(1, int(spec.get("importsToKeep") or DEFAULT_KEEP))
    return tuple(n for n in done[:-keep] if n != keep_also)


def status_after(import_cron: Object, plan: Plan, current: Object | None, now: datetime) -> Object:
    """The cron's whole status. `current` is the import that the conditions speak of."""
    status = dict(status_of(import_cron))
    phase = status_of(current).get("phase") or "Pending" if current or plan.current else ""
    running = find_condition(current, "Running") or {}
    trouble = ""
    if phase != "Succeeded" and running.get("status") == "False":
        trouble = str(running.get("message") or "")
    if plan.error:
        wanted = [
            condition("Progressing", "False", "NoImport", plan.error),
            condition("UpToDate", "False", "NoDigest", plan.error),
        ]
    elif phase == "Succeeded":
        wanted = [condition("Progressing", "False", "NoImport", "No current import")]
        wanted.append(condition("UpToDate", "True", "UpToDate", "Latest import is up to date"))
    elif phase:
        reason = "ImportScheduled" if phase in ("Pending", "ImportScheduled") else "ImportProgressing"
        text = trouble or f"Import {plan.current} is {phase}"
        wanted = [condition("Progressing", "False" if phase == "Failed" else "True", reason, text)]
        wanted.append(condition("UpToDate", "False", "Outdated" if trouble else "ImportProgressing", text))
    else:
        wanted = [condition("Progressing", "False", "NoImport", "No current import")]
        wanted.append(condition("UpToDate", "False", "NoDigest", "No source digest"))
    moment = text_from_time(now)
    status["conditions"] = merge_conditions(status.get("conditions"), wanted, moment, heartbeat="lastHeartbeatTime")
    status["sourceFormat"] = "pvc"
    if plan.tick is not None:
        status["lastExecutionTimestamp"] = text_from_time(plan.tick)
    if plan.current:
        status["currentImports"] = [
            {"DataVolumeName": plan.current, "Digest": f"sha256:{plan.digest}" if plan.digest else ""}
        ]
    if plan.point_to:
        last = {"namespace": import_cron["metadata"]["namespace"], "name": plan.point_to}
        if status.get("lastImportedPVC") != last:
            status["lastImportedPVC"], status["lastImportTimestamp"] = last, moment
    return status


def build_import(import_cron: Object, plan: Plan) -> Object:
    """The DataVolume of one import."""
    metadata, template = import_cron["metadata"], spec_of(import_cron).get("template") or {}
    annotations = {**annotations_of(template), IMMEDIATE: "true"}
    if plan.digest:
        annotations[DIGEST] = f"sha256:{plan.digest}"
    if plan.known:
        annotations[KNOWN_DIGEST] = plan.known
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {
            "namespace": metadata["namespace"],
            "name": plan.start,
            "labels": {**_inference(import_cron), **labels_of(template), LABEL: metadata["name"]},
            "annotations": annotations,
        },
        "spec": copy.deepcopy(template.get("spec") or {}),
    }


def _inference(obj: Object) -> dict[str, str]:
    return {k: v for k, v in labels_of(obj).items() if k.startswith("instancetype.kubevirt.io/default-")}


class ImportCrons:
    """The controller's hands."""

    def __init__(self, world: World, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._world = world
        self._client = world.client
        self._clock = clock
        of = world.informers.of
        self._claims = of(PERSISTENT_VOLUME_CLAIM)
        self._crons, self._data_volumes, self._data_sources = of(DATA_IMPORT_CRON), of(DATA_VOLUME), of(DATA_SOURCE)
        self._data_volumes.add_index("cron", _cron_of)
        self._crons.add_index("managed", lambda c: [f"{c['metadata']['namespace']}/{managed_name(c)}"])

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (
            Source(self._crons, own_key),
            Source(self._data_volumes, lambda d: [Key(*c.split("/", 1)) for c in _cron_of(d)]),
            Source(self._data_sources, self._managing),
        )
        return Controller("importcron", self.reconcile, sources, workers=1)

    def _managing(self, data_source: Object) -> list[Key]:
        metadata = data_source["metadata"]
        found = self._crons.by_index("managed", f"{metadata['namespace']}/{metadata['name']}")
        return [Key(c["metadata"]["namespace"], c["metadata"]["name"]) for c in found]

    async def reconcile(self, key: Key) -> float | None:
        """Start what is due, move the DataSource, clean up, tell; look again at the next tick."""
        import_cron = self._crons.get(*key)
        if import_cron is None or is_deleting(import_cron):
            return None
        now = self._clock()
        imports = self._data_volumes.by_index("cron", f"{key.namespace}/{key.name}")
        plan = decide_imports(import_cron, imports, now, lambda name: self._digest_of(key.namespace, name))
        if plan.start:
            await create_if_absent(self._client, DATA_VOLUME, build_import(import_cron, plan))
        await self._point(import_cron, plan)
        for data_volume in imports:
            if data_volume["metadata"]["name"] in plan.remove:
                await delete_if_there(self._client, DATA_VOLUME, data_volume)
        current = self._data_volumes.get(key.namespace, plan.current) if plan.current else None
        digest = self._digest_of(key.namespace, plan.current)
        if digest and not plan.digest:
            plan = msgspec.structs.replace(plan, digest=digest.removeprefix("sha256:"))
        await write_status(self._client, DATA_IMPORT_CRON, import_cron, status_after(import_cron, plan, current, now))
        return max(1.0, (plan.next_tick - now).total_seconds()) if plan.next_tick else None

    def _digest_of(self, namespace: str, name: str) -> str:
        return annotations_of(self._claims.get(namespace, name)).get(IMAGE_DIGEST, "")

    async def _point(self, import_cron: Object, plan: Plan) -> None:
        """Make the managed DataSource, and move it once there is a complete import."""
        metadata, name = import_cron["metadata"], managed_name(import_cron)
        known = self._data_sources.get(metadata["namespace"], name)
        target = {"pvc": {"namespace": metadata["namespace"], "name": plan.point_to or plan.current}}
        if known is None:
            made = {
                "apiVersion": DATA_SOURCE.api_version,
                "kind": DATA_SOURCE.kind,
                "metadata": {
                    "namespace": metadata["namespace"],
                    "name": name,
                    "labels": {**_inference(import_cron), LABEL: metadata["name"]},
                },
                "spec": {"source": target},
            }
            await create_if_absent(self._client, DATA_SOURCE, made)
            return
        manager = labels_of(known).get(LABEL)
        if manager not in (None, metadata["name"]):
            text = f"DataSource {name} is already managed by DataImportCron {manager}"
            if not find_condition(import_cron, "UpToDate"):
                self._world.recorder.event(import_cron, "Warning", "ErrDataSourceAlreadyManaged", text)
            return
        if plan.point_to and (spec_of(known).get("source") or {}) != target:
            labels = {**labels_of(known), LABEL: metadata["name"]}
            steps = [
                {"op": "add", "path": "/metadata/labels", "value": labels},
                {"op": "add", "path": "/spec", "value": {"source": target}},
            ]
            await guarded_patch(self._client, DATA_SOURCE, known, steps)


def _cron_of(data_volume: Object) -> list[str]:
    name = labels_of(data_volume).get(LABEL)
    return [f"{data_volume['metadata']['namespace']}/{name}"] if name else []
