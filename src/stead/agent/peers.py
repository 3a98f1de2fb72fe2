"""The way to another host's agent during a live migration: calls, and a stream that joins the two hypervisors.

Used by `departure.py` at the source. Mutual TLS with the host's own certificates; where the other agent listens stands
in its Node. The stream carries only what the hypervisors say to each other about the move, some kilobytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from stead.agent import relays
from stead.client.contract import Client
from stead.kinds import register
from stead.kube.errors import ApiError, api_error_from_status

Object = dict[str, Any]

CALL_SECONDS = 30.0


class Peers:
    """See the module. `tls` None speaks plain HTTP (tests without certificates)."""

    def __init__(self, client: Client, tls: ssl.SSLContext | None) -> None:
        self._client = client
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._tls if self._tls is not None else False)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False)
        return self._session

    async def _url(self, host: str) -> str:
        node = await self._client.get(register.NODE, None, host)
        status = node.get("status") or {}
        port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port")
        addresses = {item.get("type"): item.get("address") for item in status.get("addresses") or []}
        address = str(addresses.get("InternalIP") or "")
        if not port or not address:
            raise ApiError("ServiceUnavailable", f"host {host} does not say where its agent listens")
        name = f"[{address}]" if ":" in address else address
        return f"{'https' if self._tls is not None else 'http'}://{name}:{port}"

    async def call(self, host: str, path: str, body: Object) -> Object:
        """PUT, answered by a JSON object. Raises ApiError, OSError."""
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
        try:
            url = await self._url(host) + path
            async with self._opened().put(url, json=body, timeout=timeout) as response:
                text = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError("ServiceUnavailable", f"the agent of host {host} cannot be reached: {error}") from error
        try:
            answer: Any = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ApiError("InternalError", f"the agent of host {host} answers no JSON") from error
        if response.status >= 400:
            raise api_error_from_status(answer)
        found: Object = answer
        return found

    @contextlib.asynccontextmanager
    async def joined(self, host: str, path: str, socket: Path) -> AsyncIterator[None]:
        """While inside, each connection to the unix socket (root's alone) goes on as a stream to that path."""
        url = await self._url(host) + path
        socket.unlink(missing_ok=True)
        streams: set[asyncio.Task[Any]] = set()

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            streams.add(task)
            try:
                async with self._opened().ws_connect(url, max_msg_size=0, heartbeat=10.0, compress=0) as ws:
                    await relays.relay(ws, reader, writer)
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass  # the hypervisor at the other end of the socket sees it close
            finally:
                streams.discard(task)
                writer.close()

        server = await asyncio.start_unix_server(carry, str(socket))
        socket.chmod(0o600)
        try:
            yield
        finally:
            server.close()
            for task in tuple(streams):
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
            socket.unlink(missing_ok=True)
