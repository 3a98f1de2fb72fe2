"""The pod network between hosts: one VXLAN port on each host's bridge, flooding to the other hosts of the cluster.

`PodNetwork` makes it where the setting `pod_overlay` names this host's address on the segment that the hosts share, and
is told the others' addresses; the kernel learns by itself behind which host a machine is, and at once when a moved
machine announces itself. Each host keeps the gateway of the range to itself: what is said of that address does not
cross. The traffic is not encrypted: naming the segment declares it trusted. Blocking; in the network's worker threads.
Source: vxlan(8), bridge(8), nft(8).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from stead.network import links, nftables
from stead.network.attachment import NetworkConfig

PORT = 4789
#: outer Ethernet, IPv4, UDP and VXLAN headers
OVERHEAD_BYTES = 50
_EVERYBODY = "00:00:00:00:00:00"


def name_of(config: NetworkConfig) -> str:
    """The VXLAN port's name; as long as no tap of ours, which leftovers are known by."""
    return config.mark + "x"


def identifier_of(config: NetworkConfig) -> int:
    """The network's 24-bit identifier: the same on all hosts of an installation."""
    return int(config.mark[1:], 16) + 1


def ensure(socket: Any, config: NetworkConfig, mtu: int) -> None:
    """Make the port and its filter. Idempotent. Raises NetworkError."""
    name = name_of(config)
    index = links.index_of(socket, name)
    if not index:
        socket.link(
            "add", ifname=name, kind="vxlan", vxlan_id=identifier_of(config), vxlan_port=PORT,
            vxlan_local=config.overlay, vxlan_learning=True,
        )  # fmt: skip
        index = links.index_of(socket, name)
    socket.link("set", index=index, master=links.index_of(socket, config.bridge), mtu=mtu, state="up")
    nftables.load(rules(config), "the overlay")


def join(socket: Any, config: NetworkConfig, peers: Collection[str]) -> None:
    """Flood to exactly these hosts. Raises NetworkError."""
    index = links.index_of(socket, name_of(config))
    known = {
        entry.get_attr("NDA_DST")
        for entry in socket.fdb("dump", ifindex=index)
        if entry.get("ifindex") == index and entry.get_attr("NDA_LLADDR") == _EVERYBODY
    }
    for peer in set(peers) - known:
        socket.fdb("append", ifindex=index, lladdr=_EVERYBODY, dst=peer)
    for peer in known - set(peers) - {None}:
        socket.fdb("del", ifindex=index, lladdr=_EVERYBODY, dst=peer)


def rules(config: NetworkConfig) -> str:
    """What is said of the gateway's address stays on its host."""
    name, table = name_of(config), f"{config.table}_overlay"
    drops = "\n    ".join(
        f'{way} "{name}" arp {role} ip {config.gateway} drop'
        for way in ("iifname", "oifname")
        for role in ("saddr", "daddr")
    )
    hooks = "\n".join(
        f"  chain {hook} {{\n    type filter hook {hook} priority 0; policy accept;\n    {drops}\n  }}"
        for hook in ("forward", "input", "output")
    )
    return f"table bridge {table}\ndelete table bridge {table}\ntable bridge {table} {{\n{hooks}\n}}\n"


def remove(socket: Any, config: NetworkConfig) -> None:
    """Undo it; nothing when there is none."""
    links.delete_link(socket, name_of(config))
    table = f"{config.table}_overlay"
    nftables.load(f"table bridge {table}\ndelete table bridge {table}\n", "the overlay")
