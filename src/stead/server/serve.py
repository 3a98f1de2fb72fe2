"""The listener: uvicorn inside our event loop, with TLS and the client certificate passed to the application.

Called by the composition root and by tests. uvicorn hides the peer's certificate, so a mixin over its two protocol
classes puts the DER bytes of a *verified* certificate into the ASGI scope (`scope["extensions"]["tls"]`); a
contract test holds that to the pinned uvicorn. Only http/1.1 is offered in ALPN. A connection that sends no
complete request head in time, or too long a head, is closed. Connections are accepted here, not by asyncio: those
that have not yet sent a whole head are few, and the oldest of them makes room for a new one, so that half-open
sockets keep nobody out. `stop` lets requests in hand finish, then ends what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from asyncio import sslproto
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from stead.server.cork import Cork, chunk_of
from stead.server.hello import whole_hello
from stead.server.streaming import CHUNKS

#: seconds that a client has for its request head, that an idle connection is kept, and that a stop waits
HEAD_SECONDS = 20.0
IDLE_SECONDS = 120
STOP_SECONDS = 5
#: seconds for a TLS handshake; bytes of a request head; bytes of a body that is still taken in after its answer
HANDSHAKE_SECONDS = 10.0
HEAD_BYTES = 256 * 1024
LEFTOVER_BYTES = 8 * 1024 * 1024
TLS_BUFFER_BYTES = 32 * 1024
#: open connections, and those among them that have not sent a request head
MAX_SOCKETS = 16384
MAX_UNPROVEN = 1000
_LONG_HEAD = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


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


def _with_certificate(app: Any, certificate: bytes | None, chunks: Callable[[bytes], bool] | None = None) -> Any:
    async def wrapped(scope: dict[str, Any], receive: Any, send: Any) -> None:
        extensions = scope.setdefault("extensions", {})
        extensions["tls"] = {"client_certificate": certificate}
        if chunks is not None:
            extensions[CHUNKS] = chunks
        await app(scope, receive, send)

    return wrapped


class _HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with the client certificate and a deadline for request heads."""

    _head_timer: asyncio.TimerHandle | None = None
    _in_head = False
    #: called once a whole request head is there
    proven: Callable[[], None] | None = None
    #: called when the connection is gone
    lost: Callable[[], None] | None = None
    _cork: Cork
    _head_bytes = 0
    _head_size = 0
    _leftover = 0

    def data_received(self, data: bytes) -> None:
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES + len(data):
                self.transport.write(_LONG_HEAD)
                self.transport.close()
                return
        super().data_received(data)
        # Most heads come whole: those need no timer.
        if self._in_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def on_header(self, name: bytes, value: bytes) -> None:
        # A head that comes in one piece is bounded here.
        self._head_size += len(name) + len(value) + 32
        if self._head_size > HEAD_BYTES:
            raise ValueError("request head too large")
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        if self.cycle is not None and self.cycle.response_complete:
            self._leftover += len(body)
            if self._leftover > LEFTOVER_BYTES:
                self.transport.abort()
                return
        super().on_body(body)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        self._cork = Cork(transport, self.loop)
        super().connection_made(self._cork)  # type: ignore[arg-type]  # what uvicorn uses of one
        self.app = _with_certificate(self.app, _certificate_of(transport), self._write_chunk)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, transport.close)

    def _write_chunk(self, body: bytes) -> bool:
        """A chunk of the answer in hand, past uvicorn; False when the client does not keep up or is gone."""
        cycle = self.cycle
        if self.flow.write_paused or cycle.disconnected or cycle.response_complete or not cycle.chunked_encoding:
            return False
        self._cork.write_now(chunk_of(body))
        return True

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_size = 0
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        self._head_bytes = 0
        if self.proven is not None:
            self.proven()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self.lost is not None:
            self.lost()
        super().connection_lost(exc)
        # uvicorn leaves this timer after a reset: it would keep the connection, its buffers and its body for minutes.
        self._unset_keepalive_if_required()

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        upgraded = self.transport.get_protocol()
        if isinstance(upgraded, _WebSocketProtocol):
            upgraded.lost = self.lost

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with the client certificate."""

    lost: Callable[[], None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost is not None:
            self.lost()
        super().connection_lost(exc)

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


class Door:
    """Takes connections in. See the module's prose."""

    def __init__(
        self, bound: socket.socket, context: ssl.SSLContext | None, protocol: Callable[[], _HttpProtocol]
    ) -> None:
        self._bound = bound
        self._context = context
        self._make = protocol
        self._open: set[_HttpProtocol] = set()
        #: those without a request head yet, the oldest first, and how to end each
        self._unproven: OrderedDict[_HttpProtocol, asyncio.Task[None]] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Accept from now on."""
        self._task = asyncio.create_task(self._accept(), name="door")

    async def close(self) -> None:
        """Accept no more; connections that stand go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._bound.close()
        for protocol in list(self._unproven):
            self._evict(protocol)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._bound)
            except OSError:  # out of descriptors, or the peer has gone already
                self._evict_oldest()
                await asyncio.sleep(0.01)
                continue
            if len(self._unproven) >= MAX_UNPROVEN or len(self._open) >= MAX_SOCKETS:
                self._evict_oldest()
            if len(self._open) >= MAX_SOCKETS:
                connection.close()
                continue
            protocol = self._make()
            self._open.add(protocol)
            self._unproven[protocol] = asyncio.create_task(self._connect(connection, protocol))

    async def _connect(self, connection: socket.socket, protocol: _HttpProtocol) -> None:
        protocol.proven = lambda: self._proven(protocol)
        protocol.lost = lambda: self._forget(protocol)
        seconds = HANDSHAKE_SECONDS if self._context is not None else None
        try:
            if self._context is not None:
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    await whole_hello(connection)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol, connection, ssl=self._context, ssl_handshake_timeout=seconds
            )
        except OSError:  # no handshake: bad TLS, too slow (a TimeoutError is one), gone
            self._forget(protocol)
            connection.close()
        except asyncio.CancelledError:
            self._forget(protocol)
            connection.close()
            raise

    def _proven(self, protocol: _HttpProtocol) -> None:
        self._unproven.pop(protocol, None)

    def _forget(self, protocol: _HttpProtocol) -> None:
        self._unproven.pop(protocol, None)
        self._open.discard(protocol)

    def _evict_oldest(self) -> None:
        if self._unproven:
            self._evict(next(iter(self._unproven)))

    def _evict(self, protocol: _HttpProtocol) -> None:
        task = self._unproven.pop(protocol)
        self._open.discard(protocol)
        if protocol.transport is not None:
            protocol.transport.abort()
        else:
            task.cancel()


