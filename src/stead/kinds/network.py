"""Networks that machines attach to, and the addresses they hold.

NetworkAttachmentDefinition follows the multi-network de-facto standard (k8s.cni.cncf.io/v1). AddressClaim is ours: its
name is the address, so that create-if-absent makes an address unique. Pure data.
"""

from __future__ import annotations

from typing import Annotated

from stead.kinds.meta import KubernetesObject, Model, described


class NetworkAttachmentDefinition(KubernetesObject, kw_only=True):
    """A network beside the default one that machines can be attached to."""

    spec: NetworkAttachmentDefinitionSpec | None = None


class NetworkAttachmentDefinitionSpec(Model, kw_only=True):
    """How to reach the network."""

    config: Annotated[
        str | None, described("CNI configuration as JSON text; type `bridge` names an existing bridge of the hosts")
    ] = None


class AddressClaim(KubernetesObject, kw_only=True):
    """One IPv4 address of the machine network, held by one interface. Its name is the address."""

    spec: AddressClaimSpec


class AddressClaimSpec(Model, kw_only=True):
    """Who holds the address."""

    ipv4: str
    mac: Annotated[str, described("the interface's MAC address, `02:…`")]
    interface: Annotated[str, described("name of the interface in the machine's spec")]
    machine: MachineReference


class MachineReference(Model, kw_only=True):
    """The machine that an address belongs to. Its deletion frees the address."""

    kind: Annotated[str, described("VirtualMachine or VirtualMachineInstance")]
    namespace: str
    name: str
    uid: str
