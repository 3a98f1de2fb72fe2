"""URLs, IP addresses and ranges as Kubernetes' CEL libraries know them, read as Go's net/url and net/netip read them.

Used by `cel_library`. Immutable values; pure. Raises RuleError for what is none.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse

import msgspec

from stead.kube.cel_values import RuleError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:<>\"-]*|(?:[^\x00-\x20\x7f%/?#\[\]@\\^`{|}]|%[0-9A-Fa-f]{2})*")
_USER = re.compile(r"(?:[A-Za-z0-9._:~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})*")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
#: characters that a path keeps as they are when Go writes it
_PATH_SAFE = "$&+,/:;=@!'()*~-._"
_PATH_AS_IS = re.compile(r"(?:[A-Za-z0-9$&+,/:;=@!'()*~._\[\]-]|%[0-9A-Fa-f]{2})*")


class Url(msgspec.Struct, frozen=True):
    """The parts of a URL; `host` with its port, `path` escaped."""

    text: str
    scheme: str = ""
    host: str = ""
    path: str = ""
    query_text: str = ""

    @property
    def port(self) -> str:
        """The port, "" when none is named."""
        match = re.search(r":(\d*)$", self.host)
        return match[1] if match else ""

    @property
    def hostname(self) -> str:
        """The host without port and brackets."""
        name = re.sub(r":\d*$", "", self.host)
        return name[1:-1] if name.startswith("[") and name.endswith("]") else name

    def query(self) -> dict[str, list[str]]:
        """The query's values by key, unescaped."""
        found: dict[str, list[str]] = {}
        for pair in self.query_text.split("&"):
            key, _, value = pair.partition("=")
            if not pair or ";" in pair or _BAD_ESCAPE.search(pair):
                continue
            found.setdefault(urllib.parse.unquote_plus(key), []).append(urllib.parse.unquote_plus(value))
        return found


def parse_url(text: str) -> Url:
    """An absolute URI, or an absolute path. Raises RuleError."""
    if not text or any(ord(each) < 0x20 or ord(each) == 0x7F for each in text):
        raise _bad_url(text)
    scheme, rest = "", text
    if ":" in text:
        head = text[: text.index(":")]
        if not head:
            raise _bad_url(text)  # missing protocol scheme
        if _SCHEME.fullmatch(head):
            scheme, rest = head.lower(), text[len(head) + 1 :]
        elif not text.startswith("/") and "/" not in head:
            raise _bad_url(text)  # first path segment in URL cannot contain colon
    # The fragment takes no part in the first look, which only says whether this is absolute.
    rest, _, _ = rest.partition("#")
    rest, _, query = rest.partition("?")
    if not rest.startswith("/"):
        if not scheme:
            raise _bad_url(text)  # invalid URI for request
        return Url(text, scheme, "", "", query)
    host, path = "", rest
    if rest.startswith("//") and (scheme or not rest.startswith("///")):
        authority, slash, tail = rest[2:].partition("/")
        host, path = _host(authority, text), slash + tail
    if _BAD_ESCAPE.search(path):
        raise _bad_url(text)
    return Url(text, scheme, host, path if _PATH_AS_IS.fullmatch(path) else _escaped(path), query)


def _escaped(path: str) -> str:
    return urllib.parse.quote(urllib.parse.unquote_to_bytes(path), safe=_PATH_SAFE)


def _host(authority: str, text: str) -> str:
    user, at, host = authority.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise _bad_url(text)
    if host.startswith("["):
        name, bracket, port = host.rpartition("]")
        if not bracket or not re.fullmatch(r"(?::\d*)?", port):
            raise _bad_url(text)
        return f"{name}]{port}"
    if not re.fullmatch(r"[^:]*(?::\d*)?", host) or not _HOST.fullmatch(host):
        raise _bad_url(text)
    return urllib.parse.unquote(host)


def _bad_url(text: str) -> RuleError:
    return RuleError(f"URL parse error during conversion from string: parse {text[:80]!r}: invalid URI for request")


class IpAddress(msgspec.Struct, frozen=True):
    """An IPv4 or IPv6 address without a zone."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address

    def __str__(self) -> str:
        return str(self.address)

    @property
    def is_link_local_multicast(self) -> bool:
        """224.0.0.0/24, or an IPv6 multicast address of scope 2."""
        if self.address.version == 4:
            return int(self.address) >> 8 == 0xE00000
        return self.address.packed[0] == 0xFF and self.address.packed[1] & 0x0F == 2

    @property
    def is_global_unicast(self) -> bool:
        """As Go says: neither unspecified, loopback, multicast, link-local nor broadcast."""
        other = self.address.is_unspecified or self.address.is_loopback or self.address.is_multicast
        return not (other or self.address.is_link_local or str(self.address) == "255.255.255.255")


class IpRange(msgspec.Struct, frozen=True):
    """An address and the length of its network's prefix."""

    ip: IpAddress
    length: int

    def __str__(self) -> str:
        return f"{self.ip}/{self.length}"

    def masked(self) -> IpRange:
        """The network itself."""
        network = ipaddress.ip_network(str(self), strict=False)
        return IpRange(IpAddress(network.network_address), self.length)

    def has(self, other: IpAddress) -> bool:
        """Whether the address lies in the network."""
        if other.address.version != self.ip.address.version:
            return False
        return IpRange(other, self.length).masked() == self.masked()

    def covers(self, other: IpRange) -> bool:
        """Whether the other network lies in this one."""
        return self.length <= other.length and self.has(other.ip)


def parse_ip(text: str) -> IpAddress:
    """An address: no zone, and no IPv4 address in IPv6's clothes. Raises RuleError."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise RuleError(f"IP Address {text[:80]!r} parse error during conversion from string: {error}") from None
    if isinstance(address, ipaddress.IPv6Address):
        if "%" in text:
            raise RuleError(f'IP address "{text[:80]}" with zone value is not allowed')
        if address.ipv4_mapped is not None:
            raise RuleError(f'IPv4-mapped IPv6 address "{text[:80]}" is not allowed')
    return IpAddress(address)


def parse_range(text: str) -> IpRange:
    """A range in CIDR notation. Raises RuleError."""
    address, _, length = text.rpartition("/")
    ip = parse_ip(address)
    if not re.fullmatch(r"0|[1-9]\d{0,2}", length) or int(length) > ip.address.max_prefixlen:
        raise RuleError(f"network address parse error during conversion from string: {text[:80]!r}")
    return IpRange(ip, int(length))
