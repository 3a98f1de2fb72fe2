"""Request bodies: read under a limit, decoded by content type.

Called by `app`. JSON and YAML by `kube.encoding`, protobuf (what newer kubectl sends for core kinds) by
`kube.protobuf`. Follows N1: a missing content type means JSON.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from stead.kinds.resource import Resource
from stead.kube import encoding, protobuf
from stead.kube.errors import ApiError
from stead.server.registry import Object

LIMIT_BYTES = encoding.MAX_BYTES
PROTOBUF = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_KNOWN = ("", "application/json", "application/yaml", PROTOBUF)

Receive = Callable[[], Awaitable[dict[str, Any]]]


class Disconnected(Exception):
    """The client went away before its body was complete."""


def too_large(limit: int = LIMIT_BYTES) -> ApiError:
    """413 in the API server's words."""
    return ApiError("RequestEntityTooLarge", f"Request entity too large: limit is {limit}", {})


async def read_body(receive: Receive, headers: dict[str, str]) -> bytes:
    """The whole body. Raises 413, or Disconnected."""
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > LIMIT_BYTES:
        raise too_large()
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > LIMIT_BYTES:
            raise too_large()
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)


def media_type(headers: dict[str, str]) -> str:
    """The content type without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def decode_object(body: bytes, media: str, resource: Resource, *, apply: bool = False) -> encoding.Decoded:
    """The object in a body. Raises 400 and 415."""
    if not apply and media not in _KNOWN:
        text = (
            "the body of the request was in an unknown format - accepted media types include: application/json, "
            f"application/yaml, {PROTOBUF}"
        )
        raise ApiError("UnsupportedMediaType", text)
    if media == PROTOBUF or body.startswith(_MAGIC):
        return encoding.Decoded(decode_protobuf(body))
    wanted = "application/yaml" if apply else media or "application/json"
    return encoding.decode_object(body, wanted, resource.kind)


def decode_delete_options(body: bytes, media: str) -> Object | None:
    """The DeleteOptions in the body of a DELETE, None if it has none. Raises 400 and 415."""
    if not body:
        return None
    if body.startswith(_MAGIC):
        return decode_protobuf(body)
    if media not in (*_KNOWN, "application/octet-stream"):
        raise ApiError("UnsupportedMediaType", "the body of the request was in an unknown format")
    try:
        value = encoding.decode(body, media or "application/json").value
    except encoding.DecodeError as error:
        raise ApiError("BadRequest", f"couldn't get version/kind; json parse error: {error}") from error
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ApiError("BadRequest", "couldn't get version/kind; json parse error: not an object")
    kind = value.get("kind")
    if kind and kind != "DeleteOptions":
        text = f'no kind "{kind}" is registered for version "{value.get("apiVersion", "")}"'
        raise ApiError("BadRequest", text)
    return value


def decode_protobuf(body: bytes) -> Object:
    """The object in a protobuf body. Raises 400."""
    return protobuf.decode(body)
