"""The values of the pod network: what a host's network is, what one machine asks for, what it gets. No I/O.

Also the names derived from them: interfaces have 15 characters at most, so theirs are digests of instance and machine,
with a prefix by which leftovers of an instance are found and nobody else's interface is ever taken for one.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

from stead.network.addresses import GUEST_CIDR, GUEST_CIDR_V6, gateway_of, guest_address_of, prefix_of

_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class NetworkError(Exception):
    """An operation on the host's network failed; the message says operation, object and value."""


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One Stead's network on one host. `run_dir` is cleared by a reboot of the host, as the network itself is.

    `mtu` 0 takes that of the default route. `dns` is the gateway's resolver: `upstream` are the servers it asks, empty
    for the host's own (/etc/resolv.conf).
    """

    instance: str = "stead"
    bridge: str = "stead0"
    pod_cidr: str = "10.128.0.0/16"
    run_dir: str = "/run/stead/network"
    mtu: int = 0
    upstream: tuple[str, ...] = ()
    #: this host's address on the segment that the hosts of the cluster share; "" = the network ends at this host
    overlay: str = ""

    @property
    def gateway(self) -> str:
        return gateway_of(self.pod_cidr)

    @property
    def prefix(self) -> int:
        return prefix_of(self.pod_cidr)

    @property
    def table(self) -> str:
        """Name of our nftables table in the host."""
        return "stead_" + re.sub(r"[^A-Za-z0-9]", "_", self.instance)

    @property
    def mark(self) -> str:
        """First five characters of all our interfaces on the host."""
        return "s" + hashlib.sha256(self.instance.encode()).hexdigest()[:4]

    def tap(self, uid: str) -> str:
        return self.mark + "t" + _short(uid)

    def veth(self, uid: str) -> str:
        return self.mark + "v" + _short(uid)

    def namespace(self, uid: str) -> str:
        """Name of the machine's network namespace, as `ip netns` shows it."""
        return f"{self.instance}-{uid}"

    def uid_of_namespace(self, name: str) -> str | None:
        """The machine of a namespace of ours; None for anybody else's."""
        prefix = f"{self.instance}-"
        uid = name.removeprefix(prefix)
        return uid if name.startswith(prefix) and _UID.fullmatch(uid) else None


def _short(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:9]


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """What one machine's masquerade interface asks for. `ports` are (protocol, port); empty = all.

    `dns` empty = the gateway's resolver. `options` are further DHCPv4 options, (number, value text). `queues` above 1
    makes a tap of several queues. `owner_uid` may open the tap. `standby`: the guest still runs on another host, and
    the address stays silent here until it is announced.
    """

    machine_uid: str
    interface: str
    ipv4: str
    mac: str
    binding: str = "masquerade"
    guest_cidr: str = GUEST_CIDR
    guest_cidr_v6: str = GUEST_CIDR_V6
    ports: tuple[tuple[str, int], ...] = ()
    mtu: int = 0
    queues: int = 1
    owner_uid: int = 0
    hostname: str = ""
    search_domains: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    options: tuple[tuple[int, str], ...] = ()
    boot_file: str = ""
    tftp_server: str = ""
    standby: bool = False

    @property
    def guest_ipv4(self) -> str:
        return guest_address_of(self.guest_cidr)

    @property
    def guest_gateway(self) -> str:
        return gateway_of(self.guest_cidr)

    @property
    def guest_ipv6(self) -> str:
        return guest_address_of(self.guest_cidr_v6)

    @property
    def guest_gateway_v6(self) -> str:
        return gateway_of(self.guest_cidr_v6)


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """What the hypervisor's NIC is made of. `netns` is the path of the machine's network namespace."""

    nic_backend: str
    target: str
    mac: str
    mtu: int
    address: str
    netns: str
