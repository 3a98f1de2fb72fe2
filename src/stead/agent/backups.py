"""Backups of machines on this host: each Backup that the controller gave to it, from Pending to its end.

A companion of the agent: watches Backups whose label names this host, and is the only writer of their status but for
`host` and `manifests`. One task per Backup, one at a time per machine, two at a time on a host. A running machine's
disks are seen frozen through the hypervisor (`Backups` contract), those of one that is off through their files, which
nobody can start meanwhile. What changed since the last point comes from the hypervisor's checkpoint that was made with
it; where that is gone, or was never made, everything is read, and what the repository has already is not stored again.
Whatever breaks a backup off, the repository shows no point of it, and the next increment misses nothing: a checkpoint
counts only once its point is stored. Deleting a Backup ends its work.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from stead.agent import backup_disks, backup_places
from stead.agent import vmi as reading
from stead.agent.backup_disks import Chain, Chains, LiveDisks, OfflineDisks
from stead.agent.backup_places import NODE_LABEL, Places, text_now
from stead.agent.machine import Machine
from stead.agent.prepared import NotReady
from stead.agent.trouble import API_TROUBLE
from stead.agent.workshop import Workshop
from stead.client.contract import Client, Selection
from stead.client.informer import Informer, Key, key_of
from stead.hypervisor.contract import DriverError
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.storage.backup import retention
from stead.storage.backup.keys import BackupError
from stead.storage.backup.points import Point, time_text
from stead.storage.backup.prune import prune
from stead.storage.backup.repository import Repository
from stead.storage.backup.session import Session, forget_writers

log = structlog.get_logger(__name__)

Object = dict[str, Any]

PARALLEL = 2
REPORT_SECONDS = 1.0
DONE = ("Succeeded", "Failed")


class Aborted(Exception):
    """The Backup was deleted."""


class Progress:
    """Bytes done of those that are to be read; `stop` ends the reading thread at its next step."""

    def __init__(self) -> None:
        self.done = self.total = 0
        self.stop = threading.Event()

    def advance(self, count: int) -> None:
        """From the reading thread. Raises Aborted."""
        self.done += count
        if self.stop.is_set():
            raise Aborted

    @property
    def text(self) -> str:
        return f"{min(100.0, 100 * self.done / self.total):.2f}%" if self.total else "N/A"


class Backups:
    """See the module's prose. `machine_of` finds a machine of this host by namespace and name."""

    def __init__(
        self, client: Client, shop: Workshop, machine_of: Callable[[str, str], Machine | None], places: Places
    ) -> None:
        self._client, self._shop, self._machine_of, self._places = client, shop, machine_of, places
        host = shop.settings.host_name
        self._informer = Informer(client, register.BACKUP, Selection(labels=f"{NODE_LABEL}={host}"))
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._running: dict[Key, Progress] = {}
        self._slots = asyncio.Semaphore(PARALLEL)
        self._machines: dict[tuple[str, str], asyncio.Lock] = {}
        self._cleared: set[str] = set()

    async def run(self) -> None:
        """Work until cancelled; what was under way is then told by the next agent."""
        self._informer.add_listener(self._heard)
        try:
            await self._informer.run()
        finally:
            for progress in self._running.values():
                progress.stop.set()
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _heard(self, old: Object | None, new: Object | None) -> None:
        backup = new or old
        if backup is None:
            return
        key = key_of(backup)
        if new is None or new["metadata"].get("deletionTimestamp"):
            if key in self._running:
                self._running[key].stop.set()
            return
        if key not in self._tasks and (new.get("status") or {}).get("phase") not in DONE:
            task = self._tasks[key] = asyncio.create_task(self._keep(new), name=f"backup {key}")
            task.add_done_callback(lambda _done: self._tasks.pop(key, None))

    # one backup --------------------------------------------------------------------------------------------------

    async def _keep(self, backup: Object) -> None:
        spec, namespace = backup["spec"], backup["metadata"]["namespace"]
        progress = self._running[key_of(backup)] = Progress()
        try:
            if (backup.get("status") or {}).get("phase") == "Running":
                text = "the agent of the host was started again while the backup ran"
                await self._tell(backup, {"phase": "Failed", "reason": "Interrupted", "message": text})
                return
            lock = self._machines.setdefault((namespace, spec["machine"]), asyncio.Lock())
            async with lock, self._slots:
                if not progress.stop.is_set():
                    await self._guarded(backup, progress)
        finally:
            self._running.pop(key_of(backup), None)

    async def _guarded(self, backup: Object, progress: Progress) -> None:
        await self._tell(backup, {"phase": "Running", "startTime": text_now(), "reason": "", "message": ""})
        writer = asyncio.create_task(self._report(backup, progress))
        try:
            done = await self._carry_out(backup, progress)
        except Aborted:
            return
        except BackupError as error:
            done = {"phase": "Failed", "reason": error.reason, "message": str(error)}
        except NotReady as error:
            done = {"phase": "Failed", "reason": error.reason, "message": str(error)}
        except (DriverError, OSError, ApiError, TimeoutError) as error:
            done = {"phase": "Failed", "reason": "Failed", "message": str(error) or type(error).__name__}
        except Exception as error:
            log.exception("a backup failed", backup=str(key_of(backup)))
            done = {"phase": "Failed", "reason": "Failed", "message": repr(error)[:300]}
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        if done["phase"] == "Failed":
            log.warning("a backup failed", backup=str(key_of(backup)), error=done["message"])
        await self._tell(backup, {**done, "completionTime": text_now()})

    async def _carry_out(self, backup: Object, progress: Progress) -> Object:
        namespace, spec = backup["metadata"]["namespace"], backup["spec"]
        repository = await self._places.open(namespace, spec["repository"])
        owner = f"host {self._shop.settings.host_name}"
        if repository.id not in self._cleared:
            self._cleared.add(repository.id)
            await asyncio.to_thread(forget_writers, repository, owner)
        machine = self._machine_of(namespace, spec["machine"])
        manifests = backup_places.manifests_of(backup)
        if machine is not None and machine.prepared is not None and machine.alive:
            return await self._back_up_live(backup, machine, (repository, manifests, owner), progress)
        if machine is not None and not reading.is_final(machine.vmi):
            raise NotReady("MachineStarting", f"machine {spec['machine']} is being started or stopped")
        return await self._back_up_offline(backup, (repository, manifests, owner), progress)

    async def _back_up_live(
        self, backup: Object, machine: Machine, target: tuple[Repository, tuple[Object, ...], str], progress: Progress
    ) -> Object:
        repository, manifests, owner = target
        chains = Chains.of(machine.prepared)
        chain = await asyncio.to_thread(chains.read, repository.id)
        if backup["spec"].get("forceFull") or not await asyncio.to_thread(_has_point, repository, chain):
            chain = Chain()
        disks = LiveDisks(machine, chains, chain, f"stead-{repository.id[:8]}-{datetime.now(UTC):%Y%m%d%H%M%S%f}")
        view = await disks.begin(quiesce=not backup["spec"].get("skipQuiesce"))
        try:
            point = Point(
                namespace=backup["metadata"]["namespace"], machine=backup["spec"]["machine"], time=time_text(view.time),
                machine_uid=reading.uid(machine.vmi), quiesced=view.quiesced, running=True, objects=manifests,
                host=self._shop.settings.host_name, parent=view.parent, checkpoint=view.checkpoint,
            )  # fmt: skip
            stored, moved = await self._in_thread(_pull, repository, owner, view, point, progress)
        except BaseException:
            await asyncio.shield(disks.give_up())
            raise
        await asyncio.shield(disks.finish(repository.id, stored))
        return await self._conclude(backup, repository, stored, moved, progress)

    async def _back_up_offline(
        self, backup: Object, target: tuple[Repository, tuple[Object, ...], str], progress: Progress
    ) -> Object:
        repository, manifests, owner = target
        namespace, name = backup["metadata"]["namespace"], backup["spec"]["machine"]
        async with OfflineDisks(self._shop, namespace, name, manifests) as view:
            point = Point(
                namespace=namespace, machine=name, time=time_text(view.time), quiesced=True, objects=manifests,
                host=self._shop.settings.host_name,
            )  # fmt: skip
            stored, moved = await self._in_thread(_pull, repository, owner, view, point, progress)
        return await self._conclude(backup, repository, stored, moved, progress)

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """In a thread that is waited for also when we are cancelled, so that nobody takes its disks away under it."""
        task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            for argument in arguments:
                if isinstance(argument, Progress):
                    argument.stop.set()
            await asyncio.gather(task, return_exceptions=True)
            raise

    async def _conclude(
        self, backup: Object, repository: Repository, point: Point, moved: Object, progress: Progress
    ) -> Object:
        done = {
            "phase": "Succeeded", "type": point.kind, "point": point.short, "quiesced": point.quiesced,
            "progress": "100.00%", **moved,
        }  # fmt: skip
        asked = backup["spec"].get("retention")
        if not asked:
            return done
        names = ("last", "daily", "weekly", "monthly", "yearly")
        rules = retention.Retention(**{name: int(asked.get(f"keep{name.capitalize()}") or 0) for name in names})
        try:
            done["removedPoints"] = await self._in_thread(_thin_out, repository, point, rules)
        except BackupError as error:
            done["message"] = f"the backup is complete; older points were not removed: {error}"
        return done

    # telling -----------------------------------------------------------------------------------------------------

    async def _report(self, backup: Object, progress: Progress) -> None:
        told = ""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if progress.text != told:
                told = progress.text
                with contextlib.suppress(*API_TROUBLE):
                    await self._tell(backup, {"progress": told})

    async def _tell(self, backup: Object, values: Object) -> None:
        """Merge into the status; a Backup that is gone is fine."""
        metadata = backup["metadata"]
        patch = {"metadata": {"uid": metadata["uid"]}, "status": {key: value or None for key, value in values.items()}}
        for _ in range(60):
            try:
                await self._client.patch(register.BACKUP, metadata["namespace"], metadata["name"], patch, "status")
                return
            except ApiError as error:
                if error.code in (403, 404, 409, 422):
                    return
            except (OSError, TimeoutError):
                pass
            await asyncio.sleep(1)


