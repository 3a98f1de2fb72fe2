"""Where image bytes come from over HTTP: one stream that survives lost connections, within an address policy.

Used inside the unprivileged import worker, so it blocks and needs no event loop. Every connection goes to an address
that was resolved here and passed the policy (no second look-up by anyone, so a name cannot change between check and
use); every redirect is checked anew, and credentials stay with the origin they were given for. A lost connection is
taken up again with `Range` and `If-Range`; a server that cannot do that ends the attempt, and the agent begins again.
Sentences follow CDI's importer (`Unable to connect to http data source: expected status code 200, got 404`).
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import msgspec

CHUNK_BYTES = 1 << 20
MAX_REDIRECTS = 10
#: a connection that moves nothing for this long is given up, in seconds
STALL_SECONDS = 60.0
RESUMES = 5
_HASHES = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class SourceError(Exception):
    """A source failed. `fatal` = trying again cannot help (CDI: only a wrong checksum); `reason` goes to conditions."""

    def __init__(self, reason: str, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.fatal = fatal


class Policy(msgspec.Struct, frozen=True):
    """Which addresses an importer may reach: all but loopback, link-local and the like, unless in `allowed` (CIDRs).

    `forbidden` are Stead's own endpoints: an address, or `address:port`. `allowed` wins over the built-in rule only.
    """

    allowed: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()

    def refusal(self, address: str, port: int) -> str:
        """Why the address must not be reached, or ""."""
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address):
            embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
            if embedded:
                return self.refusal(str(embedded), port)
        if str(ip) in self.forbidden or f"{ip}:{port}" in self.forbidden:
            return "is an endpoint of Stead itself"
        if any(ip in ipaddress.ip_network(network, strict=False) for network in self.allowed):
            return ""
        if ip.is_loopback:
            return "is a loopback address"
        if ip.is_link_local:
            return "is a link-local address"
        if ip.is_multicast or ip.is_unspecified or (ip.is_reserved and not _is_nat64(ip)) or ip == _BROADCAST:
            return "is not an address of a host"
        return ""


_BROADCAST = ipaddress.ip_address("255.255.255.255")


def _is_nat64(ip: Address) -> bool:
    return ip in ipaddress.ip_network("64:ff9b::/96")


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a server: credentials, extra header lines, a private CA (PEM), and the policy."""

    user: str = ""
    password: str = ""
    headers: tuple[str, ...] = ()
    ca_pem: str = ""
    verify: bool = True
    policy: Policy = Policy()


class Checksum(msgspec.Struct, frozen=True):
    """`algo:hex` as in DataVolume.spec.source.http.checksum."""

    algorithm: str
    value: str


def checksum_from_text(text: str) -> Checksum:
    """Parse `sha256:…` (md5, sha1, sha256, sha512); SourceError when it is not one."""
    algorithm, _, value = text.strip().partition(":")
    algorithm, value = algorithm.lower(), value.lower()
    if algorithm not in _HASHES or not re.fullmatch(rf"[0-9a-f]{{{_HASHES[algorithm]}}}", value):
        raise SourceError("InvalidChecksum", f"checksum {text!r} is not md5, sha1, sha256 or sha512 and its hex digits",
                          fatal=True)  # fmt: skip
    return Checksum(algorithm, value)


class Stream(Protocol):
    """Bytes of one object, in order. `total` is its length or -1."""

    total: int

    def read(self) -> bytes:
        """The next piece, at most CHUNK_BYTES; empty at the end."""
        ...

    def close(self) -> None: ...


