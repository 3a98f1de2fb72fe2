"""One machine's state driver: a single task, the only writer of that machine's state on this host and of its VMI's
status.

Desired objects, driver events and API calls come to the task, which takes them in, asks `policy.decide_step` for the
next step until there is none, writes the status if it changed, and sleeps until something happens or a deadline passes.
So stop, reboot and pause can never race. Losing the API or the hypervisor stops nothing: the task retries, the guest
goes on. Called by `agent.py`. Its parts: `calls` (what waits for it), `startup` (bringing up, in the background),
`ending` (grace, stop, judgement), `publishing` (writes to the API), `watchkeeping` (storage and probes).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import structlog

from stead.agent import bringup, calls, moves, status
from stead.agent import vmi as reading
from stead.agent.calls import Inbox
from stead.agent.credentials import Credentials
from stead.agent.departure import Departure
from stead.agent.ending import ASK_SECONDS, End
from stead.agent.events import now
from stead.agent.growth import Growth
from stead.agent.guest import Guest
from stead.agent.instants import Held, Instants
from stead.agent.policy import ALIVE, Call, Situation, Stage, Step, decide_call, decide_step
from stead.agent.prepared import NotReady, Prepared, Unsupported
from stead.agent.publishing import Instance
from stead.agent.startup import BRIEF_SECONDS, Startup
from stead.agent.status import Problem
from stead.agent.trouble import API_TROUBLE
from stead.agent.watchkeeping import Probing, Storage
from stead.agent.workshop import Workshop
from stead.hypervisor.contract import DriverError, DriverEvent, NotFound, Observed, State, StopReason
from stead.network.attachment import NetworkError

log = structlog.get_logger(__name__)

Object = dict[str, Any]

#: observe even when nobody says that something changed
LOOK_SECONDS = 30.0
RETRY_SECONDS = 1.0
OBSERVE_SECONDS = 15.0
MAX_STEPS = 8


class Machine:
    """See the module's prose. `run` ends when nothing of the machine is left and the API knows."""

    def __init__(self, shop: Workshop, vmi: Object) -> None:
        self.shop = shop
        self.uid = reading.uid(vmi)
        self.title = "/".join(reading.key(vmi))
        self.prepared: Prepared | None = None
        self.observed: Observed | None = None
        self.orphaned = False
        self.guest = Guest(self._ask_guest, self.wake, self._is_running)
        self.credentials = Credentials(self._ask_guest, shop.lookups, self.wake)
        self.startup = Startup(self)
        self.end = End(self)
        self.departure = Departure(self)
        self.growth = Growth(self)
        self._instants = Instants(self)
        self._instance = Instance(shop.client, vmi)
        self._inbox = Inbox()
        self._wake = asyncio.Event()
        self._stage = Stage.NEW
        self._ran = False
        self._finished = False
        self._look_due = True
        self._looked_at = float("-inf")
        self._io_error = ""
        self._storage = Storage()
        self._probing = Probing(self)
        self._log = log.bind(machine=self.title, uid=self.uid)

    # what others call (on the loop) ------------------------------------------------------------------------------

    @property
    def vmi(self) -> Object:
        """The instance as last known; never to be changed."""
        return self._instance.object

    def wake(self) -> None:
        """Something changed: take a turn soon."""
        self._wake.set()

    def offer(self, vmi: Object) -> None:
        """The desired object, as newly seen; the latest wins."""
        if self._instance.offer(vmi):
            self.startup.held_until = 0.0
        self.wake()

    def gone(self) -> None:
        """The object has vanished without us (its finalizer was removed by force): end and release at once."""
        self.orphaned = True
        self.wake()

    def look(self) -> None:
        """Observe anew: the hypervisor may have changed something without saying."""
        self._look_due = True
        self.wake()

    def notify(self, event: DriverEvent) -> None:
        """An event of the hypervisor."""
        self._inbox.note(event)
        self.look()

    async def call(self, call: Call, arguments: Object) -> None:
        """A change that an API client asks for. Raises ApiError (409 denied, 429 too many, 504 too slow)."""
        request = self._inbox.ask(call, arguments)
        self.wake()
        await calls.answered(request)

    async def hold_still(self, held: Held) -> tuple[str, ...]:
        """Have work done while the guest stands still; how it was done. Raises ApiError, or what the work raised."""
        self._inbox.hold(held)
        self.wake()
        return await held.answer

    def say(self, kind: str, reason: str, message: str) -> None:
        """An event about the instance, of type Normal or Warning."""
        self.shop.events.say(self.vmi, kind, reason, message)

    @property
    def was_looked_at(self) -> bool:
        """The hypervisor has been asked at least once since this task began."""
        return self._looked_at > 0.0

    @property
    def alive(self) -> bool:
        """A process of this machine was last seen."""
        return self.observed is not None and self.observed.state in ALIVE

    @property
    def address(self) -> str:
        """Where this host reaches the guest: its claimed address, else the first that the guest tells; "" = none."""
        for known in self.prepared.addresses if self.prepared else ():
            if known.ipv4:
                return known.ipv4
        links = self.guest.info.interfaces
        return next((link.addresses[0] for link in links if link.addresses), "")

    # the task ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drive the machine until it is released and the API knows. Never raises but when cancelled."""
        try:
            await self._learn()
            while not self._finished:
                pause = await self._turn()
                if not self._finished:
                    await self._sleep(pause)
        finally:
            await self._close()

    async def _close(self) -> None:
        """End background work; the guest is left alone."""
        self._probing.stop()
        await self.guest.close()
        await self.credentials.close()
        await self.startup.close()
        await self.departure.close()
        self._inbox.close()

    async def _learn(self) -> None:
        """After a start of the agent: what an earlier process of it has left."""
        record = await asyncio.to_thread(self.shop.records.read, self.uid)
        if record is not None:
            self.prepared = record.prepared
            self.startup.started_before = self._ran = record.started
            if record.prepared is not None and record.started:
                self.shop.disks_in_use.take_all(self.uid, record.prepared)
        if reading.phase(self.vmi) == "Running":
            self.startup.started_before = self._ran = True
        if reading.is_final(self.vmi):
            self._stage = Stage.ENDED
        if record is None and not self._ran:
            self._look_due = False  # it was never started here: if that is wrong, defining it will say so
            self._looked_at = asyncio.get_running_loop().time()

    async def _turn(self) -> float:
        """One turn: take in, act, tell. Returns how long to sleep."""
        try:
            self._wake.clear()
            await self._collect()
            self.departure.collect()
            self._look_due |= asyncio.get_running_loop().time() - self._looked_at >= LOOK_SECONDS
            if self._look_due and not self.startup.starting:  # what shows during a start is not yet true
                await self._look()
            if self._instants.pending:
                await self._instants.recover()
            self._storage.check(self)
            self.departure.consider()
            if decide_step(self.situation()) is Step.ADOPT:  # before calls, which a running machine takes
                await self._perform(Step.ADOPT)
            await self._serve()
            for _ in range(MAX_STEPS):
                step = decide_step(self.situation())
                if step is Step.WAIT or self._finished:
                    break
                await self._perform(step)
            await self.growth.tell()
            await self._publish()
            return 0.0 if self._look_due and not self.startup.starting else self._pause()
        except DriverError as error:
            self._log.warning("the hypervisor did not do as asked, trying again", error=str(error))
        except (NetworkError, *API_TROUBLE) as error:
            self._log.warning("trying again", error=str(error) or type(error).__name__)
        except Exception:
            self._log.exception("a turn of the machine's task failed, trying again")
        self._look_due = True
        return RETRY_SECONDS

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _pause(self) -> float:
        """Seconds until the next deadline of this machine."""
        time = asyncio.get_running_loop().time()
        due = [LOOK_SECONDS, *self.end.deadlines(time)]
        due += [at - time for at in (self.startup.held_until, self._instance.retry_at) if at > time]
        if self.startup.is_brief:
            due.append(BRIEF_SECONDS)
        if self._storage.watching:
            due.append(self._storage.interval)
        return min(due)

    # looking -----------------------------------------------------------------------------------------------------

    async def _collect(self) -> None:
        """Take in the outcome of a bring-up that is done."""
        if not self.startup.working:
            return
        seen = await self.startup.collect()
        if self.startup.failed:
            self._ran, self.end.because = True, self.startup.failed
        if self.startup.working:
            return
        self._look_due = True
        if seen is not None:
            self.observed = seen
            self._stage, self._ran = Stage.STARTED, True
            self._probing.start()
            try:
                await self._publish()  # before anything else: Running is what everybody waits for
            finally:
                await self.startup.join()
            self.say("Normal", "Started", "VirtualMachineInstance started.")

    async def _look(self) -> None:
        """Observe the machine. DriverError other than NotFound (no connection), or no answer, leaves the last known."""
        self._look_due, self._looked_at = False, asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(ASK_SECONDS if self.end.begun else OBSERVE_SECONDS):
                seen: Observed | None = await self.shop.hypervisor.observe(self.uid)
        except NotFound:
            seen = None
        except TimeoutError:
            self._log.warning("the hypervisor is slow to say how the machine is; what was last known is taken as true")
            self.wake()
            return
        before, self.observed = self.observed, seen
        connected = seen is not None and seen.agent_connected and self.alive
        if connected:
            self.guest.connected()
            self.credentials.connected(self.vmi)
        elif before is not None and before.agent_connected:
            self.guest.disconnected()
            self.credentials.disconnected()
        if seen is not None and seen.state is State.PAUSED and not (before and before.state is State.PAUSED):
            self._log.info("the guest is paused", reason=seen.reason)

    def situation(self) -> Situation:
        """The facts that the rules look at."""
        time = asyncio.get_running_loop().time()
        seen, startup = self.observed, self.startup
        self.orphaned |= self._instance.vanished
        deleting = reading.is_deleting(self.vmi) or self.orphaned
        if deleting:
            self.end.begin(elapsed=self._stage is Stage.NEW and not self.orphaned)
        return Situation(
            stage=self._stage,
            state=seen.state if seen else None,
            reason=seen.reason if seen else StopReason.NONE,
            deleting=deleting,
            working=startup.working,
            cancelled=startup.cancelled,
            starting=startup.starting,
            started_before=startup.started_before,
            held_back=time < startup.held_until,
            shutdown_due=self.end.is_request_due(time),
            grace_over=deleting and self.end.is_over(time),
            space_returned=self._storage.space_returned,
            agent_connected=bool(seen and seen.agent_connected),
            acpi=reading.has_acpi(self.vmi),
            frozen=self.guest.frozen,
            moving=self.departure.working,
            moved=self.departure.moved,
        )

    def _is_running(self) -> bool:
        return self.observed is not None and self.observed.state is State.RUNNING

    async def _ask_guest(self, command: str, arguments: Object | None) -> Any:
        return await self.shop.hypervisor.agent_command(self.uid, command, arguments)

    # acting ------------------------------------------------------------------------------------------------------

    async def _perform(self, step: Step) -> None:
        self._log.debug("step", step=step)
        if step is Step.BRING_UP:
            self.startup.begin()
        elif step is Step.CANCEL:
            self.startup.cancel()
        elif step is Step.ADOPT:
            await self._instants.recover()
            self._stage, self._ran, self.startup.problem, self.end.because = Stage.STARTED, True, None, ""
            self._probing.start()
            with contextlib.suppress(NetworkError):  # one that has moved here may not have its address yet
                await self.shop.nets.announce(self.uid)
        elif step is Step.SHUT_DOWN:
            self._probing.stop()
            await self.end.shut_down()
            await self._look()
        elif step is Step.STOP:
            await self.end.stop(self._stage)
            await self._look()
        elif step is Step.RESUME:
            await self._resume()
        elif step is Step.CONCLUDE:
            await self._conclude()
        elif step is Step.RELEASE:
            await bringup.release(self.shop, self.uid, self.prepared)
            self._stage = Stage.RELEASED
        elif step is Step.LEAVE:
            await self._leave()
        elif step is Step.FINALIZE:
            self._finished = self.orphaned or await self._instance.let_go(self._making())

    async def _leave(self) -> None:
        """It runs on another host: say so, then clear away what is left of it here."""
        await self.departure.silence()
        if not self.orphaned:
            await self._instance.publish(self._with_departure)
            if not (self._instance.vanished or moves.state_of(self.vmi).get("completed")):
                self._look_due = True  # the API did not take it: say so again, before anything is cleared away
                await asyncio.sleep(RETRY_SECONDS)
                return
        await bringup.leave(self.shop, self.uid, self.prepared)
        self._finished = True

    def _with_departure(self, vmi: Object) -> Object:
        told = self.departure.told(vmi)
        return reading.status(vmi) | ({"migrationState": told} if told else {})

    async def _resume(self) -> None:
        self._storage.resumed(self)
        await self.shop.hypervisor.resume(self.uid)
        self.say("Normal", "Resumed", "Storage has space again: the guest goes on")
        await self._look()

    async def _conclude(self) -> None:
        """The run is over: everything is kept until the instance is deleted."""
        await self.end.conclude(self._ran)
        self._stage = Stage.ENDED
        self._probing.stop()
        self.guest.disconnected()
        self.credentials.disconnected()
        await self._offer_ports()

    async def _offer_ports(self) -> None:
        """Bring the ports of an ended machine back to where its definition names them: `virsh start` then works as
        its users know it, and is judged like any change by hand, instead of failing for want of a tap.
        """
        if self.prepared is None or reading.is_deleting(self.vmi):
            return
        with contextlib.suppress(NotReady, Unsupported, NetworkError, *API_TROUBLE):
            await self.shop.nets.prepare(self.vmi, self.prepared.uid)

    async def _serve(self) -> None:
        """Calls and events, in their order."""
        for item in self._inbox.take():
            if isinstance(item, DriverEvent):
                self._note(item)
                continue
            if isinstance(item, Held):
                await self._instants.carry_out(item)
                self._look_due = True
                continue
            verdict = decide_call(item.call, self.situation())
            if await calls.serve(item, verdict, self.shop.hypervisor, self.guest, self.uid):
                self.observed = calls.assumed(item.call, self.observed)
            self._look_due = True

    def _note(self, event: DriverEvent) -> None:
        if event.kind == "panic":
            self.say("Warning", "GuestPanicked", event.detail or "The guest panicked")
        elif event.kind == "io-error":
            self._io_error = event.detail[:256]
        elif event.kind == "watchdog":
            self.say("Warning", "WatchdogFired", event.detail or "The guest's watchdog fired")

    # telling -----------------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        making = self._making()
        if self.startup.is_brief and self.startup.problem is None:
            return  # the first status of a machine says all: Running
        if self.departure.moved or (self.departure.working and not self.alive):
            return  # its status is the target's to write
        if making is not None and not self.orphaned and self._stage is not Stage.RELEASED:
            await self._instance.publish(making)
            if self._instance.vanished:
                self.gone()

    def _making(self) -> Any:
        """How the status follows from what is known. None before the hypervisor is known, and for an instance that
        ended under an earlier agent process: then it stays as it is.
        """
        if self.shop.capabilities is None or (reading.is_final(self.vmi) and self.end.outcome is None):
            return None
        return lambda vmi: status.status_from(self._view(vmi))

    def _view(self, vmi: Object) -> status.View:
        return status.View(
            vmi=vmi,
            now=now(),
            host=self.shop.settings.host_name,
            capabilities=self.shop.known_capabilities(),
            observed=self.observed,
            prepared=self.prepared,
            guest=self.guest.info if self.alive else None,
            problem=self._problem(),
            ending=self.end.outcome,
            ran=self._ran,
            probe_ready=self._probing.ready,
            frozen=self.guest.frozen,
            io_error=self._io_error,
            credentials=self.credentials.state if self.alive else None,
            migration=self.departure.told(vmi),
        )

    def _problem(self) -> Problem | None:
        seen = self.observed
        if self.startup.problem is None and self.alive and seen is not None and not seen.fingerprint:
            message = "the machine's definition was changed at the hypervisor, outside of Stead"
            return Problem("ChangedOutOfBand", message)
        return self.startup.problem
