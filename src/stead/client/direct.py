"""The remote client with calls by path: subresources, dry runs, uploads, WebSocket streams. For the command line.

Controllers and the agent never need these. Failures are those of `client.remote`: `ApiError` and `OSError`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec

from stead.client.contract import Object
from stead.client.remote import CONNECT_SECONDS, REQUEST_SECONDS, RemoteClient, network_error
from stead.kube.errors import ApiError

#: largest WebSocket message that is taken, bytes
MAX_MESSAGE = 4 * 1024 * 1024


class DirectClient(RemoteClient):
    """See the module's prose."""

    async def request_json(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Object:
        """One call with a JSON body and answer."""
        return await self._call(method, path, query, body=body, kind=content_type)

    async def request_bytes(self, method: str, path: str, *, body: Any = None) -> bytes:
        """One call whose answer is not JSON; any type is accepted."""
        session, headers = await self._prepared()
        headers["Accept"] = "*/*"
        data = None
        if body is not None:
            data = msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS)
        url = self._endpoint.server + path
        try:
            async with session.request(method, url, data=data, headers=headers, timeout=timeout) as response:
                if response.status >= 300:
                    raise await self._error(response)
                return await response.read()
        except aiohttp.ClientError as failure:
            raise network_error(failure) from failure

    async def request_text(self, method: str, path: str, *, body: Any = None) -> str:
        """As `request_bytes`, decoded."""
        return (await self.request_bytes(method, path, body=body)).decode("utf-8", "replace")

    async def upload(self, path: str, token: str, blocks: AsyncIterator[bytes]) -> None:
        """POST a stream with a bearer token of its own; no deadline but that for connecting."""
        session, headers = await self._prepared()
        headers |= {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        url = self._endpoint.server + path
        try:
            async with session.post(url, data=blocks, headers=headers, timeout=timeout) as response:
                if response.status >= 300:
                    raise await self._error(response)
        except aiohttp.ClientError as failure:
            raise network_error(failure) from failure

    async def download(self, path: str, own: dict[str, str]) -> AsyncIterator[tuple[bytes, int]]:
        """(chunk, bytes in all or 0 when unknown) of a large answer, asked for with headers of its own."""
        session, headers = await self._prepared()
        headers |= {**own, "Accept": "*/*", "Accept-Encoding": "identity"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        try:
            async with session.get(self._endpoint.server + path, headers=headers, timeout=timeout) as response:
                if response.status >= 300:
                    raise await self._error(response)
                async for chunk in response.content.iter_chunked(MAX_MESSAGE):
                    yield chunk, response.content_length or 0
        except aiohttp.ClientError as failure:
            raise network_error(failure) from failure

    @contextlib.asynccontextmanager
    async def websocket(self, path: str, protocol: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A stream. Raises ApiError when the server refuses the upgrade."""
        session, headers = await self._prepared()
        del headers["Accept"]
        url = self._endpoint.server + path
        try:
            async with session.ws_connect(
                url, protocols=(protocol,), headers=headers, max_msg_size=MAX_MESSAGE, heartbeat=30
            ) as socket:
                yield socket
        except aiohttp.WSServerHandshakeError as failure:  # not a refusal with a reason: `handshake` has read those
            raise ApiError("", f"the server refused the stream ({failure.status})", code=failure.status) from failure
