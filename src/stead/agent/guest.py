"""Talks with the guest's agent while it is connected: polls what status shows, freezes and thaws its file systems.

One `Guest` a machine, driven by that machine's task: `run` is a background task that asks at KubeVirt's intervals
(system 120 s, file systems 300 s, users 10 s, version 300 s; interfaces every 10 s, so that a new address shows
soon). Every answer is bounded by `guestinfo`. A frozen guest is thawed by itself after a time-out, also when whoever
froze it has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from stead.agent import guestinfo
from stead.agent.guestinfo import GuestInfo
from stead.hypervisor.contract import DriverError

log = structlog.get_logger(__name__)

Ask = Callable[[str, dict[str, Any] | None], Awaitable[Any]]

#: seconds after which a frozen guest is thawed when the caller names no time (KubeVirt's default)
DEFAULT_THAW_SECONDS = 300.0

INTERVALS: dict[str, float] = {
    "guest-info": 300.0,
    "guest-get-osinfo": 120.0,
    "guest-get-host-name": 120.0,
    "guest-get-timezone": 120.0,
    "guest-network-get-interfaces": 10.0,
    "guest-get-users": 10.0,
    "guest-get-fsinfo": 300.0,
}


class Guest:
    """The guest of one machine as its agent shows it. `changed` is called (on the loop) when `info` or `frozen`
    change.
    """

    def __init__(self, ask: Ask, changed: Callable[[], None], is_running: Callable[[], bool]) -> None:
        self._ask = ask
        self._changed = changed
        self._is_running = is_running
        self._poller: asyncio.Task[None] | None = None
        self._thaw: asyncio.Task[None] | None = None
        self.info = GuestInfo()
        self.frozen = False

    def connected(self) -> None:
        """The agent answers (again): poll from now on."""
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="guest agent poll")

    def disconnected(self) -> None:
        """The agent is gone: what it told is no longer known to be true."""
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None
        self.info = GuestInfo()

    async def close(self) -> None:
        """End background work."""
        tasks = [task for task in (self._poller, self._thaw) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._poller = self._thaw = None

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        due = dict.fromkeys(INTERVALS, 0.0)
        await self._learn_frozen()
        while True:
            before = self.info
            for command in [c for c, at in due.items() if at <= loop.time()]:
                due[command] = loop.time() + INTERVALS[command]
                await self._ask_one(command)
            if self.info != before:
                self._changed()
            await asyncio.sleep(max(0.5, min(due.values()) - loop.time()))

    async def _ask_one(self, command: str) -> None:
        if (self.info.commands and command not in self.info.commands) or not self._is_running():
            return  # a paused guest cannot answer, and waiting for it holds up libvirt
        try:
            answer = await self._ask(command, None)
        except DriverError as error:
            log.debug("the guest agent did not answer", command=command, error=str(error))
            return
        self.info = merge(self.info, command, answer)

    async def _learn_frozen(self) -> None:
        """After a restart of ours: a guest that was left frozen gets a new time-out."""
        try:
            status = await self._ask("guest-fsfreeze-status", None)
        except DriverError:
            return
        if status == "frozen" and not self.frozen:
            self._set_frozen(True)
            self.thaw_later(DEFAULT_THAW_SECONDS)

    async def freeze(self, timeout_seconds: float = 0.0) -> None:
        """Freeze all file systems; thawed after `timeout_seconds` (0 = the default). Raises DriverError."""
        await self._ask("guest-fsfreeze-freeze", None)
        self._set_frozen(True)
        self.thaw_later(timeout_seconds or DEFAULT_THAW_SECONDS)

    async def thaw(self) -> None:
        """Thaw; no-op for a guest that is not frozen."""
        if self._thaw is not None and self._thaw is not asyncio.current_task():
            self._thaw.cancel()
        self._thaw = None
        await self._ask("guest-fsfreeze-thaw", None)
        self._set_frozen(False)

    def thaw_later(self, seconds: float) -> None:
        """Thaw after so many seconds, again and again until the guest does it."""
        if self._thaw is not None:
            self._thaw.cancel()
        self._thaw = asyncio.create_task(self._thaw_after(seconds), name="thaw")

    async def _thaw_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        for _ in range(60):
            try:
                await self.thaw()
                return
            except DriverError as error:
                log.warning("the guest could not be thawed, trying again", error=str(error))
                await asyncio.sleep(5)

    def _set_frozen(self, frozen: bool) -> None:
        if self.frozen is not frozen:
            self.frozen = frozen
            self._changed()


def merge(info: GuestInfo, command: str, answer: Any) -> GuestInfo:
    """`info` with one answer of the agent taken in."""
    changes: dict[str, Any] = {}
    if command == "guest-info":
        changes["version"], changes["commands"] = guestinfo.commands_from(answer)
    elif command == "guest-get-osinfo":
        changes["os"] = guestinfo.os_from(answer)
    elif command == "guest-get-host-name" and isinstance(answer, dict):
        changes["hostname"] = str(answer.get("host-name", ""))[: guestinfo.MAX_TEXT]
    elif command == "guest-get-timezone" and isinstance(answer, dict):
        changes["timezone"] = f"{answer.get('zone', '')}, {answer.get('offset', 0)}"[: guestinfo.MAX_TEXT]
    elif command == "guest-network-get-interfaces":
        changes["interfaces"] = guestinfo.interfaces_from(answer)
    elif command == "guest-get-users":
        changes["users"] = guestinfo.users_from(answer)
    elif command == "guest-get-fsinfo":
        changes["filesystems"] = guestinfo.filesystems_from(answer)
    return msgspec.structs.replace(info, **changes)
