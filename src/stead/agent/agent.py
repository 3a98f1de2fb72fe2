"""The agent: keeps the machines that were placed on this host true, one task each.

`run_agent` is what `run` calls. It watches VMIs with label `kubevirt.io/nodeName=<host>`, adopts machines that run
already (same process, nothing touched), passes on the hypervisor's events, reports the host, serves the plane, and
clears away what no VMI stands for any more. Losing the API, the hypervisor or this process stops no guest; everything
is tried again. All state lives on one event loop; each machine's is its own task's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from stead.agent import bringup, metrics
from stead.agent import vmi as reading
from stead.agent.arrivals import Arrivals
from stead.agent.backup_places import Places
from stead.agent.backups import Backups
from stead.agent.disks import Disks
from stead.agent.host import HostReporter
from stead.agent.lookups import Lookups
from stead.agent.machine import Machine
from stead.agent.materials import Materials
from stead.agent.migration_keys import MigrationKeys
from stead.agent.nets import Nets, PodNetworks
from stead.agent.peers import Peers
from stead.agent.persistence import StateOwner
from stead.agent.streams import Exports, Server, Uploads
from stead.agent.trouble import API_TROUBLE
from stead.agent.workshop import AgentSettings, Workshop
from stead.client.contract import Client, Selection
from stead.client.informer import Informer
from stead.hypervisor.contract import DriverError, Hypervisor
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.network.attachment import NetworkError

log = structlog.get_logger(__name__)

Object = dict[str, Any]

#: phases in which the instance belongs to its host's agent
OURS = ("Scheduled", "Running", "Succeeded", "Failed")
CLEAN_SECONDS = 300.0
RETRY_SECONDS = 2.0
#: a start waits for its first sight of the API only so long before it goes on waiting in the background
CLOSE_SECONDS = 10.0


class AgentDeps(msgspec.Struct, frozen=True, kw_only=True):
    """What `run` puts together. `pod_networks`, `uploads` and `exports` may be None; `tls` None serves plain HTTP
    (tests only).
    """

    client: Client
    hypervisor: Hypervisor
    materials: Materials
    settings: AgentSettings
    pod_networks: PodNetworks | None = None
    uploads: Uploads | None = None
    exports: Exports | None = None
    tls: ssl.SSLContext | None = None
    #: for calls to agents of other hosts, and the keys that hypervisors use; None = no machine is migrated
    peer_tls: ssl.SSLContext | None = None
    migration_keys: MigrationKeys | None = None
    #: opens the repositories of backups; None = this host makes none
    backup_places: Places | None = None
    #: further tasks that live as long as the agent (the volume worker), each run until cancelled
    companions: tuple[Callable[[], Awaitable[None]], ...] = ()


class Agent:
    """One agent. `open` starts everything and returns once it listens; `close` leaves all guests running."""

    def __init__(self, deps: AgentDeps) -> None:
        self._deps = deps
        settings = deps.settings
        lookups = Lookups(deps.client)
        disks = Disks(lookups, deps.materials, settings.host_disk_roots)
        self.shop = Workshop(deps.client, deps.hypervisor, disks, Nets(lookups, deps.pod_networks), settings)
        self.shop.migration_keys = deps.migration_keys
        self.shop.peers = Peers(deps.client, deps.peer_tls)
        self.arrivals = Arrivals(self.shop)
        self._selection = Selection(labels=f"{reading.NODE_LABEL}={settings.host_name}")
        self._informer = Informer(deps.client, register.VIRTUAL_MACHINE_INSTANCE, self._selection)
        self.host = HostReporter(deps.client, settings)
        names = settings.plane_names if deps.tls is not None else None
        self.server = Server(self, deps.uploads, names, deps.exports)
        self.machines: dict[str, Machine] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background: list[asyncio.Task[None]] = []
        self.port = 0

    # life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Listen, then reach hypervisor and API in the background, for as long as that takes."""
        settings = self._deps.settings
        for folder in (settings.machines_dir, settings.run_dir, self.shop.sockets_dir, settings.state_dir):
            await asyncio.to_thread(_make_passable, folder)
        self.port = await self.server.open(settings.agent_address, settings.agent_port, self._deps.tls)
        companions = self._deps.companions
        if self._deps.backup_places is not None:
            backups = Backups(self._deps.client, self.shop, self.machine, self._deps.backup_places)
            companions = (*companions, backups.run)
        for work in (self.host.run, self._work, *companions):
            self._background.append(asyncio.create_task(_forever(work), name=f"agent {work.__qualname__}"))

    async def close(self) -> None:
        """Stop everything of ours; no guest is disturbed."""
        tasks = [*self._background, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*tasks, return_exceptions=True)
        await self.server.close()
        await self.shop.events.close()
        if self.shop.peers is not None:
            await self.shop.peers.close()
        with contextlib.suppress(DriverError):
            await self._deps.hypervisor.close()

    async def _work(self) -> None:
        await self._open_hypervisor()
        self._informer.add_listener(self._heard)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informer.run(), name="machines informer")
            group.create_task(self.arrivals.run(), name="arrivals")
            group.create_task(self._follow_hypervisor(), name="hypervisor events")
            group.create_task(self._clean(), name="left-overs")

    async def _open_hypervisor(self) -> None:
        while self.shop.capabilities is None:
            try:
                await self._deps.hypervisor.open()
                self.shop.capabilities = await self._deps.hypervisor.capabilities()
                self.host.capabilities, self.host.problem = self.shop.capabilities, ""
            except DriverError as error:
                self.host.problem = f"the hypervisor cannot be reached: {error}"
                log.warning("the hypervisor cannot be reached, trying again", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            self.host.wake()

    # objects -----------------------------------------------------------------------------------------------------

    def _heard(self, old: Object | None, new: Object | None) -> None:
        """A VMI of this host changed."""
        if new is None:
            known = self.machines.get(reading.uid(old)) if old is not None else None
            if known is not None:
                known.gone()
            return
        uid = reading.uid(new)
        known = self.machines.get(uid)
        if known is not None:
            known.offer(new)
        elif reading.phase(new) in OURS:
            self._begin(new)

    def _begin(self, vmi: Object) -> None:
        uid = reading.uid(vmi)
        machine = self.machines[uid] = Machine(self.shop, vmi)
        task = self._tasks[uid] = asyncio.create_task(machine.run(), name=f"machine {uid}")
        task.add_done_callback(lambda done: self._ended(uid, done))

    def _ended(self, uid: str, task: asyncio.Task[None]) -> None:
        self.machines.pop(uid, None)
        self._tasks.pop(uid, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("a machine's task ended by an error", machine=uid, error=repr(task.exception()))

    def machine(self, namespace: str, name: str) -> Machine | None:
        """The machine of that name; of several (an old one still being removed) the one that is not deleted."""
        found = [m for m in self.machines.values() if reading.key(m.vmi) == (namespace, name)]
        found.sort(key=lambda m: reading.is_deleting(m.vmi))
        return found[0] if found else None

    @property
    def knows_machines(self) -> bool:
        """False from the start until the API has told which machines are this host's."""
        return self._informer.synced

    def uses_disk(self, path: str) -> bool:
        """A machine of this host has the file as a disk or as the base of one (neither to be moved nor removed)."""
        held = (machine.prepared for machine in self.machines.values())
        return any(path in (volume.path, volume.base) for prepared in held if prepared for volume in prepared.volumes)

    def machine_with(self, path: str) -> Machine | None:
        """The machine that has the file as a disk. Raises ApiError 503 before the machines are known, 409 for two."""
        if not self.knows_machines:
            raise ApiError("ServiceUnavailable", "the agent has just started and does not know its machines yet")
        found = [m for m in self.machines.values() if m.prepared and any(path == v.path for v in m.prepared.volumes)]
        if len(found) > 1:
            raise ApiError("Conflict", f"disk {path} is in use by {len(found)} machines")
        return found[0] if found else None

    def resized(self, path: str, size_bytes: int) -> None:
        """A volume of this host has grown (the volume worker's hook): a machine that runs on it is told."""
        for machine in self.machines.values():
            machine.growth.note(path, size_bytes)

    # hypervisor --------------------------------------------------------------------------------------------------

    async def _follow_hypervisor(self) -> None:
        while True:
            try:
                async for event in self._deps.hypervisor.events():
                    self.arrivals.notify(event)
                    for machine in self._concerned(event.uid):
                        machine.notify(event)
            except DriverError as error:
                log.warning("events of the hypervisor stopped, listening again", error=str(error))
            for machine in self.machines.values():
                machine.look()
            await asyncio.sleep(RETRY_SECONDS)

    def _concerned(self, uid: str) -> list[Machine]:
        if not uid:
            return list(self.machines.values())
        machine = self.machines.get(uid)
        return [machine] if machine is not None else []

    # left-overs --------------------------------------------------------------------------------------------------

    async def _clean(self) -> None:
        await self._informer.wait_synced(timeout_seconds=10**9)
        while True:
            try:
                await self.clean()
            except (DriverError, NetworkError, *API_TROUBLE) as error:
                log.warning("left-overs could not be cleared away, trying again", error=str(error))
            await asyncio.sleep(CLEAN_SECONDS)

    async def clean(self) -> None:
        """Remove machines, ports and files that no VMI stands for. Each is asked for by name before it is touched."""
        listed = {seen.uid: (seen.namespace, seen.name) for seen in await self._deps.hypervisor.list()}
        kept = await asyncio.to_thread(self.shop.records.uids)
        attached = await self.shop.nets.machines()
        for uid in (set(listed) | kept | attached | set(self.shop.identities.owner_ids())) - self._present():
            record = await asyncio.to_thread(self.shop.records.read, uid)
            place = (record.namespace, record.name) if record else listed.get(uid, ("", ""))
            if await self._is_abandoned(uid, place) and uid not in self._present():
                log.warning("clearing away a machine that no instance stands for", machine=uid, name="/".join(place))
                await bringup.release(self.shop, uid, record.prepared if record else None)
        await self._clean_persistent()

    def _present(self) -> set[str]:
        """Machines that are here, or on their way."""
        return {*self.machines, *self.arrivals.uids()}

    async def _clean_persistent(self) -> None:
        """Remove what was kept for VirtualMachines that are gone. A refusal to tell (403) means: not known to be."""
        for owner in await asyncio.to_thread(self.shop.persistence.owners):
            if owner.kind != "VirtualMachine" or await self._may_exist(owner):
                continue
            log.info(
                "removing the persistent state of a machine that is gone", machine=f"{owner.namespace}/{owner.name}"
            )
            await asyncio.to_thread(self.shop.persistence.remove, owner.uid)

    async def _may_exist(self, owner: StateOwner) -> bool:
        try:
            found = await self._deps.client.get(register.VIRTUAL_MACHINE, owner.namespace, owner.name)
        except ApiError as error:
            if error.code in (403, 404):
                return error.code == 403
            raise
        return reading.uid(found) == owner.uid

    async def _is_abandoned(self, uid: str, place: tuple[str, str]) -> bool:
        """True when the API says now that there is no instance with this uid on this host."""
        if place[1]:
            try:
                found = await self._deps.client.get(register.VIRTUAL_MACHINE_INSTANCE, *place)
                bound = reading.status(found).get("nodeName")
                return reading.uid(found) != uid or bound not in (None, "", self._deps.settings.host_name)
            except ApiError as error:
                if error.code == 404:
                    return True
                if error.code != 403:
                    raise
        # Nothing tells its name, or an instance of that name is bound to another host: the fresh list decides.
        listed = await self._deps.client.list(register.VIRTUAL_MACHINE_INSTANCE, self._selection)
        return uid not in {reading.uid(vmi) for vmi in listed.items}

    async def metrics(self) -> bytes:
        """The page of `/metrics`."""
        sessions = {
            "kubevirt_console_active_connections": self.server.sessions.count("console"),
            "kubevirt_vnc_active_connections": self.server.sessions.count("vnc"),
            "kubevirt_portforward_active_tunnels": self.server.port_forwards,
        }
        return await metrics.collect(self.machines.values(), self._deps.settings.host_name, sessions)


def _make_passable(folder: Path) -> None:
    """Make a folder that machines' processes, each under its own uid, may pass through and not read."""
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o011)


async def _forever(work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` again whenever it fails: a defect in one duty must not end the others."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a duty of the agent failed, starting it again")
        await asyncio.sleep(RETRY_SECONDS)


async def run_agent(deps: AgentDeps) -> None:
    """Run an agent until cancelled."""
    agent = Agent(deps)
    await agent.open()
    try:
        await asyncio.Event().wait()
    finally:
        await agent.close()
