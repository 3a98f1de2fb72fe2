"""Defaults of a VirtualMachine: matchers, architecture and machine type of its template, its lasting firmware identity.

Written on create and update, except the firmware UUID and serial, which are made once, at creation, and the PCI
topology (recordings `default-vm`). Nothing else is filled in: what the user left out keeps following the platform's
defaults.
Nothing at all happens to a machine that is being deleted. Returns new objects. Pure apart from the random UUIDs.
"""

from __future__ import annotations

import uuid

from stead.kinds import register
from stead.kube.encoding import own_copy
from stead.server.admission.cluster import Cluster
from stead.server.admission.contract import Json
from stead.server.admission.defaults_instance import PCI_TOPOLOGY, PCI_TOPOLOGY_LATEST, supports_pci_topology
from stead.server.admission.matchers import PREFERENCE, find_matched, infer_matchers, refuse_matchers
from stead.server.admission.shape import settled_spec

_ARCHITECTURE_LABEL = "template.kubevirt.io/architecture"


def machine_with_defaults(machine: Json, old: Json | None, cluster: Cluster, namespace: str) -> Json:
    """A new machine as it is stored. `old` is None on creation. Raises 422 and 400 for matchers that cannot hold."""
    made: Json = own_copy(machine)
    if (made.get("metadata") or {}).get("deletionTimestamp"):
        return made
    refuse_matchers(made["spec"], (old or {}).get("spec"))
    made["spec"] = infer_matchers(made["spec"], cluster, namespace)
    template: Json = made["spec"]["template"]
    spec: Json = template.setdefault("spec", {})
    domain: Json = spec.setdefault("domain", {})
    preference = (find_matched(made, PREFERENCE, cluster.lookup, namespace) or {}).get("spec") or {}
    if not spec.get("architecture"):
        asked = preference.get("preferredArchitecture") or _architecture_of_source(made, cluster, namespace)
        spec["architecture"] = asked or cluster.architecture
    chassis: Json = domain.get("machine") or {}
    if not chassis.get("type"):
        preferred = (preference.get("machine") or {}).get("preferredMachineType")
        domain["machine"] = {**chassis, "type": preferred or cluster.machine_type(str(spec["architecture"]))}
    if old is None:
        _fill_identity(template)
    template["spec"] = settled_spec(spec)
    return made


def _fill_identity(template: Json) -> None:
    spec: Json = template["spec"]
    firmware: Json = spec["domain"].setdefault("firmware", {})
    for key in ("uuid", "serial"):
        firmware[key] = firmware.get(key) or str(uuid.uuid4())
    if supports_pci_topology(spec):
        metadata: Json = template.setdefault("metadata", {})
        metadata["annotations"] = {PCI_TOPOLOGY: PCI_TOPOLOGY_LATEST, **(metadata.get("annotations") or {})}


def _architecture_of_source(machine: Json, cluster: Cluster, namespace: str) -> str:
    """Architecture label of the DataSource that the first data volume template starts from, or ""."""
    templates = machine["spec"].get("dataVolumeTemplates") or ()
    reference = ((templates[0].get("spec") or {}).get("sourceRef") if templates else None) or {}
    if reference.get("kind") != "DataSource":
        return ""
    home = str(reference.get("namespace") or namespace)
    source = cluster.lookup.get(register.DATA_SOURCE, home, str(reference.get("name") or ""))
    return str((((source or {}).get("metadata") or {}).get("labels") or {}).get(_ARCHITECTURE_LABEL) or "")
