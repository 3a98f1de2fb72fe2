"""Kinds of machines and of what they are made: KubeVirt's, instancetypes, preferences, networks, hosts that join."""

from __future__ import annotations

from stead.kinds import instancetype, joins, kubevirt, machine, migration, network, preference
from stead.kinds.columns import AGE
from stead.kinds.register.shapes import CREATE_ONLY, READY, custom_kind, kubevirt_kind
from stead.kinds.resource import Column

VIRTUAL_MACHINE = kubevirt_kind(
    "VirtualMachine",
    "virtualmachines",
    machine.VirtualMachine,
    short_names=("vm", "vms"),
    status_subresource=True,
    columns=(AGE, Column("Status", "string", ".status.printableStatus"), READY),
)
VIRTUAL_MACHINE_INSTANCE = kubevirt_kind(
    "VirtualMachineInstance",
    "virtualmachineinstances",
    machine.VirtualMachineInstance,
    short_names=("vmi", "vmis"),
    columns=(
        AGE,
        Column("Phase", "string", ".status.phase"),
        Column("IP", "string", ".status.interfaces[0].ipAddress"),
        Column("NodeName", "string", ".status.nodeName"),
        READY,
        Column("Live-Migratable", "string", ".status.conditions[?(@.type=='LiveMigratable')].status", 1),
        Column("Paused", "string", ".status.conditions[?(@.type=='Paused')].status", 1),
    ),
)
KUBEVIRT = kubevirt_kind(
    "KubeVirt",
    "kubevirts",
    kubevirt.KubeVirt,
    short_names=("kv", "kvs"),
    status_subresource=True,
    columns=(AGE, Column("Phase", "string", ".status.phase")),
)
MIGRATION = kubevirt_kind(
    "VirtualMachineInstanceMigration",
    "virtualmachineinstancemigrations",
    migration.VirtualMachineInstanceMigration,
    short_names=("vmim", "vmims"),
    status_subresource=True,
    columns=(
        Column("Phase", "string", ".status.phase", description="The current phase of VM instance migration"),
        Column("VMI", "string", ".spec.vmiName", description="The name of the VMI to perform the migration on"),
    ),
)
MIGRATION_POLICY = custom_kind(
    "migrations.kubevirt.io",
    "v1alpha1",
    "MigrationPolicy",
    "migrationpolicies",
    migration.MigrationPolicy,
    namespaced=False,
    status_subresource=True,
)
_INSTANCETYPE_GROUP = "instancetype.kubevirt.io"
INSTANCETYPE = custom_kind(
    _INSTANCETYPE_GROUP,
    "v1beta1",
    "VirtualMachineInstancetype",
    "virtualmachineinstancetypes",
    instancetype.VirtualMachineInstancetype,
    short_names=("vminstancetype", "vminstancetypes", "vmf", "vmfs"),
    categories=("all",),
)
CLUSTER_INSTANCETYPE = custom_kind(
    _INSTANCETYPE_GROUP,
    "v1beta1",
    "VirtualMachineClusterInstancetype",
    "virtualmachineclusterinstancetypes",
    instancetype.VirtualMachineClusterInstancetype,
    namespaced=False,
    short_names=("vmclusterinstancetype", "vmclusterinstancetypes", "vmcf", "vmcfs"),
)
PREFERENCE = custom_kind(
    _INSTANCETYPE_GROUP,
    "v1beta1",
    "VirtualMachinePreference",
    "virtualmachinepreferences",
    preference.VirtualMachinePreference,
    short_names=("vmpref", "vmprefs", "vmp", "vmps"),
    categories=("all",),
)
CLUSTER_PREFERENCE = custom_kind(
    _INSTANCETYPE_GROUP,
    "v1beta1",
    "VirtualMachineClusterPreference",
    "virtualmachineclusterpreferences",
    preference.VirtualMachineClusterPreference,
    namespaced=False,
    short_names=("vmcp", "vmcps"),
)
JOIN = custom_kind(
    "stead.io",
    "v1alpha1",
    "Join",
    "joins",
    joins.Join,
    namespaced=False,
    verbs=CREATE_ONLY,
    has_generation=False,
)
NETWORK_ATTACHMENT_DEFINITION = custom_kind(
    "k8s.cni.cncf.io",
    "v1",
    "NetworkAttachmentDefinition",
    "network-attachment-definitions",
    network.NetworkAttachmentDefinition,
    short_names=("net-attach-def",),
)
ADDRESS_CLAIM = custom_kind(
    "stead.io",
    "v1alpha1",
    "AddressClaim",
    "addressclaims",
    network.AddressClaim,
    namespaced=False,
    columns=(
        Column("MAC", "string", ".spec.mac"),
        Column("Namespace", "string", ".spec.machine.namespace"),
        Column("Machine", "string", ".spec.machine.name"),
        AGE,
    ),
)
