"""What waits for a machine's task: calls of API clients, work that needs the guest to stand still (`instants`), and
events of the hypervisor, in one bounded inbox.

`Inbox` is filled by the agent's server and its event listener and emptied by the machine's task, all on one loop. A
call beyond the bound is refused with 429, an event beyond it becomes "look again". `carry_out` does an accepted call at
the hypervisor; `assumed` says what it has changed, so that status tells it at once (a look may take seconds).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import msgspec

from stead.agent.guest import Guest
from stead.agent.instants import Held
from stead.agent.policy import Call, Verdict
from stead.hypervisor.contract import Busy, DriverError, DriverEvent, Hypervisor, Observed, State, StopReason
from stead.kube.duration import seconds_from_duration
from stead.kube.errors import ApiError

Object = dict[str, Any]

MAX_INBOX = 32
CALL_SECONDS = 60.0


class Request(msgspec.Struct):
    """A call of the API, waiting for its turn."""

    call: Call
    arguments: Object
    answer: asyncio.Future[None]

    def reply(self, error: ApiError | None) -> None:
        """Tell the caller, unless it has given up."""
        if self.answer.done():
            return
        if error is None:
            self.answer.set_result(None)
        else:
            self.answer.set_exception(error)


class Inbox:
    """See the module's prose."""

    def __init__(self) -> None:
        self._items: deque[Request | Held | DriverEvent] = deque()

    def note(self, event: DriverEvent) -> None:
        """An event; dropped when full (the task looks anyway)."""
        if len(self._items) < MAX_INBOX:
            self._items.append(event)

    def ask(self, call: Call, arguments: Object) -> Request:
        """A call. Raises ApiError (429) when full."""
        if len(self._items) >= MAX_INBOX:
            raise ApiError("TooManyRequests", "too many calls are waiting for this machine", {"retryAfterSeconds": 1})
        request = Request(call, arguments, asyncio.get_running_loop().create_future())
        self._items.append(request)
        return request

    def hold(self, held: Held) -> None:
        """Work for a moment at which the guest stands still. Raises ApiError (429) when full."""
        if len(self._items) >= MAX_INBOX:
            raise ApiError("TooManyRequests", "too many calls are waiting for this machine", {"retryAfterSeconds": 1})
        self._items.append(held)

    def take(self) -> list[Request | Held | DriverEvent]:
        """All that waits now, oldest first."""
        items = list(self._items)
        self._items.clear()
        return items

    def close(self) -> None:
        """Nobody will serve what waits."""
        for item in self.take():
            if isinstance(item, Request | Held):
                item.reply(ApiError("ServiceUnavailable", "the agent is stopping"))


async def answered(request: Request) -> None:
    """Wait for the answer. Raises ApiError: the denial or failure, or 504 when it takes too long."""
    try:
        async with asyncio.timeout(CALL_SECONDS):
            await request.answer
    except TimeoutError:
        raise ApiError("Timeout", f"{request.call} did not finish within {CALL_SECONDS:.0f} s") from None


async def serve(request: Request, verdict: Verdict, hypervisor: Hypervisor, guest: Guest, uid: str) -> bool:
    """Answer one request by its verdict; returns whether it was carried out."""
    if request.answer.done():
        return False  # the caller has given up
    if not verdict.allowed:
        request.reply(ApiError(verdict.reason, verdict.message))
        return False
    try:
        await carry_out(request, hypervisor, guest, uid)
    except (DriverError, ValueError) as error:
        reason = "Conflict" if isinstance(error, Busy) else "InternalError"
        reason = "BadRequest" if isinstance(error, ValueError) else reason
        request.reply(ApiError(reason, f"{request.call}: {error}"))
        return False
    request.reply(None)
    return True


async def carry_out(request: Request, hypervisor: Hypervisor, guest: Guest, uid: str) -> None:
    """Do it. Raises DriverError, or ValueError for arguments that mean nothing."""
    call = request.call
    if call is Call.PAUSE:
        await hypervisor.pause(uid)
    elif call is Call.UNPAUSE:
        await hypervisor.resume(uid)
    elif call is Call.SOFT_REBOOT:
        await hypervisor.reboot(uid)
    elif call is Call.RESET:
        await hypervisor.reset(uid)
    elif call is Call.FREEZE:
        await guest.freeze(seconds_from_duration(str(request.arguments.get("unfreezeTimeout") or "0s")))
    elif call is Call.UNFREEZE:
        await guest.thaw()


def assumed(call: Call, observed: Observed | None) -> Observed | None:
    """What is seen of the machine once `call` has succeeded."""
    if observed is None:
        return None
    if call is Call.PAUSE:
        return msgspec.structs.replace(observed, state=State.PAUSED, reason=StopReason.USER)
    if call is Call.UNPAUSE:
        return msgspec.structs.replace(observed, state=State.RUNNING, reason=StopReason.NONE)
    return observed
