"""One request on its way through the server, and what the application is made of.

`Exchange` is made by `app` for each request and handed to whatever answers it; the protocols say what `app` expects of
its handlers, `Server` holds them together. Values only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

from stead.server.answer import Answer
from stead.server.audit import AuditLog
from stead.server.authn import ANONYMOUS, Authenticator, User
from stead.server.authz import Authorizer
from stead.server.catalogue import Catalogue, Served
from stead.server.health import Health, Metrics
from stead.server.request import Request
from stead.server.streaming import bearer_of
from stead.server.verbs import Verbs

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
    #: ends a watch or a stream from outside; set by whoever serves it
    end: Callable[[], None] = lambda: None
    #: for the audit log: the body of the request and of the answer
    body: bytes = b""
    answer: bytes = b""

    @property
    def is_change(self) -> bool:
        """Whether the request may change something or opens a WebSocket."""
        return self.scope["type"] == "websocket" or self.request.method not in ("GET", "HEAD", "OPTIONS")

    def credentials(self) -> tuple[bytes | None, dict[str, str], str]:
        """What the caller showed: a verified certificate (DER), headers, a token in place of a subprotocol."""
        certificate = ((self.scope.get("extensions") or {}).get("tls") or {}).get("client_certificate")
        return certificate, self.headers, bearer_of(self.scope.get("subprotocols") or [])


class SubresourceHandler(Protocol):
    """`server.subresources`: KubeVirt's aggregated API."""

    async def http(self, exchange: Exchange) -> Answer | None: ...

    async def websocket(self, exchange: Exchange) -> None: ...


class ReviewHandler(Protocol):
    """`server.reviews`: kinds that are answered, not stored."""

    async def create(self, exchange: Exchange, served: Served, obj: dict[str, Any]) -> Answer: ...

    async def token(self, exchange: Exchange, obj: dict[str, Any]) -> Answer: ...


class UploadHandler(Protocol):
    """`server.uploads` and `server.exports`: paths that are opened by a token of their own."""

    async def handle(self, exchange: Exchange) -> Answer | None: ...


class LeaveToStay(Protocol):
    """`server.leave`: ends what lasts when its caller must go."""

    def held(self, exchange: Exchange) -> AbstractContextManager[None]: ...


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
    exports: UploadHandler | None = None
    logins: LoginHandler | None = None
    joins: JoinHandler | None = None
    leave: LeaveToStay | None = None
    address: str = ""
