"""Name and address formats that rules test, with the texts of the API server for each.

Formats are those of apimachinery's `util/validation` and Go's `net.ParseMAC`; texts are matched by clients. Pure.
"""

from __future__ import annotations

import ipaddress
import re

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL_RE = re.compile(_LABEL)
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_SUBDOMAIN_RE = re.compile(_SUBDOMAIN)
_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    f"an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_PORT_RE = re.compile(r"(?=.{1,15}$)(?=.*[a-z])(?!.*--)[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_MAC_RE = re.compile(r"[0-9a-fA-F]{2}([:-])[0-9a-fA-F]{2}(\1[0-9a-fA-F]{2})*|[0-9a-fA-F]{4}(\.[0-9a-fA-F]{4})+")
_PCI_RE = re.compile(r"[\da-fA-F]{4}:[\da-fA-F]{2}:[01][\da-fA-F]\.[0-7]")
#: lengths in bytes that Go's parser takes: EUI-48, EUI-64, InfiniBand
_MAC_LENGTHS = (6, 8, 20)


def label_faults(name: str) -> list[str]:
    """What keeps a name from being a DNS label."""
    return _faults(name, _LABEL_RE, _LABEL_TEXT, 63)


def subdomain_faults(name: str) -> list[str]:
    """What keeps a name from being a DNS subdomain."""
    return _faults(name, _SUBDOMAIN_RE, _SUBDOMAIN_TEXT, 253)


def _faults(name: str, pattern: re.Pattern[str], text: str, longest: int) -> list[str]:
    found = [f"must be no more than {longest} characters"] if len(name) > longest else []
    return found if pattern.fullmatch(name) else [*found, text]


def is_port_name(name: str) -> bool:
    """Whether a name may name a port."""
    return _PORT_RE.fullmatch(name) is not None


def mac_length(text: str) -> int:
    """Number of bytes of a hardware address; 0 if it is none."""
    if _MAC_RE.fullmatch(text) is None:
        return 0
    length = len(re.sub(r"[^0-9a-fA-F]", "", text)) // 2
    return length if length in _MAC_LENGTHS else 0


def is_pci_address(text: str) -> bool:
    """Whether a text is `domain:bus:slot.function` in hexadecimal."""
    return _PCI_RE.fullmatch(text) is not None


def is_ip(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_ipv4(text: str) -> bool:
    """Whether a text is an IPv4 address."""
    return is_ip(text) and ":" not in text