def lean_tls() -> None:
    """Let a TLS connection of asyncio have a buffer of 32 KiB, not 256: a record has 16, and idle watches are many.

    The figure is an attribute of asyncio's class, with no parameter that leads to it; it holds for the whole process.
    """
    sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES


def raise_open_files() -> None:
    """Let the process have as many descriptors as it is allowed to: the usual 1,024 are fewer than its clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MAX_SOCKETS if hard == resource.RLIM_INFINITY else min(hard, 4 * MAX_SOCKETS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Listener:
    """One listening address and the task that serves it."""

    def __init__(self, app: Any, listening: Listening) -> None:
        self._app = app
        self._listening = listening
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._context: ssl.SSLContext | None = None
        self._door: Door | None = None
        self.port = listening.port

    async def start(self) -> None:
        """Bind and serve. Raises OSError when the address is taken."""
        listening = self._listening
        raise_open_files()
        lean_tls()
        bound = socket.create_server((listening.host, listening.port), backlog=512, reuse_port=False)
        bound.setblocking(False)
        # Inherited by every connection. asyncio sets it only on sockets whose protocol is named, which these are not;
        # without it an answer's body waits up to 40 ms for the client's delayed acknowledgement of its head.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = bound.getsockname()[1]
        config = uvicorn.Config(
            self._app, interface="asgi3", lifespan="off", http=_HttpProtocol, ws=_WebSocketProtocol, log_config=None,
            access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS, ws_max_size=4 * 1024 * 1024, ws_ping_interval=20.0,
            ws_ping_timeout=60.0, ws_per_message_deflate=False,
        )  # fmt: skip
        config.load()
        self._context = config.ssl = tls_context(listening)
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[]), name="listener")
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.005)
        if self._task.done():
            await self._task
        self._door = Door(bound, self._context, lambda: self._protocol(config))
        self._door.open()

    def _protocol(self, config: uvicorn.Config) -> _HttpProtocol:
        assert self._server is not None
        return _HttpProtocol(config=config, server_state=self._server.server_state, app_state={})

    def reload_certificate(self) -> None:
        """Use the certificate files as they are now for new connections."""
        if self._context is not None and self._listening.certificate is not None:
            self._context.load_cert_chain(self._listening.certificate, self._listening.key)

    async def stop(self) -> None:
        """Stop listening, let requests finish for a while, end the rest."""
        if self._server is None or self._task is None:
            return
        if self._door is not None:
            await self._door.close()
        self._server.should_exit = True
        await self._task
