"""KubeVirt's subresource exchanges, byte for byte: paths, verbs, bodies, codes, sub-protocol, frames and close codes.

The client is a bare TLS socket, so that nothing is added to what is sent. The agent behind the server is a fake.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.api_server import RunningServer, running_server
from tests.fake_agent_http import PNG, FakeAgentHttp, fake_agent, running_machine

from stead.cli import streams
from stead.cli.session import Session
from stead.client.direct import DirectClient
from stead.client.kubeconfig import load
from stead.config import Settings
from stead.kinds import register
from stead.kube.errors import ApiError

pytestmark = pytest.mark.asyncio(loop_scope="module")

SUB = "/apis/subresources.kubevirt.io/v1/namespaces/default"
VMI, VM = f"{SUB}/virtualmachineinstances", f"{SUB}/virtualmachines"
OWN = "/apis/subresources.stead.io/v1alpha1/namespaces/default/virtualmachineinstances"
AGENT = "/v1/namespaces/default/machines/web"
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Exchange:
    """A server with one running machine, `web`, on the host of a fake agent."""

    def __init__(self, server: RunningServer, agent: FakeAgentHttp) -> None:
        self.server = server
        self.agent = agent

    async def connect(self, context: Any = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare TLS connection."""
        host = "127.0.0.1"
        return await asyncio.open_connection(host, self.server.port, ssl=context or self.server.ssl)

    async def send(
        self, method: str, path: str, body: bytes = b"", context: Any = None, accept: str = "application/json, */*"
    ) -> tuple[int, dict[str, str], bytes]:
        """One request: (code, headers in lower case, body)."""
        reader, writer = await self.connect(context)
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        async with asyncio.timeout(20):
            code, headers = await read_head(reader)
            answer = await reader.readexactly(int(headers["content-length"]))
        writer.close()
        return code, headers, answer

    async def upgrade(self, path: str, *protocols: str, context: Any = None) -> Stream:
        """A WebSocket handshake as RFC 6455 writes it."""
        reader, writer = await self.connect(context)
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        head += f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        head += "".join(f"Sec-WebSocket-Protocol: {protocol}\r\n" for protocol in protocols)
        writer.write(f"{head}\r\n".encode())
        async with asyncio.timeout(20):
            code, headers = await read_head(reader)
            body = b""
            if code != 101:
                body = await reader.readexactly(int(headers["content-length"]))
            else:
                accept = base64.b64encode(hashlib.sha1(f"{key}{_GUID}".encode(), usedforsecurity=False).digest())
                assert headers["sec-websocket-accept"] == accept.decode()
        return Stream(reader, writer, code, headers, body)


