"""Request bodies: read under a limit, decoded by content type.

Called by `app`. JSON and YAML by `kube.encoding`, protobuf (what newer kubectl sends for core kinds) by
`kube.protobuf`. Follows N1: a missing content type means JSON.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from stead.kinds.resource import Resource
from stead.kube import encoding, protobuf, schema
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
    return ApiError("RequestEntityTooLarge", f"Request entity too large: limit is {limit}")


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


def decode_object(
    body: bytes, media: str, resource: Resource, *, apply: bool = False, other_kind: bool = False
) -> encoding.Decoded:
    """The object in a body; of a subresource it may be of another kind. Raises 400 and 415."""
    if not apply and media not in _KNOWN:
        text = (
            "the body of the request was in an unknown format - accepted media types include: application/json, "
            f"application/yaml, {PROTOBUF}"
        )
        raise ApiError("UnsupportedMediaType", text)
    if media == PROTOBUF or body.startswith(_MAGIC):
        return encoding.Decoded(protobuf.decode(body) if other_kind else decode_protobuf(body, resource))
    if apply:
        return _decode_applied(body)
    decoded = encoding.decode_object(body, media or "application/json", resource.kind)
    # What is answered and not stored comes from another API server there, which takes it as it is.
    is_stored = "get" in resource.verbs
    if is_stored and not resource.builtin and not other_kind and not decoded.value.get("kind"):
        shown = body[:1024].decode("utf-8", "replace").strip()
        raise encoding.unrecognised(resource.kind, f"Object 'Kind' is missing in '{shown}'", body)
    return decoded


def _decode_applied(body: bytes) -> encoding.Decoded:
    """The configuration in the body of an apply; an empty one is an object that says nothing. Raises 400."""
    try:
        decoded = encoding.decode(body, "application/yaml")
    except encoding.DecodeError as error:
        raise ApiError("BadRequest", f"error decoding YAML: {error}") from error
    if decoded.value is None:
        return encoding.Decoded({})
    if not isinstance(decoded.value, dict):
        why = f"cannot unmarshal {encoding.go_name(decoded.value)} into Go value of type map[string]interface {{}}"
        text = f"error decoding YAML: error unmarshaling JSON: while decoding JSON: json: {why}"
        raise ApiError("BadRequest", text)
    return decoded


def decode_delete_options(body: bytes, media: str) -> Object | None:
    """The DeleteOptions in the body of a DELETE, None if it has none. Raises 400 and 415."""
    if not body:
        return None
    if body.startswith(_MAGIC):
        return protobuf.decode(body)
    if media not in (*_KNOWN, "application/octet-stream"):
        raise ApiError("UnsupportedMediaType", "the body of the request was in an unknown format")
    try:
        value = encoding.decode(body, media or "application/json").value
    except encoding.DecodeError as error:
        raise ApiError("BadRequest", f"couldn't get version/kind; json parse error: {error}") from error
    if value is None:
        return None
    if not isinstance(value, dict):
        why = encoding.no_object(value)
        raise ApiError("BadRequest", f"couldn't get version/kind; json parse error: {why}")
    kind = value.get("kind")
    if kind and kind != "DeleteOptions":
        text = f'no kind "{kind}" is registered for version "{value.get("apiVersion", "")}"'
        raise ApiError("BadRequest", f'{text} in scheme "pkg/apis/meta/internalversion/scheme/register.go:27"')
    mismatch = schema.type_mismatch(_DELETE_OPTIONS, value, "DeleteOptions")
    if mismatch:
        raise ApiError("BadRequest", mismatch)
    return value


_DELETE_OPTIONS: schema.Schema = {"type": "object", "properties": {
    "gracePeriodSeconds": {"type": "integer"}, "orphanDependents": {"type": "boolean"},
    "propagationPolicy": {"type": "string"}, "dryRun": {"type": "array", "items": {"type": "string"}},
    "preconditions": {
        "type": "object", "properties": {"uid": {"type": "string"}, "resourceVersion": {"type": "string"}},
    },
}}  # fmt: skip


def decode_protobuf(body: bytes, resource: Resource) -> Object:
    """The object of a kind in a protobuf body. Raises 400 and 415."""
    if not resource.builtin:
        # The original drops the connection.
        text = "the body of the request was in an unknown format - accepted media types include: "
        raise ApiError("UnsupportedMediaType", f"{text}application/json, application/yaml")
    if not body.startswith(_MAGIC):
        prefix = " ".join(str(byte) for byte in _MAGIC)
        why = f"provided data does not appear to be a protobuf message, expected prefix [{prefix}]"
        raise encoding.unrecognised(resource.kind, why, body)
    obj = protobuf.decode(body, (resource.api_version, resource.kind))
    kind = obj.get("kind") or resource.kind
    if kind != resource.kind:
        version, package = resource.version, (resource.group or "core").partition(".")[0]
        why = f"converting ({version}.{kind}) to ({package}.{resource.kind}): unknown conversion"
        text = f'{kind} in version "{version}" cannot be handled as a {resource.kind}: {why}'
        raise ApiError("BadRequest", text)
    return obj
