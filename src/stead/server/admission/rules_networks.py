"""Rules about networks and interfaces of a machine's spec.

Texts and field paths are KubeVirt's (`pkg/network/admitter`; notes 6.4, recordings `reject-networks`, `gates`). `field`
is the path of the spec. Pure.
"""

from __future__ import annotations

import re

from stead.server.admission import names
from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import Json
from stead.server.admission.findings import DUPLICATE, NOT_SUPPORTED, REQUIRED, Findings

_METHODS = ("bridge", "slirp", "masquerade", "sriov", "macvtap", "passt", "passtBinding")
_DISCONTINUED = {
    "slirp": "Slirp interface support has been discontinued since v1.3",
    "macvtap": "Macvtap interface support has been discontinued since v1.3",
    "passt": "Passt network binding has been discontinued since v1.3",
}
_MODELS = ("e1000", "e1000e", "igb", "ne2k_pci", "pcnet", "rtl8139", "virtio")
_NAME_RE = re.compile(r"[A-Za-z0-9-_]+")
_RESERVED_MAC = "02:00:00:00:00:00"
_ETHERNET_LENGTH = 6
_DHCP_PRIVATE_OPTIONS = range(224, 255)


def check_networks(field: str, spec: Json, cluster: Cluster, findings: Findings) -> None:
    """All rules about networks and interfaces."""
    networks = spec.get("networks") or []
    interfaces = spec["domain"]["devices"].get("interfaces") or []
    _check_sources(f"{field}.networks", networks, cluster, findings)
    _check_matches(field, networks, interfaces, findings)
    by_name = {n.get("name"): n for n in networks}
    attached = [i for i in interfaces if (by_name.get(i.get("name")) or {}).get("pod") is not None]
    if len(attached) > 1 and len({i.get("name") for i in attached}) > 1:
        where = f"{field}.interfaces"
        findings.add(where, f"more than one interface is connected to a pod network in {where}", DUPLICATE)
    for index, interface in enumerate(interfaces):
        here = f"{field}.domain.devices.interfaces[{index}]"
        network = by_name.get(interface.get("name")) or {}
        _check_binding(here, interface, network, cluster, findings)
        _check_state(here, interface, network, findings)
        _check_identity(here, interface, findings)
        _check_ports(here, interface, cluster, findings)
        _check_dhcp(field, here, interface.get("dhcpOptions") or {}, findings)


def has_pod_network(spec: Json) -> bool:
    """Whether one of the networks is the pod network."""
    return any(n.get("pod") is not None for n in spec.get("networks") or ())


def check_boot_orders(field: str, spec: Json, taken: dict[int, str], findings: Findings) -> None:
    """Boot orders of interfaces against those of disks (`taken`) and each other."""
    used = dict(taken)
    for index, interface in enumerate(spec["domain"]["devices"].get("interfaces") or ()):
        order = interface.get("bootOrder")
        if order is None:
            continue
        here = f"{field}.domain.devices.interfaces[{index}].bootOrder"
        if order < 1:
            findings.add(here, f"{here} must have a boot order > 0, if supplied")
        elif order in used:
            findings.add(here, f"Boot order for {here} already set for a different device.")
        used.setdefault(order, here)


def _check_sources(field: str, networks: list[Json], cluster: Cluster, findings: Findings) -> None:
    defaults = [n for n in networks if (n.get("multus") or {}).get("default")]
    if len(defaults) > 1:
        findings.add(field, "Multus CNI should only have one default network")
    if defaults and any(n.get("pod") is not None for n in networks):
        findings.add(field, "Pod network cannot be defined when Multus default network is defined")
    if any(n.get("resourceClaim") is not None for n in networks) and not cluster.has("NetworkDevicesWithDRA"):
        text = "vmi.spec.networks contains DRA networks but NetworkDevicesWithDRA feature gate is not enabled"
        findings.add(field, text)
    for index, network in enumerate(networks):
        here = f"{field}[{index}]"
        given = [kind for kind in ("pod", "multus", "resourceClaim") if network.get(kind) is not None]
        if not given:
            findings.add(here, "should have a network type", REQUIRED)
        elif len(given) > 1:
            findings.add(here, "should have only one network type", REQUIRED)
        if "multus" in given and not network["multus"].get("networkName"):
            findings.add(here, "CNI delegating plugin must have a networkName", REQUIRED)