class Stream:
    """An upgraded connection (or what was answered instead)."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        code: int,
        headers: dict[str, str],
        body: bytes,
    ) -> None:
        self._reader, self._writer = reader, writer
        self.code, self.headers, self.body = code, headers, body

    async def send(self, payload: bytes, opcode: int = 2) -> None:
        """One masked frame."""
        mask = os.urandom(4)
        length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack("!H", len(payload))
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self._writer.write(bytes([0x80 | opcode]) + length + mask + masked)
        await self._writer.drain()

    async def receive(self) -> tuple[int, bytes]:
        """(opcode, payload) of the next frame; pings are passed over."""
        async with asyncio.timeout(20):
            while True:
                first, second = await self._reader.readexactly(2)
                size = second & 0x7F
                if size == 126:
                    size = struct.unpack("!H", await self._reader.readexactly(2))[0]
                payload = await self._reader.readexactly(size)
                if first & 0x0F != 9:
                    assert first & 0x80, "frames are whole"
                    assert not second & 0x80, "a server does not mask"
                    return first & 0x0F, payload

    def close(self) -> None:
        """End the connection without a farewell."""
        self._writer.close()


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status line and headers."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = head.split("\r\n")
    pairs = (line.split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value for name, value in pairs}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def exchange() -> AsyncIterator[Exchange]:
    async with running_server() as server, fake_agent(server.client) as agent:
        await running_machine(server.client, "web")
        yield Exchange(server, agent)


@pytest.fixture(autouse=True)
def fresh(exchange: Exchange) -> None:
    exchange.agent.calls.clear()
    exchange.agent.close_with = 0
    exchange.agent.refusal = None


@pytest.mark.parametrize("what", ["pause", "freeze", "unfreeze", "softreboot", "reset"])
async def test_a_change_is_a_put_answered_202_with_nothing(exchange: Exchange, what: str) -> None:
    code, headers, body = await exchange.send("PUT", f"{VMI}/web/{what}")
    assert (code, body) == (202, b"")
    assert "content-type" not in headers
    assert [call[:2] for call in exchange.agent.calls] == [("PUT", f"{AGENT}/{what}")]


async def test_a_dry_run_reaches_no_agent(exchange: Exchange) -> None:
    assert (await exchange.send("PUT", f"{VMI}/web/pause", b'{"dryRun":["All"]}'))[0] == 202
    assert exchange.agent.calls == []


async def test_refusals_are_statuses_in_kubevirts_words(exchange: Exchange) -> None:
    code, _, body = await exchange.send("PUT", f"{VMI}/web/unpause")
    assert code == 409
    status = json.loads(body)
    assert status["reason"] == "Conflict"
    name = 'virtualmachineinstance.kubevirt.io "web"'
    assert status["message"] == f"Operation cannot be fulfilled on {name}: VMI is not paused"
    code, _, body = await exchange.send("PUT", f"{VMI}/ghost/pause")
    assert (code, json.loads(body)["message"]) == (404, 'virtualmachineinstance.kubevirt.io "ghost" not found')
    code, _, body = await exchange.send("PUT", f"{VM}/web/start")
    assert (code, "VM is already running" in json.loads(body)["message"]) == (409, True)


async def test_what_the_agent_refuses_reaches_the_client_as_it_is(exchange: Exchange) -> None:
    refusal = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409, "reason": "Conflict"}
    exchange.agent.refusal = {**refusal, "metadata": {}, "message": "a stop is under way"}
    code, _, body = await exchange.send("PUT", f"{VMI}/web/reset")
    assert (code, json.loads(body)["message"]) == (409, "a stop is under way")


async def test_our_client_tells_why_a_stream_was_refused_and_the_guest_is_dialled_once(
    exchange: Exchange, capfd: pytest.CaptureFixture[str]
) -> None:
    refusal = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {}, "code": 500}
    text = "dialing VM: 10.128.0.5:22: connection refused"
    exchange.agent.refusal = {**refusal, "reason": "InternalError", "message": text}
    exchange.agent.calls.clear()
    client = DirectClient(load(exchange.server.kubeconfig))
    try:
        with pytest.raises(ApiError, match=text):
            async with client.websocket(f"{VMI}/web/portforward/22/tcp", "plain.kubevirt.io"):
                pass
        assert len(exchange.agent.calls) == 1
        forward = await streams._serve(
            Session(client, "default", Settings()), "web", "portforward/22/tcp", ("127.0.0.1", 0)
        )
        async with forward, asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(*forward.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
    finally:
        await client.close()
    assert capfd.readouterr().err.strip() == "connection to port 22 of web refused"


@pytest.mark.parametrize("what", ["guestosinfo", "userlist", "filesystemlist"])
async def test_guest_information_is_json_from_the_agent(exchange: Exchange, what: str) -> None:
    code, headers, body = await exchange.send("GET", f"{VMI}/web/{what}")
    assert (code, headers["content-type"]) == (200, "application/json")
    assert json.loads(body)["kind"].startswith("VirtualMachineInstance")
    code, headers, body = await exchange.send("GET", f"{VMI}/ghost/{what}")
    assert (code, headers["content-type"]) == (500, "text/plain; charset=utf-8")
    assert body == b'virtualmachineinstance.kubevirt.io "ghost" not found'


async def test_a_screenshot_is_a_png(exchange: Exchange) -> None:
    code, headers, body = await exchange.send("GET", f"{VMI}/web/vnc/screenshot")
    assert (code, headers["content-type"], body) == (200, "image/png", PNG)


@pytest.mark.parametrize(
    ("path", "greeting"),
    [
        (f"{VMI}/web/console", b"hello from web/console"),
        (f"{VMI}/web/vnc", b"hello from web/vnc"),
        (f"{VMI}/web/portforward/22", b"hello from web/portforward/22/tcp"),
        (f"{VMI}/web/portforward/53/udp", b"hello from web/portforward/53/udp"),
        (f"{VM}/web/portforward/22/tcp", b"hello from web/portforward/22/tcp"),
    ],
)
async def test_a_stream_speaks_plain_frames_both_ways(exchange: Exchange, path: str, greeting: bytes) -> None:
    stream = await exchange.upgrade(path, "plain.kubevirt.io")
    assert stream.code == 101
    assert stream.headers["sec-websocket-protocol"] == "plain.kubevirt.io"
    assert await stream.receive() == (2, greeting)
    for payload in (b"\x00\xffRFB", b"x" * 5000):
        await stream.send(payload)
        assert await stream.receive() == (2, payload)
    await stream.send(struct.pack("!H", 1000), opcode=8)
    assert await stream.receive() == (8, struct.pack("!H", 1000))
    assert exchange.agent.protocols[-1] == "plain.kubevirt.io"


async def test_the_agents_close_code_reaches_the_client(exchange: Exchange) -> None:
    exchange.agent.close_with = 1011
    stream = await exchange.upgrade(f"{VMI}/web/console", "plain.kubevirt.io")
    await stream.receive()
    opcode, payload = await stream.receive()
    assert (opcode, payload[:2]) == (8, struct.pack("!H", 1011))


async def test_a_stream_is_refused_before_the_upgrade(exchange: Exchange) -> None:
    stream = await exchange.upgrade(f"{VMI}/ghost/console", "plain.kubevirt.io")
    assert (stream.code, json.loads(stream.body)["reason"]) == (404, "NotFound")
    stream = await exchange.upgrade(f"{VMI}/web/portforward/99999", "plain.kubevirt.io")
    assert stream.code == 400
    refusal = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {}, "code": 500}
    exchange.agent.refusal = {**refusal, "reason": "InternalError", "message": "dialing VM: connection refused"}
    stream = await exchange.upgrade(f"{VMI}/web/portforward/1", "plain.kubevirt.io")
    assert (stream.code, json.loads(stream.body)["message"]) == (500, "dialing VM: connection refused")


async def test_a_stream_without_an_upgrade_says_what_is_missing(exchange: Exchange) -> None:
    code, _, body = await exchange.send("GET", f"{VMI}/web/console")
    assert code == 400
    assert "websocket" in json.loads(body)["message"]


async def test_wrong_verbs_and_paths(exchange: Exchange) -> None:
    assert (await exchange.send("POST", f"{VMI}/web/pause"))[::2] == (405, b"405: Method Not Allowed")
    assert (await exchange.send("PUT", f"{VMI}/web/nonsense"))[::2] == (404, b"404: Page Not Found")
    assert (await exchange.send("PUT", f"{VM}/web/pause"))[0] == 404


@pytest.mark.parametrize("body", [b'{"gracePeriod":"soon"}', b"{broken", b"[1]", b'{"dryRun":1}'])
async def test_options_of_the_wrong_type_are_refused(exchange: Exchange, body: bytes) -> None:
    code, _, answer = await exchange.send("PUT", f"{VM}/web/stop", body)
    assert code == 400
    assert json.loads(answer)["message"].startswith("Can not unmarshal Request body to struct, error: ")


async def test_stop_writes_the_machine(exchange: Exchange) -> None:
    await running_machine(exchange.server.client, "gone")
    assert (await exchange.send("PUT", f"{VM}/gone/stop", b"{}"))[::2] == (202, b"")
    machine = await exchange.server.client.get(register.VIRTUAL_MACHINE, "default", "gone")
    assert machine["spec"]["runStrategy"] == "Halted"


async def test_our_own_questions(exchange: Exchange) -> None:
    assert (await exchange.send("GET", f"{OWN}/web/xml"))[::2] == (200, b"<domain/>")
    code, headers, body = await exchange.send("GET", f"{OWN}/web/stats")
    assert (code, headers["content-type"], json.loads(body)) == (200, "application/json", {"cpuNanoseconds": 7})
    assert (await exchange.send("GET", f"{OWN}/ghost/xml"))[0] == 404
    assert (await exchange.send("PUT", f"{OWN}/web/xml"))[0] == 405


async def test_each_subresource_needs_its_own_right(exchange: Exchange) -> None:
    client = exchange.server.client
    rule = {"apiGroups": ["subresources.kubevirt.io"], "resources": ["virtualmachineinstances/console"]}
    group = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "con", "namespace": "default"}}
    await client.create(register.ROLE, {**role, "rules": [{**rule, "verbs": ["get"]}]})
    binding = {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": {"name": "con", "namespace": "default"}}
    subject = {"apiGroup": group, "kind": "User", "name": "ann"}
    reference = {"apiGroup": group, "kind": "Role", "name": "con"}
    await client.create(register.ROLE_BINDING, {**binding, "roleRef": reference, "subjects": [subject]})
    ann = exchange.server.context("ann")
    allowed = await exchange.upgrade(f"{VMI}/web/console", "plain.kubevirt.io", context=ann)
    assert allowed.code == 101
    allowed.close()
    assert (await exchange.upgrade(f"{VMI}/web/vnc", "plain.kubevirt.io", context=ann)).code == 403
    assert (await exchange.send("GET", f"{OWN}/web/xml", context=ann))[0] == 403
    assert (await exchange.send("PUT", f"{VMI}/web/pause", context=ann))[0] == 403


async def test_expanding_a_machine_that_is_none_is_refused(exchange: Exchange) -> None:
    path = f"{SUB}/expand-vm-spec"
    assert (await exchange.send("PUT", path))[::2] == (415, b"415: Unsupported Media Type")
    for body in (b'{"kind":"VirtualMachine"}', b'{"spec":{"template":{"spec":{"domain":7}}}}'):
        code, _, answer = await exchange.send("PUT", path, body)
        assert (code, "in body" in json.loads(answer)["message"]) == (422, True)
