"""Sizes of machines: instancetypes of instancetype.kubevirt.io/v1beta1.

Applied by `apply_instancetype`. Pure data. Source: KubeVirt 1.8.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from stead.kinds.devices import GPU, HostDevice
from stead.kinds.domain import NUMA, DiskIOThreads, Hugepages, LaunchSecurity, Realtime, ReservedOverhead
from stead.kinds.meta import Int32, Int64, KubernetesObject, Model, Quantity, described


class VirtualMachineInstancetype(KubernetesObject, kw_only=True):
    """A size for machines of this namespace."""

    spec: VirtualMachineInstancetypeSpec


class VirtualMachineClusterInstancetype(KubernetesObject, kw_only=True):
    """A size for machines of all namespaces."""

    spec: VirtualMachineInstancetypeSpec


class VirtualMachineInstancetypeSpec(Model, kw_only=True):
    """What a size fixes. A machine that uses it cannot set the same fields."""

    cpu: CPUInstancetype
    memory: MemoryInstancetype
    annotations: Annotated[dict[str, str] | None, described("put on the instance")] = None
    gpus: list[GPU] | None = None
    host_devices: list[HostDevice] | None = None
    io_threads: DiskIOThreads | None = None
    io_threads_policy: str | None = None
    launch_security: LaunchSecurity | None = None
    node_selector: dict[str, str] | None = None
    scheduler_name: str | None = None


class CPUInstancetype(Model, kw_only=True):
    """Processors of a size."""

    guest: Annotated[Int64, described("virtual CPUs; the preference decides their topology")]
    dedicated_cpu_placement: bool | None = field(default=None, name="dedicatedCPUPlacement")
    isolate_emulator_thread: bool | None = None
    max_sockets: Int64 | None = None
    model: str | None = None
    numa: NUMA | None = None
    realtime: Realtime | None = None


class MemoryInstancetype(Model, kw_only=True):
    """Memory of a size."""

    guest: Quantity
    hugepages: Hugepages | None = None
    max_guest: Quantity | None = None
    overcommit_percent: Annotated[
        Annotated[Int32, Meta(ge=0, le=100)] | None,
        described("how much less than the guest's memory is set aside on the host, 0 to 100"),
    ] = None
    reserved_overhead: ReservedOverhead | None = None
