"""nftables rule sets as text: the host's table and each machine's. Pure; `podnetwork.py` loads them with `nft -f -`.

Each file deletes its table first and makes it anew, in one transaction: loading it again is harmless, and no packet
sees half of it. Tables are ours alone; nobody else's is read or changed but for `foreign_forward`, see there.
Source: nft(8); what `ports` mean is KubeVirt's masquerade binding.
"""

from __future__ import annotations

from stead.network.attachment import Attachment, NetworkConfig

MACHINE_TABLE = "stead"
UPLINK = "eth0"


def host_rules(config: NetworkConfig) -> str:
    """Outbound traffic leaves under the host's address; what comes back, and what machines send, may pass."""
    return f"""table inet {config.table}
delete table inet {config.table}
table inet {config.table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {config.pod_cidr} ip daddr != {config.pod_cidr} oifname != "{config.bridge}" masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{config.bridge}" ip saddr != {config.pod_cidr} drop
    iifname "{config.bridge}" accept
    oifname "{config.bridge}" ct state established,related accept
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    ip daddr {config.gateway} iifname != {{ "{config.bridge}", "lo" }} drop
  }}
}}
"""


def delete_host_rules(config: NetworkConfig) -> str:
    """Remove the host's table, whether it is there or not."""
    return f"table inet {config.table}\ndelete table inet {config.table}\n"


def machine_rules(request: Attachment, tap: str, gateway: str) -> str:
    """Inside a machine's namespace: its guest's address and its cluster address are joined both ways.

    The guest can use no address but its own, and reaches nothing of the namespace but DHCP, router solicitations and
    ping. With `ports`, only those reach the guest. Traffic between the guest and its own cluster address is not joined.
    """
    forwards = "\n    ".join(_destination_rules(request))
    return f"""table inet {MACHINE_TABLE}
delete table inet {MACHINE_TABLE}
table inet {MACHINE_TABLE} {{
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    {forwards}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{UPLINK}" ip saddr {request.guest_ipv4} snat ip to {request.ipv4}
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname "{tap}" ip saddr != {request.guest_ipv4} drop
    iifname "{tap}" oifname "{UPLINK}" ip saddr {request.guest_ipv4} accept
    iifname "{UPLINK}" oifname "{tap}" ct state established,related accept
    iifname "{UPLINK}" oifname "{tap}" ct status dnat accept
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    iifname "{tap}" udp dport {{ 67, 547 }} accept
    meta l4proto {{ icmp, ipv6-icmp }} accept
    iifname "{UPLINK}" meta l4proto tcp reject with tcp reset
    iifname "{UPLINK}" reject
  }}
}}
"""


def _destination_rules(request: Attachment) -> list[str]:
    arriving = f'iifname "{UPLINK}" ip daddr {request.ipv4}'
    if not request.ports:
        return [f"{arriving} dnat ip to {request.guest_ipv4}"]
    rules = []
    for protocol in ("tcp", "udp", "sctp"):
        ports = sorted({port for name, port in request.ports if name.lower() == protocol})
        if ports:
            joined = ", ".join(str(port) for port in ports)
            rules.append(f"{arriving} {protocol} dport {{ {joined} }} dnat ip to {request.guest_ipv4}")
    return rules


def foreign_forward(config: NetworkConfig, chain: str) -> str:
    """Let our traffic pass a foreign chain that drops what it forwards (Docker's and ufw's iptables tables).

    nftables asks every table, so our own accept does not suffice there. The two rules carry our name as a comment, by
    which `remove` finds them; nothing else of a foreign table is touched.
    """
    return (
        f'insert rule ip filter {chain} iifname "{config.bridge}" counter accept comment "{config.table}"\n'
        f'insert rule ip filter {chain} oifname "{config.bridge}" ct state established,related counter accept '
        f'comment "{config.table}"\n'
    )
