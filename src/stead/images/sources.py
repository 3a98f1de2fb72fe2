"""Where image bytes come from over HTTP: one stream that survives lost connections, within an address policy.

Used inside the unprivileged import worker, so it blocks and needs no event loop. Every connection goes to an address
that was resolved here and passed the policy (no second look-up by anyone, so a name cannot change between check and
use); every redirect is checked anew, and credentials stay with the origin they were given for. A lost connection is
taken up again with `Range` and `If-Range`, by another process too; a server that cannot do that ends the attempt, and
the agent begins again.
Sentences follow CDI's importer (`Unable to connect to http data source: expected status code 200, got 404`).
"""

from __future__ import annotations

import base64
import errno
import hashlib
import ipaddress
import re
import socket
import time
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from stead.images.wire import Answer, WireError, ask, set_deadline

if TYPE_CHECKING:
    import ssl

CHUNK_BYTES = 1 << 20
MAX_REDIRECTS = 10
#: a connection that moves nothing for this long is given up, in seconds
STALL_SECONDS = 60.0
RESUMES = 5
_HASHES = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class SourceError(Exception):
    """A source failed. `fatal` = trying again cannot help (CDI: only a wrong checksum); `reason` goes to conditions."""

    def __init__(self, reason: str, message: str, *, fatal: bool = False, lost: bool = False) -> None:
        """`lost`: the source went away in the middle; what was read of it may be gone on with."""
        super().__init__(message)
        self.reason = reason
        self.fatal = fatal
        self.lost = lost


class Policy(msgspec.Struct, frozen=True):
    """Which addresses an importer may reach: all but loopback, link-local and the like, unless in `allowed` (CIDRs).

    `forbidden` are Stead's own endpoints: an address, `address:port`, or `*:port` for that port of whatever address
    this host has by then. `allowed` wins over the built-in rule only.
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
        if str(ip) in self.forbidden or f"{ip}:{port}" in self.forbidden or self._is_own(ip, port):
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

    def _is_own(self, ip: Address, port: int) -> bool:
        return f"*:{port}" in self.forbidden and _is_local(ip)


def _is_local(ip: Address) -> bool:
    """Whether an address is one of this host's: only to those can a socket be bound. A doubt counts as yes."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


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
        # bytes where it can be: the codec for names in other scripts takes long to load
        found = socket.getaddrinfo(host.encode() if host.isascii() else host, port, type=socket.SOCK_STREAM)
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


