"""Leave to stay: watches and streams end soon after their caller may no longer have them.

A request is checked when it comes; a watch or a console lasts for hours. Whoever holds one is checked again, with the
credentials that the request brought, when users, tokens, accounts or roles have changed, and now and then besides, for
tokens run out by themselves. Called by `app` around every long request; `api` starts and stops the one task that looks.
On the event loop. Kubernetes lets open watches live to their time-out; here removing a user means now.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

import structlog

from stead.kinds import register
from stead.kube.errors import ApiError
from stead.server.authn import Authenticator
from stead.server.authz import Authorizer, attributes_of
from stead.server.exchange import Exchange
from stead.server.registry import Registry

log = structlog.get_logger(__name__)

#: how often the task looks whether anything changed, and how long a check may be old, seconds
LOOK_SECONDS = 1.0
OLD_SECONDS = 30.0
#: users, sessions and bound tokens are Secrets; accounts; roles and who holds them
_CONCERNED = (
    register.SECRET,
    register.SERVICE_ACCOUNT,
    register.ROLE,
    register.CLUSTER_ROLE,
    register.ROLE_BINDING,
    register.CLUSTER_ROLE_BINDING,
)


class Leave:
    """See the module's prose."""

    def __init__(self, registry: Registry, authenticator: Authenticator, authorizer: Authorizer) -> None:
        self._registry = registry
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._exchanges: dict[int, Exchange] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from now on."""
        self._task = asyncio.create_task(self._look_forever(), name="leave")

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @contextlib.contextmanager
    def held(self, exchange: Exchange) -> Iterator[None]:
        """Check this request again while it lasts; `exchange.end` is called when its caller must go."""
        self._exchanges[id(exchange)] = exchange
        try:
            yield
        finally:
            del self._exchanges[id(exchange)]

    async def _look_forever(self) -> None:
        seen: tuple[int, ...] = ()
        looked = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            stamps = tuple(self._registry.stamp(kind) for kind in _CONCERNED)
            if stamps == seen and time.monotonic() - looked < OLD_SECONDS:
                continue
            seen, looked = stamps, time.monotonic()
            for number, exchange in enumerate(list(self._exchanges.values()), 1):
                if id(exchange) in self._exchanges and not await self._may_stay(exchange):
                    log.info("a stream was ended: its caller may not have it any more", path=exchange.request.path)
                    exchange.end()
                if number % 32 == 0:
                    await asyncio.sleep(0)

    async def _may_stay(self, exchange: Exchange) -> bool:
        try:
            caller = await self._authenticator.authenticate(*exchange.credentials(), is_change=exchange.is_change)
        except ApiError:
            return False
        if caller.name != (exchange.original or exchange.user).name:
            return False
        # Roles are asked of whom the request acts as, with the groups that the caller has now.
        user = exchange.user if exchange.original else caller
        return self._authorizer.authorize(user, attributes_of(exchange.request)).allowed
