"""The way to a host's agent: HTTPS calls, WebSocket relays and body streams over mutual TLS.

Called by `subresources`, `uploads` and `exports`. Where an agent listens stands in its Node object; the plane's client
certificate is in the TLS context. One connection pool for all hosts; every call has a deadline, relays end when
either side does. Both directions of a relay wait for the receiver (back-pressure), so that a slow reader holds no
memory here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from stead.client.handshake import refusals
from stead.kinds import register
from stead.kube.errors import ApiError, api_error_from_status
from stead.server.registry import Registry
from stead.server.streaming import chosen_subprotocol

if TYPE_CHECKING:
    from stead.server.exchange import Exchange

Object = dict[str, Any]

PROTOCOL = "plain.kubevirt.io"
CALL_SECONDS = 60.0
CONNECT_SECONDS = 10.0
#: CDI proxies an upload for at most a day
UPLOAD_SECONDS = 86400.0
MAX_FRAME = 4 * 1024 * 1024


class Reply(msgspec.Struct, frozen=True):
    """An agent's answer."""

    code: int
    content_type: str
    body: bytes


class Agents:
    """See the module's prose."""

    def __init__(self, registry: Registry, tls: ssl.SSLContext | None) -> None:
        self._registry = registry
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self._relays: set[asyncio.Task[None]] = set()

    def url(self, host: str) -> str:
        """Where the agent of a host listens. Raises ApiError 400 as KubeVirt does when there is none."""
        node = self._registry.peek(register.NODE, "", host) if host else None
        status = (node or {}).get("status") or {}
        port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port")
        addresses = {item.get("type"): item.get("address") for item in status.get("addresses") or []}
        address = addresses.get("InternalIP") or addresses.get("Hostname")
        if not port or not address:
            raise ApiError("BadRequest", f"No virt-handler on {host}: the agent of this host is not known")
        name = f"[{address}]" if ":" in str(address) else address
        return f"{'https' if self._tls is not None else 'http'}://{name}:{port}"

    async def call(self, host: str, method: str, path: str, body: Object | None = None) -> Reply:
        """One call. Raises what the agent refuses with, and 503 when it cannot be reached."""
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS, sock_connect=CONNECT_SECONDS)
        url = self.url(host) + path
        try:
            async with self._opened().request(method, url, json=body, timeout=timeout) as response:
                reply = Reply(response.status, response.content_type, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(host, error) from error
        if reply.code >= 400:
            raise _refusal(reply)
        return reply

    async def send(self, host: str, path: str, chunks: AsyncIterator[bytes], length: int | None) -> Reply:
        """Stream a body to an agent."""
        timeout = aiohttp.ClientTimeout(total=UPLOAD_SECONDS, sock_connect=CONNECT_SECONDS)
        headers = {"Content-Type": "application/octet-stream"}
        if length is not None:
            headers["Content-Length"] = str(length)
        try:
            async with self._opened().put(
                self.url(host) + path, data=chunks, headers=headers, timeout=timeout
            ) as response:
                return Reply(response.status, response.content_type, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(host, error) from error

    @contextlib.asynccontextmanager
    async def reading(self, host: str, path: str) -> AsyncIterator[tuple[dict[str, str], AsyncIterator[bytes]]]:
        """An agent's streamed body: its headers and chunks. Raises what the agent refuses with, and 503."""
        timeout = aiohttp.ClientTimeout(total=UPLOAD_SECONDS, sock_connect=CONNECT_SECONDS)
        try:
            async with self._opened().get(self.url(host) + path, timeout=timeout) as response:
                if response.status >= 400:
                    raise await _refused_stream(response)
                headers = {name.lower(): value for name, value in response.headers.items()}
                yield headers, response.content.iter_chunked(MAX_FRAME)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(host, error) from error

    async def relay(self, exchange: Exchange, host: str, path: str) -> None:
        """Join a client's WebSocket with one of the agent's until either ends. Errors before that are raised."""
        url = self.url(host) + path
        try:
            async with asyncio.timeout(CONNECT_SECONDS + 5):
                agent = await self._opened().ws_connect(
                    url, protocols=(PROTOCOL,), max_msg_size=MAX_FRAME, heartbeat=30.0, compress=0, autoclose=True,
                )  # fmt: skip
        except aiohttp.WSServerHandshakeError as error:  # not a refusal with a reason: `handshake` has read those
            raise ApiError("", error.message or "the agent refused the stream", code=error.status) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(host, error) from error
        try:
            await exchange.receive()
            await exchange.send({
                "type": "websocket.accept",
                "subprotocol": chosen_subprotocol(exchange.scope.get("subprotocols") or []),
            })  # fmt: skip
            exchange.code = 101
            await self._pump(exchange, agent)
        finally:
            await agent.close()

    async def _pump(self, exchange: Exchange, agent: aiohttp.ClientWebSocketResponse) -> None:
        outward = asyncio.create_task(_client_to_agent(exchange, agent))
        inward = asyncio.create_task(_agent_to_client(exchange, agent))
        for task in (outward, inward):
            self._relays.add(task)
            task.add_done_callback(self._relays.discard)
        try:
            await asyncio.wait((outward, inward), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (outward, inward):
                task.cancel()
            await asyncio.gather(outward, inward, return_exceptions=True)
        if inward.done():
            code = agent.close_code or 1000
            # 1005 and 1006 stand for "no code": they must not be sent.
            code = 1000 if code in (1005, 1006) else code
            with contextlib.suppress(Exception):
                await exchange.send({"type": "websocket.close", "code": code})

    async def close(self) -> None:
        """End relays and connections."""
        for task in list(self._relays):
            task.cancel()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._tls if self._tls is not None else False, limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, trust_env=False, trace_configs=[refusals(_refused_stream)]
            )
        return self._session


async def _client_to_agent(exchange: Exchange, agent: aiohttp.ClientWebSocketResponse) -> None:
    while True:
        message = await exchange.receive()
        if message["type"] == "websocket.disconnect":
            await agent.close()
            return
        data = message.get("bytes")
        if data is None:
            data = (message.get("text") or "").encode()
        await agent.send_bytes(data)


async def _agent_to_client(exchange: Exchange, agent: aiohttp.ClientWebSocketResponse) -> None:
    async for message in agent:
        if message.type is aiohttp.WSMsgType.BINARY:
            await exchange.send({"type": "websocket.send", "bytes": message.data})
        elif message.type is aiohttp.WSMsgType.TEXT:
            await exchange.send({"type": "websocket.send", "bytes": message.data.encode()})
        else:
            return


def _unreachable(host: str, error: Exception) -> ApiError:
    text = f"the agent of host {host} cannot be reached: {error or type(error).__name__}"
    return ApiError("ServiceUnavailable", text)


async def _refused_stream(response: aiohttp.ClientResponse) -> ApiError:
    return _refusal(Reply(response.status, response.content_type, await response.read()))


def _refusal(reply: Reply) -> ApiError:
    try:
        status: Any = msgspec.json.decode(reply.body)
        if isinstance(status, dict) and status.get("kind") == "Status":
            return api_error_from_status(status)
    except msgspec.DecodeError:
        pass
    return ApiError("", reply.body[:512].decode("utf-8", "replace") or "error", code=reply.code)