def request(url: str, access: Access, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
    """One request, redirects followed (credentials and extra headers only to the first origin)."""
    origin = _origin(url)
    for _ in range(MAX_REDIRECTS + 1):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SourceError("Error", f"Unable to connect to http data source: {url!r} is not an http or https URL")
        bare = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        host = bare if parts.port is None else f"{bare}:{parts.port}"
        sent = {"Host": host, "User-Agent": "stead", "Accept-Encoding": "identity", "Connection": "close",
                **(headers or {})}  # fmt: skip
        if _origin(url) == origin:
            sent |= _own_headers(access)
        else:
            sent.pop("Authorization", None)
        connection = _connect(parts.scheme, parts.hostname, parts.port, access)
        try:
            path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
            query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
            answer = ask(connection, method, url, path + (f"?{query}" if query else ""), sent)
        except (OSError, WireError) as error:
            connection.close()
            raise SourceError("Error", f"Unable to connect to http data source: {_words(error)}") from error
        location = answer.headers.get("location")
        if answer.status not in (301, 302, 303, 307, 308) or not location:
            return answer
        answer.close()
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


def _connect(scheme: str, host: str, port: int | None, access: Access) -> socket.socket:
    number = port or (443 if scheme == "https" else 80)
    failure: OSError | None = None
    for address in resolve(host, number, access.policy)[:4]:
        try:
            connection = socket.create_connection((address, number), timeout=20)
            if scheme == "https":
                connection.settimeout(STALL_SECONDS)
                connection = _tls_context(access).wrap_socket(connection, server_hostname=host)
            else:
                set_deadline(connection, STALL_SECONDS)
        except OSError as error:
            failure = error
            continue
        return connection
    raise SourceError("Error", f"Unable to connect to http data source: {host}:{number}: {_words(failure)}")


def _tls_context(access: Access) -> ssl.SSLContext:
    import ssl  # only where it is needed: a child that imports over plain http starts faster

    context = ssl.create_default_context(cadata=access.ca_pem or None)
    if access.ca_pem:
        context.load_default_certs()
    if not access.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _words(error: BaseException | None) -> str:
    return str(error) or type(error).__name__


class Broken(msgspec.Struct, frozen=True):
    """A transfer that another process began: bytes had, of how many, and which version of the object they are of."""

    offset: int
    total: int
    validator: str


class HttpStream:
    """An object read over HTTP, hashed as it passes; see the module text for what a lost connection does."""

    def __init__(
        self,
        url: str,
        access: Access,
        checksum: Checksum | None = None,
        headers: dict[str, str] | None = None,
        broken: Broken | None = None,
    ) -> None:
        """Connects; SourceError unless the server answers 200. `headers` are sent with each request (registries).

        With `broken` the rest is asked for; `offset` says then whether the server sends that (206) or all of it.
        """
        self._url, self._access, self._extra = url, access, headers or {}
        self._checksum = checksum
        self._hash = hashlib.new(checksum.algorithm, usedforsecurity=False) if checksum else None
        wanted = {"Range": f"bytes={broken.offset}-", "If-Range": broken.validator} if broken else {}
        self._answer = request(url, access, {**self._extra, **wanted})
        self.offset = 0
        self.resumes = 0
        self.total = self._answer.total
        if broken and _continues(self._answer, broken):
            self.offset, self.total = broken.offset, broken.total
        elif broken and self._answer.status in (206, 416):  # of something else than what was begun
            self.close()
            self._answer = request(url, access, self._extra)
            self.total = self._answer.total
        if self.offset == 0 and self._answer.status != 200:
            self.close()
            raise _bad_status(self._answer, 200)
        self.validator = _validator(self._answer)

    def hash_before(self, data: bytes | memoryview) -> None:
        """Of a transfer that is gone on with: the bytes that were had before, in order."""
        if self._hash:
            self._hash.update(data)

    def read(self) -> bytes:
        """The next piece; verifies length and checksum at the end."""
        piece = memoryview(bytearray(CHUNK_BYTES))
        return bytes(piece[: self.read_into(piece)])

    def read_into(self, view: memoryview) -> int:
        """Receive the next piece into a buffer; 0 at the end, when length and checksum have been verified."""
        while True:
            try:
                count = self._answer.read_into(view)
            except (OSError, WireError) as error:
                self._resume(_words(error))
                continue
            if count:
                self.offset += count
                if self._hash:
                    self._hash.update(view[:count])
                return count
            if self.total >= 0 and self.offset < self.total:
                self._resume(f"connection closed after {self.offset} of {self.total} bytes")
                continue
            self._verify()
            return 0

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
        self._answer.close()
        self.resumes += 1
        failed = f"Unable to transfer source data to target file: {why}"
        if self.resumes > RESUMES or not self.validator:
            raise SourceError("Error", failed, lost=True)
        time.sleep(min(0.2 * 2**self.resumes, 5))
        wanted = {**self._extra, "Range": f"bytes={self.offset}-", "If-Range": self.validator}
        try:
            self._answer = request(self._url, self._access, wanted)
        except SourceError as error:
            raise SourceError("Error", f"{failed}; then {error}", lost=True) from error
        if not _continues(self._answer, Broken(self.offset, self.total, self.validator)):
            self._answer.close()
            if self._answer.status not in (200, 206):
                raise SourceError("Error", f"{failed}; then {_bad_status(self._answer, 206)}", lost=True)
            raise SourceError("Error", f"{failed}; the source cannot resume")

    def close(self) -> None:
        """Give the connection up."""
        self._answer.close()


def _continues(answer: Answer, broken: Broken) -> bool:
    """Whether this is the rest of that very object. Some servers pay no heed to If-Range, so what they say of the
    object is compared here too.
    """
    given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("content-range", ""))
    same = answer.headers.get("etag") in (None, broken.validator) or not broken.validator.startswith('"')
    if answer.status != 206 or not given or not same:
        return False
    return int(given[1]) == broken.offset and (broken.total < 0 or given[2] in (str(broken.total), "*"))


def _validator(answer: Answer) -> str:
    """What tells this version of the object from any other: a strong ETag, else a date that is a minute old at least
    (RFC 9110, 8.8.2.2); "" when the server says neither.
    """
    tag, changed = answer.headers.get("etag", ""), answer.headers.get("last-modified", "")
    if tag and not tag.startswith("W/"):
        return tag
    if not changed:
        return ""
    from email.utils import parsedate_to_datetime  # rarely needed and slow to load

    try:
        age = parsedate_to_datetime(answer.headers.get("date", "")) - parsedate_to_datetime(changed)
        return changed if age.total_seconds() >= 60 else ""
    except (TypeError, ValueError):
        return ""


def _bad_status(answer: Answer, expected: int) -> SourceError:
    return SourceError(
        "Error",
        f"Unable to connect to http data source: expected status code {expected}, got {answer.status}. "
        f"Status: {answer.status} {answer.reason}",
    )
