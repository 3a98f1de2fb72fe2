"""Network cards: the pod network, existing bridges of the host, and named attachments. Pure.

A bridge becomes a NetworkAttachmentDefinition of its name (made when absent) and a `bridge` binding; `network=default`,
`user` and no option at all are the pod network with masquerade, which is what libvirt's `default` is: NAT with DHCP.
"""

from __future__ import annotations

import json
import re

from stead.cli.virt_install.plan import Line, Object, Plan, choice
from stead.cli.virt_install.suboptions import Given, Refusal

_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_BRIDGE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_NETWORK = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MODELS = ("virtio", "e1000e", "e1000", "rtl8139", "ne2k_pci", "pcnet")


def add_networks(line: Line, plan: Plan) -> None:
    """All network cards. Raises Refusal."""
    cards = line.all("--network")
    if line.has("--bridge"):
        cards.append(Given("--bridge", {"bridge": line.text("--bridge")}))
    if line.has("--nonetworks"):
        if cards:
            raise Refusal("--nonetworks and --network exclude each other")
        cards = [Given("--network", {"type": "none"})]
    if not cards:
        cards = [Given("--network", {"network": "default"})]
    if line.has("--mac"):
        cards[0] = Given(cards[0].flag, {**cards[0].values, "mac": line.text("--mac")})
    for index, card in enumerate(cards):
        _add_card(card, index, plan)
    if not plan.interfaces:
        plan.devices["autoattachPodInterface"] = False


def _add_card(given: Given, index: int, plan: Plan) -> None:
    kind = given.get("type")
    if kind == "none":
        if len(given.values) > 1:
            raise Refusal("--network none takes no further sub-options")
        return
    if kind in ("direct", "ethernet", "hostdev", "vdpa", "passt", "vhostuser", "udp", "internal"):
        raise Refusal(f"--network type={kind} is not offered; bridge=NAME or network=default are")
    bridge = given.get("bridge")
    network = given.get("network")
    if kind and kind not in ("network", "bridge", "user", "default"):
        network, kind = kind, "network"  # a leading word is the name of a network
    if kind == "bridge" and not bridge:
        bridge = network
        if not bridge:
            raise Refusal("--network type=bridge needs bridge=NAME")
    if bridge:
        _on_bridge(given, bridge, index, plan)
    elif not network or network == "default":
        if any("pod" in entry for entry in plan.networks):
            raise Refusal("a machine has one card on the pod network; name a bridge for the next --network")
        _add(given, "default", {"pod": {}}, plan)
    else:
        if not _NETWORK.fullmatch(network):
            raise Refusal(f"--network network={network[:60]}: this is no name of a network attachment")
        _add(given, f"net{index}", {"multus": {"networkName": network}}, plan)


def _on_bridge(given: Given, bridge: str, index: int, plan: Plan) -> None:
    if not _BRIDGE.fullmatch(bridge):
        raise Refusal(f"--network bridge={bridge[:60]}: a bridge's name has up to 15 letters, digits, `_`, `.` and `-`")
    name = attachment_name(bridge)
    hint = plan.facts.bridge_hint(bridge)
    if hint:
        plan.warn(hint)
    if not any(item["metadata"]["name"] == name for item in plan.shared if item["kind"] != "DataVolume"):
        plan.shared.append(attachment(plan, name, bridge))
    _add(given, f"net{index}", {"multus": {"networkName": name}}, plan)


def attachment_name(bridge: str) -> str:
    """The object's name for a bridge: the bridge's own where it can be one."""
    return re.sub(r"[^a-z0-9-]+", "-", bridge.lower()).strip("-") or "bridge"


def attachment(plan: Plan, name: str, bridge: str) -> Object:
    """The NetworkAttachmentDefinition of an existing bridge."""
    config = {"cniVersion": "0.3.1", "type": "bridge", "bridge": bridge}
    return {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": plan.meta(name),
        "spec": {"config": json.dumps(config, separators=(",", ":"))},
    }


def _add(given: Given, name: str, network: Object, plan: Plan) -> None:
    card: Object = {"name": name, **({"masquerade": {}} if "pod" in network else {"bridge": {}})}
    model = choice(given, "model", _MODELS)
    if model:
        card["model"] = model
    mac = given.get("mac")
    if mac and mac.upper() != "RANDOM":
        if not _MAC.fullmatch(mac):
            raise Refusal(f"--network mac={mac[:40]}: this is no MAC address such as 52:54:00:12:34:56")
        if int(mac[:2], 16) & 1:
            raise Refusal(f"--network mac={mac}: this is a multicast address; the first byte must be even")
        card["macAddress"] = mac.lower()
    order = given.number("boot.order", most=64)
    if order:
        card["bootOrder"] = order
    state = choice(given, "link.state", ("up", "down"))
    if state == "down":
        card["state"] = "down"
    plan.interfaces.append(card)
    plan.networks.append({"name": name, **network})
