"""The snapshots of volumes that lie on this host: takes them, several at one moment where they belong together.

Composed by `run`, started beside the volume worker. A VolumeSnapshot is ours when `stead.io/host` names this host.
Those of one group (a machine's disks, `stead.io/snapshot-group`) are taken together, once all of them are there, while
the machine that writes them stands still (`instants`). The data is a volume of the pool under the VolumeSnapshot's own
uid. Written: its status, the annotation `stead.io/indications`, and our finalizer taken off. One task a group; what a
killed agent left half-done is taken anew, since nobody has seen it, and what was published is never taken again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
import structlog

from stead.agent import volume_claims as claims
from stead.agent.instants import Held
from stead.client.contract import Client
from stead.client.informer import Informers
from stead.client.queue import Backoff
from stead.hypervisor.contract import DriverError
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.kube.quantity import quantity_from_bytes
from stead.storage.instant import Copy, Instant
from stead.storage.pools import Pool, PoolError, Volume, VolumeSpec

log = structlog.get_logger(__name__)

Object = dict[str, Any]

HOST, GROUP, INDICATIONS = "stead.io/host", "stead.io/snapshot-group", "stead.io/indications"
FINALIZER = "stead.io/snapshot"
_WRITE_SECONDS = 30.0
#: no snapshot holds a guest still for longer, whatever its deadline
_MAX_SECONDS = 600.0
_SETTLE_SECONDS = 0.2
#: no guest stands still for longer; blocks that are shared take milliseconds, data that must be copied takes its time
STILL_SECONDS = 30.0


class Group(msgspec.Struct, frozen=True):
    """What `stead.io/snapshot-group` says: snapshots of one moment. `deadline` (RFC 3339) "" = none."""

    id: str
    size: int = 1
    deadline: str = ""
    quiesce: bool = False


class StillMachine(Protocol):
    """What is needed of a machine."""

    async def hold_still(self, held: Held) -> tuple[str, ...]: ...


class NotNow(Exception):
    """It cannot be taken; the text says why. It is tried again."""


def group_of(snapshot: Object) -> Group:
    """The group of a snapshot; one that names none is alone in its own."""
    alone = Group(str(snapshot["metadata"]["uid"]))
    text = claims.annotations_of(snapshot).get(GROUP)
    if not text:
        return alone
    try:
        return msgspec.json.decode(text, type=Group)
    except msgspec.DecodeError:
        return alone


def is_ready(snapshot: Object) -> bool:
    """Whether it was taken and told."""
    return bool((snapshot.get("status") or {}).get("readyToUse"))


def seconds_left(group: Group, now: datetime) -> float:
    """How long it may still take."""
    if not group.deadline:
        return _MAX_SECONDS
    return min(_MAX_SECONDS, (datetime.fromisoformat(group.deadline) - now).total_seconds())


class Taken(msgspec.Struct, frozen=True):
    """The moment that all of a group show, and how it was held."""

    moment: str
    indications: str


class Snapshots:
    """See the module's prose. `machine_with` finds the machine that has a disk; it may raise ApiError."""

    def __init__(
        self, client: Client, pools: Iterable[Pool], host: str, machine_with: Callable[[str], StillMachine | None]
    ) -> None:
        self._client = client
        self._pools = tuple(pools)
        self._host = host
        self._machine_with = machine_with
        self._informers = Informers(client)
        self._snapshots = self._informers.of(register.VOLUME_SNAPSHOT)
        self._backoff = Backoff(base=1.0, cap=30.0, jitter=0.0)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._releases: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Work until cancelled."""
        self._snapshots.add_listener(self._heard)
        self._informers.start()
        try:
            await asyncio.Event().wait()
        finally:
            await self._informers.stop()
            tasks = [*self._tasks.values(), *self._releases.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _heard(self, old: Object | None, new: Object | None) -> None:
        snapshot = new or old
        if snapshot is None or claims.annotations_of(snapshot).get(HOST) != self._host:
            return
        uid, group = str(snapshot["metadata"]["uid"]), group_of(snapshot).id
        if new is None or new["metadata"].get("deletionTimestamp"):
            if group in self._tasks:
                self._tasks[group].cancel()
            if new is not None and FINALIZER in (new["metadata"].get("finalizers") or []):
                _start(self._releases, uid, self._release(new))
        elif not is_ready(new):
            _start(self._tasks, group, self._keep_taking(group))

    # taking ------------------------------------------------------------------------------------------------------

    def _members(self, group: str) -> list[Object]:
        found = [s for s in self._snapshots.objects() if claims.annotations_of(s).get(HOST) == self._host]
        return [s for s in found if group_of(s).id == group and not s["metadata"].get("deletionTimestamp")]

    async def _keep_taking(self, group_id: str) -> None:
        """Take a group; again and again until it is done, given up, or not complete."""
        failures = 0
        while True:
            members = self._members(group_id)
            if not members or all(map(is_ready, members)):
                return
            group = group_of(members[0])
            left = seconds_left(group, datetime.now(UTC))
            if left <= 0:
                return
            if len(members) >= group.size:
                try:
                    await self._take(group, members, left)
                    return
                except (NotNow, PoolError, DriverError, ApiError, OSError) as error:
                    failures += 1
                    log.warning("snapshot not taken yet", group=group_id, error=str(error))
                    await self._tell_error(members, str(error))
                await asyncio.sleep(self._backoff.delay(failures))
            else:
                await asyncio.sleep(_SETTLE_SECONDS)

    async def _take(self, group: Group, members: list[Object], seconds: float) -> None:
        told = next((m for m in members if is_ready(m)), None)
        if told is not None:  # an agent was killed while it told of what was complete
            moment = str(told["status"]["creationTime"])
            await self._tell(members, Taken(moment, claims.annotations_of(told).get(INDICATIONS, "")))
            return
        copies = [await self._copy_of(member) for member in members]
        for copy in copies:
            await asyncio.to_thread(copy.pool.delete, copy.spec.uid)  # left by a killed agent, seen by nobody
        taken = await self._copy_at_once(group, copies, seconds)
        await self._tell(members, taken)

    async def _copy_of(self, snapshot: Object) -> Copy:
        namespace, name = snapshot["metadata"]["namespace"], snapshot["metadata"]["name"]
        source = str(snapshot["spec"]["source"].get("persistentVolumeClaimName", ""))
        claim = await self._client.get(register.PERSISTENT_VOLUME_CLAIM, namespace, source)
        if claims.source_of(claim) and claims.transfer_of(claim).phase != "Succeeded":
            raise NotNow(f"claim {namespace}/{source} is still being filled")
        uid = str(claim["metadata"]["uid"])
        for pool in self._pools:
            with contextlib.suppress(PoolError):
                volume = await asyncio.to_thread(pool.get, uid)
                spec = VolumeSpec(
                    uid=str(snapshot["metadata"]["uid"]), size_bytes=volume.size_bytes, namespace=namespace, name=name,
                    snapshot=True,
                )  # fmt: skip
                return Copy(pool, volume, spec)
        raise NotNow(f"claim {namespace}/{source}: no pool of host {self._host} has its volume")

    async def _copy_at_once(self, group: Group, copies: list[Copy], seconds: float) -> Taken:
        stop = threading.Event()
        instant = Instant(copies, stop.is_set)
        moment = ""

        def take() -> None:
            nonlocal moment
            instant.take()
            moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

        try:
            async with asyncio.timeout(seconds):
                await asyncio.to_thread(instant.begin)
                how = await self._hold_still(group, copies, take)
            await asyncio.to_thread(instant.publish)
        except BaseException as error:
            stop.set()
            await asyncio.shield(asyncio.to_thread(instant.discard))
            if isinstance(error, TimeoutError):
                raise NotNow("the deadline passed before the disks were copied") from error
            raise
        return Taken(moment, ",".join(how))

    async def _hold_still(self, group: Group, copies: list[Copy], take: Callable[[], None]) -> tuple[str, ...]:
        """Do it while nobody writes the disks."""
        users = {id(m): m for c in copies if (m := self._machine_with(str(c.source.path))) is not None}
        if len(users) > 1:
            raise NotNow("the volumes are in use by several machines")
        if not users:
            await asyncio.to_thread(take)
            return ()
        answer: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
        (machine,) = users.values()
        try:
            async with asyncio.timeout(STILL_SECONDS):
                return await machine.hold_still(Held(take, group.quiesce, answer))
        except TimeoutError as error:
            raise NotNow(
                f"copying would hold the guest still for longer than {STILL_SECONDS:.0f} s: stop the machine, or "
                "keep it on a pool whose file system shares blocks"
            ) from error

    # telling -----------------------------------------------------------------------------------------------------

    async def _tell(self, members: list[Object], taken: Taken) -> None:
        """First how, on all of them, then that they are ready: from then on they are never taken again."""
        for member in members:
            await self._patch(member, {"metadata": {"annotations": {INDICATIONS: taken.indications}}})
        for member in members:
            volume = await asyncio.to_thread(self._volume, str(member["metadata"]["uid"]))
            size = str(quantity_from_bytes(volume.size_bytes))
            status = {"readyToUse": True, "creationTime": taken.moment, "restoreSize": size, "error": None}
            await self._patch(member, {"status": status}, "status")

    def _volume(self, uid: str) -> Volume:
        for pool in self._pools:
            with contextlib.suppress(PoolError):
                return pool.get(uid)
        raise PoolError("NotFound", f"snapshot {uid} is in no pool of this host")

    async def _tell_error(self, members: list[Object], message: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for member in members:
            with contextlib.suppress(ApiError, OSError):
                error = {"message": message[:1024], "time": now}
                await self._patch(member, {"status": {"readyToUse": False, "error": error}}, "status")

    async def _patch(self, snapshot: Object, patch: Object, subresource: str = "") -> None:
        """A snapshot that is gone is fine."""
        metadata = snapshot["metadata"]
        patch = {**patch, "metadata": {**patch.get("metadata", {}), "uid": metadata["uid"]}}
        try:
            async with asyncio.timeout(_WRITE_SECONDS):
                await self._client.patch(
                    register.VOLUME_SNAPSHOT, metadata["namespace"], metadata["name"], patch, subresource
                )
        except ApiError as error:
            if error.code != 404:
                raise

    # removal -----------------------------------------------------------------------------------------------------

    async def _release(self, snapshot: Object) -> None:
        """Remove the data, then our finalizer."""
        metadata = snapshot["metadata"]
        task = self._tasks.get(group_of(snapshot).id)
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
        for attempt in range(1, 20):
            try:
                for pool in self._pools:
                    await asyncio.to_thread(pool.delete, str(metadata["uid"]))
                live = await self._client.get(register.VOLUME_SNAPSHOT, metadata["namespace"], metadata["name"])
                kept = [f for f in live["metadata"].get("finalizers") or [] if f != FINALIZER]
                version = live["metadata"]["resourceVersion"]
                patch = {"metadata": {"uid": metadata["uid"], "resourceVersion": version, "finalizers": kept}}
                await self._client.patch(register.VOLUME_SNAPSHOT, metadata["namespace"], metadata["name"], patch)
                return
            except (ApiError, PoolError, OSError) as error:
                if isinstance(error, ApiError) and error.code == 404:
                    return
                log.warning("snapshot not released yet", snapshot=metadata["name"], error=str(error))
                await asyncio.sleep(min(2.0**attempt, 60))


def _start(tasks: dict[str, asyncio.Task[None]], key: str, work: Any) -> None:
    """Start a task unless one of that key runs."""
    if key in tasks:
        work.close()
        return
    task = tasks[key] = asyncio.create_task(work, name=f"snapshot {key}")

    def ended(done: asyncio.Task[None]) -> None:
        tasks.pop(key, None)
        if not done.cancelled() and done.exception():
            log.error("a snapshot's task failed", group=key, exc_info=done.exception())

    task.add_done_callback(ended)
