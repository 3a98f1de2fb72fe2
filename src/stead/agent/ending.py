"""Ending one machine's run: the grace period, the request to shut down, the hard stop, and how the run ended.

Belongs to one `Machine` and is used from its task (`kill` also from a probe, on the same loop). `judge` is pure. The
grace period counts from the deletion, also over restarts of the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from stead.agent import status
from stead.agent import vmi as reading
from stead.agent.events import now
from stead.agent.policy import Stage, final_phase
from stead.agent.status import Ending
from stead.hypervisor.contract import DriverError, State, StopReason

if TYPE_CHECKING:
    from stead.agent.machine import Machine

#: an ACPI request is repeated, since a booting guest drops it
SHUTDOWN_REPEAT_SECONDS = 5.0
#: how long a machine that is ending may hold up its task with one question
ASK_SECONDS = 1.5

_STARTED_OUT_OF_BAND = "The machine was started at the hypervisor although this instance has ended; it is stopped again"


class End:
    """See the module's prose. `because`: why we ended the run as a failure. `outcome`: set once the run is over."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._grace_from: float | None = None
        self._asked_at: float | None = None
        self.stopped_by_us = False
        self.because = ""
        self.outcome: Ending | None = None

    @property
    def begun(self) -> bool:
        """The grace period runs, or is over."""
        return self._grace_from is not None

    def begin(self, *, elapsed: bool) -> None:
        """The instance is to go: count from its deletion; `elapsed` if part of it may lie before this agent's start."""
        if self._grace_from is None:
            deleted = str(self._machine.vmi["metadata"].get("deletionTimestamp") or "")
            waited = status.seconds_between(deleted, now()) if elapsed else 0.0
            self._grace_from = asyncio.get_running_loop().time() - waited

    def _grace(self) -> float:
        """Seconds that the guest may take; none when nothing can ask it, or its object has vanished."""
        machine = self._machine
        askable = reading.has_acpi(machine.vmi) or bool(machine.observed and machine.observed.agent_connected)
        return reading.grace_seconds(machine.vmi) if askable and not machine.orphaned else 0.0

    def is_over(self, time: float) -> bool:
        """The grace period has passed."""
        return self._grace_from is not None and time >= self._grace_from + self._grace()

    def is_request_due(self, time: float) -> bool:
        """The guest was not asked yet, or long enough ago."""
        return self._asked_at is None or time - self._asked_at >= SHUTDOWN_REPEAT_SECONDS

    def deadlines(self, time: float) -> list[float]:
        """Seconds until something is due."""
        if self._grace_from is None or not self._machine.alive:
            return []
        return [max(0.05, self._grace_from + self._grace() - time), SHUTDOWN_REPEAT_SECONDS]

    async def shut_down(self) -> None:
        """Ask the guest to power off."""
        machine, hypervisor = self._machine, self._machine.shop.hypervisor
        if self._asked_at is None:
            machine.say("Normal", "ShuttingDown", "Signaled Graceful Shutdown")
        self._asked_at = asyncio.get_running_loop().time()
        # A hypervisor process that hangs answers nothing: that must not hold up the end of the grace period.
        with contextlib.suppress(DriverError, TimeoutError):
            async with asyncio.timeout(ASK_SECONDS):
                if machine.observed is not None and machine.observed.state is State.PAUSED:
                    await hypervisor.resume(machine.uid)  # a paused guest cannot hear the request
                await hypervisor.shutdown(machine.uid)
                if machine.guest.frozen:
                    await machine.guest.thaw()

    async def stop(self, stage: Stage) -> None:
        """End the process now. Raises DriverError."""
        machine = self._machine
        if stage is Stage.ENDED and not self.stopped_by_us and not reading.is_deleting(machine.vmi):
            machine.say("Warning", "StartedOutOfBand", _STARTED_OUT_OF_BAND)
        self.stopped_by_us = True
        await machine.shop.hypervisor.stop(machine.uid)

    async def kill(self, reason: str, why: str) -> None:
        """End the run as a failure (a liveness probe, no network); the machine's task does the rest."""
        self.because, self.stopped_by_us = why, True
        self._machine.say("Warning", reason, why)
        with contextlib.suppress(DriverError):
            await self._machine.shop.hypervisor.stop(self._machine.uid)
        self._machine.look()

    async def conclude(self, ran: bool) -> None:
        """The run is over: decide how it ended. Raises DriverError."""
        machine = self._machine
        seen = machine.observed
        if seen is not None and seen.state is State.CRASHED:
            await machine.shop.hypervisor.stop(machine.uid)
        reason = seen.reason if seen else StopReason.NONE
        if self.because:
            self.outcome = Ending(phase="Failed", reason="Failed", message=self.because)
        else:
            phase = final_phase(reason, reading.has_acpi(machine.vmi), ran)
            self.outcome = judge(reason, phase, ran=ran, by_us=self.stopped_by_us)
        kind = "Normal" if self.outcome.phase == "Succeeded" else "Warning"
        machine.say(kind, "Stopped", self.outcome.message)


def judge(reason: StopReason, phase: str, *, ran: bool, by_us: bool) -> Ending:
    """Reason and sentence for people of a run that ended in `phase`."""
    if not ran:
        return Ending(phase=phase, message="The instance was deleted before it was started")
    if reason is StopReason.SHUTDOWN:
        return Ending(phase=phase, message="The VirtualMachineInstance was shut down.")
    if reason is StopReason.DESTROYED and not by_us:
        return Ending(phase=phase, reason="StoppedOutOfBand", message="The machine was destroyed at the hypervisor")
    if reason is StopReason.DESTROYED:
        return Ending(phase=phase, message="The VirtualMachineInstance did not shut down in time and was stopped.")
    if reason is StopReason.CRASHED:
        return Ending(phase=phase, reason="Crashed", message="The VirtualMachineInstance crashed.")
    return Ending(phase=phase, reason="Lost", message="The machine is no longer running, and nobody saw how it ended.")
