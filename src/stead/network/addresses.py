"""Address arithmetic of the pod network: ranges, the next free address, MAC addresses. Pure values in, values out.

Controllers that claim addresses and the agent's network use it. Addresses and MACs travel as text. Sources: the guest's
side of masquerade is KubeVirt's (10.0.2.2/24, gateway 10.0.2.1; fd10:0:2::2/120, gateway fd10:0:2::1).
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Collection, Iterator

GUEST_CIDR = "10.0.2.0/24"
GUEST_CIDR_V6 = "fd10:0:2::/120"
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


def gateway_of(cidr: str) -> str:
    """The first address of a range: the gateway's (10.128.0.0/16 → 10.128.0.1)."""
    return str(ipaddress.ip_network(cidr)[1])


def guest_address_of(cidr: str) -> str:
    """The second address of a masquerade range: the guest's (10.0.2.0/24 → 10.0.2.2)."""
    return str(ipaddress.ip_network(cidr)[2])


def prefix_of(cidr: str) -> int:
    """Length of the prefix (10.128.0.0/16 → 16)."""
    return ipaddress.ip_network(cidr).prefixlen


def is_within(address: str, cidr: str) -> bool:
    """Whether an address is one that a machine may have in the range: not the network, gateway or broadcast."""
    network, value = ipaddress.ip_network(cidr), ipaddress.ip_address(address)
    reserved = (network[0], network[1], network[-1])
    return value.version == network.version and value in network and value not in reserved


def free_addresses(cidr: str, taken: Collection[str], start_at: str = "") -> Iterator[str]:
    """Free addresses of the range in order, from the one after `start_at` on and around once.

    A claimer creates the claim of each in turn until one create succeeds; `taken` only spares it known failures.
    """
    network = ipaddress.ip_network(cidr)
    first, count = int(network[2]), network.num_addresses - 3
    if count <= 0:
        return
    offset = int(ipaddress.ip_address(start_at)) - first + 1 if start_at and is_within(start_at, cidr) else 0
    known = {int(ipaddress.ip_address(address)) for address in taken}
    for step in range(count):
        value = first + (offset + step) % count
        if value not in known:
            yield str(ipaddress.ip_address(value))


def next_free(cidr: str, taken: Collection[str], start_at: str = "") -> str | None:
    """The first of `free_addresses`, None when the range is full."""
    return next(free_addresses(cidr, taken, start_at), None)


def overlaps(one: str, other: str) -> bool:
    """Whether two ranges share an address (False for ranges of different families)."""
    first, second = ipaddress.ip_network(one, strict=False), ipaddress.ip_network(other, strict=False)
    return first.version == second.version and first.overlaps(second)


def mac_from_seed(seed: str) -> str:
    """A locally administered unicast MAC, 02:…, the same for the same seed (owner's uid and interface name)."""
    digest = hashlib.sha256(seed.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def mac_from_text(text: str) -> str:
    """A MAC in lower case with colons. Raises ValueError for what is none, and for multicast and zero addresses."""
    mac = text.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ValueError(f"{text!r} is not a unicast MAC address")
    return mac
