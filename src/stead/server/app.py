"""The ASGI application: authenticate, cap, authorise, then parse and hand to the verb; errors become Status objects.

Composed by `run` and by tests through `build_app`. One instance serves every request on the event loop; it keeps no
state but the open watches and the counts of requests in hand. The chain's order matters: nothing of a body is read
before the caller is known and allowed. Follows T1 to T7, N1, N2, Q4 and the table of errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol

import msgspec
import structlog

from stead.kinds import register
from stead.kinds.joins import ABOUT_PATH
from stead.kinds.old_manifests import newer_version
from stead.kinds.resource import Resource
from stead.kube import encoding, meta, protobuf
from stead.kube.errors import ApiError, not_found
from stead.server import foreign, mutation, scale, streaming
from stead.server.answer import (
    JSON,
    NOSNIFF,
    PROTOBUF,
    YAML,
    Accepted,
    Answer,
    check_route,
    encode,
    error_answer,
    json_answer,
    negotiate,
    send_answer,
    text_answer,
    wants_protobuf,
)
from stead.server.audit import AuditLog, Entry
from stead.server.authn import ANONYMOUS, MASTERS, Authenticator, User, impersonated
from stead.server.authz import Attributes, Authorizer, attributes_of, forbidden
from stead.server.bodies import Disconnected, decode_delete_options, decode_object, media_type, read_body
from stead.server.calls import Call, Outcome, delete_options, write_options
from stead.server.catalogue import SUBRESOURCE_GROUPS, Catalogue, Served
from stead.server.discovery import Discovery
from stead.server.fairness import MAX_READS, MAX_WRITES, OpenStreams, Places
from stead.server.health import Health, Metrics, version_answer
from stead.server.lifecycle import PlainError
from stead.server.openapi import OpenApi
from stead.server.reading import list_body, list_options
from stead.server.registry import Record
from stead.server.request import Request, duration_seconds, request_from
from stead.server.shapes import Shape, shape_of
from stead.server.verbs import Verbs

log = structlog.get_logger(__name__)

#: seconds that a read and a write may take
READ_SECONDS = 60.0
WRITE_SECONDS = 34.0

#: paths that anyone may ask for
_OPEN = ("/healthz", "/livez", "/readyz", "/version", "/.well-known/openid-configuration", "/openid/v1/jwks")

#: where passwords are turned into sessions, before anybody is known
LOGIN_PATHS = ("/auth/login", "/auth/logout")

#: what a client is told that still uses an old version of a group
_DEPRECATED = {
    ("kubevirt.io", "v1alpha3"): "kubevirt.io/v1alpha3 is now deprecated and will be removed in a future release.",
}

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Exchange(msgspec.Struct, kw_only=True):
    """One request with what has been learnt about it. `receive` and `send` are ASGI's."""

    scope: Scope
    receive: Receive
    send: Send
    request: Request
    headers: dict[str, str]
    audit_id: str
    user: User = ANONYMOUS
    original: User | None = None
    reason: str = ""
    #: set by handlers that answer by themselves (streams)
    answered: bool = False
    code: int = 0
    #: for the audit log: the body of the request and of the answer
    body: bytes = b""
    answer: bytes = b""


class SubresourceHandler(Protocol):
    """`server.subresources`: KubeVirt's aggregated API."""

    async def http(self, exchange: Exchange) -> Answer | None: ...

    async def websocket(self, exchange: Exchange) -> None: ...


class ReviewHandler(Protocol):
    """`server.reviews`: kinds that are answered, not stored."""

    async def create(self, exchange: Exchange, served: Served, obj: dict[str, Any]) -> Answer: ...

    async def token(self, exchange: Exchange, obj: dict[str, Any]) -> Answer: ...


class UploadHandler(Protocol):
    """`server.uploads`: CDI's upload paths."""

    async def handle(self, exchange: Exchange) -> Answer | None: ...


class JoinHandler(Protocol):
    """`server.joins`: hosts that join."""

    async def about(self) -> Answer: ...

    async def create(self, exchange: Exchange, obj: dict[str, Any]) -> Answer: ...