def _check_matches(field: str, networks: list[Json], interfaces: list[Json], findings: Findings) -> None:
    """Every network has one interface, every interface one network, names are unique."""
    connected = {i.get("name") for i in interfaces}
    known = {n.get("name") for n in networks}
    seen: set[object] = set()
    for index, network in enumerate(networks):
        name, here = network.get("name"), f"{field}.networks[{index}].name"
        if name in seen:
            text = f'Network with name "{name}" already exists, every network must have a unique name'
            findings.add(here, text, DUPLICATE)
        elif name not in connected:
            findings.add(here, f"{here} '{name}' not found.", REQUIRED)
        seen.add(name)
    used: set[object] = set()
    for index, interface in enumerate(interfaces):
        name, here = interface.get("name"), f"{field}.domain.devices.interfaces[{index}].name"
        if name not in known:
            findings.add(here, f"{here} '{name}' not found.")
        elif name in used:
            findings.add(here, "Only one interface can be connected to one specific network", DUPLICATE)
        if not _NAME_RE.fullmatch(str(name or "")):
            text = (
                "Network interface name can only contain alphabetical characters, numbers, dashes (-) or "
                "underscores (_)"
            )
            findings.add(here, text)
        used.add(name)


def _check_binding(here: str, interface: Json, network: Json, cluster: Cluster, findings: Findings) -> None:
    methods = [m for m in _METHODS if interface.get(m) is not None]
    for method in methods:
        if method in _DISCONTINUED:
            findings.add(f"{here}.{method}", _DISCONTINUED[method], NOT_SUPPORTED)
    kept = [m for m in methods if m not in _DISCONTINUED]
    if len(kept) + (interface.get("binding") is not None) != 1:
        text = f"logical {interface.get('name')} interface must have exactly one binding method or binding plugin"
        findings.add(here, text)
    on_pod = network.get("pod") is not None
    if "masquerade" in kept:
        if not on_pod:
            findings.add(f"{here}.name", "Masquerade interface only implemented with pod network")
        if str(interface.get("macAddress") or "").lower() == _RESERVED_MAC:
            text = "The requested MAC address is reserved for the in-pod bridge. Please choose another one."
            findings.add(f"{here}.macAddress", text)
    if "bridge" in kept and on_pod and not cluster.permits_bridge_on_pod_network:
        text = "Bridge on pod network configuration is not enabled under kubevirt-config"
        findings.add(f"{here}.name", text)
    if "passtBinding" in kept:
        if not cluster.has("PasstBinding"):
            findings.add(f"{here}.name", "PasstBinding feature gate is not enabled")
        if network and not on_pod:
            findings.add(f"{here}.name", "Passt interface only implemented with pod network")


def _check_state(here: str, interface: Json, network: Json, findings: Findings) -> None:
    state, name = interface.get("state") or "", interface.get("name")
    if state not in ("", "up", "down", "absent"):
        findings.add(f"{here}.state", f"logical {name} interface state value is unsupported: {state}")
    if state == "down" and interface.get("sriov") is not None:
        findings.add(f"{here}.state", f'"{name}" interface\'s state "down" is not supported for SR-IOV NICs')
    if state != "absent":
        return
    if interface.get("bridge") is None and interface.get("sriov") is None:
        findings.add(f"{here}.state", f'"{name}" interface\'s state "absent" is supported only for bridge binding')
    if network.get("pod") is not None or (network.get("multus") or {}).get("default"):
        findings.add(f"{here}.state", f'"{name}" interface\'s state "absent" is not supported on default networks')


