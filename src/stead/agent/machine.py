"""One machine's state driver: a single task, the only writer of that machine's state on this host and of its VMI's
status.

Desired objects, driver events and API calls enter one bounded inbox; the task takes them in, asks
`policy.decide_step` for the next step until there is none, writes the status if it changed, and sleeps until
something happens or a deadline passes. So stop, reboot and pause can never race. Preparing (pulls may take minutes)
runs in one background task that posts its outcome back; it can be given up until the hypervisor's start has begun.
Losing the API or the hypervisor stops nothing: the task retries, the guest goes on. Called by `agent.py`; steps live
in `bringup.py`, what is seen and due in `watchkeeping.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

import aiohttp
import msgspec
import structlog

from stead.agent import bringup, status
from stead.agent import vmi as reading
from stead.agent.events import now
from stead.agent.guest import Guest, seconds_from_duration
from stead.agent.policy import (
    ALIVE,
    Call,
    Situation,
    Stage,
    Step,
    decide_call,
    decide_step,
    final_phase,
)
from stead.agent.prepared import NotReady, Prepared, Unsupported
from stead.agent.status import Ending, Problem
from stead.agent.watchkeeping import Probing, Storage
from stead.agent.workshop import Workshop
from stead.hypervisor.contract import Busy, DriverError, DriverEvent, NotFound, Observed, State, StopReason
from stead.kinds import register
from stead.kube.errors import ApiError
from stead.network.attachment import NetworkError

log = structlog.get_logger(__name__)

Object = dict[str, Any]

#: calls and events waiting for one machine; a call beyond that is refused with 429, an event beyond that becomes
#: "look again"
MAX_INBOX = 32
#: observe even when nobody says that something changed
LOOK_SECONDS = 30.0
#: an ACPI request is repeated, since a booting guest drops it
SHUTDOWN_REPEAT_SECONDS = 5.0
RETRY_SECONDS = 1.0
#: how long a machine that is ending may hold up its task with one question, and any other machine
ASK_SECONDS = 1.5
OBSERVE_SECONDS = 15.0
CALL_SECONDS = 60.0
WRITE_SECONDS = 10.0
UNSUPPORTED_RETRY_SECONDS = 300.0
MAX_STEPS = 8

API_TROUBLE = (ApiError, OSError, TimeoutError, aiohttp.ClientError)


class _Request(msgspec.Struct):
    """A call of the API, waiting for its turn."""

    call: Call
    arguments: Object
    answer: asyncio.Future[None]


class Machine:
    """See the module's prose. `run` ends when nothing of the machine is left and the API knows."""

    def __init__(self, shop: Workshop, vmi: Object) -> None:
        self.shop = shop
        self.vmi = vmi
        self.uid = reading.uid(vmi)
        self.prepared: Prepared | None = None
        self.observed: Observed | None = None
        self.guest = Guest(self._ask_guest, self.wake, self._is_running)
        self._inbox: deque[_Request | DriverEvent] = deque()
        self._wake = asyncio.Event()
        self._stage = Stage.NEW
        self._work: asyncio.Task[Observed] | None = None
        self._starting = False
        self._cancelled = False
        self._started_before = False
        self._ran = False
        self._ending: Ending | None = None
        self._problem: Problem | None = None
        self._orphaned = False
        self._finished = False
        self._look_due = True
        self._looked_at = float("-inf")
        self._held_until = 0.0
        self._pull_failures = 0
        self._grace_from: float | None = None
        self._shutdown_sent: float | None = None
        self._stopped_by_us = False
        self._killed_because = ""
        self._publish_after = 0.0
        self._io_error = ""
        self._storage = Storage()
        self._probing = Probing(self)
        self._log = log.bind(machine=f"{reading.namespace(vmi)}/{reading.name(vmi)}", uid=self.uid)

    # what others call (on the loop) ------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something changed: take a turn soon."""
        self._wake.set()

    def offer(self, vmi: Object) -> None:
        """The desired object, as newly seen; the latest wins."""
        if reading.is_older(vmi, self.vmi):
            return
        if reading.spec(vmi) != reading.spec(self.vmi) or reading.is_deleting(vmi):
            self._held_until = 0.0
        self.vmi = vmi
        self.wake()

    def gone(self) -> None:
        """The object has vanished without us (its finalizer was removed by force): end and release at once."""
        self._orphaned = True
        self.wake()

    def look(self) -> None:
        """Observe anew: the hypervisor may have changed something without saying."""
        self._look_due = True
        self.wake()

    def notify(self, event: DriverEvent) -> None:
        """An event of the hypervisor; when the inbox is full it becomes "look again"."""
        self._look_due = True
        if len(self._inbox) < MAX_INBOX:
            self._inbox.append(event)
        self.wake()

    async def call(self, call: Call, arguments: Object) -> None:
        """A change that an API client asks for. Raises ApiError (409 denied, 429 too many, 504 too slow)."""
        if len(self._inbox) >= MAX_INBOX:
            raise ApiError("TooManyRequests", "too many calls are waiting for this machine", {"retryAfterSeconds": 1})
        request = _Request(call, arguments, asyncio.get_running_loop().create_future())
        self._inbox.append(request)
        self.wake()
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await request.answer
        except TimeoutError:
            raise ApiError("Timeout", f"{call} did not finish within {CALL_SECONDS:.0f} s") from None

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
        if self._work is not None and not self._work.done():
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        for item in self._inbox:
            if isinstance(item, _Request) and not item.answer.done():
                item.answer.set_exception(ApiError("ServiceUnavailable", "the agent is stopping"))
        self._inbox.clear()

    async def _learn(self) -> None:
        """After a start of the agent: what an earlier process of it has left."""
        record = await asyncio.to_thread(self.shop.records.read, self.uid)
        if record is not None:
            self.prepared = record.prepared
            self._started_before = self._ran = record.started
            if record.prepared is not None and record.started:
                self.shop.disks_in_use.take_all(self.uid, record.prepared)
        if reading.phase(self.vmi) == "Running":
            self._started_before = self._ran = True
        if reading.is_final(self.vmi):
            self._stage = Stage.ENDED

    async def _turn(self) -> float:
        """One turn: take in, act, tell. Returns how long to sleep."""
        try:
            self._wake.clear()
            await self._collect_work()
            self._look_due |= asyncio.get_running_loop().time() - self._looked_at >= LOOK_SECONDS
            if self._look_due and not self._starting:  # what shows during a start is not yet true
                await self._look()
            self._storage.check(self)
            await self._serve_inbox()
            for _ in range(MAX_STEPS):
                step = decide_step(self.situation())
                if step is Step.WAIT or self._finished:
                    break
                await self._perform(step)
            await self._publish()
            return 0.0 if self._look_due and not self._starting else self._pause()
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
        due = [LOOK_SECONDS]
        if self._held_until > time:
            due.append(self._held_until - time)
        if self._publish_after > time:
            due.append(self._publish_after - time)
        if self._grace_from is not None and self.alive:
            due += [max(0.05, self._grace_from + self._grace() - time), SHUTDOWN_REPEAT_SECONDS]
        if self._storage.watching:
            due.append(self._storage.interval)
        return min(due)

    # looking -----------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Observe the machine. DriverError other than NotFound (no connection), or no answer, leaves the last known."""
        self._look_due, self._looked_at = False, asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(OBSERVE_SECONDS if self._grace_from is None else ASK_SECONDS):
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
        elif before is not None and before.agent_connected:
            self.guest.disconnected()
        if seen is not None and seen.state is State.PAUSED and not (before and before.state is State.PAUSED):
            self._log.info("the guest is paused", reason=seen.reason)

    def situation(self) -> Situation:
        """The facts that the rules look at."""
        time = asyncio.get_running_loop().time()
        seen = self.observed
        deleting = reading.is_deleting(self.vmi) or self._orphaned
        if deleting and self._grace_from is None:
            self._grace_from = time - self._waited_already()
        sent = self._shutdown_sent
        return Situation(
            stage=self._stage,
            state=seen.state if seen else None,
            reason=seen.reason if seen else StopReason.NONE,
            deleting=deleting,
            working=self._work is not None,
            cancelled=self._cancelled,
            starting=self._starting,
            started_before=self._started_before,
            held_back=time < self._held_until,
            shutdown_due=sent is None or time - sent >= SHUTDOWN_REPEAT_SECONDS,
            grace_over=deleting and self._grace_from is not None and time >= self._grace_from + self._grace(),
            space_returned=self._storage.space_returned,
            agent_connected=bool(seen and seen.agent_connected),
            acpi=reading.has_acpi(self.vmi),
            frozen=self.guest.frozen,
        )

    def _grace(self) -> float:
        """Seconds that the guest may take; none when nothing can ask it, or its object has vanished."""
        askable = reading.has_acpi(self.vmi) or bool(self.observed and self.observed.agent_connected)
        return reading.grace_seconds(self.vmi) if askable and not self._orphaned else 0.0

    def _waited_already(self) -> float:
        """Seconds of the grace period that passed under an earlier process of the agent."""
        if self._stage is not Stage.NEW or self._orphaned:
            return 0.0
        return status.seconds_between(str(self.vmi["metadata"].get("deletionTimestamp") or ""), now())

    # acting ------------------------------------------------------------------------------------------------------

    async def _perform(self, step: Step) -> None:
        self._log.debug("step", step=step)
        if step is Step.BRING_UP:
            self._work = asyncio.create_task(self._bring_up(), name=f"bring up {self.uid}")
            self._work.add_done_callback(lambda _: self.wake())
        elif step is Step.CANCEL:
            self._cancelled = True
            if self._work is not None:
                self._work.cancel()
        elif step is Step.ADOPT:
            self._stage, self._ran, self._problem, self._killed_because = Stage.STARTED, True, None, ""
            self._probing.start()
        elif step is Step.SHUT_DOWN:
            await self._shut_down()
        elif step is Step.STOP:
            await self._stop()
        elif step is Step.RESUME:
            await self._resume()
        elif step is Step.CONCLUDE:
            await self._conclude()
        elif step is Step.RELEASE:
            await bringup.release(self.shop, self.uid, self.prepared)
            self._stage = Stage.RELEASED
        elif step is Step.FINALIZE:
            await self._finalize()

    async def _bring_up(self) -> Observed:
        """Background: prepare, define, start. Its outcome is collected by the task."""
        async with self.shop.slots:
            prepared = await bringup.prepare(self.shop, self.vmi)
            try:
                machine = bringup.plan(self.shop, self.vmi, prepared)
                self.prepared = prepared
                self._starting = True  # from here on the hypervisor acts: not to be given up half-way
                await bringup.define(self.shop, machine)
            except BaseException:
                self._starting = False
                await self.shop.nets.release(self.uid)
                raise
            return await bringup.start(self.shop, self.vmi, prepared, machine)

    async def _collect_work(self) -> None:
        """Take in the outcome of a bring-up that is done."""
        work = self._work
        if work is None or not work.done():
            return
        self._work, self._starting, self._look_due = None, False, True
        try:
            self.observed = work.result()
            self._stage, self._ran, self._problem = Stage.STARTED, True, None
            self._probing.start()
            self.shop.events.say(self.vmi, "Normal", "Started", "VirtualMachineInstance started.")
        except asyncio.CancelledError:
            self._cancelled = False
        except Unsupported as error:
            self._hold(Problem("Unsupported", str(error)), UNSUPPORTED_RETRY_SECONDS)
        except NotReady as error:
            self._hold(Problem(self._pull_reason(error.reason), str(error)), error.retry_seconds)
        except DriverError as error:
            await self._start_failed(error)
        except API_TROUBLE as error:
            self._hold(Problem("FailedPreparation", str(error) or type(error).__name__), 3.0)

    def _pull_reason(self, reason: str) -> str:
        """A pull that fails again is told as back-off, as Kubernetes does."""
        if reason != "ErrImagePull":
            return reason
        self._pull_failures += 1
        return "ErrImagePull" if self._pull_failures == 1 else "ImagePullBackOff"

    def _hold(self, problem: Problem, seconds: float) -> None:
        """Not now: say why, try again later."""
        self._problem = problem
        self._held_until = asyncio.get_running_loop().time() + seconds
        self._log.info("cannot start yet", reason=problem.reason, message=problem.message)
        self.shop.events.say(self.vmi, "Warning", "SyncFailed", f"{problem.reason}: {problem.message}")

    async def _start_failed(self, error: DriverError) -> None:
        """The hypervisor refused. If it is merely away, the machine's true state is learnt when it is back."""
        record = await asyncio.to_thread(self.shop.records.read, self.uid)
        if isinstance(error, Busy) or record is None or not record.started:
            self._started_before = bool(record and record.started)
            self._hold(Problem("HypervisorBusy", str(error)), 2.0)
            return
        self._problem = Problem("StartFailed", str(error))
        self._killed_because = f"the machine could not be started: {error}"
        self._started_before = self._ran = True
        self.shop.events.say(self.vmi, "Warning", "SyncFailed", f"start failed: {error}")

    async def _shut_down(self) -> None:
        seen = self.observed
        if self._shutdown_sent is None:
            self.shop.events.say(self.vmi, "Normal", "ShuttingDown", "Signaled Graceful Shutdown")
        self._shutdown_sent = asyncio.get_running_loop().time()
        self._probing.stop()
        # A hypervisor process that hangs answers nothing: that must not hold up the end of the grace period.
        with contextlib.suppress(DriverError, TimeoutError):
            async with asyncio.timeout(ASK_SECONDS):
                if seen is not None and seen.state is State.PAUSED:
                    await self.shop.hypervisor.resume(self.uid)  # a paused guest cannot hear the request
                await self.shop.hypervisor.shutdown(self.uid)
                if self.guest.frozen:
                    await self.guest.thaw()
        await self._look()

    async def _stop(self) -> None:
        if self._stage is Stage.ENDED and not self._stopped_by_us and not reading.is_deleting(self.vmi):
            message = "The machine was started at the hypervisor although this instance has ended; it is stopped again"
            self.shop.events.say(self.vmi, "Warning", "StartedOutOfBand", message)
        self._stopped_by_us = True
        await self.shop.hypervisor.stop(self.uid)
        await self._look()

    async def _resume(self) -> None:
        self._storage.resumed(self)
        await self.shop.hypervisor.resume(self.uid)
        self.shop.events.say(self.vmi, "Normal", "Resumed", "Storage has space again: the guest goes on")
        await self._look()

    async def _conclude(self) -> None:
        """The run is over: decide how it ended, keep everything until the instance is deleted."""
        seen = self.observed
        if seen is not None and seen.state is State.CRASHED:
            await self.shop.hypervisor.stop(self.uid)
        self._ending = self._judge(seen)
        self._stage = Stage.ENDED
        self._probing.stop()
        self.guest.disconnected()
        kind = "Normal" if self._ending.phase == "Succeeded" else "Warning"
        self.shop.events.say(self.vmi, kind, "Stopped", self._ending.message)

    def _judge(self, seen: Observed | None) -> Ending:
        reason = seen.reason if seen else StopReason.NONE
        if self._killed_because:
            return Ending(phase="Failed", reason="Failed", message=self._killed_because)
        phase = final_phase(reason, reading.has_acpi(self.vmi), self._ran)
        if not self._ran:
            return Ending(phase=phase, message="The instance was deleted before it was started")
        if reason is StopReason.SHUTDOWN:
            return Ending(phase=phase, message="The VirtualMachineInstance was shut down.")
        if reason is StopReason.DESTROYED and not self._stopped_by_us:
            return Ending(phase=phase, reason="StoppedOutOfBand", message="The machine was destroyed at the hypervisor")
        if reason is StopReason.DESTROYED:
            return Ending(phase=phase, message="The VirtualMachineInstance did not shut down in time and was stopped.")
        if reason is StopReason.CRASHED:
            return Ending(phase=phase, reason="Crashed", message="The VirtualMachineInstance crashed.")
        return Ending(
            phase=phase, reason="Lost", message="The machine is no longer running, and nobody saw how it ended."
        )

    async def kill(self, why: str) -> None:
        """End the run as a failure (a liveness probe). Called by `Probing` on the loop; the task does the rest."""
        self._killed_because = why
        self._stopped_by_us = True
        self.shop.events.say(self.vmi, "Warning", "Unhealthy", why)
        with contextlib.suppress(DriverError):
            await self.shop.hypervisor.stop(self.uid)
        self._look_due = True
        self.wake()

    # calls -------------------------------------------------------------------------------------------------------

    async def _serve_inbox(self) -> None:
        for _ in range(len(self._inbox)):
            item = self._inbox.popleft()
            if isinstance(item, DriverEvent):
                self._note_event(item)
            else:
                await self._serve(item)

    def _note_event(self, event: DriverEvent) -> None:
        if event.kind == "panic":
            self.shop.events.say(self.vmi, "Warning", "GuestPanicked", event.detail or "The guest panicked")
        elif event.kind == "io-error":
            self._io_error = event.detail[:256]
        elif event.kind == "watchdog":
            self.shop.events.say(self.vmi, "Warning", "WatchdogFired", event.detail or "The guest's watchdog fired")

    async def _serve(self, request: _Request) -> None:
        if request.answer.done():
            return  # the caller has given up
        verdict = decide_call(request.call, self.situation())
        if not verdict.allowed:
            request.answer.set_exception(ApiError(verdict.reason, verdict.message))
            return
        try:
            await self._do(request.call, request.arguments)
        except (DriverError, ValueError) as error:
            reason = "Conflict" if isinstance(error, Busy) else "InternalError"
            reason = "BadRequest" if isinstance(error, ValueError) else reason
            _answer(request, ApiError(reason, f"{request.call}: {error}"))
        else:
            self._assume(request.call)
            _answer(request, None)
        self._look_due = True

    def _assume(self, call: Call) -> None:
        """What a call that succeeded has changed: told at once, looked at afterwards (a look may take seconds)."""
        if self.observed is None:
            return
        if call is Call.PAUSE:
            self.observed = msgspec.structs.replace(self.observed, state=State.PAUSED, reason=StopReason.USER)
        elif call is Call.UNPAUSE:
            self.observed = msgspec.structs.replace(self.observed, state=State.RUNNING, reason=StopReason.NONE)

    async def _do(self, call: Call, arguments: Object) -> None:
        hypervisor = self.shop.hypervisor
        if call is Call.PAUSE:
            await hypervisor.pause(self.uid)
        elif call is Call.UNPAUSE:
            await hypervisor.resume(self.uid)
        elif call is Call.SOFT_REBOOT:
            await hypervisor.reboot(self.uid)
        elif call is Call.RESET:
            await hypervisor.reset(self.uid)
        elif call is Call.FREEZE:
            await self.guest.freeze(seconds_from_duration(str(arguments.get("unfreezeTimeout") or "0s")))
        elif call is Call.UNFREEZE:
            await self.guest.thaw()

    def _is_running(self) -> bool:
        return self.observed is not None and self.observed.state is State.RUNNING

    async def _ask_guest(self, command: str, arguments: Object | None) -> Any:
        return await self.shop.hypervisor.agent_command(self.uid, command, arguments)

    # telling -----------------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        """Write the status if it changed; on a conflict read again and try once more."""
        if self._orphaned or self._stage is Stage.RELEASED or not self._has_news():
            return
        for _ in range(3):
            wanted = status.status_from(self._view())
            patch = status.patch_from(self.vmi, wanted)
            if patch is None or not await self._patch(patch):
                return

    def _has_news(self) -> bool:
        """False before the hypervisor is known, and for an instance that ended under an earlier agent process."""
        return self.shop.capabilities is not None and not (reading.is_final(self.vmi) and self._ending is None)

    async def _patch(self, patch: list[Object]) -> bool:
        """Send one patch; True when the object had changed meanwhile and has been read again."""
        namespace, name = reading.key(self.vmi)
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                self.vmi = await self.shop.client.patch(register.VIRTUAL_MACHINE_INSTANCE, namespace, name, patch)
            return False
        except ApiError as error:
            if error.code == 404:
                self.gone()
                return False
            if error.code not in (409, 422):
                raise
            return await self._read_again(error)

    async def _read_again(self, error: ApiError) -> bool:
        namespace, name = reading.key(self.vmi)
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                fresh = await self.shop.client.get(register.VIRTUAL_MACHINE_INSTANCE, namespace, name)
        except ApiError as missing:
            if missing.code != 404:
                raise
            self.gone()
            return False
        if reading.uid(fresh) != self.uid:
            self.gone()
            return False
        if reading.resource_version(fresh) == reading.resource_version(self.vmi):
            self._log.error("the API refuses this machine's status", error=error.message)
            self._publish_after = asyncio.get_running_loop().time() + 10.0
            return False
        self.vmi = fresh
        return True

    def _view(self) -> status.View:
        return status.View(
            vmi=self.vmi,
            now=now(),
            host=self.shop.settings.host_name,
            capabilities=self.shop.known_capabilities(),
            observed=self.observed,
            prepared=self.prepared,
            guest=self.guest.info if self.alive else None,
            problem=self._current_problem(),
            ending=self._ending,
            ran=self._ran,
            probe_ready=self._probing.ready,
            frozen=self.guest.frozen,
            io_error=self._io_error,
        )

    def _current_problem(self) -> Problem | None:
        seen = self.observed
        if self._problem is None and self.alive and seen is not None and not seen.fingerprint:
            message = "the machine's definition was changed at the hypervisor, outside of Stead"
            return Problem("ChangedOutOfBand", message)
        return self._problem

    async def _finalize(self) -> None:
        """Nothing is left here: let the object go."""
        if self._orphaned:
            self._finished = True
            return
        finalizers = [f for f in self.vmi["metadata"].get("finalizers") or [] if f != reading.FINALIZER]
        if len(finalizers) == len(self.vmi["metadata"].get("finalizers") or []):
            self._finished = True
            return
        test = {"op": "test", "path": "/metadata/resourceVersion", "value": reading.resource_version(self.vmi)}
        verb: Object = {"op": "replace", "path": "/metadata/finalizers", "value": finalizers}
        final = self._final_status()
        patch = [test, *final, verb]
        if not await self._patch(patch):
            self._finished = True

    def _final_status(self) -> list[Object]:
        """The operation that writes the final phase, when it has not been written yet (the same patch lets go)."""
        if not self._has_news():
            return []
        patch = status.patch_from(self.vmi, status.status_from(self._view()))
        return patch[1:] if patch else []


def _answer(request: _Request, error: ApiError | None) -> None:
    if request.answer.done():
        return
    if error is None:
        request.answer.set_result(None)
    else:
        request.answer.set_exception(error)
