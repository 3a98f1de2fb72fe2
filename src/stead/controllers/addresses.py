"""Addresses of machines on the pod network: claimed before the first start, kept until the machine is deleted.

`Addresses.claim` is called by `controllers.instance` before an instance is placed; the `address` controller here
releases claims whose machine is gone. A claim is the object AddressClaim named by the IPv4 itself, so that two
claimants can never hold one address: who creates it first has it. It belongs to the VirtualMachine (else to the bare
instance) by uid, and so outlives restarts. Claims are cluster-scoped and owners namespaced, hence no ownerReferences.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Iterator
from typing import Any

from stead.client.informer import Key
from stead.controllers.conditions import annotations_of, controller_of, spec_of
from stead.controllers.runner import Controller, Source, World, own_key
from stead.controllers.writes import create_if_absent, delete_if_there, read
from stead.kinds.register import ADDRESS_CLAIM, VIRTUAL_MACHINE, VIRTUAL_MACHINE_INSTANCE

Object = dict[str, Any]

ANNOTATION = "stead.io/addresses"
#: the network address, the gateway, and the last (broadcast) address are never claimed
RESERVED_FIRST = 2
#: how soon the address of an orphaned instance is looked at again
ORPHAN_SECONDS = 30.0


class NoAddress(Exception):
    """The pod network has no free address."""


def owner_of(vmi: Object) -> Object:
    """The `spec.machine` of claims for this instance: its VirtualMachine if it has one, else itself."""
    metadata, reference = vmi["metadata"], controller_of(vmi)
    if reference and reference["kind"] == VIRTUAL_MACHINE.kind:
        kind, name, uid = reference["kind"], reference["name"], reference["uid"]
    else:
        kind, name, uid = VIRTUAL_MACHINE_INSTANCE.kind, metadata["name"], metadata["uid"]
    return {"kind": kind, "namespace": metadata["namespace"], "name": name, "uid": uid}


def interfaces_of(vmi: Object) -> list[tuple[Object, bool]]:
    """(interface, on the pod network) for each interface that is attached."""
    networks = {n.get("name"): n for n in spec_of(vmi).get("networks") or ()}
    devices = (spec_of(vmi).get("domain") or {}).get("devices") or {}
    return [
        (interface, "pod" in networks.get(interface.get("name"), {}))
        for interface in devices.get("interfaces") or ()
        if interface.get("state") != "absent"
    ]


def mac_for(machine: Object, interface: str, attempt: int = 0) -> str:
    """A locally administered unicast MAC that is always the same for a machine's interface."""
    digest = hashlib.sha256(f"{machine['uid']}/{interface}/{attempt}".encode()).digest()
    return "02:" + ":".join(f"{byte:02x}" for byte in digest[:5])


def candidates(cidr: str, machine: Object, interface: str) -> Iterator[str]:
    """Addresses to try: first one that depends on the machine's name only, then upwards around the range.

    So a machine that is made anew tends to get its old address back.
    """
    network = ipaddress.IPv4Network(cidr)
    usable = network.num_addresses - RESERVED_FIRST - 1
    seed = f"{machine['namespace']}/{machine['name']}/{interface}".encode()
    start = int.from_bytes(hashlib.sha256(seed).digest()[:8], "big") % max(1, usable)
    for step in range(usable):
        yield str(network.network_address + RESERVED_FIRST + (start + step) % usable)


