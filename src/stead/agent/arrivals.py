"""Machines on their way to this host: prepared before they come, taken over when they run, else cleared away.

Watches instances whose label `kubevirt.io/migrationTargetNodeName` names this host; one task an instance. It makes
ready what a start would need (volumes, port, user), tells so by `migrationState.targetNodeAddress`, answers the
source's agent, and, when the machine runs here, gives it its limits and its address. The instance is the source's until
the controller has written this host into it: then its `Machine` task adopts what is here. When the migration fails,
everything made for it goes again; the source's machine is never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from stead.agent import bringup, moves
from stead.agent import vmi as reading
from stead.agent.events import now
from stead.agent.moves import Offer, Welcome
from stead.agent.prepared import NotReady, Prepared, Unsupported
from stead.agent.record import Record
from stead.agent.trouble import API_TROUBLE
from stead.agent.workshop import Workshop
from stead.client.contract import Selection
from stead.client.informer import Informer
from stead.hypervisor.contract import DriverError, DriverEvent, Machine, NotFound, State
from stead.hypervisor.migration import Migrating
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.network.attachment import NetworkError

log = structlog.get_logger(__name__)

Object = dict[str, Any]

RETRY_SECONDS = 1.0
LOOK_SECONDS = 2.0
#: a hypervisor that has left a machine in the middle ends it by itself; asked again until it has
RELEASE_TRIES = 30


class Arrival:
    """One machine on its way. `run` ends when it belongs to this host, or nothing of it is here."""

    def __init__(self, shop: Workshop, vmi: Object) -> None:
        self._shop = shop
        self.vmi = vmi
        self.uid = reading.uid(vmi)
        self.title = "/".join(reading.key(vmi))
        self.prepared: Prepared | None = None
        self.machine: Machine | None = None
        self._wake = asyncio.Event()
        self._gone = False
        self._running = False

    @property
    def source(self) -> str:
        """The host that it comes from."""
        return str(moves.state_of(self.vmi).get("sourceNode") or "")

    def offer(self, vmi: Object | None) -> None:
        """The instance as newly seen; None = it is not on its way here any more."""
        self._gone = vmi is None
        if vmi is not None:
            self.vmi = vmi
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    def _is_wanted(self) -> bool:
        return not self._gone and moves.is_arriving(self.vmi, self._shop.settings.host_name)

    def _is_ours(self) -> bool:
        """The instance names this host: the machine stays."""
        return reading.status(self.vmi).get("nodeName") == self._shop.settings.host_name

    async def run(self) -> None:
        while self._is_wanted():
            self._wake.clear()
            try:
                if self.machine is None:
                    await self._prepare()
                await self._tell_ready()
                await self._look()
                pause = LOOK_SECONDS
            except Unsupported as error:
                await self._refuse(str(error))
                pause = LOOK_SECONDS
            except (NotReady, DriverError, NetworkError, *API_TROUBLE) as error:
                log.info("not ready for an arriving machine yet", machine=self.title, reason=str(error))
                pause = RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
        if not await self._stays():
            await self._release()

    async def _stays(self) -> bool:
        """Whether the instance has become ours. Asked for anew: nothing is cleared away by what was seen before."""
        while True:
            try:
                found = await self._shop.client.get(register.VIRTUAL_MACHINE_INSTANCE, *reading.key(self.vmi))
                ours = reading.uid(found) == self.uid
                return ours and reading.status(found).get("nodeName") == self._shop.settings.host_name
            except ApiError as error:
                if error.code in (403, 404):
                    return False
            except OSError:
                pass
            await asyncio.sleep(RETRY_SECONDS)

    async def _prepare(self) -> None:
        shop = self._shop
        self.prepared = prepared = await bringup.prepare(shop, self.vmi, standby=True)
        self.machine = bringup.plan(shop, self.vmi, prepared)
        await asyncio.to_thread(shop.records.write, self._record(prepared))
        log.info("ready for an arriving machine", machine=self.title, source=self.source)

    def _record(self, prepared: Prepared) -> Record:
        """As after a start: should the machine run here, a new agent must know what it has."""
        namespace, name = reading.key(self.vmi)
        return Record(uid=self.uid, namespace=namespace, name=name, prepared=prepared, started=True)

    async def _tell_ready(self) -> None:
        state = moves.state_of(self.vmi)
        if not state.get("targetNodeAddress"):
            address = self._shop.settings.agent_address
            await self._write({"targetNodeAddress": address, "targetNodeDomainDetected": False})

    async def _refuse(self, why: str) -> None:
        with contextlib.suppress(*API_TROUBLE):
            await self._write({"failed": True, "failureReason": why[:1024], "endTimestamp": now()})

    async def _write(self, fields: Object) -> None:
        """Our fields of the migration's state, if nobody changed the instance meanwhile (else: next time)."""
        namespace, name = reading.key(self.vmi)
        steps: list[Object] = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": reading.resource_version(self.vmi)}
        ]
        steps += [{"op": "add", "path": f"/status/migrationState/{key}", "value": fields[key]} for key in fields]
        try:
            self.vmi = await self._shop.client.patch(register.VIRTUAL_MACHINE_INSTANCE, namespace, name, steps)
        except ApiError as error:
            if error.code not in (409, 422):
                raise
            self._wake.set()
            await asyncio.sleep(0.05)

    # the source's side asks --------------------------------------------------------------------------------------

    async def welcome(self, offer: Offer) -> Welcome:
        """The source is about to send: make disks fit, exchange trust. Raises ApiError 409 when not ready."""
        prepared, machine, keys = self.prepared, self.machine, self._shop.migration_keys
        if prepared is None or machine is None or keys is None or not self._is_wanted():
            raise ApiError("Conflict", f"host {self._shop.settings.host_name} is not ready for {self.title}")
        copied = moves.copied_disks(machine, prepared)
        await asyncio.to_thread(_make_fit, prepared, copied, offer)
        await asyncio.to_thread(keys.begin, self.uid, offer.authority, prepared.uid)
        address = self._shop.settings.agent_address
        return Welcome(authority=keys.authority, machine=machine, address=address, copied=copied)

    # it comes ----------------------------------------------------------------------------------------------------

    async def note(self, event: DriverEvent) -> None:
        """Something happened to the machine that comes: quickly, since its guest waits for its address."""
        if event.kind == "lifecycle" and event.detail == "started":
            await self._settle()
        elif event.kind == "lifecycle" and event.detail == "resumed":
            await self._take_over()
        self._wake.set()

    async def _settle(self) -> None:
        if self.prepared is not None:
            with contextlib.suppress(NetworkError):
                await self._shop.nets.settle(self.uid, self.prepared.addresses)

    async def _take_over(self) -> None:
        """It runs here: its address is here, too."""
        await self._settle()
        with contextlib.suppress(NetworkError):
            await self._shop.nets.announce(self.uid)
        self._running = True

    async def _look(self) -> None:
        hypervisor = self._shop.hypervisor
        try:
            seen = await hypervisor.observe(self.uid)
        except NotFound:
            return
        if seen.state is not State.RUNNING and not (self._running and seen.state is State.PAUSED):
            return
        if not self._running:
            await self._take_over()
        if moves.state_of(self.vmi).get("targetNodeDomainReadyTimestamp"):
            return
        if self.machine is not None and isinstance(hypervisor, Migrating):
            await hypervisor.received(self.machine)
        if self._shop.migration_keys is not None:
            await asyncio.to_thread(self._shop.migration_keys.end, self.uid)
        await self._write({"targetNodeDomainDetected": True, "targetNodeDomainReadyTimestamp": now()})

    async def _release(self) -> None:
        """The machine does not come: leave nothing."""
        log.info("an arriving machine did not come; clearing away what was made for it", machine=self.title)
        shop = self._shop
        if shop.migration_keys is not None:
            await asyncio.to_thread(shop.migration_keys.end, self.uid)
        own = self.prepared.without_shared() if self.prepared is not None else None
        for _ in range(RELEASE_TRIES):
            try:
                await bringup.release(shop, self.uid, own)
                return
            except (DriverError, NetworkError, OSError) as error:
                log.warning("an arrival could not be cleared away, trying again", machine=self.title, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)


