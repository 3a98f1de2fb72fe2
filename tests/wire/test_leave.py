"""Open watches end when their caller may no longer have them, and nobody else's do; long lists come in chunks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from api_server import RunningServer, running_server
from stead.kinds import register
from stead.server.authz import RBAC_GROUP

pytestmark = pytest.mark.asyncio(loop_scope="module")
MAPS = "/api/v1/namespaces/default/configmaps"
ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


async def token_of(server: RunningServer, session: aiohttp.ClientSession, name: str) -> str:
    """A ServiceAccount that may view, and a token of it."""
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
    await server.client.create(register.SERVICE_ACCOUNT, {"metadata": {"name": name, "namespace": "default"}})
    await server.client.create(register.ROLE_BINDING, {
        "metadata": {"name": name, "namespace": "default"}, "subjects": [subject],
        "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": "view"},
    })  # fmt: skip
    async with session.post(f"{server.url}{ACCOUNTS}/{name}/token", json={"spec": {}}, ssl=server.ssl) as answer:
        assert answer.status == 201
        token: str = (await answer.json())["status"]["token"]
        return token


async def watching(server: RunningServer, session: aiohttp.ClientSession, token: str) -> Any:
    """An open watch on ConfigMaps."""
    headers = {"Authorization": f"Bearer {token}"}
    answer = await session.get(f"{server.url}{MAPS}?watch=1", headers=headers, ssl=server.anonymous())
    assert answer.status == 200
    return answer


async def ends(answer: Any) -> bool:
    """Whether the watch ends, cleanly, within seconds; not whether by its own time-out, which is half an hour off."""
    try:
        async with asyncio.timeout(15):
            async for _ in answer.content:
                pass
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("withdrawn", ["account", "role"])
async def test_a_watch_ends_with_its_callers_account_or_role(server: RunningServer, withdrawn: str) -> None:
    async with aiohttp.ClientSession() as session:
        names = [f"{withdrawn}-goes", f"{withdrawn}-stays"]
        goes, stays = [await watching(server, session, await token_of(server, session, name)) for name in names]
        gone = register.SERVICE_ACCOUNT if withdrawn == "account" else register.ROLE_BINDING
        await server.client.delete(gone, "default", names[0])
        assert await ends(goes)
        await server.client.create(register.CONFIG_MAP, {"metadata": {"name": withdrawn, "namespace": "default"}})
        async with asyncio.timeout(15):  # the other's watch goes on
            while json.loads(await stays.content.readline())["object"]["metadata"]["name"] != withdrawn:
                pass
        stays.close()


async def test_a_long_list_comes_in_chunks_and_is_whole(server: RunningServer) -> None:
    await server.client.create(register.NAMESPACE, {"metadata": {"name": "long"}})
    for number in range(120):
        made = {"metadata": {"name": f"m-{number:03}", "namespace": "long"}, "data": {"text": "x" * 4000}}
        await server.client.create(register.CONFIG_MAP, made)
    path = "/api/v1/namespaces/long/configmaps"
    async with aiohttp.ClientSession(server.url) as session:
        for coding in ("identity", "gzip"):
            async with session.get(path, ssl=server.ssl, headers={"Accept-Encoding": coding}) as answer:
                assert answer.headers["Transfer-Encoding"] == "chunked"
                assert answer.headers.get("Content-Encoding", "identity") == coding
                whole = await answer.json()
            async with session.get(f"{path}?limit=60", ssl=server.ssl) as answer:
                first = await answer.json()
            async with session.get(
                path, ssl=server.ssl, params={"limit": "60", "continue": first["metadata"]["continue"]}
            ) as answer:
                second = await answer.json()
            assert whole["items"] == first["items"] + second["items"]
            assert [item["metadata"]["name"] for item in whole["items"]] == [f"m-{n:03}" for n in range(120)]
        async with session.head(path, ssl=server.ssl) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
        async with session.get(path, ssl=server.ssl, headers={"Accept": "application/yaml"}) as answer:
            assert (await answer.text()).count("  text: x") == 120
