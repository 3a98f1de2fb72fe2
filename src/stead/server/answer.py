"""What goes back over the wire: an `Answer`, the content negotiation that shapes it, and the headers on every one.

Called by `app` and the modules that build bodies. Pure but for the ASGI send. Negotiation follows N2 to N4: clauses of
Accept are walked by weight; JSON and YAML are served; `as=Table` and `as=PartialObjectMetadata[List]` are projections.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from stead.kube.errors import ApiError

Send = Callable[[dict[str, Any]], Awaitable[None]]

#: bodies above this are compressed for clients that accept gzip (the API server's own threshold)
GZIP_FROM_BYTES = 128 * 1024

#: how long a body that is made while it is sent may take, seconds
SEND_SECONDS = 300.0

#: bodies above this are compressed in a thread, so that other requests go on
IN_THREAD_FROM_BYTES = 1024 * 1024

JSON = "application/json"
YAML = "application/yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"
MEDIA_TYPES = (JSON, YAML, PROTOBUF)
PLAIN = "text/plain; charset=utf-8"

#: browsers must not guess a type: on what plain HTTP handlers answer
NOSNIFF = ("X-Content-Type-Options", "nosniff")

_PROJECTIONS = frozenset({"Table", "PartialObjectMetadata", "PartialObjectMetadataList"})
_encoder = msgspec.json.Encoder()


class Answer(msgspec.Struct):
    """Status, body and extra headers. `audit` notes (annotations) go to the audit log only."""

    code: int
    body: bytes
    content_type: str = JSON
    headers: list[tuple[str, str]] = []
    #: small header texts for `Warning: 299`
    warnings: list[str] = []
    #: a body that is made while it is sent, in place of `body`; asked for once
    parts: Iterator[bytes] | None = None


class Accepted(msgspec.Struct, frozen=True):
    """What the client wants: `format` json|yaml, `projection` ""|Table|PartialObjectMetadata[List], its version."""

    format: str = "json"
    projection: str = ""
    version: str = "v1"


_PLAIN_JSON = Accepted()


def encode(value: Any) -> bytes:
    """JSON bytes of a value."""
    return _encoder.encode(value)


def json_answer(value: Any, code: int = 200) -> Answer:
    """An answer that carries `value` as JSON."""
    return Answer(code, _encoder.encode(value))


@contextlib.contextmanager
def not_sniffed() -> Iterator[None]:
    """A refusal is marked as answers of plain HTTP handlers are."""
    try:
        yield
    except ApiError as error:
        error.headers = [NOSNIFF]
        raise


def text_answer(text: str, code: int = 200) -> Answer:
    """An answer of plain text; browsers must not sniff it."""
    return Answer(code, text.encode(), PLAIN, [NOSNIFF])


def error_answer(error: ApiError) -> Answer:
    """The Status object of a refusal."""
    status = error.status()
    if status.get("details"):
        status["details"] = {key: value for key, value in status["details"].items() if value not in ("", [])}
    elif error.details is not None:
        status["details"] = {}
    answer = json_answer(status, error.code)
    seconds = (error.details or {}).get("retryAfterSeconds")
    if seconds:
        answer.headers = [("Retry-After", str(seconds))]
    elif error.code == 429:
        answer.headers = [("Retry-After", "1")]
    answer.headers = [*answer.headers, *error.headers]
    return answer


def negotiate(accept: str, *, projections: bool = True) -> Accepted:
    """Choose by an Accept header. Raises ApiError("NotAcceptable") when nothing offered can be served."""
    if accept == JSON or not accept.strip():
        return _PLAIN_JSON
    clauses = sorted(_clauses(accept), key=lambda clause: -clause[0])
    for _, media, params in clauses:
        chosen = _choose(media, params, projections)
        if chosen is not None:
            return chosen
    raise not_acceptable()


def not_acceptable() -> ApiError:
    """406 in the API server's words; it names the type that only bodies of requests may have here, too."""
    return ApiError("NotAcceptable", f"only the following media types are accepted: {', '.join(MEDIA_TYPES)}")


def check_route(accept: str, *, is_collection: bool) -> None:
    """What a route of a built-in kind makes of Accept before anything else. Raises 406 in the router's words."""
    clauses = [clause.partition(";")[0].strip() for clause in accept.split(",")]
    if not accept.strip() or any(clause in ("*/*", *MEDIA_TYPES) for clause in clauses):
        return
    offered = [*MEDIA_TYPES, *(f"{name};stream=watch" for name in (JSON, PROTOBUF) if is_collection)]
    text = f"406: Not Acceptable\n\nAvailable representations: {', '.join(offered)}"
    raise ApiError("NotAcceptable", text, {})