class Addresses:
    """Claims and releases. `cidr` is the pod network."""

    def __init__(self, world: World, cidr: str) -> None:
        self._client = world.client
        self._cidr = cidr
        self._claims = world.informers.of(ADDRESS_CLAIM)
        self._vms = world.informers.of(VIRTUAL_MACHINE)
        self._vmis = world.informers.of(VIRTUAL_MACHINE_INSTANCE)
        self._claims.add_index("machine", lambda c: [spec_of(c).get("machine", {}).get("uid", "")])
        self._claims.add_index("mac", lambda c: [str(spec_of(c).get("mac", "")).lower()])

    async def claim(self, vmi: Object) -> str:
        """The text of the annotation: network name → {"ipv4"?, "mac"}. Raises `NoAddress`, ApiError."""
        machine = owner_of(vmi)
        result: dict[str, dict[str, str]] = {}
        for interface, on_pod_network in interfaces_of(vmi):
            name = interface["name"]
            mac = str(interface.get("macAddress") or "").lower().replace("-", ":")
            if on_pod_network:
                spec = await self._claim_one(machine, name, mac)
                result[name] = {"ipv4": spec["ipv4"], "mac": mac or spec["mac"]}
            else:
                result[name] = {"mac": mac or mac_for(machine, name)}
        return json.dumps(result, sort_keys=True)

    async def _claim_one(self, machine: Object, interface: str, mac: str) -> Object:
        for claim in self._claims.by_index("machine", machine["uid"]):
            spec: Object = spec_of(claim)
            if spec.get("interface") == interface:
                return spec
        attempt = 0
        while not mac and self._claims.by_index("mac", mac_for(machine, interface, attempt)):
            attempt += 1
        mac = mac or mac_for(machine, interface, attempt)
        for address in candidates(self._cidr, machine, interface):
            if self._claims.get(None, address) is not None:
                continue
            spec = {"ipv4": address, "mac": mac, "interface": interface, "machine": machine}
            if await self._create(address, spec):
                return spec
        raise NoAddress(f"the pod network {self._cidr} has no free address")

    async def _create(self, address: str, spec: Object) -> bool:
        """Create the claim; also true if it turns out to be ours already (our informer was behind)."""
        claim = {
            "apiVersion": ADDRESS_CLAIM.api_version,
            "kind": ADDRESS_CLAIM.kind,
            "metadata": {"name": address},
            "spec": spec,
        }
        if await create_if_absent(self._client, ADDRESS_CLAIM, claim):
            return True
        known = spec_of(await read(self._client, ADDRESS_CLAIM, None, address))
        return bool(
            known.get("interface") == spec["interface"]
            and (known.get("machine") or {}).get("uid") == spec["machine"]["uid"]
        )

    def controller(self) -> Controller:
        """Releases claims of machines that are gone."""
        sources = (Source(self._claims, own_key), Source(self._vms, self._held), Source(self._vmis, self._held))
        return Controller("address", self.reconcile, sources, workers=1)

    def _held(self, machine: Object) -> list[Key]:
        claims = self._claims.by_index("machine", machine["metadata"].get("uid", ""))
        return [Key("", c["metadata"]["name"]) for c in claims]

    async def reconcile(self, key: Key) -> float | None:
        """Release one claim if its machine no longer exists."""
        claim = self._claims.get(*key)
        if claim is None:
            return None
        machine = spec_of(claim).get("machine") or {}
        vms = machine.get("kind") == VIRTUAL_MACHINE.kind
        informer, resource = (self._vms, VIRTUAL_MACHINE) if vms else (self._vmis, VIRTUAL_MACHINE_INSTANCE)
        namespace, name, uid = machine.get("namespace", ""), machine.get("name", ""), machine.get("uid")
        known = informer.get(namespace, name)
        if known is not None and known["metadata"]["uid"] == uid:
            return None
        live = await read(self._client, resource, namespace, name)
        if live is not None and live["metadata"]["uid"] == uid:
            return None
        if vms and self._is_in_use(machine, key.name):
            return ORPHAN_SECONDS
        await delete_if_there(self._client, ADDRESS_CLAIM, claim)
        return None

    def _is_in_use(self, machine: Object, address: str) -> bool:
        """Whether an orphaned instance of a deleted VirtualMachine still has the address."""
        vmi = self._vmis.get(machine.get("namespace", ""), machine.get("name", ""))
        return f'"{address}"' in annotations_of(vmi).get(ANNOTATION, "")
