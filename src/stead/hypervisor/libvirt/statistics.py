"""Counters of a running machine under the contract's names, from one call of libvirt that does not wait for QEMU.

Called by the driver in a pool thread. Network counters are the network's business: a tap may lie in another network
namespace than libvirt's. Source: virConnectGetAllDomainStats, libvirt 9.0.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import libvirt

_WANTED = (
    libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_BLOCK
)
_KIBIBYTES = {
    "balloon.current": "balloon_bytes",
    "balloon.maximum": "memory_bytes",
    "balloon.rss": "memory_rss_bytes",
    "balloon.available": "memory_available_bytes",
    "balloon.unused": "memory_unused_bytes",
    "balloon.usable": "memory_usable_bytes",
    "balloon.swap_in": "swap_in_bytes",
    "balloon.swap_out": "swap_out_bytes",
}
_PLAIN = {
    "cpu.time": "cpu_time_ns",
    "cpu.user": "cpu_user_ns",
    "cpu.system": "cpu_system_ns",
    "vcpu.current": "vcpus",
    "balloon.major_fault": "major_faults",
    "balloon.minor_fault": "minor_faults",
}
_BLOCK = {
    "rd.reqs": "rd_reqs",
    "rd.bytes": "rd_bytes",
    "rd.times": "rd_time_ns",
    "wr.reqs": "wr_reqs",
    "wr.bytes": "wr_bytes",
    "wr.times": "wr_time_ns",
    "fl.reqs": "flush_reqs",
    "fl.times": "flush_time_ns",
    "capacity": "capacity_bytes",
    "allocation": "allocation_bytes",
    "physical": "physical_bytes",
}


def read_statistics(connection: libvirt.virConnect, domain: libvirt.virDomain) -> dict[str, float]:
    """Counters by name; disks as `block.<API name>.<counter>`."""
    answer = connection.domainListGetStats([domain], _WANTED, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
    raw: dict[str, Any] = answer[0][1] if answer else {}
    return statistics_from_libvirt(raw, disk_names(domain.XMLDesc(0)))


def disk_names(text: str) -> dict[str, str]:
    """API name of each target device of a domain's XML."""
    names = {}
    for disk in ET.fromstring(text).iterfind("devices/disk"):  # noqa: S314  # from libvirt itself
        target, alias = disk.find("target"), disk.find("alias")
        if target is not None:
            name = "" if alias is None else alias.get("name", "")
            names[target.get("dev", "")] = name.removeprefix("ua-") or target.get("dev", "")
    return names


def statistics_from_libvirt(raw: dict[str, Any], disks: dict[str, str]) -> dict[str, float]:
    """Pure: libvirt's keys under ours."""
    found: dict[str, float] = {}
    for key, value in raw.items():
        if key in _KIBIBYTES:
            found[_KIBIBYTES[key]] = float(value) * 1024
        elif key in _PLAIN:
            found[_PLAIN[key]] = float(value)
    for index in range(int(raw.get("block.count", 0))):
        target = str(raw.get(f"block.{index}.name", ""))
        name = disks.get(target, target)
        for key, ours in _BLOCK.items():
            if f"block.{index}.{key}" in raw:
                found[f"block.{name}.{ours}"] = float(raw[f"block.{index}.{key}"])
    return found