def wants_protobuf(accept: str) -> bool:
    """Whether a client reads nothing but protobuf; only a refusal can be told to it."""
    kinds = {clause.partition(";")[0].strip() for clause in accept.split(",")}
    return PROTOBUF in kinds and not kinds & {JSON, YAML, "*/*", "application/*"}


def _clauses(accept: str) -> list[tuple[float, str, dict[str, str]]]:
    clauses = []
    for clause in accept.split(","):
        media, *rest = [part.strip() for part in clause.split(";")]
        params = dict(pair.split("=", 1) for pair in rest if "=" in pair)
        try:
            weight = float(params.get("q", "1"))
        except ValueError:
            weight = 1.0
        if weight > 0:
            clauses.append((weight, media.lower(), params))
    return clauses


def _choose(media: str, params: dict[str, str], projections: bool) -> Accepted | None:
    if media in (JSON, "*/*", "application/*"):
        chosen = "json"
    elif media == YAML:
        chosen = "yaml"
    else:
        return None
    wanted = params.get("as", "")
    if not wanted:
        return Accepted(chosen)
    version = params.get("v", "v1")
    known = wanted in _PROJECTIONS and params.get("g", "meta.k8s.io") == "meta.k8s.io" and version in ("v1", "v1beta1")
    if not projections or not known:
        return None
    return Accepted(chosen, wanted, version)


#: warnings that an answer carries; clients refuse answers of more than about a hundred headers
MOST_WARNINGS = 64


def warning_headers(texts: list[str]) -> list[tuple[str, str]]:
    """`Warning: 299 - "text"` headers: deduplicated, no control characters, about 4 KiB altogether."""
    headers: list[tuple[str, str]] = []
    budget = 4096
    for text in dict.fromkeys(texts[:MOST_WARNINGS]):
        clean = "".join(char if char.isprintable() else " " for char in text)
        quoted = clean.replace("\\", "\\\\").replace('"', '\\"')[: max(0, min(budget, 1024))]
        if not quoted:
            break
        budget -= len(quoted)
        headers.append(("Warning", f'299 - "{quoted}"'))
    return headers


def header_list(answer: Answer, audit_id: str, length: int | None) -> list[tuple[bytes, bytes]]:
    """All headers of an answer in ASGI's form. `length` None: the body comes in chunks."""
    names = {name.lower() for name, _ in answer.headers}
    headers = [("Content-Type", answer.content_type)] if answer.content_type else []
    if "cache-control" not in names:
        headers.append(("Cache-Control", "no-cache, private"))
    headers += [("Audit-Id", audit_id), *answer.headers, *warning_headers(answer.warnings)]
    if length is not None:
        headers.append(("Content-Length", str(length)))
    return [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]


async def send_answer(send: Send, answer: Answer, audit_id: str, accept_encoding: str, *, head: bool = False) -> None:
    """Send a whole answer, compressed when that pays."""
    if answer.parts is not None:
        await _send_parts(send, answer, audit_id, "gzip" in accept_encoding, head)
        return
    body = answer.body
    if len(body) > GZIP_FROM_BYTES and "gzip" in accept_encoding and answer.code not in (204, 304):
        small = len(body) < IN_THREAD_FROM_BYTES
        body = gzip.compress(body, 1) if small else await asyncio.to_thread(gzip.compress, body, 1)
        answer = msgspec.structs.replace(
            answer, headers=[*answer.headers, ("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")]
        )
    headers = header_list(answer, audit_id, len(body))
    await send({"type": "http.response.start", "status": answer.code, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})


async def _send_parts(send: Send, answer: Answer, audit_id: str, compressed: bool, head: bool) -> None:
    """Send a body as it is made; others get their turn between the parts. A client that takes too long is cut off."""
    coding = [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")] if compressed else []
    answer = msgspec.structs.replace(answer, headers=[*answer.headers, *coding])
    parts = answer.parts or iter(())
    await send({"type": "http.response.start", "status": answer.code, "headers": header_list(answer, audit_id, None)})
    packer = zlib.compressobj(1, wbits=31) if compressed else None
    async with asyncio.timeout(SEND_SECONDS):
        for part in () if head else parts:
            if packer is not None:
                part = await asyncio.to_thread(packer.compress, part)
            else:
                await asyncio.sleep(0)
            if part:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": packer.flush() if packer is not None else b""})
