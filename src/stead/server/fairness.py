"""Places for requests: how many are in hand at once, whose turn it is, and when a caller is told to come back later.

Called by `app` for every request after authorisation and before its body is read. Each user has at most half of the
places, so that a second one always gets in; who must wait does so in a short queue of their own, and queues are
served in turn. A full queue or a long wait is answered with 429 and Retry-After. Administrators and heartbeats
(Leases) never wait, and health is asked before. Watches and streams are counted apart, by user. One event loop.
After Kubernetes' Priority and Fairness.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator

from stead.kube.errors import ApiError

#: requests in hand at once
MAX_READS, MAX_WRITES = 400, 200
#: requests of one user that wait, of all users, and for how many seconds
QUEUE_OF_USER, QUEUE, WAIT_SECONDS = 100, 2000, 10.0
#: watches and streams that one user may have open
WATCHES_OF_USER = 1000


def too_many() -> ApiError:
    """429 in the API server's words."""
    text = "the server has received too many requests and has asked us to try again later"
    return ApiError("TooManyRequests", text, {"retryAfterSeconds": 1})


class Places:
    """A number of places, shared fairly."""

    def __init__(self, places: int, *, queue_of_user: int = QUEUE_OF_USER, wait_seconds: float = WAIT_SECONDS) -> None:
        self._places = places
        self._of_user = max(1, places // 2)
        self._queue_of_user = queue_of_user
        self._wait_seconds = wait_seconds
        self._taken: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self.in_hand = 0
        self.waiting = 0

    def place(self, user: str, *, exempt: bool = False) -> Place:
        """Hold a place; wait for one if need be, unless `exempt`. Raises 429."""
        return Place(self, user, exempt)

    async def take(self, user: str, exempt: bool) -> None:
        """For `Place`: get in. Raises 429."""
        if exempt or (user not in self._waiting and self._has_room(user)):
            self._take(user)
        else:
            await self._turn(user)

    def _has_room(self, user: str) -> bool:
        return self.in_hand < self._places and self._taken[user] < self._of_user

    def _take(self, user: str) -> None:
        self.in_hand += 1
        self._taken[user] += 1

    def give_back(self, user: str) -> None:
        """For `Place`: leave."""
        self.in_hand -= 1
        self._taken[user] -= 1
        if not self._taken[user]:
            del self._taken[user]
        self._serve_next()

    async def _turn(self, user: str) -> None:
        queue = self._waiting.setdefault(user, deque())
        if len(queue) >= self._queue_of_user or self.waiting >= QUEUE:
            raise too_many()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self.waiting += 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give_back(user)  # its turn came as it gave up
            else:
                self._forget(user, turn)
            if isinstance(error, TimeoutError):
                raise too_many() from error
            raise

    def _forget(self, user: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(user)
        if queue is not None and turn in queue:
            queue.remove(turn)
            self.waiting -= 1
            if not queue:
                del self._waiting[user]

    def _serve_next(self) -> None:
        """Give what is free to the users that wait, one each in turn."""
        for user in list(self._waiting):
            if not self._has_room(user):
                continue
            queue = self._waiting[user]
            turn = queue.popleft()
            self.waiting -= 1
            del self._waiting[user]
            if queue:
                self._waiting[user] = queue  # to the end of the line
            if not turn.done():
                self._take(user)
                turn.set_result(None)
            if self.in_hand >= self._places:
                return


class Place:
    """A place in hand, as an asynchronous context. No generator: every request makes one."""

    __slots__ = ("_exempt", "_places", "_user")

    def __init__(self, places: Places, user: str, exempt: bool) -> None:
        self._places = places
        self._user = user
        self._exempt = exempt

    async def __aenter__(self) -> None:
        await self._places.take(self._user, self._exempt)

    async def __aexit__(self, *_: object) -> None:
        self._places.give_back(self._user)


class OpenStreams:
    """Watches and streams by user."""

    def __init__(self, most: int = WATCHES_OF_USER) -> None:
        self._most = most
        self._open: Counter[str] = Counter()
        self.in_hand = 0

    @contextlib.contextmanager
    def one(self, user: str, *, exempt: bool = False) -> Iterator[None]:
        """Count one while it is open. Raises 429."""
        if not exempt and self._open[user] >= self._most:
            raise too_many()
        self._open[user] += 1
        self.in_hand += 1
        try:
            yield
        finally:
            self._open[user] -= 1
            self.in_hand -= 1
            if not self._open[user]:
                del self._open[user]