def _make_fit(prepared: Prepared, copied: tuple[str, ...], offer: Offer) -> None:
    """Blocking: the disks to be copied get the source's size. Raises ApiError when one cannot hold the content."""
    for volume in prepared.volumes:
        if volume.digest and volume.digest != offer.digests.get(volume.name, volume.digest):
            raise ApiError("Conflict", f"volume {volume.name}: the image has another content on this host")
        wanted = offer.sizes.get(volume.name, volume.size)
        if volume.name not in copied or wanted == volume.size or not wanted:
            continue
        if volume.format != "raw" or volume.claim:
            raise ApiError("Conflict", f"volume {volume.name} has {volume.size} bytes on this host, not {wanted}")
        os.truncate(volume.path, wanted)


class Arrivals:
    """All of them. Loop-confined."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        selection = Selection(labels=f"{moves.TARGET_LABEL}={shop.settings.host_name}")
        self._informer = Informer(shop.client, register.VIRTUAL_MACHINE_INSTANCE, selection)
        self._informer.add_listener(self._heard)
        self._known: dict[str, Arrival] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Follow the instances until cancelled."""
        try:
            await self._informer.run()
        finally:
            for task in tuple(self._tasks):
                task.cancel()

    def uids(self) -> set[str]:
        """Machines on their way here."""
        return set(self._known)

    def _heard(self, old: Object | None, new: Object | None) -> None:
        shown = new or old
        assert shown is not None
        uid = reading.uid(shown)
        known = self._known.get(uid)
        if known is not None:
            known.offer(new)
        elif new is not None and moves.is_arriving(new, self._shop.settings.host_name):
            arrival = self._known[uid] = Arrival(self._shop, new)
            task = asyncio.create_task(arrival.run(), name=f"arrival {uid}")
            self._tasks.add(task)
            task.add_done_callback(lambda done: self._ended(arrival, done))

    def _ended(self, arrival: Arrival, task: asyncio.Task[None]) -> None:
        self._known.pop(arrival.uid, None)
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("the task of an arrival ended by an error", machine=arrival.title, error=repr(task.exception()))

    def notify(self, event: DriverEvent) -> None:
        """An event of the hypervisor."""
        arrival = self._known.get(event.uid)
        if arrival is not None:
            task = asyncio.create_task(arrival.note(event))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def find(self, uid: str, peer: str) -> Arrival:
        """The machine that `peer` (a host's common name) may speak of. Raises ApiError."""
        arrival = self._known.get(uid)
        if arrival is None:
            raise ApiError("NotFound", "no such machine is on its way to this host")
        if peer != f"system:node:{arrival.source}":
            raise ApiError("Forbidden", "only the host that the machine comes from may speak of it")
        return arrival

    async def peer_socket(self) -> Path:
        """The hypervisor's socket that the source's is joined with. Raises DriverError."""
        hypervisor = self._shop.hypervisor
        if not isinstance(hypervisor, Migrating):
            raise ApiError("BadRequest", "the hypervisor of this host receives no machines")
        return Path(await hypervisor.peer_socket())

    def gate(self, arrival: Arrival) -> Callable[[bytes], bytes]:
        """What of a source's words may reach our hypervisor. Raises ApiError 409 when nothing is prepared."""
        hypervisor = self._shop.hypervisor
        assert isinstance(hypervisor, Migrating)  # `peer_socket` was asked before
        if arrival.machine is None:
            raise ApiError("Conflict", f"host {self._shop.settings.host_name} is not ready for {arrival.title}")
        return hypervisor.peer_gate(arrival.machine)
