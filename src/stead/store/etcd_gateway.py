"""A thin client of etcd's JSON gateway (`/v3/…`): which member to ask, when to ask another, what an error means.

Used by `store.etcd` alone. Bodies and answers are the protobuf messages of etcd's API in their JSON form: bytes in
base64, 64-bit numbers as text, fields that are zero left out (`Documentation/dev-guide/api_grpc_gateway` of etcd).
Why not gRPC stands in `docs/decisions/0015-etcd-by-its-json-gateway.md`.

A call that only reads goes to another member too when one does not answer at once; who answers first is asked first
from then on, so that nothing waits long for a member that is frozen or cut off. A write goes to another member only
while nothing was sent: afterwards nobody can know whether it took effect, and that is what the caller is told
(`Unanswered`). On the event loop; no state but which member is asked first.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import aiohttp
import msgspec

from stead.store.contract import StoreFailure, TooLarge, Unanswered, Unavailable

#: how long a member may take to accept a connection, and to answer a read, seconds
CONNECT_SECONDS = 1.0
READ_SECONDS = 3.0
#: how long a read waits for a member before another one is asked too, seconds
HEDGE_SECONDS = 0.4
#: how long reads are tried on one member after another, and how long a write is waited for, seconds
READ_DEADLINE_SECONDS = 5.0
WRITE_SECONDS = 5.0
#: how long a read waits after a refusal before it asks the next member, seconds
PAUSE_SECONDS = 0.02
#: bytes of one message of a watch
MAX_MESSAGE = 64 << 20

#: gRPC codes
_RESOURCE_EXHAUSTED, _OUT_OF_RANGE = 8, 11
#: refusals of a write that was not proposed to the cluster
_NOT_PROPOSED = ("no leader", "too many requests", "not capable", "server stopped")

T = TypeVar("T")


class Outdated(Exception):
    """The revision asked for has been compacted."""


class KeyValue(msgspec.Struct, frozen=True):
    """mvccpb.KeyValue."""

    key: bytes
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0


class Header(msgspec.Struct, frozen=True):
    """etcdserverpb.ResponseHeader."""

    revision: int = 0


class RangeAnswer(msgspec.Struct, frozen=True):
    """etcdserverpb.RangeResponse."""

    header: Header = Header()
    kvs: tuple[KeyValue, ...] = ()
    more: bool = False


class Response(msgspec.Struct, frozen=True):
    """etcdserverpb.ResponseOp, of which only ranges say anything."""

    response_range: RangeAnswer = RangeAnswer()


class TxnAnswer(msgspec.Struct, frozen=True):
    """etcdserverpb.TxnResponse."""

    header: Header = Header()
    succeeded: bool = False
    responses: tuple[Response, ...] = ()


class WatchEvent(msgspec.Struct, frozen=True):
    """mvccpb.Event; `type` is left out for a put."""

    kv: KeyValue
    prev_kv: KeyValue | None = None
    type: str = "PUT"


class WatchAnswer(msgspec.Struct, frozen=True):
    """etcdserverpb.WatchResponse."""

    events: tuple[WatchEvent, ...] = ()
    created: bool = False
    canceled: bool = False
    fragment: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""


class _Error(msgspec.Struct, frozen=True):
    message: str = ""
    code: int = 0


class _Line(msgspec.Struct, frozen=True):
    result: WatchAnswer | None = None
    error: Any = None


class Gateway:
    """See the module's prose. Make it on the event loop; `close` at the end."""

    def __init__(self, members: Sequence[str], tls: ssl.SSLContext) -> None:
        self._urls = [f"https://{member}" for member in members]
        self._first = 0
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=64, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Hang up."""
        await self._session.close()

    def avoid(self, url: str) -> None:
        """Ask another member first from now on, if this is the one that is asked first."""
        if self._urls[self._first] == url:
            self._first = (self._first + 1) % len(self._urls)

    async def read(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        """A call that changes nothing. Raises `Unavailable`, `Outdated`, StoreFailure."""
        deadline = time.monotonic() + READ_DEADLINE_SECONDS
        asked: dict[asyncio.Task[T], int] = {}
        trouble, member = "", self._first
        try:
            while time.monotonic() < deadline:
                question = self._post(self._urls[member], path, body, kind, READ_SECONDS)
                asked[asyncio.create_task(question)] = member
                member = (member + 1) % len(self._urls)
                done, _ = await asyncio.wait(asked, timeout=HEDGE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    at = asked.pop(task)
                    try:
                        answer = task.result()
                    except (Unavailable, Unanswered) as error:
                        trouble = str(error)
                        continue
                    self._first = at
                    return answer
                if done:
                    await asyncio.sleep(PAUSE_SECONDS)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise Unavailable(f"no member of etcd answers: {trouble or 'all are silent'}")

    async def write(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        """A call that changes something. Raises `Unavailable`, `Unanswered`, `TooLarge`, `Outdated`, StoreFailure."""
        trouble = ""
        for _ in self._urls:
            url = self._urls[self._first]
            try:
                return await self._post(url, path, body, kind, WRITE_SECONDS)
            except Unavailable as error:  # nothing was proposed
                trouble = str(error)
                self.avoid(url)
            except Unanswered:
                self.avoid(url)
                raise
        raise Unavailable(f"no member of etcd answers: {trouble}")

    async def _post(self, url: str, path: str, body: dict[str, Any], kind: type[T], seconds: float) -> T:
        try:
            async with asyncio.timeout(seconds):
                async with self._session.post(url + path, data=msgspec.json.encode(body)) as response:
                    answer = await response.read()
        except aiohttp.ClientConnectorCertificateError as error:  # no later attempt fares better
            raise StoreFailure(f"{url}: {error}") from error
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(f"{url}: {error}") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise Unavailable(f"{url}: no connection within {CONNECT_SECONDS:g} s") from error
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            raise Unanswered(f"{url}: {str(error) or f'no answer within {seconds:g} s'}") from error
        if response.status == 200:
            return _decoded(answer, kind)
        raise _failure(url, response.status, answer)

    @contextlib.asynccontextmanager
    async def _opened(self, url: str, body: dict[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
        # A member that has lost the others ends the stream instead of falling silent.
        headers = {"Grpc-Metadata-hasleader": "true"}
        try:
            async with self._session.post(
                f"{url}/v3/watch", data=msgspec.json.encode(body), headers=headers
            ) as response:
                if response.status != 200:
                    raise _failure(url, response.status, await response.read())
                yield response
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            raise Unavailable(f"{url}: the watch broke: {error!r}") from error

    @contextlib.asynccontextmanager
    async def watch(self, create: dict[str, Any]) -> AsyncIterator[Stream]:
        """A watch on one member: a `Stream`. Raises `Unavailable` when it breaks, there and in the body."""
        url = self._urls[self._first]
        async with self._opened(url, {"create_request": create}) as response:
            stream = Stream(url, response.content)
            try:
                yield stream
            finally:
                await stream.close()


class Stream:
    """The answers of a watch, one by one."""

    def __init__(self, url: str, content: aiohttp.StreamReader) -> None:
        self.url = url
        self._content = content
        self._parts: list[bytes] = []
        self._size = 0
        self._lines: list[bytes] = []
        self._reading: asyncio.Task[bytes] | None = None

    async def next(self, seconds: float) -> WatchAnswer | None:
        """The next answer, or None when none came in time. Raises `Unavailable`, aiohttp's and OS errors."""
        while not self._lines:
            if self._reading is None:
                self._reading = asyncio.create_task(self._content.readany())
            done, _ = await asyncio.wait({self._reading}, timeout=seconds)
            if not done:
                return None
            data, self._reading = self._reading.result(), None
            if not data:
                raise Unavailable("the member ended the watch")
            self._take(data)
        line = _decoded(self._lines.pop(0), _Line)
        if line.result is None:
            raise Unavailable(f"the member ended the watch: {line.error}")
        return line.result

    def _take(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._lines.append(b"".join([*self._parts, line]))
            self._parts, self._size = [], 0
        self._parts.append(rest)
        self._size += len(rest)
        if self._size > MAX_MESSAGE:
            raise Unavailable(f"a message of the watch has more than {MAX_MESSAGE} bytes")

    async def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind, strict=False)
    except msgspec.DecodeError as error:
        raise Unanswered(f"an answer of etcd is not understood: {error}") from error