def _has_point(repository: Repository, chain: Chain) -> bool:
    """Blocking. Whether the point that the checkpoint was made with is still there."""
    if not chain.point:
        return False
    try:
        repository.point(chain.point)
    except BackupError as error:
        if error.reason != "NotFound":
            raise
        return False
    return True


def _pull(
    repository: Repository, owner: str, view: backup_disks.View, point: Point, progress: Progress
) -> tuple[Point, Object]:
    """Blocking: every disk of the view into the repository, then the point."""
    with Session(repository, owner, progress.advance) as session:
        parent = repository.point(view.parent) if view.parent else None
        taken = []
        for disk in view.disks:
            base = parent.disk(disk.volume) if parent else None
            with disk.open() as source:
                extents = list(source.extents())
                progress.total += sum(extent.length for extent in extents if not extent.zero)
                made = session.add_disk(disk.volume, source.size_bytes, source, extents, base.map if base else "")
            taken.append(msgspec.structs.replace(made, claim=disk.claim))
        stored = session.publish(msgspec.structs.replace(point, disks=tuple(taken)))
        return stored, {"changedBytes": session.moved.changed, "storedBytes": session.moved.stored}


def _thin_out(repository: Repository, latest: Point, rules: retention.Retention) -> int:
    """Blocking: remove what the rules do not keep of this machine's points."""
    mine = [p for p in repository.points() if (p.namespace, p.machine) == (latest.namespace, latest.machine)]
    keep = retention.kept([(p.name, p.when) for p in mine], rules)
    remove = [p.name for p in mine if p.name not in keep]
    if not remove:
        return 0
    return prune(repository, remove, datetime.now(UTC)).points
