"""CDI's upload paths: a disk image from a client's request body to the agent of the claim's host.

Called by `app` before its own authentication, since the caller shows an upload token instead. Paths, codes and texts
are those of CDI's upload proxy: `/v1beta1/upload` answers after conversion, `/v1beta1/upload-async` when the bytes
are in (HEAD there tells clients that it exists), the `-form` variants take multipart/form-data with one file. The
body is streamed, never kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import jwt

from stead.kinds import register
from stead.kube.errors import ApiError
from stead.server.agents import Agents
from stead.server.answer import Answer, text_answer
from stead.server.authn import TokenIssuer
from stead.server.bodies import Disconnected
from stead.server.multipart import file_part
from stead.server.node_authz import SELECTED_NODE
from stead.server.registry import Registry

if TYPE_CHECKING:
    from stead.server.exchange import Exchange

Object = dict[str, Any]

SYNC, ASYNC = "/v1beta1/upload", "/v1beta1/upload-async"
FORM, FORM_ASYNC = "/v1beta1/upload-form", "/v1beta1/upload-form-async"
ARCHIVE = "/v1beta1/upload-archive"
PATHS = (SYNC, ASYNC, FORM, FORM_ASYNC, ARCHIVE)

#: how long an upload waits for its volume, and how often it looks, seconds
READY_SECONDS = 10.0
POLL_SECONDS = 0.25


class Uploads:
    """See the module's prose."""

    def __init__(self, registry: Registry, issuer: TokenIssuer, agents: Agents) -> None:
        self._registry = registry
        self._issuer = issuer
        self._agents = agents

    async def handle(self, exchange: Exchange) -> Answer | None:
        """Answer a request below /v1beta1/upload."""
        path, method = exchange.request.path.rstrip("/"), exchange.request.method
        if path not in PATHS or exchange.scope["type"] != "http":
            return text_answer("404 page not found\n", 404)
        if method == "OPTIONS":
            return Answer(204, b"", "")
        if method == "HEAD" and path in (ASYNC, FORM_ASYNC):
            return Answer(200, b"", "")
        if method not in ("POST", "PUT"):
            return Answer(404, b"", "")
        try:
            namespace, name = self._claim_of(exchange)
        except jwt.PyJWTError:
            return Answer(401, b"", "")
        except (KeyError, ValueError):
            return Answer(400, b"", "")
        try:
            host = await self._ready_host(namespace, name)
        except ApiError as error:
            return text_answer(error.message, error.code)
        return await self._forward(exchange, path, host, f"/v1/volumes/{namespace}/{name}/upload")

    def _claim_of(self, exchange: Exchange) -> tuple[str, str]:
        scheme, _, token = exchange.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise ValueError("no bearer token")
        return self._issuer.verify_upload(token.strip())

    async def _ready_host(self, namespace: str, name: str) -> str:
        """The host whose volume waits for the upload. Raises 404, 409 and 503 with CDI's texts."""
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        while True:
            claim = self._registry.peek(register.PERSISTENT_VOLUME_CLAIM, namespace, name)
            if claim is None:
                raise ApiError("NotFound", f'persistentvolumeclaims "{name}" not found')
            annotations = claim["metadata"].get("annotations") or {}
            phase = _phase(annotations)
            if phase == "Succeeded":
                raise ApiError("Conflict", f"Upload already complete for PVC {name}", code=409)
            host = annotations.get(SELECTED_NODE, "")
            if host and annotations.get("stead.io/volume-handle"):
                return str(host)
            if asyncio.get_running_loop().time() >= deadline:
                raise ApiError("ServiceUnavailable", f"Upload server for PVC {name} is not ready yet")
            await asyncio.sleep(POLL_SECONDS)

    async def _forward(self, exchange: Exchange, path: str, host: str, target: str) -> Answer:
        wait = "false" if path in (ASYNC, FORM_ASYNC) else "true"
        target += f"?wait={wait}"
        content_type = exchange.headers.get("content-type", "")
        if path in (FORM, FORM_ASYNC):
            chunks, length = file_part(_body(exchange), content_type), None
        else:
            text = exchange.headers.get("content-length", "")
            chunks, length = _body(exchange), int(text) if text.isdigit() else None
        try:
            reply = await self._agents.send(host, target, chunks, length)
        except ApiError as error:
            return text_answer(error.message, error.code)
        except ValueError as error:
            return text_answer(str(error), 400)
        if reply.code >= 400:
            return text_answer(_message(reply.body), reply.code)
        return Answer(200, b"", "")


def _phase(annotations: dict[str, str]) -> str:
    try:
        found = json.loads(annotations.get("stead.io/transfer") or "{}")
    except ValueError:
        return ""
    return str(found.get("phase", "")) if isinstance(found, dict) else ""


def _message(body: bytes) -> str:
    try:
        status = json.loads(body)
        return str(status.get("message", ""))
    except (ValueError, AttributeError):
        return body[:512].decode("utf-8", "replace")


async def _body(exchange: Exchange) -> AsyncIterator[bytes]:
    """The request's body in the chunks in which it comes."""
    while True:
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return
