"""The ASGI application: authenticate, cap, authorise, then parse and hand to the verb; errors become Status objects.

Composed by `api` through `build_app`. What is asked is answered by `paths` and `objects`. One instance serves every
request on the event loop; it keeps no state but the open watches and the counts of requests in hand. The chain's order
matters: nothing of a body is read before the caller is known and allowed. Follows T1 to T7, N1, N2, Q4 and
the table of errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import traceback
import uuid

import msgspec
import structlog

from stead.kinds.joins import ABOUT_PATH
from stead.kube import encoding, meta, protobuf
from stead.kube.errors import ApiError
from stead.server import streaming
from stead.server.answer import (
    PROTOBUF,
    YAML,
    Answer,
    error_answer,
    not_sniffed,
    send_answer,
    text_answer,
    wants_protobuf,
)
from stead.server.audit import Entry
from stead.server.authn import MASTERS
from stead.server.authz import attributes_of, forbidden
from stead.server.bodies import Disconnected, media_type
from stead.server.catalogue import SUBRESOURCE_GROUPS
from stead.server.exchange import Exchange, Receive, Scope, Send, Server
from stead.server.fairness import MAX_READS, MAX_WRITES, OpenStreams, Places
from stead.server.impersonation import impersonate
from stead.server.lifecycle import PlainError
from stead.server.objects import Objects
from stead.server.paths import OPEN, Paths
from stead.server.request import Request, duration_seconds, request_from

log = structlog.get_logger(__name__)

#: seconds that a read and a write may take
READ_SECONDS = 60.0
WRITE_SECONDS = 34.0

#: where passwords are turned into sessions, before anybody is known
LOGIN_PATHS = ("/auth/login", "/auth/logout")

#: what a client is told that still uses an old version of a group
_DEPRECATED = {
    ("kubevirt.io", "v1alpha3"): "kubevirt.io/v1alpha3 is now deprecated and will be removed in a future release.",
    ("export.kubevirt.io", "v1beta1"): (
        "export.kubevirt.io/v1beta1 VirtualMachineExport is now deprecated and will be removed in a future version."
    ),
}


def build_app(server: Server) -> App:
    """The ASGI application over its parts."""
    return App(server)


class App:
    """See the module's prose."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._paths = Paths(server)
        self._objects = Objects(server, self._paths)
        self._reads, self._writes = Places(MAX_READS), Places(MAX_WRITES)
        self._streams = OpenStreams()
        server.metrics.in_flight.set_function(self._in_hand)

    def _in_hand(self) -> float:
        return self._reads.in_hand + self._writes.in_hand + self._streams.in_hand

    def stop(self) -> None:
        """End every watch cleanly and report not ready; the listener is stopped after this."""
        self._server.health.stopping = True
        self._objects.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request = request_from(
            scope.get("method", "GET"), scope.get("raw_path", b"/").decode("latin-1"),
            scope.get("query_string", b"").decode("latin-1"),
        )  # fmt: skip
        exchange = Exchange(
            scope=scope, receive=receive, send=send, request=request, headers=headers,
            audit_id=headers.get("audit-id") or _new_id(),
        )  # fmt: skip
        received, started = meta.now_micro(), time.monotonic()
        try:
            answer = await self._answer(exchange)
        except Disconnected:
            return
        if answer is not None:
            if (request.group, request.version) in _DEPRECATED:
                answer.warnings = [_DEPRECATED[request.group, request.version], *answer.warnings]
            exchange.code, exchange.answer = answer.code, answer.body
            await self._reply(exchange, answer)
        self._log(exchange, received, time.monotonic() - started)

    async def _answer(self, exchange: Exchange) -> Answer | None:
        """The answer to a request, errors included; None when a stream has answered."""
        try:
            return await self._chain(exchange)
        except ApiError as error:
            return self._failure(exchange, error)
        except TimeoutError:
            return self._failure(
                exchange, ApiError("Timeout", "Timeout: request did not complete within the allotted timeout")
            )
        except (Disconnected, asyncio.CancelledError):
            raise
        except Exception as error:
            # The trace as text: a renderer that prints locals would put bodies and tokens into the log.
            trace = traceback.format_exc(limit=-6)
            log.error("request failed", method=exchange.request.method, path=exchange.request.path, trace=trace)
            return self._failure(
                exchange, ApiError("InternalError", f"Internal error occurred: {type(error).__name__}")
            )

    def _failure(self, exchange: Exchange, error: ApiError) -> Answer:
        exchange.reason = error.reason
        if isinstance(error, PlainError):
            return text_answer(error.message, error.code)
        answer = error_answer(error)
        answer.warnings = [*error.warnings, *answer.warnings]
        accept = exchange.headers.get("accept", "")
        if wants_protobuf(accept):
            answer.body, answer.content_type = protobuf.encode_status(msgspec.json.decode(answer.body)), PROTOBUF
        elif accept.startswith(YAML):
            answer.body, answer.content_type = encoding.encode_yaml(msgspec.json.decode(answer.body)), YAML
        return answer

    async def _reply(self, exchange: Exchange, answer: Answer) -> None:
        if exchange.scope["type"] == "websocket":
            await streaming.refuse(exchange.send, answer, exchange.audit_id)
            return
        encodings = exchange.headers.get("accept-encoding", "")
        head = exchange.request.method == "HEAD"
        await send_answer(exchange.send, answer, exchange.audit_id, encodings, head=head)

    def _log(self, exchange: Exchange, received: str, seconds: float) -> None:
        request, server = exchange.request, self._server
        known = server.catalogue.find(request.group, request.version, request.plural) is not None
        plural = request.plural if known else ""
        verb = request.verb if request.is_resource else "other"
        server.metrics.count(verb, plural, exchange.code)
        if request.verb != "watch" and exchange.scope["type"] == "http":
            server.metrics.time(verb, seconds)
        client = exchange.scope.get("client") or ("",)
        server.audit.write(Entry(
            audit_id=exchange.audit_id, request=request, user=exchange.original or exchange.user,
            impersonated=exchange.user if exchange.original else None, source=str(client[0]),
            user_agent=exchange.headers.get("user-agent", ""), code=exchange.code, reason=exchange.reason,
            received=received, decision="forbid" if exchange.code == 403 else "allow",
            body=exchange.body, media=media_type(exchange.headers), answer=exchange.answer,
        ))  # fmt: skip

    # --- the chain ----------------------------------------------------------------------------------------------

    async def _chain(self, exchange: Exchange) -> Answer | None:
        request, server = exchange.request, self._server
        if server.uploads is not None and request.path.startswith("/v1beta1/upload"):
            return await server.uploads.handle(exchange)
        if server.exports is not None and request.path.startswith("/api/export.kubevirt.io/"):
            return await server.exports.handle(exchange)
        if server.logins is not None and request.path.rstrip("/") in LOGIN_PATHS:
            return await server.logins.handle(exchange)
        if server.joins is not None and request.path == ABOUT_PATH and request.method == "GET":
            return await server.joins.about()
        await self._identify(exchange)
        if request.path.rstrip("/").startswith(OPEN) and not request.is_resource:
            opened = self._paths.opened(exchange)
            if opened is not None:
                return opened
        with not_sniffed():
            try:
                self._authorize(exchange)
            except ApiError:
                if not await server.verbs.registry.catch_up():
                    raise
                self._authorize(exchange)  # another plane may have granted it a moment ago
        await server.authenticator.spend(exchange.original or exchange.user)
        name = exchange.user.name
        # Heartbeats and administrators always get in.
        exempt = request.plural == "leases" or MASTERS in exchange.user.groups
        if self._is_long(exchange):
            with self._streams.one(name, exempt=exempt):
                await self._catch_up(request)
                return await self._long_held(exchange)
        async with (self._writes if request.is_write else self._reads).place(name, exempt=exempt):
            await self._catch_up(request)
            async with asyncio.timeout(self._deadline(request)):
                return await (self._objects.answer(exchange) if request.is_resource else self._paths.other(exchange))

    async def _identify(self, exchange: Exchange) -> None:
        """Who asks, and for whom. Raises 401 and 403, also by what other planes have acknowledged."""
        try:
            await self._authenticate(exchange)
            self._impersonate(exchange)
        except ApiError:
            if not await self._server.verbs.registry.catch_up():
                raise
            exchange.original = None
            await self._authenticate(exchange)
            self._impersonate(exchange)

    def _impersonate(self, exchange: Exchange) -> None:
        if any(name.startswith("impersonate-") for name in exchange.headers):
            with not_sniffed():
                impersonate(exchange, self._server.authorizer)

    async def _catch_up(self, request: Request) -> None:
        if needs_newest(request):
            await self._server.verbs.registry.catch_up()

    async def _long_held(self, exchange: Exchange) -> Answer | None:
        """A watch or a stream that ends when its caller may no longer have it."""
        if self._server.leave is None:
            return await self._long(exchange)
        work = asyncio.current_task()
        assert work is not None
        ended = False

        def end() -> None:
            nonlocal ended
            ended = True
            work.cancel()

        exchange.end = end
        with self._server.leave.held(exchange):
            try:
                return await self._long(exchange)
            except asyncio.CancelledError:
                if not ended:
                    raise
                work.uncancel()
        exchange.code = exchange.code or 401
        with contextlib.suppress(RuntimeError):  # it may have said so itself on its way out
            if exchange.scope["type"] == "websocket":
                await exchange.send({"type": "websocket.close", "code": 1008})
        return None

    async def _long(self, exchange: Exchange) -> Answer | None:
        """A watch or a stream: it lasts as long as it lasts."""
        if exchange.scope["type"] == "websocket":
            return await self._objects.websocket(exchange)
        return await self._objects.answer(exchange)

    def _is_long(self, exchange: Exchange) -> bool:
        request = exchange.request
        is_stream = request.group in SUBRESOURCE_GROUPS
        return is_stream or request.verb == "watch" or exchange.scope["type"] == "websocket"

    def _deadline(self, request: Request) -> float:
        limit = WRITE_SECONDS if request.is_write else READ_SECONDS
        wanted = duration_seconds(request.query.get("timeout") or "0")
        return min(limit, wanted) if wanted > 0 else limit

    async def _authenticate(self, exchange: Exchange) -> None:
        exchange.user = await self._server.authenticator.authenticate(
            *exchange.credentials(), is_change=exchange.is_change
        )

    def _authorize(self, exchange: Exchange) -> None:
        asked = attributes_of(exchange.request)
        decision = self._server.authorizer.authorize(exchange.user, asked)
        if not decision.allowed:
            raise forbidden(exchange.user, asked, f": {decision.reason}" if decision.reason else "")


def needs_newest(request: Request) -> bool:
    """Whether it must see all that any plane has acknowledged: not a read of what the client has seen, or of anything.

    Changes too, since they answer from what is there when they change nothing or find nothing.
    """
    if not request.is_resource:
        return False
    named = request.query.get("resourceVersion") or request.query.get("continue")
    return request.is_write or request.group in SUBRESOURCE_GROUPS or not named


def _new_id() -> str:
    """A version 4 UUID that need not be unguessable."""
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


__all__ = ["App", "Exchange", "Server", "build_app"]
