"""A repository's objects in a bucket of an S3 server: Signature Version 4 over HTTP(S), and the five calls that are
needed. Blocking; safe for several threads (one connection each).

The address is resolved by the caller's rule (`BucketPlace.resolve`) for each connection and the connection goes there
and nowhere else: no redirect is followed. Answers are bounded; lists are XML without a document type. An object is put
with one request, so that it is wholly there or not at all; keys are `prefix/kind/name`. Source: Amazon's S3 API
reference (GetObject, PutObject, DeleteObject, ListObjectsV2; authenticating requests).
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import re
import socket
import ssl
import threading
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import msgspec

from stead.storage.backup.keys import BackupError
from stead.storage.backup.store import ROOT, check_name

SECONDS = 60.0
TRIES = 4
_LIST_BYTES = 4 << 20
_ERROR_BYTES = 64 << 10
_EMPTY = hashlib.sha256(b"").hexdigest()
_TRANSIENT = (500, 502, 503, 504)


def _first_address(host: str, port: int) -> str:
    return str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])


class BucketPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where, and as whom. `resolve` gives the address to connect to for (host, port), or raises OSError."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str
    prefix: str = ""
    region: str = "us-east-1"
    resolve: Callable[[str, int], str] = _first_address


class Bucket:
    """`Store` in a bucket."""

    def __init__(self, place: BucketPlace) -> None:
        self._place = place
        url = urllib.parse.urlsplit(place.endpoint)
        if url.scheme not in ("http", "https") or not url.hostname or url.path not in ("", "/"):
            raise BackupError("Invalid", f"{place.endpoint} is not the URL of an S3 server")
        self._secure, self._host = url.scheme == "https", url.hostname
        self._port = url.port or (443 if self._secure else 80)
        self._netloc = url.netloc.rpartition("@")[2]
        self._prefix = f"{place.prefix.strip('/')}/" if place.prefix.strip("/") else ""
        self._local = threading.local()

    # the contract ------------------------------------------------------------------------------------------------

    def put(self, name: str, data: bytes) -> None:
        check_name(name)
        self._ask("PUT", name, body=data)

    def get(self, name: str, limit: int) -> bytes:
        check_name(name)
        data = self._ask("GET", name, limit=limit + 1)
        if len(data) > limit:
            raise BackupError("Damaged", f"{name} is longer than {limit} bytes; more are not read")
        return data

    def get_part(self, name: str, offset: int, length: int) -> bytes:
        check_name(name)
        if length <= 0:
            return b""
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        return self._ask("GET", name, headers=headers, limit=length)[:length]

    def list(self, kind: str) -> Iterator[tuple[str, int]]:
        token = ""
        while True:
            query = {"list-type": "2", "prefix": f"{self._prefix}{kind}/"}
            if token:
                query["continuation-token"] = token
            text = self._ask("GET", "", query=query, limit=_LIST_BYTES)
            found, token = _parse_list(text)
            for key, size in found:
                name = key.removeprefix(self._prefix)
                try:
                    check_name(name)
                except BackupError:
                    continue
                if name != ROOT:
                    yield name, size
            if not token:
                return

    def delete(self, name: str) -> None:
        check_name(name)
        self._ask("DELETE", name)

    def sweep(self, older_seconds: float) -> int:
        return 0  # what was not put wholly is not there

    # requests ----------------------------------------------------------------------------------------------------

    def _ask(
        self, method: str, name: str, *, query: dict[str, str] | None = None, body: bytes = b"",
        headers: dict[str, str] | None = None, limit: int = _ERROR_BYTES,
    ) -> bytes:  # fmt: skip
        path = f"/{self._place.bucket}" + (f"/{self._prefix}{name}" if name else "")
        target = urllib.parse.quote(path, safe="/-_.~")
        text = "&".join(f"{_quoted(k)}={_quoted(v)}" for k, v in sorted((query or {}).items()))
        what = f"{method} of {name or self._place.bucket} at {self._place.endpoint}"
        for attempt in range(TRIES):
            signed = self._signed((method, target, text), body, headers or {})
            try:
                status, data = self._exchange(method, f"{target}?{text}" if text else target, body, signed, limit)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                if attempt == TRIES - 1:
                    raise BackupError("Failed", f"{what}: {error}") from error
                continue
            if status in _TRANSIENT and attempt < TRIES - 1:
                continue
            return _judged(what, status, data)
        raise BackupError("Failed", f"{what}: no answer")

    def _exchange(
        self, method: str, target: str, body: bytes, headers: dict[str, str], limit: int
    ) -> tuple[int, bytes]:
        connection = self._connection()
        connection.request(method, target, body=body or None, headers=headers)
        answer = connection.getresponse()
        data = answer.read(limit + 1 if answer.status < 300 else _ERROR_BYTES)
        if answer.read(1):
            self._drop()
        return answer.status, data

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = _Pinned(self._host, self._port, self._secure, self._place.resolve)
        return found

    def _drop(self) -> None:
        found: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if found is not None:
            found.close()
            self._local.connection = None

    def _signed(self, request: tuple[str, str, str], body: bytes, headers: dict[str, str]) -> dict[str, str]:
        now = datetime.now(UTC)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        digest = hashlib.sha256(body).hexdigest() if body else _EMPTY
        sent = {**headers, "Host": self._netloc, "x-amz-date": stamp, "x-amz-content-sha256": digest}
        return {**sent, "Authorization": self._authorization(request, sent, digest, (stamp, day))}

    def _authorization(
        self, request: tuple[str, str, str], sent: dict[str, str], digest: str, when: tuple[str, str]
    ) -> str:
        method, target, query = request
        stamp, day = when
        lowered = {key.lower(): value.strip() for key, value in sent.items()}
        names = ";".join(sorted(lowered))
        lines = "".join(f"{key}:{lowered[key]}\n" for key in sorted(lowered))
        canonical = "\n".join((method, target, query, lines, names, digest))
        scope = f"{day}/{self._place.region}/s3/aws4_request"
        text = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
        key = f"AWS4{self._place.secret_key}".encode()
        for part in (day, self._place.region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        who = f"Credential={self._place.access_key}/{scope}"
        return f"AWS4-HMAC-SHA256 {who}, SignedHeaders={names}, Signature={signature}"


class _Pinned(http.client.HTTPConnection):
    """Connects to the address that the rule gives, verifying the certificate for the name."""

    def __init__(self, host: str, port: int, secure: bool, resolve: Callable[[str, int], str]) -> None:
        super().__init__(host, port, timeout=SECONDS)
        self._secure, self._resolve = secure, resolve

    def connect(self) -> None:
        address = self._resolve(self.host, self.port)
        plain = socket.create_connection((address, self.port), SECONDS)
        self.sock = (
            ssl.create_default_context().wrap_socket(plain, server_hostname=self.host) if self._secure else plain
        )


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="-_.~")


def _judged(what: str, status: int, data: bytes) -> bytes:
    if status in (200, 204, 206):
        return data
    code = re.search(rb"<Code>([A-Za-z]{1,64})</Code>", data)
    word = code[1].decode() if code else ""
    if status == 404 and word != "NoSuchBucket":
        raise BackupError("NotFound", f"{what}: it is not there")
    if status == 416:
        return b""
    reason = "NoSpace" if status == 507 or "Quota" in word else "Failed"
    raise BackupError(reason, f"{what}: the server answers {status} {word}".rstrip())


def _parse_list(text: bytes) -> tuple[list[tuple[str, int]], str]:
    """Keys with sizes, and the token of the next page."""
    if b"<!" in text or len(text) > _LIST_BYTES:
        raise BackupError("Damaged", "the S3 server answers with a list that is none")
    try:
        root = ET.fromstring(text)  # noqa: S314  bounded, and without a document type, hence without entities
        space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
        found = [
            (str(item.findtext(f"{space}Key")), int(item.findtext(f"{space}Size") or 0))
            for item in root.iterfind(f"{space}Contents")
        ]
    except (ET.ParseError, ValueError) as error:
        raise BackupError("Damaged", "the S3 server answers with a list that is none") from error
    return found, root.findtext(f"{space}NextContinuationToken") or ""
