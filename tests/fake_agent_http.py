"""A fake of an agent's HTTP port, for tests of what the server relays: no guest stands behind it.

It answers the calls of `/v1/namespaces/{ns}/machines/{name}` with fixed values, notes each call, and echoes streams:
what comes in on console, vnc or portforward goes out again behind a greeting that names the stream.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import WSMsgType, web

from stead.client.contract import Client
from stead.kinds import register

PNG = b"\x89PNG\r\n\x1a\nfake"
INFORMATION: dict[str, Any] = {
    "guestosinfo": {"kind": "VirtualMachineInstanceGuestAgentInfo", "guestAgentVersion": "7.2", "hostname": "web"},
    "userlist": {"kind": "VirtualMachineInstanceGuestOSUserList", "items": [{"userName": "ann"}]},
    "filesystemlist": {"kind": "VirtualMachineInstanceFileSystemList", "items": [{"diskName": "vda"}]},
    "stats": {"cpuNanoseconds": 7},
}
BASE = "/v1/namespaces/{namespace}/machines/{name}"


class FakeAgentHttp:
    """See the module's prose. `calls` holds (method, path, JSON body or None) in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        self.protocols: list[str | None] = []
        #: close code of the next stream, after its greeting; 0 = echo until the client leaves
        self.close_with = 0
        #: a Status to refuse the next call with
        self.refusal: dict[str, Any] | None = None

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application()
        app.router.add_put(f"{BASE}/{{what}}", self._put)
        for name in ("console", "vnc", "portforward/{port}/{protocol}"):
            app.router.add_get(f"{BASE}/{name}", self._stream)
        app.router.add_get(f"{BASE}/{{what}}", self._get)
        return app

    async def _put(self, request: web.Request) -> web.Response:
        text = await request.text()
        self.calls.append(("PUT", request.path, json.loads(text) if text else None))
        if self.refusal is not None:
            status, self.refusal = self.refusal, None
            return web.json_response(status, status=status["code"])
        return web.json_response({})

    async def _get(self, request: web.Request) -> web.Response:
        self.calls.append(("GET", request.path, None))
        what = request.match_info["what"]
        if what == "screenshot":
            return web.Response(body=PNG, content_type="image/png")
        if what == "xml":
            return web.Response(text="<domain/>", content_type="text/plain")
        return web.json_response(INFORMATION[what])

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(("GET", request.path, None))
        if self.refusal is not None:
            return web.json_response(self.refusal, status=self.refusal["code"])
        ws = web.WebSocketResponse(protocols=("plain.kubevirt.io",), compress=False)
        await ws.prepare(request)
        self.protocols.append(ws.ws_protocol)
        await ws.send_bytes(b"hello from " + request.path.rsplit("/machines/")[1].encode())
        if self.close_with:
            await ws.close(code=self.close_with)
            return ws
        async for message in ws:
            if message.type is WSMsgType.BINARY:
                await ws.send_bytes(message.data)
        return ws


@contextlib.asynccontextmanager
async def fake_agent(client: Client, host: str = "n1") -> AsyncIterator[FakeAgentHttp]:
    """Serve a fake agent on loopback, with a Node that points to it."""
    agent = FakeAgentHttp()
    runner = web.AppRunner(agent.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": host}}
    made = await client.create(register.NODE, node)
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    await client.update(register.NODE, {**made, "status": status}, "status")
    try:
        yield agent
    finally:
        await runner.cleanup()


async def running_machine(
    client: Client, name: str, *, host: str = "n1", spec: dict[str, Any] | None = None, **status: Any
) -> None:
    """A VirtualMachine with an instance that is said to run on the fake's host."""
    body = {"domain": {"devices": {}, "memory": {"guest": "128Mi"}}, **(spec or {})}
    version = "kubevirt.io/v1"
    metadata = {"name": name, "namespace": "default"}
    machine = await client.create(register.VIRTUAL_MACHINE, {
        "apiVersion": version, "kind": "VirtualMachine", "metadata": metadata,
        "spec": {"runStrategy": "Always", "template": {"spec": body}},
    })  # fmt: skip
    owner = {
        "apiVersion": version, "kind": "VirtualMachine", "name": name, "uid": machine["metadata"]["uid"],
        "controller": True,
    }  # fmt: skip
    await client.create(register.VIRTUAL_MACHINE_INSTANCE, {
        "apiVersion": version, "kind": "VirtualMachineInstance", "metadata": {**metadata, "ownerReferences": [owner]},
        "spec": body,
    })  # fmt: skip
    conditions = [{"type": kind, "status": "True"} for kind in ("Ready", "AgentConnected")]
    interface = {"name": "default", "ipAddress": "10.1.2.3", "ipAddresses": ["10.1.2.3"]}
    full = {"phase": "Running", "nodeName": host, "conditions": conditions, "interfaces": [interface], **status}
    await client.patch(register.VIRTUAL_MACHINE_INSTANCE, "default", name, {"status": full})
    ready = {"created": True, "ready": True}
    await client.patch(register.VIRTUAL_MACHINE, "default", name, {"status": ready}, subresource="status")
