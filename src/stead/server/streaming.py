"""Watches on the wire: chunks over HTTP, text frames over WebSocket; and refusals before an upgrade.

Called by `app`. Each open watch is one task, that of its request; a second one only waits for the client to go away. On
`close` every watch ends with a clean final chunk (or close 1000), so that clients watch again from where they are.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from typing import TYPE_CHECKING, Any

from stead.kube.errors import ApiError
from stead.server.answer import JSON, PROTOBUF, Answer, Send, header_list
from stead.server.health import Metrics
from stead.server.registry import Registry
from stead.server.shapes import Shape
from stead.server.watching import Change, Watch, error_frame, watch_from

if TYPE_CHECKING:
    from stead.server.exchange import Exchange

#: the listener's extension of ASGI: a function that writes one chunk of a body at once, or returns False
CHUNKS = "stead.chunks"
_BEARER = "base64url.bearer.authorization.k8s.io."


def bearer_of(subprotocols: list[str]) -> str:
    """The bearer token that a browser sends as a WebSocket subprotocol, or ""."""
    for name in subprotocols:
        if name.startswith(_BEARER):
            text = name.removeprefix(_BEARER)
            try:
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
            except (binascii.Error, ValueError):
                return "malformed"
    return ""


def chosen_subprotocol(subprotocols: list[str]) -> str | None:
    """The subprotocol to echo: the first that is no token."""
    return next((name for name in subprotocols if not name.startswith(_BEARER)), None)


async def refuse(send: Send, answer: Answer, audit_id: str) -> None:
    """Answer a WebSocket handshake with a plain HTTP response."""
    headers = header_list(answer, audit_id, len(answer.body))
    await send({"type": "websocket.http.response.start", "status": answer.code, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": answer.body})


class Watches:
    """All open watches."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._open: set[Watch] = set()
        self._closed = False

    def close(self) -> None:
        """End every watch cleanly; new ones end at once."""
        self._closed = True
        for watch in self._open:
            watch.close()

    async def serve(self, exchange: Exchange, registry: Registry, shape: Shape, namespace: str) -> Answer | None:
        """Serve one watch to its end. An error before the start is raised."""
        request = exchange.request
        watch = watch_from(registry, shape, namespace, request.query, request.name or request.selected_name)
        try:
            initial, failure = watch.open(), None
        except ApiError as error:
            initial, failure = [], error
        if self._closed:
            watch.close()
        self._open.add(watch)
        exchange.end = watch.close
        self._metrics.watchers.inc()
        exchange.code = 200
        try:
            if exchange.scope["type"] == "websocket":
                await _over_websocket(exchange, watch, initial, failure)
            else:
                await _over_http(exchange, watch, initial, failure)
        finally:
            watch.close()
            self._open.discard(watch)
            self._metrics.watchers.dec()
        return None


async def _lines(watch: Watch, initial: list[Change], failure: ApiError | None) -> Any:
    """Batches of event lines."""
    if failure is not None:
        yield [error_frame(failure)]
        return
    if initial:
        yield watch.lines(initial)
    try:
        async for batch in watch.changes():
            yield watch.lines(batch)
    except ApiError as error:
        yield [error_frame(error)]


async def _over_http(exchange: Exchange, watch: Watch, initial: list[Change], failure: ApiError | None) -> None:
    headers = [
        (b"content-type", b"application/json"), (b"cache-control", b"no-cache, private"),
        (b"audit-id", exchange.audit_id.encode("latin-1", "replace")),
    ]  # fmt: skip
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
    await exchange.send({"type": "http.response.body", "body": b"", "more_body": True})
    gone = asyncio.create_task(_until_gone(exchange, watch))
    write = (exchange.scope.get("extensions") or {}).get(CHUNKS)
    if write is not None and failure is None:
        watch.send_by(write)
    try:
        async for lines in _lines(watch, initial, failure):
            await exchange.send({"type": "http.response.body", "body": b"".join(lines), "more_body": True})
            if gone.done():
                return
        await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        gone.cancel()


async def _until_gone(exchange: Exchange, watch: Watch) -> None:
    """Close the watch when the client goes away."""
    while True:
        message = await exchange.receive()
        if message["type"] in ("http.disconnect", "websocket.disconnect"):
            watch.close()
            return


async def _over_websocket(exchange: Exchange, watch: Watch, initial: list[Change], failure: ApiError | None) -> None:
    await exchange.receive()
    await exchange.send({
        "type": "websocket.accept", "subprotocol": chosen_subprotocol(exchange.scope.get("subprotocols") or []),
    })  # fmt: skip
    gone = asyncio.create_task(_until_gone(exchange, watch))
    try:
        async for lines in _lines(watch, initial, failure):
            for line in lines:
                await exchange.send({"type": "websocket.send", "text": line.rstrip(b"\n").decode()})
            if gone.done():
                return
        with contextlib.suppress(RuntimeError):
            await exchange.send({"type": "websocket.close", "code": 1000})
    finally:
        gone.cancel()


def unacceptable() -> ApiError:
    """406: a watch comes as JSON only, whatever the words of the original name besides."""
    kinds = ", ".join(f"{name};stream=watch" for name in (JSON, PROTOBUF))
    return ApiError("NotAcceptable", f"only the following media types are accepted: {kinds}")
