"""Paths that are no resources: health, version, keys of tokens, discovery, OpenAPI, metrics.

Called by `app`: `opened` before authorisation, for what anyone may ask; `other` after it. On the event loop.
Follows T1 to T7.
"""

from __future__ import annotations

from stead.kube.errors import ApiError
from stead.server.answer import Answer, json_answer, text_answer
from stead.server.discovery import Discovery
from stead.server.exchange import Exchange, Server
from stead.server.health import version_answer
from stead.server.openapi import OpenApi

#: paths that anyone may ask for
OPEN = ("/healthz", "/livez", "/readyz", "/version", "/.well-known/openid-configuration", "/openid/v1/jwks")


class Paths:
    """See the module's prose."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._discovery = Discovery(server.catalogue, server.address)
        self._openapi = OpenApi(server.catalogue)

    def opened(self, exchange: Exchange) -> Answer | None:
        """The answer to an open path, or None when it is none of those."""
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

    async def other(self, exchange: Exchange) -> Answer:
        """Any other path, for those who may ask. Raises 404 and 405."""
        request = exchange.request
        path = request.path.rstrip("/") or "/"
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed()
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
                raise no_resource()
        return found if found is not None else text_answer("404 page not found\n", 404)


def method_not_allowed() -> ApiError:
    """405 in the API server's words."""
    return ApiError("MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def no_resource() -> ApiError:
    """404 for a path that is no resource."""
    return ApiError("NotFound", "the server could not find the requested resource", {})