def resolve(host: str, port: int, policy: Policy) -> list[str]:
    """Addresses of a host that the policy lets us reach; SourceError if there is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SourceError("Error", f"Unable to connect to http data source: lookup {host}: {error.strerror}") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    refusals = {address: policy.refusal(address, port) for address in addresses}
    allowed = [address for address in addresses if not refusals[address]]
    if not allowed:
        address, why = next(iter(refusals.items()))
        raise SourceError(
            "AddressNotAllowed",
            f"Unable to connect to http data source: {host} resolves to {address}, which {why}; "
            "list its network in importer.allowedNetworks to permit it",
        )
    return allowed


class Response(msgspec.Struct):
    """An answered request; `url` is where redirects led. Read `body` to its end or close `connection`."""

    status: int
    reason: str
    headers: http.client.HTTPMessage
    url: str
    connection: http.client.HTTPConnection
    body: http.client.HTTPResponse


def request(url: str, access: Access, headers: dict[str, str] | None = None, method: str = "GET") -> Response:
    """One request, redirects followed (credentials and extra headers only to the first origin)."""
    origin = _origin(url)
    for _ in range(MAX_REDIRECTS + 1):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SourceError("Error", f"Unable to connect to http data source: {url!r} is not an http or https URL")
        sent = {"User-Agent": "stead", "Accept-Encoding": "identity", **(headers or {})}
        if _origin(url) == origin:
            sent |= _own_headers(access)
        else:
            sent.pop("Authorization", None)
        connection = _connect(parts.scheme, parts.hostname, parts.port, access)
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request(method, path, headers=sent)
            body = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise SourceError("Error", f"Unable to connect to http data source: {_words(error)}") from error
        location = body.headers.get("Location")
        if body.status not in (301, 302, 303, 307, 308) or not location:
            return Response(body.status, body.reason, body.headers, url, connection, body)
        connection.close()
        target = urljoin(url, location)
        if parts.scheme == "https" and urlsplit(target).scheme == "http" and not access.policy.allowed:
            raise SourceError("Error", f"Unable to connect to http data source: {url} redirects from https to http")
        url = target
    raise SourceError("Error", f"Unable to connect to http data source: stopped after {MAX_REDIRECTS} redirects")


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _own_headers(access: Access) -> dict[str, str]:
    sent: dict[str, str] = {}
    for line in access.headers:
        name, _, value = line.partition(":")
        if re.search(r"[\r\n]", line) or not name.strip():
            raise SourceError("Error", f"extra header {name!r} is not a header line", fatal=True)
        sent[name.strip()] = value.strip()
    if access.user or access.password:
        token = base64.b64encode(f"{access.user}:{access.password}".encode()).decode()
        sent["Authorization"] = f"Basic {token}"
    return sent


def _connect(scheme: str, host: str, port: int | None, access: Access) -> http.client.HTTPConnection:
    number = port or (443 if scheme == "https" else 80)
    failure: OSError | None = None
    for address in resolve(host, number, access.policy)[:4]:
        try:
            sock = socket.create_connection((address, number), timeout=20)
            sock.settimeout(STALL_SECONDS)
            if scheme == "https":
                sock = _tls_context(access).wrap_socket(sock, server_hostname=host)
        except OSError as error:
            failure = error
            continue
        connection = http.client.HTTPConnection(host, number, timeout=STALL_SECONDS)
        connection.sock = sock  # already connected to the address that was checked
        if port is None:
            connection.port = connection.default_port  # so that Host carries no port
        return connection
    raise SourceError("Error", f"Unable to connect to http data source: {host}:{number}: {_words(failure)}")


def _tls_context(access: Access) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=access.ca_pem or None)
    if access.ca_pem:
        context.load_default_certs()
    if not access.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _words(error: BaseException | None) -> str:
    return str(error) or type(error).__name__


class HttpStream:
    """An object read over HTTP, hashed as it passes; see the module text for what a lost connection does."""

    def __init__(
        self, url: str, access: Access, checksum: Checksum | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """Connects; SourceError unless the server answers 200. `headers` are sent with each request (registries)."""
        self._url, self._access, self._extra = url, access, headers or {}
        self._checksum = checksum
        self._hash = hashlib.new(checksum.algorithm, usedforsecurity=False) if checksum else None
        self._response = request(url, access, self._extra)
        self.offset = 0
        self.resumes = 0
        if self._response.status != 200:
            answer = self._response
            self.close()
            raise _bad_status(answer, 200)
        length = self._response.headers.get("Content-Length", "")
        self.total = int(length) if length.isdigit() else -1
        self._validator = self._response.headers.get("ETag") or self._response.headers.get("Last-Modified") or ""

    def read(self) -> bytes:
        """The next piece; verifies length and checksum at the end."""
        while True:
            try:
                data = self._response.body.read(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                self._resume(_words(error))
                continue
            if data:
                self.offset += len(data)
                if self._hash:
                    self._hash.update(data)
                return data
            if self.total >= 0 and self.offset < self.total:
                self._resume(f"connection closed after {self.offset} of {self.total} bytes")
                continue
            self._verify()
            return b""

    def _verify(self) -> None:
        if self._hash and self._checksum and self._hash.hexdigest() != self._checksum.value:
            raise SourceError(
                "ChecksumError",
                f"Unable to process data: checksum mismatch: "
                f"expected {self._checksum.algorithm}:{self._checksum.value}, "
                f"got {self._checksum.algorithm}:{self._hash.hexdigest()}",
                fatal=True,
            )

    def _resume(self, why: str) -> None:
        """Ask for the rest; only a 206 that continues the same object will do."""
        self._response.connection.close()
        self.resumes += 1
        if self.resumes > RESUMES or not self._validator or self._validator.startswith("W/"):
            raise SourceError("Error", f"Unable to transfer source data to target file: {why}")
        time.sleep(min(0.2 * 2**self.resumes, 5))
        wanted = {**self._extra, "Range": f"bytes={self.offset}-", "If-Range": self._validator}
        try:
            self._response = request(self._url, self._access, wanted)
        except SourceError as error:
            raise SourceError("Error", f"Unable to transfer source data to target file: {why}; then {error}") from error
        given = self._response.headers.get("Content-Range", "")
        if self._response.status != 206 or not given.startswith(f"bytes {self.offset}-"):
            self._response.connection.close()
            raise SourceError(
                "Error", f"Unable to transfer source data to target file: {why}; the source cannot resume"
            )

    def close(self) -> None:
        """Give the connection up."""
        self._response.connection.close()


def _bad_status(answer: Response, expected: int) -> SourceError:
    return SourceError(
        "Error",
        f"Unable to connect to http data source: expected status code {expected}, got {answer.status}. "
        f"Status: {answer.status} {answer.reason}",
    )


Opener = Callable[[], Stream]
