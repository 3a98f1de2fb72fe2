"""Figures about this host's machines in Prometheus' text form, under KubeVirt's names (labels node, namespace, name).

`collect` asks the hypervisor for the running machines' counters when it is scraped; the text is rendered here. No
state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from stead.agent import vmi as reading
from stead.agent.machine import Machine
from stead.hypervisor.contract import DriverError

Object = dict[str, Any]
Sample = tuple[str, dict[str, str], float]

#: counter of the driver → (metric, factor)
_COUNTERS = {
    "cpu_time_ns": ("kubevirt_vmi_cpu_usage_seconds_total", 1e-9),
    "memory_rss_bytes": ("kubevirt_vmi_memory_resident_bytes", 1.0),
    "balloon_bytes": ("kubevirt_vmi_memory_actual_balloon_bytes", 1.0),
    "memory_available_bytes": ("kubevirt_vmi_memory_available_bytes", 1.0),
    "memory_unused_bytes": ("kubevirt_vmi_memory_unused_bytes", 1.0),
    "memory_usable_bytes": ("kubevirt_vmi_memory_usable_bytes", 1.0),
    "migration.total_bytes": ("kubevirt_vmi_migration_data_bytes_total", 1.0),
    "migration.processed_bytes": ("kubevirt_vmi_migration_data_processed_bytes", 1.0),
    "migration.remaining_bytes": ("kubevirt_vmi_migration_data_remaining_bytes", 1.0),
    "migration.transfer_bytes_per_second": ("kubevirt_vmi_migration_memory_transfer_rate_bytes", 1.0),
    "migration.dirty_bytes_per_second": ("kubevirt_vmi_migration_dirty_memory_rate_bytes", 1.0),
}
_BLOCK = {
    "rd_bytes": "kubevirt_vmi_storage_read_traffic_bytes_total",
    "wr_bytes": "kubevirt_vmi_storage_write_traffic_bytes_total",
    "rd_reqs": "kubevirt_vmi_storage_iops_read_total",
    "wr_reqs": "kubevirt_vmi_storage_iops_write_total",
}
_NET = {
    "rx_bytes": "kubevirt_vmi_network_receive_bytes_total",
    "tx_bytes": "kubevirt_vmi_network_transmit_bytes_total",
    "rx_packets": "kubevirt_vmi_network_receive_packets_total",
    "tx_packets": "kubevirt_vmi_network_transmit_packets_total",
}


async def collect(machines: Iterable[Machine], host: str, sessions: dict[str, int]) -> bytes:
    """The whole page. A machine that cannot be asked in time is left out of the counters, not of the inventory."""
    listed = list(machines)
    figures = await asyncio.gather(*(_statistics(machine) for machine in listed))
    samples: list[Sample] = []
    for machine, counters in zip(listed, figures, strict=True):
        samples += machine_samples(machine.vmi, host, counters)
    samples += [(name, {"node": host}, float(value)) for name, value in sessions.items()]
    return render(samples)


async def _statistics(machine: Machine) -> dict[str, float]:
    if not machine.alive:
        return {}
    try:
        async with asyncio.timeout(5):
            return {**await machine.shop.hypervisor.statistics(machine.uid), **machine.departure.counters()}
    except (DriverError, TimeoutError):
        return {}


def machine_samples(vmi: Object, host: str, counters: dict[str, float]) -> list[Sample]:
    """Samples of one machine from the driver's counters."""
    namespace, name = reading.key(vmi)
    labels = {"node": host, "namespace": namespace, "name": name}
    os_info = reading.status(vmi).get("guestOSInfo") or {}
    info = labels | {
        "phase": reading.phase(vmi).lower(),
        "os": str(os_info.get("id", "")),
        "guest_os_name": str(os_info.get("name", "")),
    }
    samples: list[Sample] = [("kubevirt_vmi_info", info, 1.0)]
    if counters:
        samples.append(("kubevirt_vmi_memory_domain_bytes", labels, float(reading.guest_memory(vmi))))
    for counter, value in counters.items():
        if counter in _COUNTERS:
            metric, factor = _COUNTERS[counter]
            samples.append((metric, labels, value * factor))
        else:
            samples += _device_sample(counter, value, labels)
    return samples


def _device_sample(counter: str, value: float, labels: dict[str, str]) -> list[Sample]:
    """`block.<disk>.rd_bytes` and `net.<interface>.rx_bytes`; names of devices may hold dots."""
    kind, _, rest = counter.partition(".")
    device, _, figure = rest.rpartition(".")
    table, label = {"block": (_BLOCK, "drive"), "net": (_NET, "interface")}.get(kind, ({}, ""))
    return [(table[figure], labels | {label: device}, value)] if figure in table else []


def render(samples: list[Sample]) -> bytes:
    """Prometheus' text exposition format; samples of one metric stand together."""
    lines: list[str] = []
    current = ""
    for metric, labels, value in sorted(samples, key=lambda sample: sample[0]):
        if metric != current:
            current = metric
            lines.append(f"# TYPE {metric} {'counter' if metric.endswith('_total') else 'gauge'}")
        text = ",".join(f'{key}="{_escape(content)}"' for key, content in labels.items())
        lines.append(f"{metric}{{{text}}} {value:.17g}")
    return ("\n".join(lines) + "\n").encode()


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
