"""Fair queues and limits over HTTP: a greedy user waits in a queue of their own, a too eager one is told to return."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from tests.api_server import RunningServer, running_server

from stead.kinds import register
from stead.server.fairness import OpenStreams, Places

MAPS = "/api/v1/namespaces/default/configmaps"
#: how long a write takes in these tests, seconds: a store that is slow
SLOW = 0.05


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        for name in ("greedy", "modest"):
            subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}
            await running.client.create(
                register.CLUSTER_ROLE_BINDING,
                {
                    "metadata": {"name": name},
                    "roleRef": {
                        "apiGroup": "rbac.authorization.k8s.io",
                        "kind": "ClusterRole",
                        "name": "cluster-admin",
                    },
                    "subjects": [subject],
                },
            )
        yield running


@contextlib.asynccontextmanager
async def user(server: RunningServer, name: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A user's session, with as many connections as they like."""
    connector = aiohttp.TCPConnector(ssl=server.context(name), limit=0)
    async with aiohttp.ClientSession(server.url, connector=connector) as session:
        yield session


def slow_store(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = server.api.registry.commit

    async def slowly(writes: Any) -> int:
        await asyncio.sleep(SLOW)
        return await commit(writes)

    monkeypatch.setattr(server.api.registry, "commit", slowly)


async def create(session: aiohttp.ClientSession, name: str) -> tuple[int, Any]:
    async with session.post(MAPS, json={"metadata": {"name": name}}) as answer:
        await answer.read()
        return answer.status, answer.headers


async def beside_a_flood(server: RunningServer, prefix: str) -> float:
    """How long a modest user's write takes, in the middle, while a greedy one keeps 40 writes waiting."""
    over = asyncio.Event()
    async with user(server, "greedy") as greedy, user(server, "modest") as modest:

        async def push(number: int) -> None:
            made = 0
            while not over.is_set():
                code, _ = await create(greedy, f"{prefix}-g{number}-{made}")
                assert code == 201
                made += 1

        await create(modest, f"{prefix}-warm")
        pushed = [asyncio.create_task(push(number)) for number in range(40)]
        async with asyncio.timeout(30):
            while len(server.api.registry.peek_all(register.CONFIG_MAP, "default")) < 60:
                await asyncio.sleep(SLOW)  # all of the flood's connections stand
        times = []
        for number in range(7):
            begun = time.monotonic()
            assert (await create(modest, f"{prefix}-m{number}"))[0] == 201
            times.append(time.monotonic() - begun)
        over.set()
        await asyncio.gather(*pushed)
    return statistics.median(times)


class Unfair(Places):
    """One queue for all, in which who comes late stands last."""

    def place(self, user: str, *, exempt: bool = False) -> contextlib.AbstractAsyncContextManager[None]:
        return super().place("all", exempt=exempt)


async def test_a_greedy_user_does_not_starve_another(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_store(server, monkeypatch)
    monkeypatch.setattr(server.api.app, "_writes", Places(4, queue_of_user=1000, wait_seconds=60))
    fair = await beside_a_flood(server, "fair")
    # The control: of one queue for all the modest user stands at the end, behind 40 others.
    monkeypatch.setattr(server.api.app, "_writes", Unfair(4, queue_of_user=1000, wait_seconds=60))
    unfair = await beside_a_flood(server, "unfair")
    assert fair < unfair / 2


async def test_who_asks_more_than_can_wait_is_told_to_return(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_store(server, monkeypatch)
    monkeypatch.setattr(server.api.app, "_writes", Places(2, queue_of_user=5, wait_seconds=30))
    async with user(server, "greedy") as greedy:
        answers = await asyncio.gather(*(create(greedy, f"g{number}") for number in range(60)))
    codes = Counter(code for code, _ in answers)
    assert set(codes) == {201, 429}
    assert codes[201] >= 6
    assert all(headers["Retry-After"] == "1" for code, headers in answers if code == 429)
    # Administrators and heartbeats get in whoever waits.
    assert await server.client.get(register.NAMESPACE, None, "default")
    async with user(server, "modest") as modest:
        assert (await create(modest, "then"))[0] == 201


async def test_watches_of_a_user_are_counted_and_let_go(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.api.app, "_streams", OpenStreams(3))
    async with user(server, "greedy") as greedy, user(server, "modest") as modest:
        path = f"{MAPS}?watch=true&timeoutSeconds=60"
        held = [await greedy.get(path) for _ in range(3)]
        assert [answer.status for answer in held] == [200] * 3
        async with greedy.get(path) as refused:
            status = await refused.json()
            assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
            assert (status["reason"], status["details"]) == ("TooManyRequests", {"retryAfterSeconds": 1})
        async with greedy.get(MAPS) as listed, modest.get(path) as other:
            assert (listed.status, other.status) == (200, 200), "lists are no watches, and others have their own"
        held.pop().close()
        async with asyncio.timeout(10):
            while (again := await greedy.get(path)).status != 200:
                again.close()
                await asyncio.sleep(0.05)
        for answer in [*held, again]:
            answer.close()
