"""The KubeVirt object's configuration as the rules read it: every default that is not in the object stands here.

Built once per admission from the `Lookup`. Defaults are those of an empty KubeVirt object as recorded (`default-*`,
`configuration`). Immutable, pure.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import msgspec

from stead.kube import quantity
from stead.server.admission.contract import Json, Lookup

#: machine types that each architecture accepts, and the one that it gets (virtconfig defaults, recorded)
_MACHINES: dict[str, tuple[str, tuple[str, ...]]] = {
    "amd64": ("q35", ("q35*", "pc-q35*")),
    "arm64": ("virt", ("virt*",)),
    "s390x": ("s390-ccw-virtio", ("s390-ccw-virtio*",)),
}
#: Intel's quote generation service on the host, as containers see it
_QGS_SOCKET = "/var/run/tdx-qgs/qgs.socket"
_HOTPLUG_RATIO = 4


class Cluster(msgspec.Struct, frozen=True):
    """Configuration, enabled gates and the lookup, in one value for the rules."""

    configuration: Json
    gates: frozenset[str]
    lookup: Lookup

    def has(self, gate: str) -> bool:
        """Whether a feature gate is on."""
        return gate in self.gates

    def _section(self, name: str) -> Json:
        found: Any = self.configuration.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def architecture(self) -> str:
        """Architecture of a machine that names none."""
        return str(self._section("architectureConfiguration").get("defaultArchitecture") or "amd64")

    def _machines(self, architecture: str) -> Json:
        found: Any = self._section("architectureConfiguration").get(architecture)
        return found if isinstance(found, dict) else {}

    def machine_type(self, architecture: str) -> str:
        """Machine type of a machine that names none."""
        default = _MACHINES.get(architecture, _MACHINES["amd64"])[0]
        return str(self._machines(architecture).get("machineType") or self.configuration.get("machineType") or default)

    def emulated_machines(self, architecture: str) -> list[str]:
        """Patterns of the machine types that are accepted."""
        default = _MACHINES.get(architecture, _MACHINES["amd64"])[1]
        listed = self._machines(architecture).get("emulatedMachines") or self.configuration.get("emulatedMachines")
        return list(listed or default)

    def is_emulated_machine(self, architecture: str, machine_type: str) -> bool:
        """Whether a machine type is accepted."""
        return any(fnmatchcase(machine_type, pattern) for pattern in self.emulated_machines(architecture))

    @property
    def cpu_model(self) -> str:
        """CPU model of a machine that names none ("" = the architecture's default)."""
        return str(self.configuration.get("cpuModel") or "")

    @property
    def cpu_request(self) -> str:
        """CPU request that is written into machines that state none ("" = none is written)."""
        return str(self.configuration.get("cpuRequest") or "")

    @property
    def eviction_strategy(self) -> str:
        """Eviction strategy of a machine that names none."""
        return str(self.configuration.get("evictionStrategy") or "None")

    @property
    def default_binding(self) -> str:
        """Binding of the interface that a machine without networks gets: bridge or masquerade."""
        return str(self._section("network").get("defaultNetworkInterface") or "bridge")

    @property
    def permits_bridge_on_pod_network(self) -> bool:
        """Whether the bridge binding may be used on the pod network."""
        return bool(self._section("network").get("permitBridgeInterfaceOnPodNetwork", True))

    @property
    def live_update(self) -> bool:
        """Whether changes reach running machines (vmRolloutStrategy LiveUpdate, the default)."""
        return str(self.configuration.get("vmRolloutStrategy")) != "Stage"

    @property
    def max_sockets(self) -> int:
        """Administrator's bound for sockets after hotplug; 0 = none."""
        return int(self._section("liveUpdateConfiguration").get("maxCpuSockets") or 0)

    @property
    def max_guest(self) -> quantity.Quantity | None:
        """Administrator's bound for guest memory after hotplug."""
        text = self._section("liveUpdateConfiguration").get("maxGuest")
        return quantity.parse(text) if text else None

    @property
    def hotplug_ratio(self) -> int:
        """How many times its size a machine may grow when nothing else bounds it."""
        return int(self._section("liveUpdateConfiguration").get("maxHotplugRatio") or _HOTPLUG_RATIO)

    @property
    def persistent_reservation(self) -> bool:
        """Whether SCSI persistent reservations may be used."""
        enabled = self._section("persistentReservationConfiguration").get("enabled")
        return self.has("PersistentReservation") or bool(enabled)

    @property
    def qgs_socket(self) -> str:
        """Path of the quote generation service's socket, for TDX guests."""
        attestation = (self._section("confidentialCompute").get("tdx") or {}).get("attestation") or {}
        return str(attestation.get("qgsSocketPath") or _QGS_SOCKET)


def cluster_from_lookup(lookup: Lookup) -> Cluster:
    """The view of one admission."""
    return Cluster(lookup.configuration(), lookup.gates(), lookup)
