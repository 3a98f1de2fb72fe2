"""What must hold of any answer: pages are one consistent list while others write; no body, however broken, is a 500."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import aiohttp
from tests.api_server import running_server

PATH = "/api/v1/namespaces/default/configmaps"


def _item(name: str, value: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"p": "1"}},
            "data": {"v": value}}  # fmt: skip


async def test_pages_are_one_list_however_much_is_written_between_them() -> None:
    draw = random.Random(2)
    async with running_server() as server:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=server.ssl)) as session:
            names = [f"item-{number:03}" for number in range(60)]
            for name in names:
                await session.post(server.url + PATH, json=_item(name, "0"))
            stop = asyncio.Event()

            async def writer(seed: int) -> None:
                own = random.Random(seed)
                while not stop.is_set():
                    name = own.choice(names)
                    method = own.choice(("PUT", "DELETE", "POST"))
                    url = server.url + PATH + ("" if method == "POST" else f"/{name}")
                    body = None if method == "DELETE" else _item(name, str(own.random()))
                    await session.request(method, url, json=body)

            writing = [asyncio.create_task(writer(seed)) for seed in range(3)]
            try:
                for _ in range(12):
                    whole = await _pages(session, server.url, draw.randint(3, 25))
                    exact = {"resourceVersion": whole[0], "resourceVersionMatch": "Exact", "labelSelector": "p"}
                    async with session.get(server.url + PATH, params=exact) as answer:
                        at_once = await answer.json()
                    assert whole[1] == [(i["metadata"]["name"], i["data"]["v"]) for i in at_once["items"]]
            finally:
                stop.set()
                await asyncio.gather(*writing)


async def _pages(session: aiohttp.ClientSession, url: str, limit: int) -> tuple[str, list[tuple[str, str]]]:
    """The revision and all items of a list in pages."""
    found: list[tuple[str, str]] = []
    revisions = set()
    query = {"limit": str(limit), "labelSelector": "p"}
    while True:
        async with session.get(url + PATH, params=query) as answer:
            assert answer.status == 200
            page = await answer.json()
        revisions.add(page["metadata"]["resourceVersion"])
        found += [(item["metadata"]["name"], item["data"]["v"]) for item in page["items"]]
        if not page["metadata"].get("continue"):
            break
        query["continue"] = page["metadata"]["continue"]
    assert len(revisions) == 1
    assert found == sorted(set(found))
    return revisions.pop(), found


CONTENT = (
    "application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/json-patch+json",
    "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml",
)  # fmt: skip
TARGETS = (
    PATH, f"{PATH}/a", "/apis/kubevirt.io/v1/namespaces/default/virtualmachines", "/api/v1/namespaces",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles", "/apis/rbac.authorization.k8s.io/v1/clusterroles/view",
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "/apis/cdi.kubevirt.io/v1beta1/namespaces/default/datavolumes",
    "/apis/authorization.k8s.io/v1/subjectaccessreviews", "/api/v1/namespaces/default/serviceaccounts/default/token",
)  # fmt: skip
KEYS = ("metadata", "spec", "name", "labels", "rules", "verbs", "template", "domain", "devices", "subjects", "roleRef",
        "aggregationRule", "clusterRoleSelectors", "matchLabels", "resourceAttributes", "op", "path", "value", "data",
        "managedFields", "finalizers", "ownerReferences", "apiVersion", "kind", "annotations", "groups")  # fmt: skip


def _any(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.choice(("map", "map", "list", "text", "number", "null", "bool")) if depth < 5 else "text"
    if kind == "map":
        return {draw.choice(KEYS): _any(draw, depth + 1) for _ in range(draw.randint(0, 4))}
    if kind == "list":
        return [_any(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    return {"text": draw.choice(("", "a", "replace", "/metadata", "v1", "\x00", "é" * 9)), "null": None, "bool": True,
            "number": draw.choice((0, -1, 1 << 70, 1.5))}[kind]  # fmt: skip


def _body(draw: random.Random) -> bytes:
    body = _any(draw)
    if isinstance(body, dict) and draw.random() < 0.5:
        body["metadata"] = {**(body["metadata"] if isinstance(body.get("metadata"), dict) else {}), "name": "a"}
    raw = bytearray(json.dumps(body).encode() + b" ")
    if draw.random() < 0.2:
        raw[draw.randrange(len(raw))] = draw.randrange(256)
    return bytes(raw)


async def test_no_body_is_answered_with_a_server_error() -> None:
    draw = random.Random(3)
    async with running_server() as server:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=server.ssl)) as session:
            await session.post(server.url + PATH, json=_item("a", "0"))
            for _ in range(600):
                raw = _body(draw)
                method, target, kind = draw.choice(("POST", "PUT", "PATCH")), draw.choice(TARGETS), draw.choice(CONTENT)
                url = server.url + target + ("?fieldManager=f" if "apply" in kind else "")
                async with session.request(method, url, data=raw, headers={"Content-Type": kind}) as answer:
                    text = await answer.text()
                    assert answer.status < 500, (method, target, kind, raw, text)
