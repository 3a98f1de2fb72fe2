"""Passwords: Argon2id in PHC form, checked in a thread, never more than a few at once.

Called by `login` and `stead user`. Parameters are OWASP's (46 MiB, one lane), so that a check costs an attacker memory
and us no more than `AT_ONCE` times that. Attempts are counted in memory, for the source address and for the user from
that address: a restart forgets them, and an attacker's guesses do not lock the user out elsewhere.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from stead.kube.errors import ApiError

MEMORY_KIB = 46 * 1024
ITERATIONS = 2
AT_ONCE = 2
#: checks that may wait for their turn
WAITING = 16
#: failures in `WINDOW_SECONDS` before attempts are refused: for a user from one address, and for the address
USER_FAILURES = 5
ADDRESS_FAILURES = 30
WINDOW_SECONDS = 300.0
_REMEMBERED = 10_000


def hashed(password: str) -> str:
    """The PHC string to keep. Blocks for some 0.1 s."""
    return Argon2id(
        salt=os.urandom(16), length=32, iterations=ITERATIONS, lanes=1, memory_cost=MEMORY_KIB
    ).derive_phc_encoded(password.encode())


def is_right(password: str, phc: str) -> bool:
    """Whether the password belongs to the PHC string. Blocks."""
    try:
        Argon2id.verify_phc_encoded(password.encode(), phc)
    except (InvalidKey, ValueError):
        return False
    return True


class Checks:
    """Runs checks in threads, a bounded number of them."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._decoy = ""

    async def is_right(self, password: str, phc: str) -> bool:
        """As `is_right`; takes the same time for a user that does not exist (`phc` ""). Raises 429."""
        if self._waiting >= WAITING:
            raise too_many(1)
        self._waiting += 1
        try:
            async with self._turn:
                if not phc and not self._decoy:
                    self._decoy = await asyncio.to_thread(hashed, os.urandom(16).hex())
                found = await asyncio.to_thread(is_right, password, phc or self._decoy)
        finally:
            self._waiting -= 1
        return found and bool(phc)


class Attempts:
    """Failures of the last `WINDOW_SECONDS`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: OrderedDict[tuple[str, ...], list[float]] = OrderedDict()

    def begin(self, user: str, address: str) -> None:
        """Count an attempt as failed until `passed`: many at once count too. Raises 429 with the time to wait."""
        keys = {(user, address): USER_FAILURES, (address,): ADDRESS_FAILURES}
        for key, limit in keys.items():
            recent = self._recent(key)
            if len(recent) >= limit:
                raise too_many(int(recent[-limit] + WINDOW_SECONDS - self._clock()) + 1)
        for key in keys:
            self._failures[key] = [*self._recent(key), self._clock()]
            self._failures.move_to_end(key)
        while len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)

    def passed(self, user: str, address: str) -> None:
        """The right password: the user's failures from there are forgotten, and this attempt of the address."""
        self._failures.pop((user, address), None)
        kept = self._failures.get((address,))
        if kept:
            kept.pop()

    def _recent(self, key: tuple[str, ...]) -> list[float]:
        since = self._clock() - WINDOW_SECONDS
        return [moment for moment in self._failures.get(key, []) if moment > since]


def too_many(seconds: int) -> ApiError:
    """429 with Retry-After."""
    return ApiError("TooManyRequests", "too many attempts to log in, try again later", {"retryAfterSeconds": seconds})
