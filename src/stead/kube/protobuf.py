"""Reads `application/vnd.kubernetes.protobuf` request bodies into the JSON objects that they stand for.

kubectl since 1.32 and every client-go typed client send these bodies for built-in kinds; we read them, and write
nothing but refusals. The server calls `decode` by Content-Type. Bounded by the body's size: nothing is allocated from a
declared length. Stateless; safe from any thread. Source: the envelope of apimachinery's runtime/serializer/protobuf
(magic, Unknown), the messages in `protobuf_fields`, and the JSON that Go prints: zero values of non-pointers are left
out.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import msgspec

from stead.kube.encoding import DecodeError, decode_json
from stead.kube.errors import ApiError
from stead.kube.meta import format_micro_time, format_time
from stead.kube.protobuf_fields import FIELDS

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"
#: nesting of messages; the deepest kind we know has about ten
_MAX_DEPTH = 40
_NANOS = 10**9
#: seconds of Go's zero time (year 1), which prints as null
_ZERO_TIME = -62135596800

_PACKAGES = {
    "v1": "core",
    "apps/v1": "apps",
    "authentication.k8s.io/v1": "authn",
    "authorization.k8s.io/v1": "authz",
    "coordination.k8s.io/v1": "coord",
    "events.k8s.io/v1": "events",
    "policy/v1": "policy",
    "rbac.authorization.k8s.io/v1": "rbac",
    "scheduling.k8s.io/v1": "sched",
    "storage.k8s.io/v1": "storage",
}


class _Field(msgspec.Struct, frozen=True):
    """One field of a message; `many` is "", "[]" or "{}"."""

    name: str
    type: str
    pointer: bool
    kept: bool
    inline: bool
    many: str


class _Bad(ValueError):
    """The bytes are no such message."""


@lru_cache(maxsize=1)
def _messages() -> dict[str, dict[int, _Field]]:
    """The table of `protobuf_fields`, parsed on first use."""
    messages: dict[str, dict[int, _Field]] = {}
    text = FIELDS.replace("\n  ", " ")
    for line in filter(None, text.splitlines()):
        name, _, fields = line.partition(":")
        messages[name] = dict(_field(part.split()) for part in fields.split(";") if part.strip())
    return messages


def _field(parts: list[str]) -> tuple[int, _Field]:
    number, name, spec = parts
    flags, rest = "", spec
    while rest[0] in "~*!":
        flags, rest = flags + rest[0], rest[1:]
    many = rest[:2] if rest[:2] in {"[]", "{}"} else ""
    return int(number), _Field(name, rest[len(many) :], "*" in flags, "!" in flags, "~" in flags, many)


def decode(body: bytes, expected: tuple[str, str] = ("", "")) -> dict[str, Any]:
    """The object in a body, with apiVersion and kind (`expected` where the body names none).

    Raises ApiError 400 (bad bytes) or 415 (unknown kind).
    """
    try:
        return _decode(body, expected)
    except (_Bad, DecodeError, UnicodeDecodeError) as error:
        raise ApiError("BadRequest", f"unable to decode protobuf body: {error}") from error


def _decode(body: bytes, expected: tuple[str, str]) -> dict[str, Any]:
    if not body.startswith(MAGIC):
        raise _Bad("provided data does not appear to be a protobuf message, expected prefix 6b 38 73 00")
    envelope = {number: value for number, _, value in _wire(body[len(MAGIC) :]) if isinstance(value, bytes)}
    head = {number: value for number, _, value in _wire(envelope.get(1, b"")) if isinstance(value, bytes)}
    api_version, kind = head.get(1, b"").decode(), head.get(2, b"").decode()
    api_version, kind = api_version or expected[0], kind or expected[1]
    raw = envelope.get(2, b"")
    if envelope.get(3):
        raise _Bad(f"unsupported content encoding {envelope[3][:40]!r}")
    if envelope.get(4) == b"application/json":
        value = decode_json(raw).value
        if not isinstance(value, dict):
            raise _Bad("the raw value is not an object")
        return {"apiVersion": api_version, "kind": kind, **value}
    message = "meta.DeleteOptions" if kind == "DeleteOptions" else f"{_PACKAGES.get(api_version, '')}.{kind}"
    if message not in _messages():
        raise ApiError(
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: "
            "application/json, application/yaml",
        )
    return {"apiVersion": api_version, "kind": kind, **_message(message, raw, 0)}


# --- refusals -----------------------------------------------------------------------------------------------------


def encode_status(status: dict[str, Any]) -> bytes:
    """A `v1.Status` as protobuf, for clients that read nothing else."""
    details = status.get("details") or {}
    causes = b"".join(
        _put(4, b"".join(_put(n, c.get(key) or "") for n, key in ((1, "reason"), (2, "message"), (3, "field"))))
        for c in details.get("causes") or []
    )
    told = b"".join(_put(n, details.get(key) or "") for n, key in ((1, "name"), (2, "group"), (3, "kind"))) + causes
    told += _put(5, int(details.get("retryAfterSeconds") or 0)) + _put(6, details.get("uid") or "")
    fields = ((2, "status"), (3, "message"), (4, "reason"))
    body = _put(1, b"") + b"".join(_put(n, status.get(key) or "") for n, key in fields)
    body += _put(5, told) + _put(6, int(status.get("code") or 0))
    kind = _put(1, str(status.get("apiVersion", "v1"))) + _put(2, str(status.get("kind", "Status")))
    return MAGIC + _put(1, kind) + _put(2, body) + _put(3, "") + _put(4, "")


def _put(number: int, value: str | bytes | int) -> bytes:
    """One field of a message."""
    if isinstance(value, int):
        return _varint_bytes(number << 3) + _varint_bytes(value)
    raw = value.encode() if isinstance(value, str) else value
    return _varint_bytes(number << 3 | 2) + _varint_bytes(len(raw)) + raw


def _varint_bytes(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


# --- wire -------------------------------------------------------------------------------------------------------


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _Bad("unexpected EOF")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & (2**64 - 1), position
    raise _Bad("integer overflow")


def _wire(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(field number, wire type, value) for every field: an int for varints, else bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise _Bad("illegal tag 0")
        if kind == 0:
            value, position = _varint(data, position)
            yield number, kind, value
            continue
        if kind == 2:
            length, position = _varint(data, position)
        elif kind in {1, 5}:
            length = 8 if kind == 1 else 4
        else:
            raise _Bad(f"illegal wireType {kind}")
        if length > len(data) - position:
            raise _Bad("unexpected EOF")
        yield number, kind, data[position : position + length]
        position += length


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


# --- values -----------------------------------------------------------------------------------------------------


def _message(name: str, data: bytes, depth: int) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        raise _Bad("exceeded max depth")
    fields = _messages()[name]
    result: dict[str, Any] = {}
    for number, kind, raw in _wire(data):
        field = fields.get(number)
        if field is None:
            continue
        if field.many == "{}":
            key, value = _map_entry(field.type, raw, depth)
            result.setdefault(field.name, {})[key] = value
        elif field.many:
            result.setdefault(field.name, []).extend(_items(field.type, kind, raw, depth))
        else:
            value = _value(field.type, raw, depth)
            if field.inline:
                result.update(value)
            elif value is not None and (field.pointer or field.kept or not _is_zero(value)):
                # None is a pointer to the zero time, which prints as null.
                result[field.name] = value
    return result


def _is_zero(value: Any) -> bool:
    return value is None or value in ("", 0, False, {})


def _items(kind: str, wire_type: int, raw: int | bytes, depth: int) -> list[Any]:
    if kind in {"i", "b"} and wire_type == 2 and isinstance(raw, bytes):
        packed: list[Any] = []
        position = 0
        while position < len(raw):
            number, position = _varint(raw, position)
            packed.append(_value(kind, number, depth))
        return packed
    return [_value(kind, raw, depth)]


def _map_entry(kind: str, raw: int | bytes, depth: int) -> tuple[str, Any]:
    key, value = "", b"" if kind not in {"i", "b"} else 0
    for number, _, part in _wire(_bytes(raw)):
        if number == 1:
            key = _bytes(part).decode()
        elif number == 2:
            value = part
    return key, _value(kind, value, depth)


def _bytes(raw: int | bytes) -> bytes:
    if not isinstance(raw, bytes):
        raise _Bad("wrong wireType")
    return raw


def _value(kind: str, raw: int | bytes, depth: int) -> Any:
    if kind in {"i", "b"}:
        if not isinstance(raw, int):
            raise _Bad("wrong wireType")
        return bool(raw) if kind == "b" else _signed(raw)
    data = _bytes(raw)
    reader = _READERS.get(kind)
    return reader(data) if reader else _message(kind, data, depth + 1)


def _numbers(data: bytes) -> dict[int, int]:
    return {number: _signed(value) for number, _, value in _wire(data) if isinstance(value, int)}


def _texts(data: bytes) -> dict[int, bytes]:
    return {number: value for number, _, value in _wire(data) if isinstance(value, bytes)}


def _moment(data: bytes) -> datetime.datetime | None:
    """The instant in a Timestamp; None for the zero time."""
    numbers = _numbers(data)
    seconds, nanos = numbers.get(1, 0), numbers.get(2, 0)
    if (seconds, nanos) == (0, 0) or seconds <= _ZERO_TIME:
        return None
    try:
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return epoch + datetime.timedelta(seconds=seconds, microseconds=nanos // 1000)
    except OverflowError as error:
        raise _Bad("time out of range") from error


def _time(data: bytes) -> str | None:
    moment = _moment(data)
    return format_time(moment) if moment else None


def _micro_time(data: bytes) -> str | None:
    moment = _moment(data)
    return format_micro_time(moment) if moment else None


def _duration(data: bytes) -> str:
    """A span as Go prints it, to the nanosecond: 1h0m0s, 1.5s, 0s."""
    nanos = _numbers(data).get(1, 0)
    seconds, fraction = divmod(abs(nanos), _NANOS)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{seconds}" + (f".{fraction:09}".rstrip("0") if fraction else "") + "s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    if hours:
        text = f"{hours}h{text}"
    return "-" + text if nanos < 0 else text


def _int_or_string(data: bytes) -> int | str:
    numbers = _numbers(data)
    return _texts(data).get(3, b"").decode() if numbers.get(1) == 1 else numbers.get(2, 0)


def _raw_json(data: bytes) -> Any:
    raw = _texts(data).get(1, b"")
    return decode_json(raw).value if raw else None


_READERS: dict[str, Callable[[bytes], Any]] = {
    "s": bytes.decode,
    "y": lambda data: base64.b64encode(data).decode(),
    "t": _time,
    "u": _micro_time,
    "d": _duration,
    "q": lambda data: _texts(data).get(1, b"").decode() or "0",
    "o": _int_or_string,
    "r": _raw_json,
    "Ls": lambda data: [value.decode() for _, _, value in _wire(data) if isinstance(value, bytes)],
}
