"""Whether memory of a machine may grow while it runs: one fault at a time, in upstream's order.

Asked when head-room is written at creation (a fault means: write none) and when a template names `maxGuest` (a fault is
refused). Texts are KubeVirt's (`pkg/liveupdate/memory`). Pure.
"""

from __future__ import annotations

from stead.kube import quantity
from stead.server.admission.contract import Json

_GI = 1 << 30
_MI = 1 << 20


def memory_hotplug_fault(spec: Json, max_guest: str) -> str | None:
    """Why a machine with this spec cannot grow to `max_guest`, or None. Unparsable amounts count as 0."""
    domain: Json = spec.get("domain") or {}
    cpu: Json = domain.get("cpu") or {}
    memory: Json = domain.get("memory") or {}
    if cpu.get("realtime") is not None:
        return "Memory hotplug is not compatible with realtime VMs"
    if domain.get("launchSecurity") is not None:
        return "Memory hotplug is not compatible with encrypted VMs"
    if cpu.get("dedicatedCpuPlacement") and (cpu.get("numa") or {}).get("guestMappingPassthrough") is not None:
        return "Memory hotplug is not compatible with guest mapping passthrough"
    if memory.get("guest") is None:
        return "Guest memory must be configured when memory hotplug is enabled"
    return _size_fault(spec, memory, max_guest)


def _size_fault(spec: Json, memory: Json, max_guest: str) -> str | None:
    guest = _bytes(memory["guest"])
    most = _bytes(max_guest)
    page = str((memory.get("hugepages") or {}).get("pageSize") or "")
    alignment, name = (_GI, "1Gi") if page == "1Gi" else (2 * _MI, "2Mi")
    if guest > most:
        return "Guest memory is greater than the configured maxGuest memory"
    if guest % alignment:
        return f"Guest memory must be {name} aligned"
    if most % alignment:
        return f"MaxGuest must be {name} aligned"
    if spec.get("architecture", "amd64") != "amd64":
        return "Memory hotplug is only available for x86_64 VMs"
    if guest < _GI:
        return "Memory hotplug is only available for VMs with at least 1Gi of guest memory"
    return None


def _bytes(amount: object) -> int:
    return int(quantity.parse(amount)) if isinstance(amount, (str, int, float)) and quantity.is_quantity(amount) else 0
