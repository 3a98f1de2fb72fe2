"""Watches as bytes on the wire, read by aiohttp: chunks, WebSocket frames, streaming lists, bookmarks and resuming."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests.api_server import RunningServer, running_server

from stead.client.contract import Selection
from stead.kinds import register
from stead.store import watch as store_watch

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIST = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
Event = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def session(server: RunningServer) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=server.ssl)
    async with aiohttp.ClientSession(server.url, connector=connector) as running:
        yield running


async def filled(server: RunningServer, namespace: str, number: int) -> tuple[str, list[str]]:
    """A namespace's resourceVersion before its ConfigMaps were made, and their names."""
    await server.client.create(register.NAMESPACE, {"metadata": {"name": namespace}})
    before = (await server.client.list(register.CONFIG_MAP, Selection(namespace=namespace))).resource_version
    names = [f"c{n}" for n in range(number)]
    for name in names:
        await server.client.create(register.CONFIG_MAP, {"metadata": {"name": name, "namespace": namespace}})
    return before, names


def path(namespace: str, query: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps?{query}"


def names_of(events: list[Event]) -> list[str]:
    return [event["object"]["metadata"]["name"] for event in events if event["type"] != "BOOKMARK"]


async def events_of(session: aiohttp.ClientSession, target: str) -> list[Event]:
    """All events until the server ends the watch."""
    async with session.get(target) as answer:
        assert answer.status == 200
        return [json.loads(line) async for line in answer.content]


async def test_a_chunked_watch_is_one_json_object_a_line(server: RunningServer, session: Any) -> None:
    before, names = await filled(server, "chunked", 3)
    async with session.get(path("chunked", f"watch=1&resourceVersion={before}&timeoutSeconds=1")) as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert answer.headers["Content-Type"] == "application/json"
        assert "Content-Length" not in answer.headers
        body = await answer.read()
    assert body.endswith(b"\n")
    assert names_of([json.loads(line) for line in body.splitlines()]) == names


@pytest.mark.parametrize("protocol", ["", "binary.k8s.io", "base64.binary.k8s.io"])
async def test_a_websocket_watch_is_one_json_object_a_frame(server: RunningServer, session: Any, protocol: str) -> None:
    """Any subprotocol is agreed to and changes nothing: kube-apiserver encodes no watch in base64 either."""
    namespace = f"frames-{protocol.split('.')[0] or 'none'}"
    before, names = await filled(server, namespace, 3)
    target = path(namespace, f"watch=1&resourceVersion={before}&timeoutSeconds=1")
    events = []
    protocols = (protocol,) if protocol else ()
    async with session.ws_connect(target, protocols=protocols, headers={"Origin": server.url}) as socket:
        assert (socket.protocol or "") == protocol
        async for frame in socket:
            events.append(json.loads(frame.data))
        assert socket.close_code == 1000
    assert names_of(events) == names


async def test_a_streaming_list_then_changes_with_one_bookmark_between(server: RunningServer, session: Any) -> None:
    _, names = await filled(server, "streaming", 3)
    async with session.get(path("streaming", LIST)) as answer:
        first = [json.loads(await answer.content.readline()) for _ in range(4)]
        await server.client.delete(register.CONFIG_MAP, "streaming", "c0")
        live = json.loads(await answer.content.readline())
    assert sorted(names_of(first)) == names
    assert [event["type"] for event in first] == ["ADDED"] * 3 + ["BOOKMARK"]
    assert first[-1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    bookmark = int(first[-1]["object"]["metadata"]["resourceVersion"])
    assert bookmark >= max(int(event["object"]["metadata"]["resourceVersion"]) for event in first)
    assert (live["type"], live["object"]["metadata"]["name"]) == ("DELETED", "c0")
    assert int(live["object"]["metadata"]["resourceVersion"]) > bookmark


async def test_a_streaming_list_of_table_rows_keeps_the_bookmark(server: RunningServer, session: Any) -> None:
    await filled(server, "rows", 1)
    accept = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json"
    async with session.get(path("rows", LIST), headers={"Accept": accept}) as answer:
        events = [json.loads(await answer.content.readline()) for _ in range(2)]
    assert [event["object"]["kind"] for event in events] == ["PartialObjectMetadata"] * 2
    assert "k8s.io/initial-events-end" in events[1]["object"]["metadata"]["annotations"]


async def test_a_streaming_list_needs_to_say_how_new_it_must_be(session: Any) -> None:
    async with session.get(path("default", "watch=1&sendInitialEvents=true")) as answer:
        status = await answer.json()
    assert (answer.status, status["reason"]) == (422, "Invalid")
    assert "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan" in status["message"]


async def test_a_watch_resumes_at_each_of_its_versions(server: RunningServer, session: Any) -> None:
    version, names = await filled(server, "resumed", 5)
    whole = await events_of(session, path("resumed", f"watch=1&resourceVersion={version}&timeoutSeconds=1"))
    assert names_of(whole) == names
    for number, event in enumerate(whole):
        since = event["object"]["metadata"]["resourceVersion"]
        rest = await events_of(session, path("resumed", f"watch=1&resourceVersion={since}&timeoutSeconds=1"))
        assert names_of(rest) == names[number + 1 :]


async def test_a_bookmark_is_a_place_to_resume_from(server: RunningServer, session: Any) -> None:
    """It is sent before the end when an object of the kind changed that the watch does not show."""
    version, _ = await filled(server, "marked", 1)
    query = f"watch=1&resourceVersion={version}&allowWatchBookmarks=true&timeoutSeconds=4"
    watching = asyncio.create_task(events_of(session, path("marked", query)))
    await asyncio.sleep(0.5)
    await filled(server, "unmarked", 1)
    events = await watching
    assert [event["type"] for event in events] == ["ADDED", "BOOKMARK"]
    last, mark = (int(event["object"]["metadata"]["resourceVersion"]) for event in events)
    assert mark > last
    await server.client.create(register.CONFIG_MAP, {"metadata": {"name": "later", "namespace": "marked"}})
    since = events[-1]["object"]["metadata"]["resourceVersion"]
    rest = await events_of(session, path("marked", f"watch=1&resourceVersion={since}&timeoutSeconds=1"))
    assert names_of(rest) == ["later"]


async def test_a_watch_from_a_forgotten_version_is_told_410_and_a_new_list_resumes(
    server: RunningServer, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_watch, "RING", 4)
    version, names = await filled(server, "forgotten", 8)
    told = await events_of(session, path("forgotten", f"watch=1&resourceVersion={version}&timeoutSeconds=5"))
    assert [event["type"] for event in told] == ["ERROR"]
    assert (told[0]["object"]["code"], told[0]["object"]["reason"]) == (410, "Expired")
    assert told[0]["object"]["message"].startswith("too old resource version: ")
    async with session.get(path("forgotten", "")) as answer:
        listed = await answer.json()
    assert [item["metadata"]["name"] for item in listed["items"]] == names
    await server.client.delete(register.CONFIG_MAP, "forgotten", "c7")
    since = listed["metadata"]["resourceVersion"]
    rest = await events_of(session, path("forgotten", f"watch=1&resourceVersion={since}&timeoutSeconds=1"))
    assert [(event["type"], event["object"]["metadata"]["name"]) for event in rest] == [("DELETED", "c7")]
