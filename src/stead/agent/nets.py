"""Network interfaces of a machine: its ports on the pod network and on bridges of the host.

Called by `bringup.py`. Pod networks go through `network.podnetwork` with the address that the controller claimed
(annotation `stead.io/addresses`); bridge bindings take the bridge that a NetworkAttachmentDefinition names. What this
host lacks is a `NotReady` that says how to make it; what this release lacks is `Unsupported` with the field's path.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any, Protocol

import msgspec

from stead.agent import vmi as reading
from stead.agent.guestdata import hostname
from stead.agent.lookups import Lookups
from stead.agent.prepared import Address, NotReady, Unsupported
from stead.hypervisor.contract import Nic
from stead.network import bridges
from stead.network.attachment import Attached, Attachment, NetworkError

Object = dict[str, Any]


class PodNetworks(Protocol):
    """What the agent uses of `network.podnetwork.PodNetwork`."""

    async def attach(self, request: Attachment) -> Attached: ...

    async def detach(self, uid: str) -> None: ...

    async def settle(self, uid: str) -> None: ...

    async def announce(self, uid: str) -> None: ...

    async def withdraw(self, uid: str) -> None: ...

    async def list(self) -> set[str]: ...


class Claimed(msgspec.Struct, frozen=True):
    """Address and MAC that the controller claimed for one network."""

    ipv4: str = ""
    mac: str = ""


class Ports(msgspec.Struct, frozen=True):
    """What `prepare` made: NICs for the hypervisor and addresses for status."""

    nics: tuple[Nic, ...] = ()
    addresses: tuple[Address, ...] = ()


class _Interface(msgspec.Struct, frozen=True):
    """One interface of the VMI with its network and place."""

    vmi: Object
    entry: Object
    network: Object
    index: int
    owner_uid: int
    standby: bool = False

    @property
    def field(self) -> str:
        return f"spec.domain.devices.interfaces[{self.index}]"

    @property
    def name(self) -> str:
        return str(self.entry["name"])


def claimed_addresses(vmi: Object) -> dict[str, Claimed]:
    """Network name → what was claimed for it (annotation `stead.io/addresses`)."""
    text = (vmi["metadata"].get("annotations") or {}).get(reading.ADDRESSES)
    if not text:
        return {}
    try:
        found = json.loads(text)
        return {str(name): Claimed(str(e.get("ipv4", "")), str(e.get("mac", ""))) for name, e in found.items()}
    except (ValueError, AttributeError) as error:
        raise NotReady("InvalidAddresses", f"annotation {reading.ADDRESSES} cannot be read: {error}", 30) from error


def stable_mac(vmi: Object, network: str) -> str:
    """A locally administered MAC that stays the same for this machine's name and network (SHA-256, 02:…)."""
    namespace, name = reading.key(vmi)
    digest = hashlib.sha256(f"{namespace}/{name}/{network}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


class Nets:
    """Ports of machines on this host. `pod` is None where this host has no pod network."""

    def __init__(self, lookups: Lookups, pod: PodNetworks | None) -> None:
        self._lookups = lookups
        self._pod = pod

    async def prepare(self, vmi: Object, owner_uid: int, *, standby: bool = False) -> Ports:
        """Attach every interface; on failure whatever was attached is taken back. `standby`: see `announce`."""
        networks = {str(n["name"]): n for n in reading.spec(vmi).get("networks") or []}
        nics: list[Nic] = []
        addresses: list[Address] = []
        try:
            for index, entry in enumerate(reading.devices(vmi).get("interfaces") or []):
                if entry.get("state") == "absent":
                    continue
                network = networks.get(str(entry["name"]), {})
                nic, address = await self._attach(_Interface(vmi, entry, network, index, owner_uid, standby))
                nics.append(nic)
                addresses.append(address)
        except BaseException:
            await self.release(reading.uid(vmi))
            raise
        return Ports(tuple(nics), tuple(addresses))

    async def _attach(self, interface: _Interface) -> tuple[Nic, Address]:
        if "multus" in interface.network:
            return await self._on_bridge(interface)
        if "pod" not in interface.network:
            raise Unsupported(interface.field, f"network {interface.name} is neither a pod network nor a multus one")
        return await self._on_pod_network(interface)

    async def _on_pod_network(self, interface: _Interface) -> tuple[Nic, Address]:
        entry = interface.entry
        if "masquerade" not in entry:
            message = (
                "only masquerade is honoured on the pod network (a bridge takes a multus network that names a bridge)"
            )
            raise Unsupported(interface.field, message)
        if self._pod is None:
            raise NotReady("NoPodNetwork", "this host has no pod network", 10)
        claimed = claimed_addresses(interface.vmi).get(interface.name, Claimed())
        if not claimed.ipv4:
            raise NotReady("NoAddress", f"no address has been claimed for network {interface.name} yet", 1)
        mac = str(entry.get("macAddress") or claimed.mac or stable_mac(interface.vmi, interface.name))
        try:
            attached = await self._pod.attach(_attachment(interface, claimed.ipv4, mac))
        except ValueError as error:
            raise Unsupported(interface.field, str(error)) from error
        except NetworkError as error:
            raise NotReady("NetworkFailed", str(error), 3) from error
        nic = _nic(
            interface, mac=attached.mac or mac, backend=attached.nic_backend, target=attached.target, mtu=attached.mtu
        )
        address = Address(
            network=interface.name,
            interface="eth0",
            mac=nic.mac,
            ipv4=attached.address,
            netns=attached.netns,
            queues=nic.queues,
        )
        return nic, address

    async def _on_bridge(self, interface: _Interface) -> tuple[Nic, Address]:
        if "bridge" not in interface.entry:
            raise Unsupported(interface.field, "only the bridge binding is honoured on a multus network")
        wanted = str(interface.network["multus"].get("networkName") or "")
        config = await self._lookups.network_definition(reading.namespace(interface.vmi), wanted)
        if config.get("type") not in ("bridge", "cnv-bridge"):
            message = f"NetworkAttachmentDefinition {wanted} is of type {config.get('type')!r}; only bridge is honoured"
            raise Unsupported(interface.field, message)
        if config.get("vlan"):
            raise Unsupported(interface.field, f"NetworkAttachmentDefinition {wanted}: vlan is not honoured")
        bridge = str(config.get("bridge") or "")
        if not await asyncio.to_thread(bridges.bridge_exists, bridge):
            raise NotReady("BridgeNotFound", bridges.how_to_make(bridge), 5)
        mac = str(interface.entry.get("macAddress") or "") or self._claimed_mac(interface)
        nic = _nic(interface, mac=mac, backend="bridge", target=bridge, mtu=int(config.get("mtu") or 0))
        return nic, Address(network=interface.name, interface=bridge, mac=mac, queues=nic.queues)

    def _claimed_mac(self, interface: _Interface) -> str:
        claimed = claimed_addresses(interface.vmi).get(interface.name, Claimed())
        return claimed.mac or stable_mac(interface.vmi, interface.name)

    async def settle(self, machine_uid: str, addresses: tuple[Address, ...]) -> None:
        """Finish what can only be done once the hypervisor has opened the ports. Raises NetworkError."""
        if self._pod is not None and any(address.netns for address in addresses):
            await self._pod.settle(machine_uid)

    async def announce(self, machine_uid: str) -> None:
        """The guest runs here from now on: its address answers here. No-op without a pod network."""
        if self._pod is not None and machine_uid in await self._pod.list():
            await self._pod.announce(machine_uid)

    async def withdraw(self, machine_uid: str) -> None:
        """The guest runs elsewhere: its address answers here no more."""
        if self._pod is not None and machine_uid in await self._pod.list():
            await self._pod.withdraw(machine_uid)

    async def release(self, machine_uid: str) -> None:
        """Take back everything of a machine; no-op when there is nothing."""
        if self._pod is not None:
            await self._pod.detach(machine_uid)

    async def machines(self) -> set[str]:
        """Machine uids that have something attached on this host."""
        return set() if self._pod is None else await self._pod.list()


def _nic(interface: _Interface, *, mac: str, backend: str, target: str, mtu: int) -> Nic:
    entry = interface.entry
    return Nic(
        name=interface.name,
        mac=mac.lower().replace("-", ":"),
        backend=backend,
        target=target,
        model=str(entry.get("model") or "virtio"),
        mtu=mtu,
        queues=_queues(interface),
        boot_order=int(entry.get("bootOrder") or 0),
        pci_address=str(entry.get("pciAddress") or ""),
        acpi_index=int(entry.get("acpiIndex") or 0),
        link_up=entry.get("state") != "down",
    )


def _attachment(interface: _Interface, ipv4: str, mac: str) -> Attachment:
    entry, spec = interface.entry, reading.spec(interface.vmi)
    dns = spec.get("dnsConfig") or {}
    dhcp = entry.get("dhcpOptions") or {}
    given: Object = {}
    if (interface.network.get("pod") or {}).get("vmNetworkCIDR"):
        given["guest_cidr"] = str(interface.network["pod"]["vmNetworkCIDR"])
    if (interface.network.get("pod") or {}).get("vmIPv6NetworkCIDR"):
        given["guest_cidr_v6"] = str(interface.network["pod"]["vmIPv6NetworkCIDR"])
    return Attachment(
        machine_uid=reading.uid(interface.vmi),
        interface=interface.name,
        ipv4=ipv4,
        mac=mac,
        ports=tuple((str(p.get("protocol") or "TCP").lower(), int(p["port"])) for p in entry.get("ports") or []),
        queues=_queues(interface),
        owner_uid=interface.owner_uid,
        hostname=hostname(interface.vmi),
        search_domains=tuple(str(domain) for domain in dns.get("searches") or []),
        dns=tuple(str(server) for server in dns.get("nameservers") or []),
        options=_dhcp_options(dhcp),
        standby=interface.standby,
        boot_file=str(dhcp.get("bootFileName") or ""),
        tftp_server=str(dhcp.get("tftpServerName") or ""),
        **given,
    )


def _dhcp_options(dhcp: Object) -> tuple[tuple[int, str], ...]:
    """NTP servers (option 42) and private options (224 to 254)."""
    options = [(int(o["option"]), str(o.get("value", ""))) for o in dhcp.get("privateOptions") or []]
    if dhcp.get("ntpServers"):
        options.append((42, ",".join(str(server) for server in dhcp["ntpServers"])))
    return tuple(options)


def _queues(interface: _Interface) -> int:
    """One queue a vCPU where `networkInterfaceMultiqueue` asks for it; 1 else."""
    sockets, cores, threads = reading.topology(interface.vmi)
    multi = reading.devices(interface.vmi).get("networkInterfaceMultiqueue")
    return (
        min(256, sockets * cores * threads) if multi and (interface.entry.get("model") or "virtio") == "virtio" else 1
    )
