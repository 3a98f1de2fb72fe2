"""The listener: uvicorn inside our event loop, with TLS and the client certificate passed to the application.

Called by the composition root and by tests. uvicorn hides the peer's certificate, so a mixin over its two protocol
classes puts the DER bytes of a *verified* certificate into the ASGI scope (`scope["extensions"]["tls"]`); a contract
test holds that to the pinned uvicorn. Only http/1.1 is offered in ALPN. A connection that sends no complete request
head in time is closed. `stop` lets requests in hand finish, then ends what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

#: seconds that a client has for its request head, that an idle connection is kept, and that a stop waits
HEAD_SECONDS = 20.0
IDLE_SECONDS = 120
STOP_SECONDS = 5


class Listening(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to listen. Without `certificate` it is plain HTTP, for tests on loopback only."""

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


def _certificate_of(transport: Any) -> bytes | None:
    """The verified certificate of a TLS peer in DER, or None."""
    tls = transport.get_extra_info("ssl_object")
    return tls.getpeercert(binary_form=True) if tls is not None else None


def _with_certificate(app: Any, certificate: bytes | None) -> Any:
    async def wrapped(scope: dict[str, Any], receive: Any, send: Any) -> None:
        scope.setdefault("extensions", {})["tls"] = {"client_certificate": certificate}
        await app(scope, receive, send)

    return wrapped


class _HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with the client certificate and a deadline for request heads."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self.app = _with_certificate(self.app, _certificate_of(transport))
        self._head_timer = self.loop.call_later(HEAD_SECONDS, transport.close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with the client certificate."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.app = _with_certificate(self.app, _certificate_of(transport))

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            # A refusal completes the handshake too; without this uvicorn logs an error for each.
            self.handshake_complete = True


class _Server(uvicorn.Server):
    """uvicorn without its hands on our signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def tls_context(listening: Listening) -> ssl.SSLContext | None:
    """The server's TLS: 1.2 or newer, http/1.1, client certificates of our CA if offered."""
    if listening.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(listening.certificate, listening.key)
    context.set_alpn_protocols(["http/1.1"])
    if listening.client_ca is not None:
        context.load_verify_locations(cafile=str(listening.client_ca))
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


class Listener:
    """One listening address and the task that serves it."""

    def __init__(self, app: Any, listening: Listening) -> None:
        self._app = app
        self._listening = listening
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._context: ssl.SSLContext | None = None
        self.port = listening.port

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address is taken."""
        listening = self._listening
        bound = socket.create_server((listening.host, listening.port), backlog=512, reuse_port=False)
        bound.setblocking(False)
        # Inherited by every connection. asyncio sets it only on sockets whose protocol is named, which these are not;
        # without it an answer's body waits up to 40 ms for the client's delayed acknowledgement of its head.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = bound.getsockname()[1]
        config = uvicorn.Config(
            self._app, interface="asgi3", lifespan="off", http=_HttpProtocol, ws=_WebSocketProtocol, log_config=None,
            access_log=False, server_header=False, timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS, ws_max_size=4 * 1024 * 1024, ws_ping_interval=20.0,
            ws_ping_timeout=60.0, ws_per_message_deflate=False,
        )  # fmt: skip
        config.load()
        self._context = config.ssl = tls_context(listening)
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[bound]), name="listener")
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.005)
        if self._task.done():
            await self._task

    def reload_certificate(self) -> None:
        """Use the certificate files as they are now for new connections."""
        if self._context is not None and self._listening.certificate is not None:
            self._context.load_cert_chain(self._listening.certificate, self._listening.key)

    async def stop(self) -> None:
        """Stop listening, let requests finish for a while, end the rest."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        await self._task
