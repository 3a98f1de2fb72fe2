"""Lets a guest stand still while something is done to its disks, and always go on afterwards.

Part of a machine's task (`machine.py`), so that nothing else happens to the machine meanwhile: the guest's file systems
are frozen where its agent answers, its processors stop (which also writes out what the hypervisor holds back), the work
runs in a thread, and both are undone whatever comes. A mark on disk outlives a kill of the agent at any point: the next
process lets the guest go on before it does anything else to it. Sources of the indications' names: KubeVirt 1.8.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from stead.agent import paths
from stead.agent.policy import Situation, Stage, is_alive
from stead.hypervisor.contract import DriverError, State, StopReason
from stead.kube.errors import ApiError

if TYPE_CHECKING:
    from stead.agent.machine import Machine

log = structlog.get_logger(__name__)

_MARK = "standing-still"
#: a frozen guest that nobody thaws does so after this
FROZEN_SECONDS = 60.0

ONLINE, GUEST_AGENT, NO_GUEST_AGENT = "Online", "GuestAgent", "NoGuestAgent"
QUIESCE_TIMEOUT, PAUSED = "QuiesceTimeout", "Paused"


class Held(msgspec.Struct):
    """Work (blocking; run in a thread) for which the guest stands still; `quiesce`: its file systems are frozen."""

    work: Callable[[], None]
    quiesce: bool
    answer: asyncio.Future[tuple[str, ...]]

    def reply(self, outcome: Exception | tuple[str, ...]) -> None:
        """Tell who waits, unless it has given up."""
        if self.answer.done():
            return
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)


class Mark(msgspec.Struct, frozen=True):
    """What must be undone."""

    paused: bool
    frozen: bool


def is_at_rest(situation: Situation) -> bool:
    """Whether the machine's run is over, so that nobody writes its disks."""
    return situation.stage in (Stage.ENDED, Stage.RELEASED) and not is_alive(situation)


class Instants:
    """See the module's prose."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        #: a guest was not let go on yet: `recover` must be called before anything else
        self.pending = False

    @property
    def _folder(self) -> Path:
        return self._machine.shop.records.folder

    async def carry_out(self, held: Held) -> None:
        """Do it and answer. Never raises but when cancelled; then too the guest goes on."""
        if held.answer.done():
            return
        situation = self._machine.situation()
        try:
            if is_at_rest(situation):
                await asyncio.to_thread(held.work)
                held.reply(())
                return
            if situation.working or situation.stage is not Stage.STARTED or not is_alive(situation):
                raise ApiError("Conflict", "the machine is being started or stopped")
            held.reply(await self._standing_still(held, situation))
        except asyncio.CancelledError:
            held.reply(ApiError("ServiceUnavailable", "the agent is stopping"))
            raise
        except Exception as error:
            held.reply(error)

    async def _standing_still(self, held: Held, situation: Situation) -> tuple[str, ...]:
        found = [ONLINE]
        paused = situation.state is State.PAUSED
        quiesce = held.quiesce and not paused
        if not situation.agent_connected:
            found.append(NO_GUEST_AGENT)
            quiesce = False
        if paused:
            found.append(PAUSED)
        await self._mark(Mark(paused=not paused, frozen=quiesce))
        try:
            if quiesce:
                found.append(GUEST_AGENT if await self._freeze() else QUIESCE_TIMEOUT)
            if not paused:
                await self._machine.shop.hypervisor.pause(self._machine.uid)
            work = asyncio.ensure_future(asyncio.to_thread(held.work))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.gather(work, return_exceptions=True)  # the guest must not go on under it
                raise
        finally:
            await self._go_on(resume=not paused, thaw=quiesce)
        return tuple(found)

    async def _freeze(self) -> bool:
        """Whether the guest's file systems are frozen now."""
        try:
            await self._machine.guest.freeze(FROZEN_SECONDS)
        except DriverError as error:
            log.warning("the guest did not freeze its file systems", machine=self._machine.title, error=str(error))
            return False
        return True

    async def _go_on(self, *, resume: bool, thaw: bool) -> None:
        """Undo. What fails is tried again: the processors at the next turn of the task, the file systems by `Guest`."""
        machine = self._machine
        self.pending = True
        if resume:
            await machine.shop.hypervisor.resume(machine.uid)
        if thaw:
            try:
                await machine.guest.thaw()
            except DriverError as error:
                log.warning("the guest was not thawed, trying again", machine=machine.title, error=str(error))
                machine.guest.thaw_later(1.0)
        await asyncio.to_thread(self._unmark)
        self.pending = False

    async def recover(self) -> None:
        """Undo what an earlier process was killed in. Raises DriverError; then it is to be called again."""
        mark = await asyncio.to_thread(self._read)
        if mark is None:
            self.pending = False
            return
        log.warning("letting a guest go on that was held still", machine=self._machine.title)
        seen = self._machine.observed
        held = seen is not None and seen.state is State.PAUSED and seen.reason is not StopReason.IO_ERROR
        await self._go_on(resume=mark.paused and held, thaw=mark.frozen)

    async def _mark(self, mark: Mark) -> None:
        directory = await asyncio.to_thread(self._machine.shop.records.directory, self._machine.uid)
        await asyncio.to_thread(paths.write_file, directory, _MARK, msgspec.json.encode(mark))

    def _unmark(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / self._machine.uid / _MARK).unlink()

    def _read(self) -> Mark | None:
        try:
            return msgspec.json.decode((self._folder / self._machine.uid / _MARK).read_bytes(), type=Mark)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError):
            return Mark(paused=True, frozen=True)  # half written: undo everything