class LoginHandler(Protocol):
    """`server.login`: sessions for passwords."""

    async def handle(self, exchange: Exchange) -> Answer: ...


class Server(msgspec.Struct, kw_only=True):
    """What the application is made of."""

    verbs: Verbs
    catalogue: Catalogue
    authenticator: Authenticator
    authorizer: Authorizer
    health: Health
    metrics: Metrics
    audit: AuditLog
    reviews: ReviewHandler | None = None
    subresources: SubresourceHandler | None = None
    uploads: UploadHandler | None = None
    logins: LoginHandler | None = None
    joins: JoinHandler | None = None
    address: str = ""


def build_app(server: Server) -> App:
    """The ASGI application over its parts."""
    return App(server)


class App:
    """See the module's prose."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._discovery = Discovery(server.catalogue, server.address)
        self._openapi = OpenApi(server.catalogue)
        self._watches = streaming.Watches(server.metrics)
        self._reads, self._writes = Places(MAX_READS), Places(MAX_WRITES)
        self._streams = OpenStreams()

    def stop(self) -> None:
        """End every watch cleanly and report not ready; the listener is stopped after this."""
        self._server.health.stopping = True
        self._watches.close()

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
            audit_id=headers.get("audit-id") or str(uuid.uuid4()),
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
        server.metrics.requests.labels(
            request.verb if request.is_resource else "other", plural, str(exchange.code)
        ).inc()
        if request.verb != "watch" and exchange.scope["type"] == "http":
            server.metrics.seconds.labels(request.verb if request.is_resource else "other").observe(seconds)
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
        if server.logins is not None and request.path.rstrip("/") in LOGIN_PATHS:
            return await server.logins.handle(exchange)
        if server.joins is not None and request.path == ABOUT_PATH and request.method == "GET":
            return await server.joins.about()
        await self._identify(exchange)
        if request.path.rstrip("/").startswith(_OPEN) and not request.is_resource:
            opened = self._open_path(exchange)
            if opened is not None:
                return opened
        with _not_sniffed():
            try:
                self._authorize(exchange)
            except ApiError:
                if not await server.verbs.registry.catch_up():
                    raise
                self._authorize(exchange)  # another plane may have granted it a moment ago
        await server.authenticator.spend(exchange.original or exchange.user)
        async with self._place(exchange):
            if needs_newest(request):
                await server.verbs.registry.catch_up()
            if exchange.scope["type"] == "websocket":
                return await self._websocket(exchange)
            if request.verb == "watch" or self._is_stream(request):
                return await self._resource(exchange)
            limit = self._deadline(request)
            async with asyncio.timeout(limit):
                return await (self._resource(exchange) if request.is_resource else self._other(exchange))

    async def _identify(self, exchange: Exchange) -> None:
        """Who asks, and for whom. Raises 401 and 403, also by what other planes have acknowledged."""
        try:
            await self._authenticate(exchange)
            with _not_sniffed():
                self._impersonate(exchange)
        except ApiError:
            if not await self._server.verbs.registry.catch_up():
                raise
            exchange.original = None
            await self._authenticate(exchange)
            with _not_sniffed():
                self._impersonate(exchange)

    def _is_stream(self, request: Request) -> bool:
        return request.group in SUBRESOURCE_GROUPS

    def _deadline(self, request: Request) -> float:
        limit = WRITE_SECONDS if request.is_write else READ_SECONDS
        wanted = duration_seconds(request.query.get("timeout") or "0")
        return min(limit, wanted) if wanted > 0 else limit

    async def _authenticate(self, exchange: Exchange) -> None:
        extensions = exchange.scope.get("extensions") or {}
        certificate = (extensions.get("tls") or {}).get("client_certificate")
        bearer = streaming.bearer_of(exchange.scope.get("subprotocols") or [])
        is_change = exchange.scope["type"] == "websocket" or exchange.request.method not in ("GET", "HEAD", "OPTIONS")
        exchange.user = await self._server.authenticator.authenticate(
            certificate, exchange.headers, bearer, is_change=is_change
        )

    def _impersonate(self, exchange: Exchange) -> None:
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in exchange.scope["headers"]]
        target = impersonated(pairs)
        if target is None:
            return
        check, user = self._server.authorizer.check, exchange.user
        asked: list[Attributes] = []
        if target.name.startswith("system:serviceaccount:") and target.name.count(":") == 3:
            _, _, namespace, name = target.name.split(":")
            asked.append(Attributes(verb="impersonate", resource="serviceaccounts", namespace=namespace, name=name))
        else:
            asked.append(Attributes(verb="impersonate", resource="users", name=target.name))
        for name, value in pairs:
            if name == "impersonate-group":
                asked.append(Attributes(verb="impersonate", resource="groups", name=value))
            elif name == "impersonate-uid":
                asked.append(Attributes(verb="impersonate", group="authentication.k8s.io", resource="uids", name=value))
            elif name.startswith("impersonate-extra-"):
                key = name.removeprefix("impersonate-extra-")
                asked.append(Attributes(
                    verb="impersonate", group="authentication.k8s.io", resource=f"userextras/{key}", name=value
                ))  # fmt: skip
        for question in asked:
            check(user, question)
        exchange.original, exchange.user = exchange.user, target

    def _authorize(self, exchange: Exchange) -> None:
        asked = attributes_of(exchange.request)
        decision = self._server.authorizer.authorize(exchange.user, asked)
        if not decision.allowed:
            raise forbidden(exchange.user, asked, f": {decision.reason}" if decision.reason else "")

    @contextlib.asynccontextmanager
    async def _place(self, exchange: Exchange) -> AsyncIterator[None]:
        """Count the request and wait for its turn. Leases and administrators always get in. Raises 429."""
        request, name = exchange.request, exchange.user.name
        exempt = request.plural == "leases" or MASTERS in exchange.user.groups
        gauge = self._server.metrics.in_flight
        with gauge.track_inprogress():
            if request.verb == "watch" or exchange.scope["type"] == "websocket" or self._is_stream(request):
                with self._streams.one(name, exempt=exempt):
                    yield
                return
            async with (self._writes if request.is_write else self._reads).place(name, exempt=exempt):
                yield

    # --- paths that are no resources ----------------------------------------------------------------------------

    def _open_path(self, exchange: Exchange) -> Answer | None:
        request, server = exchange.request, self._server
        path = request.path.rstrip("/")
        if path == "/version":
            return version_answer()
        if path == "/openid/v1/jwks":
            return json_answer(server.authenticator.issuer.jwks())
        if path == "/.well-known/openid-configuration":
            issuer = server.authenticator.issuer
            answer = json_answer({
                "issuer": issuer.issuer, "jwks_uri": f"https://{server.address}/openid/v1/jwks",
                "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": [issuer.algorithm],
            })  # fmt: skip
            answer.headers = [("Cache-Control", "public, max-age=3600")]
            return answer
        return server.health.answer(path, request.query)

    async def _other(self, exchange: Exchange) -> Answer:
        request = exchange.request
        path = request.path.rstrip("/") or "/"
        if request.method not in ("GET", "HEAD"):
            raise _method_not_allowed()
        accept = exchange.headers.get("accept", "")
        if path in ("/api", "/apis"):
            found = self._discovery.roots(path, accept, exchange.headers.get("if-none-match", ""))
        elif path == "/":
            found = json_answer({"paths": self._discovery.paths()})
        elif path == "/metrics":
            found = self._server.metrics.answer()
        elif path.startswith("/openapi/"):
            found = await self._openapi.answer(path, request.query, exchange.headers)
        else:
            parts = [part for part in path.split("/") if part]
            found = self._discovery.legacy(parts) if parts[0] in ("api", "apis") else None
            if found is None and len(parts) == 2 and parts[0] == "api":
                raise _no_resource()
        return found if found is not None else text_answer("404 page not found\n", 404)

    # --- resources ----------------------------------------------------------------------------------------------

    async def _websocket(self, exchange: Exchange) -> Answer | None:
        request = exchange.request
        if request.group in SUBRESOURCE_GROUPS and self._server.subresources is not None:
            await self._server.subresources.websocket(exchange)
            return None
        return await self._resource(exchange) if request.is_resource else await self._other(exchange)

    async def _resource(self, exchange: Exchange) -> Answer | None:
        request, server = exchange.request, self._server
        if request.group in SUBRESOURCE_GROUPS and server.subresources is not None:
            with _not_sniffed():
                found = await server.subresources.http(exchange)
            if found is not None and NOSNIFF not in found.headers:
                found.headers = [*found.headers, NOSNIFF]
            return found
        served = server.catalogue.find(request.group, request.version, request.plural)
        if served is None:
            return _unknown(server.catalogue, request)
        resource = served.resource
        if "//" in request.path or "/" in request.name:
            raise _no_resource()
        if resource is register.NAMESPACE:
            # `namespaces/x/namespaces/y` would be authorised in x and act on y.
            if request.namespace != request.name:
                raise _no_resource()
        elif resource.namespaced != bool(request.namespace):
            everywhere = resource.namespaced and not request.name
            if everywhere and request.verb not in ("list", "watch"):
                if not resource.builtin:
                    return text_answer("404 page not found\n", 404)
                raise _method_not_allowed()
            if not everywhere:
                return text_answer("404 page not found\n", 404)
        if request.subresource:
            return await self._subresource(exchange, served)
        if request.verb == "create":
            foreign.check_creatable(resource)
        if request.verb not in resource.verbs or (request.verb == "create" and request.name):
            raise _method_not_allowed()
        if request.verb in ("get", "update", "patch", "delete") and not request.name:
            raise _method_not_allowed()
        return await self._verb(exchange, served)

    async def _subresource(self, exchange: Exchange, served: Served) -> Answer | None:
        request, resource = exchange.request, served.resource
        if resource is register.SERVICE_ACCOUNT and request.subresource == "token":
            if request.verb != "create" or self._server.reviews is None:
                raise _method_not_allowed()
            body = await read_body(exchange.receive, exchange.headers)
            return await self._server.reviews.token(
                exchange, self._decode(exchange, served, body, other_kind=True).value
            )
        allowed = (request.subresource == "status" and resource.status_subresource) or (
            request.subresource == "finalize" and resource is register.NAMESPACE
        )
        if request.subresource == "scale" and resource.scale and not request.rest:
            return await self._scale(exchange, served)
        if not allowed or request.rest:
            raise _no_resource() if resource.builtin else not_found(resource.plural, request.name, resource.group)
        verbs = ("update",) if request.subresource == "finalize" else ("get", "update", "patch")
        if request.verb not in verbs:
            raise _method_not_allowed() if resource.builtin else _unsupported(resource, request.verb)
        return await self._verb(exchange, served)

    async def _scale(self, exchange: Exchange, served: Served) -> Answer:
        request, verbs = exchange.request, self._server.verbs
        accepted = negotiate(exchange.headers.get("accept", ""))
        namespace = request.namespace if served.resource.namespaced else ""
        if request.verb not in ("get", "update", "patch"):
            raise _method_not_allowed()
        warnings: list[str] = []
        obj = verbs.get(served.resource, namespace, request.name).obj
        if request.verb != "get":
            body = await read_body(exchange.receive, exchange.headers)
            options = "UpdateOptions" if request.verb == "update" else "PatchOptions"
            call = msgspec.structs.replace(self._call(exchange, served, options), subresource="")
            wanted = scale.scale_of(served.resource, obj)
            if request.verb == "update":
                wanted = self._decode(exchange, served, body, other_kind=True).value
            else:
                kind = mutation.check_type(served.resource, exchange.headers.get("content-type", ""))
                wanted = scale.patched(kind, body, wanted)
            outcome = await scale.update(verbs, call, wanted)
            obj, warnings = outcome.record.obj if outcome.record is not None else obj, outcome.warnings
        found = scale.scale_of(served.resource, obj)
        answer = json_answer(scale.table_of(found) if accepted.projection == "Table" else found)
        answer.warnings = warnings
        return _formatted(answer, accepted)

    async def _verb(self, exchange: Exchange, served: Served) -> Answer | None:
        request = exchange.request
        accept = exchange.headers.get("accept", "")
        if served.resource.builtin:
            check_route(accept, is_collection=request.verb in ("list", "watch"))
        accepted = negotiate(accept)
        shape = shape_of(served.resource, request.version, accepted, request.query.get("includeObject") or "")
        if request.verb == "watch":
            return await self._watch(exchange, shape, accepted)
        if request.verb == "get":
            return await self._get(exchange, shape, accepted)
        if request.verb == "list":
            return await self._list(exchange, shape, accepted)
        body = exchange.body = await read_body(exchange.receive, exchange.headers)
        if request.verb == "create":
            return await self._create(exchange, served, shape, accepted, body)
        if request.verb == "update":
            call = self._call(exchange, served, "UpdateOptions")
            decoded = self._decode(exchange, served, body)
            return self._outcome(
                await self._server.verbs.update(call, decoded.value, decoded.problems), shape, accepted
            )
        if request.verb == "patch":
            return await self._patch(exchange, served, shape, accepted, body)
        return await self._delete(exchange, served, shape, accepted, body)

    def _call(self, exchange: Exchange, served: Served, options: str) -> Call:
        request = exchange.request
        return Call(
            user=exchange.user, resource=served.resource, version=request.version,
            namespace=request.namespace if served.resource.namespaced else "", name=request.name,
            subresource=request.subresource,
            options=write_options(options, request.query, exchange.headers.get("user-agent", "")),
        )  # fmt: skip

    def _decode(self, exchange: Exchange, served: Served, body: bytes, *, other_kind: bool = False) -> encoding.Decoded:
        return decode_object(body, media_type(exchange.headers), served.resource, other_kind=other_kind)

    async def _get(self, exchange: Exchange, shape: Shape, accepted: Accepted) -> Answer:
        request, verbs = exchange.request, self._server.verbs
        text = request.query.get("resourceVersion") or ""
        if text and text != "0":
            if not text.isdigit():
                shown = meta.go_quote(text)
                text = f"resourceVersion: Invalid value: {shown}: strconv.ParseUint: parsing {shown}: invalid syntax"
                raise ApiError("BadRequest", text)
            await verbs.reader.wait_until(int(text))
        namespace = request.namespace if shape.resource.namespaced else ""
        record = verbs.get(shape.resource, namespace, request.name)
        return _formatted(Answer(200, shape.single(record)), accepted)

    async def _list(self, exchange: Exchange, shape: Shape, accepted: Accepted) -> Answer:
        request = exchange.request
        options = list_options(shape.resource, request.query)
        try:
            page = await self._server.verbs.reader.page(shape.resource, request.namespace, options)
        except ApiError as error:
            token = (error.details or {}).get("continue")
            if token is None:
                raise
            status = {**error.status(), "metadata": {"continue": token}}
            status.pop("details", None)
            return json_answer(status, error.code)
        return _formatted(Answer(200, list_body(shape, page)), accepted)

    async def _watch(self, exchange: Exchange, shape: Shape, accepted: Accepted) -> Answer | None:
        if accepted.format == "yaml":
            raise streaming.unacceptable()
        request = exchange.request
        namespace = request.namespace if shape.resource.namespaced else ""
        return await self._watches.serve(exchange, self._server.verbs.registry, shape, namespace)

    async def _create(
        self, exchange: Exchange, served: Served, shape: Shape, accepted: Accepted, body: bytes
    ) -> Answer:
        call = self._call(exchange, served, "CreateOptions")
        decoded = self._decode(exchange, served, body)
        if served.resource is register.JOIN:
            if self._server.joins is None:
                raise _method_not_allowed()
            return _formatted(await self._server.joins.create(exchange, decoded.value), accepted)
        if served.is_virtual:
            if self._server.reviews is None:
                raise _method_not_allowed()
            return _formatted(await self._server.reviews.create(exchange, served, decoded.value), accepted)
        return self._outcome(await self._server.verbs.create(call, decoded.value, decoded.problems), shape, accepted)

    async def _patch(self, exchange: Exchange, served: Served, shape: Shape, accepted: Accepted, body: bytes) -> Answer:
        kind = mutation.check_type(served.resource, exchange.headers.get("content-type", ""))
        call = self._call(exchange, served, "PatchOptions")
        mutation.check_patch_options(call, kind)
        if kind == "application/apply-patch+yaml":
            decoded = decode_object(body, kind, served.resource, apply=True)
            outcome = await self._server.verbs.apply(call, decoded.value, decoded.problems)
        else:
            outcome = await self._server.verbs.patch(call, mutation.change_from(kind, body))
        return self._outcome(outcome, shape, accepted)

    async def _delete(
        self, exchange: Exchange, served: Served, shape: Shape, accepted: Accepted, body: bytes
    ) -> Answer:
        request, verbs = exchange.request, self._server.verbs
        options = delete_options(decode_delete_options(body, media_type(exchange.headers)), request.query)
        call = Call(
            user=exchange.user, resource=served.resource, version=request.version,
            namespace=request.namespace if served.resource.namespaced else "", name=request.name,
        )  # fmt: skip
        if request.verb == "deletecollection":
            selected = list_options(served.resource, request.query)
            page = await verbs.delete_collection(call, msgspec.structs.replace(selected, limit=0), options)
            return _formatted(Answer(200, list_body(shape, page)), accepted)
        return self._outcome(await verbs.delete(call, options), shape, accepted)

    def _outcome(self, outcome: Outcome, shape: Shape, accepted: Accepted) -> Answer:
        if outcome.record is None:
            answer = json_answer(outcome.status, outcome.code)
        else:
            answer = Answer(outcome.code, shape.single(outcome.record))
        answer.warnings = outcome.warnings
        return _formatted(answer, accepted)


@contextlib.contextmanager
def _not_sniffed() -> Iterator[None]:
    """A refusal is marked as answers of plain HTTP handlers are."""
    try:
        yield
    except ApiError as error:
        error.headers = [NOSNIFF]
        raise


def _formatted(answer: Answer, accepted: Accepted) -> Answer:
    """The answer in YAML where the client wants that."""
    if accepted.format == "yaml" and answer.content_type == JSON:
        answer.body, answer.content_type = encoding.encode_yaml(msgspec.json.decode(answer.body)), YAML
    return answer


def needs_newest(request: Request) -> bool:
    """Whether it must see all that any plane has acknowledged: not a read of what the client has seen, or of anything.

    Changes too, since they answer from what is there when they change nothing or find nothing.
    """
    if not request.is_resource:
        return False
    named = request.query.get("resourceVersion") or request.query.get("continue")
    return request.is_write or request.group in SUBRESOURCE_GROUPS or not named


def _method_not_allowed() -> ApiError:
    return ApiError("MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def _unsupported(resource: Resource, verb: str) -> ApiError:
    """405 of custom resources."""
    qualified = f"{resource.plural}.{resource.group}"
    text = f'{verb} is not supported on resources of kind "{qualified}"'
    return ApiError("MethodNotAllowed", text, {"group": resource.group, "kind": resource.plural})


def _no_resource() -> ApiError:
    return ApiError("NotFound", "the server could not find the requested resource", {})


def _unknown(catalogue: Catalogue, request: Request) -> Answer:
    """An unknown resource: a Status (raised) below built-in groups, plain text elsewhere.

    Pods are forbidden, not unknown: `kubectl describe node` goes on without those that it may not see.
    """
    if (request.group, request.plural, request.verb) == ("", "pods", "list"):
        raise ApiError("Forbidden", "pods is forbidden: Stead runs machines, not pods", {"kind": "pods"})
    newer = newer_version(request.group, request.version)
    if newer is not None and catalogue.find(request.group, newer, request.plural) is not None:
        text = f"{request.group}/{request.version} is not served any more: use {request.group}/{newer}"
        raise ApiError("NotFound", f"the server could not find the requested resource: {text} (see stead convert)", {})
    builtin = any(s.resource.builtin and s.resource.group == request.group for s in catalogue.all)
    if builtin:
        raise _no_resource()
    return text_answer("404 page not found\n", 404)


__all__ = ["App", "Exchange", "Record", "Server", "build_app", "encode"]
