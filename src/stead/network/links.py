"""Interfaces, addresses and routes through netlink, and taps through /dev/net/tun. Blocking; each call acts in the
network namespace of the calling thread.

Used by `podnetwork.py` in its worker threads. pyroute2 is imported on first use: it takes a third of a second and 20
MB, which a process without a network should not pay. Source: rtnetlink(7), tuntap.rst of the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket as socket_module
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stead.network.attachment import NetworkError

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_IFF_LOWER_UP = 0x10000
#: a lost frame must not leave a switch with the old place
_ANNOUNCEMENTS = 3


@contextlib.contextmanager
def netlink() -> Iterator[Any]:
    """A netlink socket in the thread's namespace; kernel errors become NetworkError."""
    from pyroute2 import IPRoute, NetlinkError

    with IPRoute() as socket:
        try:
            yield socket
        except NetlinkError as error:
            raise NetworkError(f"netlink: {error.args[-1]}") from error


def index_of(socket: Any, name: str) -> int:
    """Index of an interface, 0 when there is none."""
    found = socket.link_lookup(ifname=name)
    return int(found[0]) if found else 0


def names(socket: Any) -> list[str]:
    return [str(link.get("ifname")) for link in socket.get_links()]


def announce_address(name: str, mac: str, ipv4: str) -> None:
    """Tell all neighbours, by gratuitous ARP, that an address is at this interface now. RFC 5227, section 3."""
    hardware, address = bytes.fromhex(mac.replace(":", "")), socket_module.inet_aton(ipv4)
    request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + hardware + address + bytes(6) + address
    with socket_module.socket(socket_module.AF_PACKET, socket_module.SOCK_RAW) as raw:
        raw.bind((name, 0))
        for _ in range(_ANNOUNCEMENTS):
            raw.send(b"\xff" * 6 + hardware + struct.pack("!H", 0x0806) + request)


def has_carrier(socket: Any, name: str) -> bool:
    """For a tap: whether a process has it open (while it is up or down)."""
    for link in socket.get_links(ifname=name):
        return bool(link.get("carrier"))
    return False


def ensure_bridge(socket: Any, name: str, address: str, prefix: int, mtu: int) -> bool:
    """A bridge with this address, up. Returns whether it was made now; refuses an interface that is no bridge."""
    made = False
    index = index_of(socket, name)
    if not index:
        socket.link("add", ifname=name, kind="bridge", br_stp_state=0, br_forward_delay=0)
        index, made = index_of(socket, name), True
    else:
        info = socket.get_links(index)[0].get("linkinfo")
        kind = info.get("kind") if info is not None else None
        if kind != "bridge":
            raise NetworkError(f"the interface {name} exists and is not a bridge")
    ensure_address(socket, index, address, prefix)
    socket.link("set", index=index, state="up", mtu=mtu)
    return made


def ensure_address(socket: Any, index: int, address: str, prefix: int) -> None:
    """Idempotent. An IPv6 address skips duplicate detection: nobody else is on the wire."""
    options = {"flags": 0x02} if ":" in address else {}
    with _tolerating(errno.EEXIST):
        socket.addr("add", index=index, address=address, prefixlen=prefix, **options)


def delete_link(socket: Any, name: str) -> None:
    """No-op when there is none."""
    index = index_of(socket, name)
    if index:
        with _tolerating(errno.ENODEV):
            socket.link("del", index=index)


@contextlib.contextmanager
def _tolerating(*codes: int) -> Iterator[None]:
    from pyroute2 import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise


def add_veth(socket: Any, name: str, bridge: str, peer: tuple[str, Path], mtu: int) -> None:
    """A pair: `name` here, up on `bridge`; the peer (name, namespace path) in the namespace."""
    peer_name, namespace = peer
    handle = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        socket.link(
            "add",
            ifname=name,
            kind="veth",
            mtu=mtu,
            state="up",
            master=index_of(socket, bridge),
            peer={"ifname": peer_name, "net_ns_fd": handle, "mtu": mtu},
        )
    finally:
        os.close(handle)


def ensure_tap(name: str, owner: int, queues: int) -> None:
    """A persistent tap in the thread's namespace, for the hypervisor to open. Idempotent."""
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    try:
        with open("/dev/net/tun", "r+b", buffering=0) as device:
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            fcntl.ioctl(device, _TUNSETOWNER, owner)
            fcntl.ioctl(device, _TUNSETPERSIST, 1)
    except OSError as error:
        if error.errno == errno.EBUSY:  # it exists and the hypervisor has it open
            return
        raise NetworkError(f"make tap {name}: {error.strerror}") from error


def move_link(socket: Any, name: str, namespace: Path | int) -> None:
    """Move an interface to a namespace, by its path or an open descriptor."""
    handle = namespace if isinstance(namespace, int) else os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        socket.link("set", index=index_of(socket, name), net_ns_fd=handle)
    finally:
        if not isinstance(namespace, int):
            os.close(handle)


def default_mtu(socket: Any) -> int:
    """MTU of the interface of the default route; 1500 without one."""
    for route in socket.get_default_routes(family=2):
        index = route.get("oif")
        if index:
            return int(socket.get_links(index)[0].get("mtu") or 1500)
    return 1500


def set_sysctl(name: str, value: str) -> str:
    """Set a kernel setting of the thread's namespace (`net.ipv4.ip_forward`); returns its former value."""
    path = Path("/proc/sys", *name.split("."))
    former = path.read_text().strip()
    if former != value:
        path.write_text(value)
    return former
