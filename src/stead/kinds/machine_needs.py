"""What a machine takes: processors and memory that placement reserves and quotas count, one answer for both.

Pure functions over an instance's JSON. Rules: KubeVirt's cpuAllocationRatio (10:1) and its memory overhead, here with
the figures of our own QEMU processes.
"""

from __future__ import annotations

from typing import Any

from stead.kube.quantity import parse

Object = dict[str, Any]

CPU_ALLOCATION_RATIO = 10
MIB = 1024 * 1024
#: what QEMU needs beside guest memory: fixed part, per processor, for video; 1/512 of guest memory for page tables
OVERHEAD_FIXED, OVERHEAD_PER_CPU, OVERHEAD_VIDEO, OVERHEAD_SHARE = 60 * MIB, 8 * MIB, 32 * MIB, 512


def _domain(vmi: Object) -> Object:
    found: Object = (vmi.get("spec") or {}).get("domain") or {}
    return found


def vcpus(vmi: Object) -> int:
    """Number of virtual processors at start."""
    cpu = _domain(vmi).get("cpu") or {}
    return int(cpu.get("sockets") or 1) * int(cpu.get("cores") or 1) * int(cpu.get("threads") or 1)


def machine_cpu_milli(vmi: Object) -> int:
    """Processor share to reserve: the request if one is made, whole processors if dedicated, else vCPUs / 10."""
    domain = _domain(vmi)
    asked = ((domain.get("resources") or {}).get("requests") or {}).get("cpu")
    if (domain.get("cpu") or {}).get("dedicatedCpuPlacement"):
        return vcpus(vmi) * 1000
    return parse(asked).milli() if asked else vcpus(vmi) * 1000 // CPU_ALLOCATION_RATIO


def machine_memory(vmi: Object) -> int:
    """Bytes to reserve: the request, else guest memory (hugepages do not count as memory), and QEMU's own need."""
    memory = _domain(vmi).get("memory") or {}
    guest = guest_bytes(vmi)
    return memory_overhead(vmi) + (0 if memory.get("hugepages") else guest)


def guest_bytes(vmi: Object) -> int:
    """Bytes that the guest asks for: the request, else guest memory, else the limit."""
    domain = _domain(vmi)
    resources = domain.get("resources") or {}
    asked = (resources.get("requests") or {}).get("memory") or (domain.get("memory") or {}).get("guest")
    asked = asked or (resources.get("limits") or {}).get("memory") or 0
    return int(parse(asked))


def memory_overhead(vmi: Object) -> int:
    """Bytes that QEMU needs beside the guest's memory."""
    overhead = OVERHEAD_FIXED + OVERHEAD_PER_CPU * vcpus(vmi) + guest_bytes(vmi) // OVERHEAD_SHARE
    if (_domain(vmi).get("devices") or {}).get("autoattachGraphicsDevice") is not False:
        overhead += OVERHEAD_VIDEO
    return overhead