def _check_identity(here: str, interface: Json, findings: Findings) -> None:
    model = interface.get("model")
    if model and model not in _MODELS:
        text = f"interface {here}.name uses model {model} that is not supported."
        findings.add(f"{here}.model", text, NOT_SUPPORTED)
    mac = str(interface.get("macAddress") or "")
    length = names.mac_length(mac) if mac else _ETHERNET_LENGTH
    if not length:
        findings.add(f"{here}.macAddress", f"interface {here}.name has malformed MAC address ({mac}).")
    elif length > _ETHERNET_LENGTH:
        findings.add(f"{here}.macAddress", f"interface {here}.name has too long MAC address ({mac}).")
    address = str(interface.get("pciAddress") or "")
    if address and not names.is_pci_address(address):
        findings.add(f"{here}.pciAddress", f"interface {here}.name has malformed PCI address ({address}).")


def _check_ports(here: str, interface: Json, cluster: Cluster, findings: Findings) -> None:
    taken: set[str] = set()
    for index, port in enumerate(interface.get("ports") or ()):
        where = f"{here}.ports[{index}]"
        number = int(port.get("port") or 0)
        if number == 0:
            findings.add(f"{where}.port", "Port field is mandatory.", REQUIRED)
        elif not 0 < number < 65536:
            findings.add(f"{where}.port", "Port field must be in range 0 < x < 65536.")
        if port.get("protocol") and port["protocol"] not in ("TCP", "UDP"):
            findings.add(f"{where}.protocol", "Unknown protocol, only TCP or UDP allowed")
        name = port.get("name")
        if not name:
            continue
        if name in taken:
            findings.add(f"{where}.name", f"Duplicate name of the port: {name}", DUPLICATE)
        if not names.is_port_name(str(name)):
            findings.add(f"{where}.name", f"Invalid name of the port: {name}")
        taken.add(name)
    _check_port_ranges(here, interface, cluster, findings)


def _check_port_ranges(here: str, interface: Json, cluster: Cluster, findings: Findings) -> None:
    ranges = interface.get("portRanges") or ()
    if not ranges:
        return
    if not cluster.has("PortRangesSpec"):
        findings.add(f"{here}.name", "PortRangesSpec feature gate is not enabled")
    if interface.get("ports"):
        findings.add(f"{here}.name", "Cannot define both ports and portRanges on interface")
    if interface.get("masquerade") is None:
        findings.add(f"{here}.name", "portRanges are only supported on masquerade interfaces")
    for index, entry in enumerate(ranges):
        where = f"{here}.portRanges[{index}]"
        start, end = int(entry.get("start") or 0), int(entry.get("end") or 0)
        for key, number in (("start", start), ("end", end)):
            if not 0 < number < 65536:
                findings.add(f"{where}.{key}", "Port field must be in range 0 < x < 65536.")
        if start > end:
            findings.add(f"{where}.start", "Start must be less than or equal to end")
        if entry.get("protocol") and entry["protocol"] not in ("TCP", "UDP"):
            findings.add(f"{where}.protocol", "Unknown protocol, only TCP or UDP allowed")


def _check_dhcp(field: str, here: str, options: Json, findings: Findings) -> None:
    private = [int(o.get("option") or 0) for o in options.get("privateOptions") or ()]
    if any(number not in _DHCP_PRIVATE_OPTIONS for number in private):
        text = "provided DHCPPrivateOptions are out of range, must be in range 224 to 254"
        findings.add(field, text)
    if len(set(private)) != len(private):
        findings.add(field, "Found Duplicates: you have provided duplicate DHCPPrivateOptions")
    for index, server in enumerate(options.get("ntpServers") or ()):
        if not names.is_ipv4(str(server)):
            where = f"{here}.dhcpOptions.ntpServers[{index}]"
            findings.add(where, "NTP servers must be a list of valid IPv4 addresses.")