def _failure(url: str, status: int, answer: bytes) -> Exception:
    """What a refusal means. The texts are those of etcd's `rpctypes`."""
    try:
        error = msgspec.json.decode(answer, type=_Error, strict=False)
    except msgspec.DecodeError:
        error = _Error(answer[:200].decode("utf-8", "replace"))
    text = f"{url}: {error.message or f'HTTP {status}'}"
    if error.code == _OUT_OF_RANGE and "compacted" in error.message:
        return Outdated(text)
    if "too large" in error.message or "larger than max" in error.message:
        return TooLarge(text)
    if error.code == _RESOURCE_EXHAUSTED or any(words in error.message for words in _NOT_PROPOSED):
        return Unavailable(text)
    if status in (500, 503, 504, 408, 499):
        return Unanswered(text)
    return StoreFailure(text)


def packed(data: bytes | str) -> str:
    """Bytes as etcd's JSON wants them."""
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def after_all(prefix: str) -> str:
    """The first key that is not below the prefix."""
    raw = prefix.encode()
    return packed(raw[:-1] + bytes([raw[-1] + 1]))


def equals(key: str, revision: int) -> dict[str, Any]:
    """The condition that a key was last written at a revision of etcd's; 0 = it is absent."""
    return {"key": packed(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def delete_below(prefix: str) -> dict[str, Any]:
    """The operation that removes all keys below a prefix."""
    return {"request_delete_range": {"key": packed(prefix), "range_end": after_all(prefix)}}


def put(key: str, value: bytes) -> dict[str, Any]:
    """The operation that writes a key."""
    return {"request_put": {"key": packed(key), "value": packed(value)}}


def look(key: str, keys_only: bool = False) -> dict[str, Any]:
    """The operation that reads a key."""
    return {"request_range": {"key": packed(key), "keys_only": keys_only}}
