"""Backups are given to hosts, and schedules make Backups: two controllers, pure decisions and thin hands.

Started by `controllers.start`. The Backup controller writes label `stead.io/host`, `status.host` and
`status.manifests` of a Backup that nobody has yet; from then on the host's agent writes its status. The schedule
controller is the only writer of BackupSchedule.status; a Backup is named by schedule, machine and tick, so that a crash
never makes one twice. Ticks that were missed are made up for once. A Backup that a schedule made and that is over is
removed when `keepBackups` newer ones of that machine exist; points stay or go by the retention only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from stead.client.informer import Key, key_of
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
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.writes import create_if_absent, delete_if_there, guarded_patch, write_status
from stead.kinds.register import (
    BACKUP,
    BACKUP_REPOSITORY,
    BACKUP_SCHEDULE,
    PERSISTENT_VOLUME_CLAIM,
    VIRTUAL_MACHINE,
    VIRTUAL_MACHINE_BACKUP,
    VIRTUAL_MACHINE_INSTANCE,
)
from stead.kube.errors import ApiError
from stead.kube.selectors import labels_from_object

Object = dict[str, Any]

HOST_LABEL = "stead.io/host"
SCHEDULE_LABEL, MACHINE_LABEL = "stead.io/backup-schedule", "stead.io/machine"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
KEEP_BACKUPS = 5
OVER = ("Succeeded", "Failed")
WAIT_SECONDS = 3.0
#: a Backup that finds nothing to back up for so long fails
PATIENCE = timedelta(minutes=5)


class Verdict(msgspec.Struct, frozen=True):
    """Which host is to do a Backup, or why none can (yet, unless `final`)."""

    host: str = ""
    reason: str = ""
    message: str = ""
    final: bool = False


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision about a Backup looks at. `claims` are those of the machine's volumes, by name."""

    backup: Object
    vm: Object | None
    vmi: Object | None
    repository: Object | None
    claims: dict[str, Object | None]
    now: datetime


def claims_of(vm: Object | None) -> list[str]:
    """Names of the claims that a machine's volumes are."""
    template = spec_of(spec_of(vm).get("template"))
    found = []
    for volume in template.get("volumes") or []:
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName") or (volume.get("dataVolume") or {}).get(
            "name"
        )
        if name:
            found.append(str(name))
    return found


def decide_host(seen: Seen) -> Verdict:
    """The host of the running instance, else the one that holds the disks."""
    spec = spec_of(seen.backup)
    too_late = seen.now - time_from_text(seen.backup["metadata"]["creationTimestamp"]) > PATIENCE
    if seen.repository is None:
        return Verdict(
            reason="RepositoryNotFound", message=f"BackupRepository {spec['repository']} does not exist", final=too_late
        )
    if seen.vm is None:
        return Verdict(
            reason="MachineNotFound", message=f"VirtualMachine {spec['machine']} does not exist", final=too_late
        )
    if not seen.claims:
        return Verdict(
            reason="NoVolumes", message=f"VirtualMachine {spec['machine']} has no volumes to back up", final=True
        )
    if seen.vmi is not None:
        host = str(status_of(seen.vmi).get("nodeName") or "")
        if status_of(seen.vmi).get("phase") == "Running" and host:
            return Verdict(host)
        if status_of(seen.vmi).get("phase") not in ("Succeeded", "Failed"):
            return Verdict(
                reason="MachineStarting", message=f"machine {spec['machine']} is being started", final=too_late
            )
    hosts = {annotations_of(claim).get(SELECTED_NODE, "") for claim in seen.claims.values()}
    missing = [name for name, claim in seen.claims.items() if claim is None]
    if missing or "" in hosts:
        return Verdict(
            reason="NoVolumes", message=f"claim {(missing or list(seen.claims))[0]} has no volume yet", final=too_late
        )
    if len(hosts) > 1:
        return Verdict(
            reason="SeveralHosts", message="the machine is off and its disks lie on several hosts", final=True
        )
    return Verdict(next(iter(hosts)))


def manifests(seen: Seen) -> str:
    """What is kept with the point: the machine, and what its claims ask for."""
    kept = []
    for item in (seen.vm, *seen.claims.values()):
        if item is None:
            continue
        metadata = {k: item["metadata"][k] for k in ("name", "namespace", "labels") if k in item["metadata"]}
        ours = {
            k: v
            for k, v in annotations_of(item).items()
            if not k.startswith(("pv.kubernetes.io/", "volume.", "stead.io/"))
        }
        spec = {k: v for k, v in spec_of(item).items() if k != "volumeName"}
        kept.append({"apiVersion": item["apiVersion"], "kind": item["kind"],
                     "metadata": {**metadata, "annotations": ours}, "spec": spec})  # fmt: skip
    return json.dumps(kept, separators=(",", ":"))


