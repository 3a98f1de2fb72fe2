"""A machine's way out: the live migration of one running machine, driven at its source.

Belongs to one `Machine`, whose task asks `consider` each turn and takes the outcome by `collect`; the work is one
background task. The instance's `migrationState` says when (the controller chose a target, the target is ready) and is
told how it went. Until the hypervisor's `migrate` has returned the machine is ours; from then on it is the target's,
and of this host only what it left is cleared away. A failure of any kind leaves it running here.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from stead.agent import moves
from stead.agent import vmi as reading
from stead.agent.events import now
from stead.agent.policy import ALIVE
from stead.agent.trouble import API_TROUBLE
from stead.hypervisor.contract import Busy, DriverError, Failed, NotFound, Unsupported
from stead.hypervisor.migration import Migrating, Order, Progress
from stead.network.attachment import NetworkError

if TYPE_CHECKING:
    from stead.agent.machine import Machine

log = structlog.get_logger(__name__)

Object = dict[str, Any]

WATCH_SECONDS = 0.5
#: a minute to learn whether a machine has moved
FIND_OUT_TRIES = 120


class Departure:
    """See the module. `moved`: it runs at the target. `progress`: the latest figures; None: nothing is under way."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._task: asyncio.Task[None] | None = None
        self._uid = ""
        self._fields: Object = {}
        self._aborting = ""
        self.moved = False
        self.progress: Progress | None = None

    @property
    def working(self) -> bool:
        """A migration is under way, or its outcome has not been collected."""
        return self._task is not None

    def told(self, vmi: Object) -> Object | None:
        """`migrationState` with what this side knows; None when it has nothing to say of it."""
        state = moves.state_of(vmi)
        if not self._fields or state.get("migrationUid") != self._uid:
            return None
        return {**state, **self._fields}

    def counters(self) -> dict[str, float]:
        """How far it is, as counters of the machine; none when it is not under way."""
        found = self.progress
        if found is None:
            return {}
        return {
            "migration.total_bytes": float(found.total),
            "migration.processed_bytes": float(found.processed),
            "migration.remaining_bytes": float(found.remaining),
            "migration.transfer_bytes_per_second": float(found.transfer_rate),
            "migration.dirty_bytes_per_second": float(found.dirty_rate),
            "migration.expected_downtime_ms": float(found.downtime_ms),
        }

    def consider(self) -> None:
        """Begin what is due; end what is not wanted any more."""
        machine = self._machine
        state = moves.state_of(machine.vmi)
        if self.working:
            if state.get("abortRequested"):
                self.abort("the migration was cancelled")
            elif reading.is_deleting(machine.vmi):
                self.abort("the instance is being deleted")
        elif self._is_due(state):
            self._uid, self._aborting = str(state["migrationUid"]), ""
            self._fields = {"startTimestamp": state.get("startTimestamp") or now(), "mode": "PreCopy"}
            # An earlier agent began it and ended with it: what became of it is found out.
            work = self._find_out() if state.get("startTimestamp") else self._go(state)
            self._task = asyncio.create_task(work, name=f"migrate {machine.uid}")
            self._task.add_done_callback(lambda _: machine.wake())
            machine.say("Normal", "Migrating", "VirtualMachineInstance is migrating.")

    def _is_due(self, state: Object) -> bool:
        machine = self._machine
        if not moves.is_leaving(machine.vmi, machine.shop.settings.host_name):
            return False
        if state.get("startTimestamp"):
            return self._uid != state.get("migrationUid")
        wanted = not state.get("abortRequested") and not reading.is_deleting(machine.vmi)
        return machine.alive and wanted and self._uid != state.get("migrationUid")

    def abort(self, why: str) -> None:
        """Ask for the end of it; the outcome follows."""
        if self._task is not None and not self._aborting:
            self._aborting = why
            self._task.cancel()

    async def close(self) -> None:
        """The agent ends: what is under way fails, and the machine stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def collect(self) -> None:
        """Take the outcome of a task that is done."""
        task = self._task
        if task is None or not task.done():
            return
        self._task, self.progress = None, None
        machine = self._machine
        if not task.cancelled() and task.exception() is None:
            self.moved = True
            self._fields |= {"completed": True, "endTimestamp": now()}
            machine.say("Normal", "Migrated", "The VirtualMachineInstance migrated to another host.")
            return
        error = None if task.cancelled() else task.exception()
        why = self._aborting or str(error) or type(error).__name__
        self._fields |= self._failure(why)
        log.warning("a migration failed; the machine stays", machine=machine.title, reason=why)
        machine.say("Warning", "Migrating", f"Live migration failed: {why}")

    def _failure(self, why: str) -> Object:
        failure: Object = {"failed": True, "failureReason": why[:1024], "endTimestamp": now()}
        return failure | ({"abortStatus": "Succeeded"} if self._aborting else {})

    # the work ----------------------------------------------------------------------------------------------------

    async def _go(self, state: Object) -> None:
        machine, shop = self._machine, self._machine.shop
        keys, peers, hypervisor = shop.migration_keys, shop.peers, shop.hypervisor
        if keys is None or peers is None or not isinstance(hypervisor, Migrating) or machine.prepared is None:
            raise Unsupported("this host cannot migrate machines", "live_migration")
        target, base = str(state["targetNode"]), f"/v1/arrivals/{machine.uid}"
        await asyncio.to_thread(keys.open)
        offer = moves.offer_from(machine.prepared, keys.authority)
        answer = await peers.call(target, base, msgspec.to_builtins(offer))
        welcome = msgspec.convert(answer, moves.Welcome)
        await asyncio.to_thread(keys.begin, machine.uid, welcome.authority, machine.prepared.uid)
        socket = shop.settings.run_dir / f"peer-{machine.uid[:18]}.sock"
        try:
            async with peers.joined(target, f"{base}/peer", socket):
                await self._migrate(hypervisor, self._order(welcome, str(socket), state))
        finally:
            await asyncio.to_thread(keys.end, machine.uid)

    async def _find_out(self) -> None:
        """After a start of the agent in the middle of a migration: returns when the machine has moved, else raises.

        Its stream ended with the earlier agent, so the hypervisor ends it, too, unless it was through already; whether
        it was, the target says.
        """
        machine, hypervisor = self._machine, self._machine.shop.hypervisor
        for _ in range(FIND_OUT_TRIES):
            await asyncio.sleep(WATCH_SECONDS)
            if isinstance(hypervisor, Migrating) and await hypervisor.migration_progress(machine.uid):
                with contextlib.suppress(DriverError):
                    await hypervisor.abort_migration(machine.uid)
                continue
            with contextlib.suppress(NotFound):
                if (await hypervisor.observe(machine.uid)).state in ALIVE:
                    raise Failed("the agent of the source was started anew")
            if moves.state_of(machine.vmi).get("targetNodeDomainReadyTimestamp"):
                return
        raise Failed("the machine is neither here nor at the target")

    def _order(self, welcome: moves.Welcome, socket: str, state: Object) -> Order:
        configuration = state.get("migrationConfiguration") or {}
        return Order(
            uid=self._machine.uid,
            machine=welcome.machine,
            peer=socket,
            address=welcome.address,
            server_name=welcome.address,
            copied_disks=welcome.copied,
            bandwidth=reading.size_in_bytes(configuration.get("bandwidthPerMigration") or 0),
            auto_converge=bool(configuration.get("allowAutoConverge")),
            post_copy=bool(configuration.get("allowPostCopy")),
            max_downtime_ms=int(configuration.get("maxDowntimeMs") or 0),
        )

    async def _migrate(self, hypervisor: Migrating, order: Order) -> None:
        """Migrate under watch. Whatever ends it, it returns only once the hypervisor is done with it."""
        configuration = moves.state_of(self._machine.vmi).get("migrationConfiguration") or {}
        work = asyncio.create_task(hypervisor.migrate(order))
        watch = asyncio.create_task(self._watch(hypervisor, configuration))
        try:
            done, _ = await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if work not in done:
                self._aborting = watch.result()
                await self._end(hypervisor, work)
        except asyncio.CancelledError:
            await self._end(hypervisor, work)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        await work

    async def _end(self, hypervisor: Migrating, work: asyncio.Task[None]) -> None:
        """Ask for the end until it is over: one way or the other."""
        while not work.done():
            with contextlib.suppress(DriverError):
                await hypervisor.abort_migration(self._machine.uid)
            await asyncio.wait((work,), timeout=WATCH_SECONDS)

    async def _watch(self, hypervisor: Migrating, configuration: Object) -> str:
        """Follow a migration; returns why it has to end, in KubeVirt's words, or switches it to post-copy."""
        time = asyncio.get_running_loop().time
        begun = moved_at = time()
        least = float("inf")
        post_copy = False
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            with contextlib.suppress(DriverError):
                self.progress = await hypervisor.migration_progress(self._machine.uid) or self.progress
            found = self.progress
            if found is None:
                continue
            if found.remaining < least:
                least, moved_at = found.remaining, time()
            allowed = moves.completion_seconds(configuration, found.total)
            if time() - begun >= allowed and not post_copy:
                if not configuration.get("allowPostCopy"):
                    return f"Live migration is not completed after {allowed:.0f} seconds and has been aborted"
                with contextlib.suppress(Busy):
                    await hypervisor.start_post_copy(self._machine.uid)
                    post_copy = True
                    self._fields = {**self._fields, "mode": "PostCopy"}
                    self._machine.wake()
            stuck = moves.progress_seconds(configuration)
            if time() - moved_at >= stuck and not post_copy:
                return f"Live migration stuck for {stuck:.0f} seconds and has been aborted"

    async def silence(self) -> None:
        """The guest runs elsewhere: nothing here answers for its address any more."""
        with contextlib.suppress(NetworkError, *API_TROUBLE):
            await self._machine.shop.nets.withdraw(self._machine.uid)
