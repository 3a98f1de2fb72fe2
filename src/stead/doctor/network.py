"""Can machines reach the world and each other: forwarding, ranges that collide, programs, firewalls of others."""

from __future__ import annotations

import ipaddress
import json
import shutil
from pathlib import Path

from stead.config import Settings
from stead.doctor.finding import Finding, first_line, output_of, read


def ip_forward(settings: Settings) -> Finding:
    title = "IPv4 forwarding"
    if read("/proc/sys/net/ipv4/ip_forward") == "1":
        return Finding("ip-forward", title, "pass", "net.ipv4.ip_forward = 1")
    return Finding("ip-forward", title, "warn", "net.ipv4.ip_forward = 0", "Stead's agent turns it on when it starts")


def _routes() -> list[tuple[ipaddress.IPv4Network, str]]:
    code, text = output_of("ip", "-4", "-json", "route", "show", "table", "main")
    if code:
        return []
    found = []
    for route in json.loads(text or "[]"):
        if route.get("dst") not in (None, "default"):
            found.append((ipaddress.IPv4Network(route["dst"]), str(route.get("dev", ""))))
    return found


def address_range(settings: Settings) -> Finding:
    title = f"machines' range {settings.pod_cidr} is free"
    network = ipaddress.IPv4Network(settings.pod_cidr)
    clashes = [
        f"{destination} on {device}"
        for destination, device in _routes()
        if destination.overlaps(network) and device != settings.pod_bridge
    ]
    if clashes:
        return Finding(
            "address-range", title, "fail", f"overlaps {', '.join(clashes)}",
            "set pod_cidr in /etc/stead/stead.toml to a free range",
        )  # fmt: skip
    return Finding("address-range", title, "pass", "no route overlaps")


def guest_range(settings: Settings) -> Finding:
    title = "the guests' own 10.0.2.0/24 is not this host's network"
    guest = ipaddress.IPv4Network("10.0.2.0/24")
    clashes = [f"{destination} on {device}" for destination, device in _routes() if destination.overlaps(guest)]
    if clashes:
        return Finding(
            "guest-range", title, "warn", f"overlaps {', '.join(clashes)}",
            "machines cannot reach those addresses; give them another range with network.pod.vmNetworkCIDR",
        )  # fmt: skip
    return Finding("guest-range", title, "pass", "no route overlaps")


def bridge_module(settings: Settings) -> Finding:
    title = "kernel bridges"
    if Path("/sys/module/bridge").is_dir() or Path("/proc/sys/net/bridge").is_dir():
        return Finding("bridge", title, "pass", "present")
    code, _ = output_of("modprobe", "-n", "bridge")
    if code == 0:
        return Finding("bridge", title, "pass", "can be loaded")
    release = read("/proc/sys/kernel/osrelease")
    if "/bridge.ko" in read(f"/lib/modules/{release}/modules.builtin"):
        return Finding("bridge", title, "pass", "built in")
    return Finding("bridge", title, "warn", "cannot tell whether the kernel has bridges", "modprobe bridge")


def bridge_filter(settings: Settings) -> Finding:
    title = "bridged traffic bypasses the host's firewall"
    if read("/proc/sys/net/bridge/bridge-nf-call-iptables") == "1":
        return Finding(
            "bridge-filter", title, "warn", "bridge-nf-call-iptables = 1 (Docker sets it)",
            "sysctl net.bridge.bridge-nf-call-iptables=0, or allow the bridge in the firewall",
        )  # fmt: skip
    return Finding("bridge-filter", title, "pass", "bridge-nf-call-iptables is off")


def _program(name: str, package: str) -> Finding:
    if shutil.which(name):
        return Finding(name, name, "pass", str(shutil.which(name)))
    return Finding(name, name, "fail", "not installed", f"apt-get install {package}")


def nftables(settings: Settings) -> Finding:
    return _program("nft", "nftables")


def dnsmasq(settings: Settings) -> Finding:
    return _program("dnsmasq", "dnsmasq-base")


def firewalls(settings: Settings) -> Finding:
    title = "other firewalls on this host"
    code, text = output_of("nft", "-j", "list", "tables")
    if code:
        return Finding("firewalls", title, "warn", first_line(text), "run as root")
    tables = [item["table"]["name"] for item in json.loads(text)["nftables"] if "table" in item]
    others = [name for name in tables if not name.startswith(f"{settings.instance}_") and name != settings.instance]
    code, rules = output_of("iptables-save")
    dropping = code == 0 and ":FORWARD DROP" in rules
    if dropping:
        return Finding(
            "firewalls", title, "warn", f"policy FORWARD DROP (tables: {', '.join(others) or 'iptables'})",
            f"allow the machines' bridge: iptables -I FORWARD -i {settings.pod_bridge} -j ACCEPT, and -o likewise",
        )  # fmt: skip
    return Finding("firewalls", title, "pass", f"tables of others: {', '.join(others) or 'none'}")


def resolver(settings: Settings) -> Finding:
    title = "a name server for guests"
    servers = [line.split()[1] for line in read("/etc/resolv.conf").splitlines() if line.startswith("nameserver ")]
    if servers:
        return Finding("resolver", title, "pass", ", ".join(servers))
    return Finding(
        "resolver", title, "warn", "/etc/resolv.conf names none", "guests will not resolve names until it does"
    )


CHECKS = (
    ip_forward, address_range, guest_range, bridge_module, bridge_filter, nftables, dnsmasq, firewalls, resolver,
)  # fmt: skip
