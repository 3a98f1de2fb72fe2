"""Host bridges that people made: whether one exists, and the sentence that says how to make it.

For the `bridge` binding to an existing bridge, where virt-install users start. Stead never changes such a bridge.
Blocking but short (one ioctl); callable from anywhere. Source: netdevice(7), ethtool.h.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct

_SIOCGIFINDEX = 0x8933
_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 3  # struct ethtool_drvinfo: u32 cmd, char driver[32], …; 196 bytes
_DRVINFO_BYTES = 256
_MAX_NAME = 15


def interface_exists(name: str) -> bool:
    """Whether this host (the caller's network namespace) has an interface of this name."""
    if not name or len(name.encode()) > _MAX_NAME:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCGIFINDEX, struct.pack("16sI20x", name.encode(), 0))
        except OSError:
            return False
    return True


def bridge_exists(name: str) -> bool:
    """Whether this host has a bridge of this name (the kernel's own, not Open vSwitch's)."""
    if not interface_exists(name):
        return False
    question = array.array("B", struct.pack("I", _ETHTOOL_GDRVINFO).ljust(_DRVINFO_BYTES, b"\0"))
    request = struct.pack("16sP16x", name.encode(), question.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, request)
        except OSError:
            return False
    return question.tobytes()[4:36].rstrip(b"\0") == b"bridge"


def how_to_make(name: str) -> str:
    """One sentence for the condition of a machine that asks for a bridge this host has not."""
    if interface_exists(name):
        return f"the interface {name} of this host is not a bridge; name a bridge, or put it into one"
    return (
        f"this host has no bridge {name}; make one with `ip link add {name} type bridge && ip link set {name} up` "
        f"and put the network card into it with `ip link set CARD master {name}` (in the host's network "
        "configuration, to have it after a restart)"
    )