class Backups:
    """Gives Backups to hosts."""

    def __init__(self, world: World, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._client, self._clock = world.client, clock
        of = world.informers.of
        self._backups, self._repositories = of(BACKUP), of(BACKUP_REPOSITORY)
        self._vms, self._vmis, self._claims = (
            of(VIRTUAL_MACHINE),
            of(VIRTUAL_MACHINE_INSTANCE),
            of(PERSISTENT_VOLUME_CLAIM),
        )

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        return Controller("backup", self.reconcile, (Source(self._backups, own_key),), workers=1)

    async def reconcile(self, key: Key) -> float | None:
        backup = self._backups.get(*key)
        if backup is None or is_deleting(backup) or status_of(backup).get("phase") in OVER:
            return None
        if labels_of(backup).get(HOST_LABEL):
            return None
        seen = self._seen(key, backup)
        verdict = decide_host(seen)
        status = dict(status_of(backup))
        if not verdict.host:
            status |= {
                "phase": "Failed" if verdict.final else "Pending",
                "reason": verdict.reason,
                "message": verdict.message,
            }
            await write_status(self._client, BACKUP, backup, status)
            return None if verdict.final else WAIT_SECONDS
        wanted = {**status, "phase": "Pending", "host": verdict.host, "manifests": manifests(seen)}
        for told in ("reason", "message"):
            wanted.pop(told, None)
        if status != wanted:
            backup = await write_status(self._client, BACKUP, backup, wanted)
        labels = {**labels_of(backup), HOST_LABEL: verdict.host}
        await guarded_patch(self._client, BACKUP, backup, [{"op": "add", "path": "/metadata/labels", "value": labels}])
        return None

    def _seen(self, key: Key, backup: Object) -> Seen:
        spec = spec_of(backup)
        vm = self._vms.get(key.namespace, spec["machine"])
        return Seen(
            backup=backup, vm=vm, vmi=self._vmis.get(key.namespace, spec["machine"]),
            repository=self._repositories.get(key.namespace, spec["repository"]),
            claims={name: self._claims.get(key.namespace, name) for name in claims_of(vm)}, now=self._clock(),
        )  # fmt: skip


def selects(schedule: Object, vm: Object) -> bool:
    """Whether a schedule is for a machine."""
    if schedule["metadata"]["namespace"] != vm["metadata"]["namespace"]:
        return False
    try:
        selector = labels_from_object(spec_of(schedule).get("selector") or {})
    except ApiError:  # it says nothing that could be understood
        return False
    return selector is None or selector.matches(labels_of(vm))


# schedules -----------------------------------------------------------------------------------------------------------


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass over a schedule is to do."""

    make: tuple[Object, ...] = ()
    remove: tuple[str, ...] = ()
    status: Object = {}
    again_seconds: float | None = None


def decide_schedule(schedule: Object, machines: list[Object], backups: list[Object], now: datetime) -> Plan:
    """`machines` are those selected; `backups` those that this schedule has made."""
    spec, status = spec_of(schedule), dict(status_of(schedule))
    status["machines"] = len(machines)
    status.pop("message", None)
    try:
        times = cron.parse(spec["schedule"])
    except ValueError as error:
        return Plan(status={**status, "message": str(error)})
    last = time_from_text(status.get("lastScheduleTime") or schedule["metadata"]["creationTimestamp"])
    tick = None if spec.get("suspend") else latest_due(times, last, now)
    upcoming = times.after(max(now, tick or now))
    if tick is not None:
        status["lastScheduleTime"] = text_from_time(tick)
    if upcoming is not None:
        status["nextScheduleTime"] = text_from_time(upcoming)
    busy = {spec_of(b)["machine"] for b in backups if status_of(b).get("phase") not in OVER}
    make = [build_backup(schedule, m, tick) for m in machines if tick is not None and m["metadata"]["name"] not in busy]
    again = max(1.0, (upcoming - now).total_seconds()) if upcoming else None
    return Plan(make=tuple(make), remove=outdated(schedule, backups), status=status, again_seconds=again)


def latest_due(times: cron.Schedule, last: datetime, now: datetime) -> datetime | None:
    """The newest tick after `last` and not after `now`."""
    for span in (timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=366), now - last):
        due = times.after(max(last, now - span))
        if due is not None and due <= now:
            while (later := times.after(due)) is not None and later <= now:
                due = later
            return due
    return None


def build_backup(schedule: Object, machine: Object, tick: datetime) -> Object:
    """The Backup of a machine at a tick."""
    spec, name = spec_of(schedule), machine["metadata"]["name"]
    made = f"{schedule['metadata']['name'][:20]}-{name[:20]}"
    digest = hashlib.sha256(f"{schedule['metadata']['uid']}/{name}".encode()).hexdigest()[:6]
    wanted = {"machine": name, "repository": spec["repository"]}
    wanted |= {key: spec[key] for key in ("retention", "skipQuiesce") if spec.get(key) is not None}
    return {
        "apiVersion": BACKUP.api_version,
        "kind": BACKUP.kind,
        "metadata": {
            "namespace": schedule["metadata"]["namespace"],
            "name": f"{made.rstrip('.-')}-{digest}-{tick:%Y%m%d%H%M}",
            "labels": {SCHEDULE_LABEL: schedule["metadata"]["name"][:63], MACHINE_LABEL: name[:63]},
        },
        "spec": wanted,
    }


def outdated(schedule: Object, backups: list[Object]) -> tuple[str, ...]:
    """Names of Backups that are over and older than the newest of their machine that are kept."""
    keep = max(1, int(spec_of(schedule).get("keepBackups") or KEEP_BACKUPS))
    of: dict[str, list[str]] = {}
    for backup in sorted(backups, key=lambda b: (b["metadata"].get("creationTimestamp", ""), b["metadata"]["name"])):
        if status_of(backup).get("phase") in OVER:
            of.setdefault(spec_of(backup)["machine"], []).append(backup["metadata"]["name"])
    return tuple(name for names in of.values() for name in names[:-keep])


class Schedules:
    """The schedule controller's hands."""

    def __init__(self, world: World, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._client, self._clock = world.client, clock
        of = world.informers.of
        self._schedules, self._backups, self._vms = of(BACKUP_SCHEDULE), of(BACKUP), of(VIRTUAL_MACHINE)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        sources = (Source(self._schedules, own_key), Source(self._backups, self._of))
        return Controller("backupschedule", self.reconcile, sources, workers=1)

    @staticmethod
    def _of(backup: Object) -> list[Key]:
        name = labels_of(backup).get(SCHEDULE_LABEL)
        return [Key(backup["metadata"]["namespace"], name)] if name else []

    async def reconcile(self, key: Key) -> float | None:
        schedule = self._schedules.get(*key)
        if schedule is None or is_deleting(schedule):
            return None
        machines = [vm for vm in self._vms.objects() if selects(schedule, vm) and not is_deleting(vm)]
        made = [b for b in self._backups.objects() if key_of(b).namespace == key.namespace and self._of(b) == [key]]
        plan = decide_schedule(schedule, machines, made, self._clock())
        for backup in plan.make:
            await create_if_absent(self._client, BACKUP, backup)
        for backup in made:
            if backup["metadata"]["name"] in plan.remove:
                await delete_if_there(self._client, BACKUP, backup)
        await write_status(self._client, BACKUP_SCHEDULE, schedule, plan.status)
        return plan.again_seconds


# KubeVirt's own kind -------------------------------------------------------------------------------------------------


def kubevirt_conditions(backup: Object, vmi: Object | None, now: str) -> list[Object]:
    """Conditions of a VirtualMachineBackup. This release makes none: it says so, and what makes backups instead."""
    source = spec_of(backup)["source"]
    if source["kind"] == "VirtualMachine" and status_of(vmi).get("phase") != "Running":
        text = f"vm {source['name']} is not running, cannot do backup"
        wanted = [condition("Progressing", "True", "Initializing", text)]
    else:
        text = (
            "spec.pvcName: this release makes no backups into claims; a Backup (stead.io) makes them into a repository"
        )
        wanted = [condition("Progressing", "False", "Unsupported", text), condition("Done", "True", "Failed", text)]
    return merge_conditions(status_of(backup).get("conditions"), wanted, now)


class KubeVirtBackups:
    """Answers VirtualMachineBackups."""

    def __init__(self, world: World, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._client, self._clock = world.client, clock
        of = world.informers.of
        self._backups, self._vmis = of(VIRTUAL_MACHINE_BACKUP), of(VIRTUAL_MACHINE_INSTANCE)

    def controller(self) -> Controller:
        """The value that `run_controller` runs."""
        return Controller("virtualmachinebackup", self.reconcile, (Source(self._backups, own_key),), workers=1)

    async def reconcile(self, key: Key) -> float | None:
        backup = self._backups.get(*key)
        if backup is None or is_deleting(backup) or (find_condition(backup, "Done") or {}).get("status") == "True":
            return None
        vmi = self._vmis.get(key.namespace, spec_of(backup)["source"]["name"])
        found = kubevirt_conditions(backup, vmi, text_from_time(self._clock()))
        await write_status(self._client, VIRTUAL_MACHINE_BACKUP, backup, {**status_of(backup), "conditions": found})
        return 10.0
