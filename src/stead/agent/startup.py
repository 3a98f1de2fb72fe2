"""Bringing one machine up: a background task that prepares, defines and starts it, and what became of that.

Belongs to one `Machine`, whose task begins it, may give it up until the hypervisor's start has begun, and collects its
outcome. What cannot be started now is held back with a `Problem` that status shows; what has failed for good ends the
run. Its ports join their network beside the first look at it and its first status: the kernel takes 20 to 40 ms to move
a tap, the guest's firmware longer to use it. Steps themselves: `bringup.py`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from stead.agent import bringup
from stead.agent.prepared import NotReady, Unsupported
from stead.agent.status import Problem
from stead.agent.trouble import API_TROUBLE
from stead.hypervisor.contract import Busy, DriverError, Observed
from stead.network.attachment import NetworkError

if TYPE_CHECKING:
    from stead.agent.machine import Machine

log = structlog.get_logger(__name__)

UNSUPPORTED_RETRY_SECONDS = 300.0
BUSY_RETRY_SECONDS = 2.0
#: a start that takes longer is shown as it goes
BRIEF_SECONDS = 5.0
_LAPS = ("waited_ms", "prepare_ms", "define_ms", "start_ms")
API_RETRY_SECONDS = 3.0


class Startup:
    """See the module's prose. `starting`: the hypervisor acts, nothing can be given up half-way. `started_before`: a
    start was told to the hypervisor, so there is never a second one. `failed`: why the start failed, once it has.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._task: asyncio.Task[Observed] | None = None
        self._joining: asyncio.Task[None] | None = None
        self._begun = 0.0
        self._pull_failures = 0
        self.starting = False
        self.cancelled = False
        self.started_before = False
        self.held_until = 0.0
        self.problem: Problem | None = None
        self.failed = ""

    @property
    def is_brief(self) -> bool:
        """It is under way and may be through at once: not worth a status of its own."""
        return self._task is not None and asyncio.get_running_loop().time() < self._begun + BRIEF_SECONDS

    @property
    def working(self) -> bool:
        """A task of it has not been collected yet."""
        return self._task is not None

    def begin(self) -> None:
        """Start the task; the machine is woken at its end."""
        self._begun = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._bring_up(), name=f"bring up {self._machine.uid}")
        self._task.add_done_callback(lambda _: self._machine.wake())

    def cancel(self) -> None:
        """Give it up."""
        self.cancelled = True
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """End the tasks; what they have made is found again by the next agent."""
        tasks = [task for task in (self._task, self._joining) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _bring_up(self) -> Observed:
        machine, shop = self._machine, self._machine.shop
        async with shop.slots:
            time = asyncio.get_running_loop().time
            laps = [self._begun, time()]
            prepared = await bringup.prepare(shop, machine.vmi)
            laps.append(time())
            try:
                plan = bringup.plan(shop, machine.vmi, prepared)
                machine.prepared = prepared
                self.starting = True
                await bringup.define(shop, plan)
            except BaseException:
                self.starting = False
                await shop.nets.release(machine.uid)
                raise
            laps.append(time())
            await bringup.start(shop, machine.vmi, prepared, plan)
            self._joining = asyncio.create_task(shop.nets.settle(machine.uid, prepared.addresses))
            seen = await shop.hypervisor.observe(machine.uid)
            laps.append(time())
            took = {name: round(1000 * (b - a), 1) for name, a, b in zip(_LAPS, laps, laps[1:], strict=False)}
            log.debug("brought up", machine=machine.title, **took)
            return seen

    async def join(self) -> None:
        """Wait until the ports of a started machine have joined their network; a machine without one is ended."""
        joining, self._joining = self._joining, None
        if joining is None:
            return
        try:
            await joining
        except NetworkError as error:
            await self._machine.end.kill("NetworkFailed", f"the machine's network could not be made: {error}")

    async def collect(self) -> Observed | None:
        """The outcome of a task that is done: what runs now, or None, with the reason kept."""
        task = self._task
        if task is None or not task.done():
            return None
        self._task, self.starting = None, False
        try:
            seen = task.result()
            self.problem = None
            return seen
        except asyncio.CancelledError:
            self.cancelled = False
        except Unsupported as error:
            self._hold(Problem("Unsupported", str(error)), UNSUPPORTED_RETRY_SECONDS)
        except NotReady as error:
            self._hold(Problem(self._pull_reason(error.reason), str(error)), error.retry_seconds)
        except DriverError as error:
            await self._start_failed(error)
        except API_TROUBLE as error:
            self._hold(Problem("FailedPreparation", str(error) or type(error).__name__), API_RETRY_SECONDS)
        return None

    def _pull_reason(self, reason: str) -> str:
        """A pull that fails again is told as back-off, as Kubernetes does."""
        if reason != "ErrImagePull":
            return reason
        self._pull_failures += 1
        return "ErrImagePull" if self._pull_failures == 1 else "ImagePullBackOff"

    def _hold(self, problem: Problem, seconds: float) -> None:
        """Not now: say why, try again later."""
        machine = self._machine
        self.problem = problem
        self.held_until = asyncio.get_running_loop().time() + seconds
        log.info("cannot start yet", machine=machine.title, reason=problem.reason, message=problem.message)
        machine.say("Warning", "SyncFailed", f"{problem.reason}: {problem.message}")

    async def _start_failed(self, error: DriverError) -> None:
        """The hypervisor refused. If it is merely away, the machine's true state is learnt when it is back."""
        machine = self._machine
        record = await asyncio.to_thread(machine.shop.records.read, machine.uid)
        if isinstance(error, Busy) or record is None or not record.started:
            self.started_before = bool(record and record.started)
            self._hold(Problem("HypervisorBusy", str(error)), BUSY_RETRY_SECONDS)
            return
        self.problem = Problem("StartFailed", str(error))
        self.failed = f"the machine could not be started: {error}"
        self.started_before = True
        machine.say("Warning", "SyncFailed", f"start failed: {error}")
