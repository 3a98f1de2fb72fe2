"""VirtualMachine and VirtualMachineInstance: what users declare.

The hardware stands in `domain` and `devices`, sources of disks in `volumes`, what is observed in `machine_status`. Pure
data. Field names and types: KubeVirt 1.8, kubevirt.io/v1.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from stead.kinds.cdi import DataVolumeSpec
from stead.kinds.core import ExecAction, HTTPGetAction, PodDNSConfig, PodResourceClaim, TCPSocketAction
from stead.kinds.devices import Network
from stead.kinds.domain import DomainSpec
from stead.kinds.machine_status import VirtualMachineInstanceStatus, VirtualMachineStatus
from stead.kinds.meta import (
    AS_SET,
    NULLABLE,
    EmbeddedMetadata,
    Int32,
    Int64,
    KubernetesObject,
    Model,
    described,
    keyed_by,
)
from stead.kinds.scheduling import Affinity, Toleration, TopologySpreadConstraint
from stead.kinds.volumes import UtilityVolume, Volume


class VirtualMachine(KubernetesObject, kw_only=True):
    """A machine that is declared: its template, its disks, and whether it shall run."""

    spec: VirtualMachineSpec
    status: VirtualMachineStatus | None = None


class VirtualMachineSpec(Model, kw_only=True):
    """What the machine is and when it runs."""

    template: Annotated[VirtualMachineInstanceTemplateSpec, described("the instance that is made from this machine")]
    data_volume_templates: Annotated[
        list[DataVolumeTemplateSpec] | None, described("disks that are created for this machine and deleted with it")
    ] = None
    instancetype: Annotated[
        InstancetypeMatcher | None,
        described("size of the machine, kept elsewhere; excludes CPU and memory in the template"),
    ] = None
    preference: Annotated[PreferenceMatcher | None, described("defaults that suit the guest's operating system")] = None
    run_strategy: Annotated[
        str | None, described("Always, RerunOnFailure, Manual, Halted, Once or WaitAsReceiver; excludes `running`")
    ] = None
    running: Annotated[
        bool | None, described("older way to say Always (true) or Halted (false); excludes `runStrategy`")
    ] = None
    update_volumes_strategy: Annotated[
        str | None, described("how a changed volume list takes effect: Replacement or Migration")
    ] = None


class VirtualMachineInstanceTemplateSpec(Model, kw_only=True):
    """Labels, annotations and spec of the instance to make."""

    metadata: EmbeddedMetadata | None = None
    spec: VirtualMachineInstanceSpec | None = None


class DataVolumeTemplateSpec(Model, kw_only=True):
    """A DataVolume to be created for the machine. Its name is in `metadata`."""

    spec: DataVolumeSpec
    api_version: str | None = None
    kind: str | None = None
    metadata: EmbeddedMetadata | None = None
    status: Annotated[DataVolumeTemplateDummyStatus | None, NULLABLE] = None


class DataVolumeTemplateDummyStatus(Model, kw_only=True):
    """Accepted so that a copied DataVolume fits; never used."""


class InstancetypeMatcher(Model, kw_only=True):
    """Which instancetype to use."""

    infer_from_volume: Annotated[str | None, described("a volume whose labels name the instancetype")] = None
    infer_from_volume_failure_policy: Annotated[str | None, described("Reject (the default) or Ignore")] = None
    kind: Annotated[
        str | None, described("VirtualMachineClusterInstancetype (assumed when absent) or VirtualMachineInstancetype")
    ] = None
    name: str | None = None
    revision_name: Annotated[
        str | None, described("ControllerRevision that pins the spec in use; written by the controller")
    ] = None


class PreferenceMatcher(Model, kw_only=True):
    """Which preference to use."""

    infer_from_volume: Annotated[str | None, described("a volume whose labels name the preference")] = None
    infer_from_volume_failure_policy: Annotated[str | None, described("Reject (the default) or Ignore")] = None
    kind: Annotated[
        str | None, described("VirtualMachineClusterPreference (assumed when absent) or VirtualMachinePreference")
    ] = None
    name: str | None = None
    revision_name: Annotated[
        str | None, described("ControllerRevision that pins the spec in use; written by the controller")
    ] = None


class VirtualMachineInstance(KubernetesObject, kw_only=True):
    """One guest from its start to its end."""

    spec: VirtualMachineInstanceSpec
    status: VirtualMachineInstanceStatus | None = None


class VirtualMachineInstanceSpec(Model, kw_only=True):
    """All that is needed to run a guest."""

    domain: Annotated[DomainSpec, described("the virtual hardware")]
    access_credentials: Annotated[
        Annotated[list[AccessCredential], Meta(max_length=256)] | None,
        described("SSH keys and passwords that are kept up to date in the guest"),
    ] = None
    affinity: Affinity | None = None
    architecture: Annotated[str | None, described("amd64, arm64 or s390x")] = None
    dns_config: PodDNSConfig | None = None
    dns_policy: Literal["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"] | None = None
    eviction_strategy: Annotated[
        str | None, described("when its host is drained: None, LiveMigrate, LiveMigrateIfPossible or External")
    ] = None
    hostname: Annotated[str | None, described("host name of the guest; the machine's name when absent")] = None
    liveness_probe: Annotated[Probe | None, described("when it fails too often the guest is stopped")] = None
    networks: Annotated[
        Annotated[list[Network], Meta(max_length=256)] | None, described("what the interfaces are attached to")
    ] = None
    node_selector: Annotated[dict[str, str] | None, described("labels that the host must have")] = None
    priority_class_name: str | None = None
    readiness_probe: Annotated[Probe | None, described("while it fails the machine is not Ready")] = None
    resource_claims: Annotated[list[PodResourceClaim] | None, keyed_by("name")] = None
    scheduler_name: str | None = None
    start_strategy: Annotated[str | None, described("Paused starts the guest with its CPUs stopped")] = None
    subdomain: str | None = None
    termination_grace_period_seconds: Annotated[
        Int64 | None, described("how long a guest may take to shut down before it is stopped hard")
    ] = None
    tolerations: list[Toleration] | None = None
    topology_spread_constraints: Annotated[
        list[TopologySpreadConstraint] | None, keyed_by("topologyKey", "whenUnsatisfiable")
    ] = None
    utility_volumes: Annotated[
        Annotated[list[UtilityVolume], Meta(max_length=256)] | None,
        described("volumes for the host's work on the guest, never shown to the guest"),
        keyed_by("name"),
    ] = None
    volumes: Annotated[
        Annotated[list[Volume], Meta(max_length=256)] | None,
        described("where the data of disks and file systems comes from"),
    ] = None
    service_account_name: str | None = None


class Probe(Model, kw_only=True):
    """A question that is asked again and again while the guest runs."""

    exec: ExecAction | None = None
    failure_threshold: Annotated[Int32 | None, described("failures in a row that count, 3 when absent")] = None
    guest_agent_ping: GuestAgentPing | None = None
    http_get: HTTPGetAction | None = None
    initial_delay_seconds: Annotated[Int32 | None, described("seconds after the start before the first try")] = None
    period_seconds: Annotated[Int32 | None, described("seconds between tries, 10 when absent")] = None
    success_threshold: Int32 | None = None
    tcp_socket: TCPSocketAction | None = None
    timeout_seconds: Annotated[Int32 | None, described("seconds after which a try counts as failed, 1 when absent")] = (
        None
    )


class GuestAgentPing(Model, kw_only=True):
    """Asks the guest agent whether it is alive."""


class AccessCredential(Model, kw_only=True):
    """One credential: a set of SSH keys, or passwords."""

    ssh_public_key: SSHPublicKeyAccessCredential | None = None
    user_password: UserPasswordAccessCredential | None = None


class SSHPublicKeyAccessCredential(Model, kw_only=True):
    """SSH keys from a Secret, and how they get into the guest."""

    propagation_method: SSHPublicKeyAccessCredentialPropagationMethod
    source: SSHPublicKeyAccessCredentialSource


class SSHPublicKeyAccessCredentialSource(Model, kw_only=True):
    """Where the keys are kept."""

    secret: AccessCredentialSecretSource | None = None


class SSHPublicKeyAccessCredentialPropagationMethod(Model, kw_only=True):
    """How keys reach the guest: exactly one."""

    config_drive: ConfigDriveSSHPublicKeyAccessCredentialPropagation | None = None
    no_cloud: NoCloudSSHPublicKeyAccessCredentialPropagation | None = None
    qemu_guest_agent: QemuGuestAgentSSHPublicKeyAccessCredentialPropagation | None = None


class ConfigDriveSSHPublicKeyAccessCredentialPropagation(Model, kw_only=True):
    """By the config drive, at boot."""


class NoCloudSSHPublicKeyAccessCredentialPropagation(Model, kw_only=True):
    """By the NoCloud disk, at boot."""


class QemuGuestAgentSSHPublicKeyAccessCredentialPropagation(Model, kw_only=True):
    """By the guest agent, while the guest runs."""

    users: Annotated[list[str], described("guest users whose authorized_keys are managed"), AS_SET]


class UserPasswordAccessCredential(Model, kw_only=True):
    """Passwords from a Secret, and how they get into the guest."""

    propagation_method: UserPasswordAccessCredentialPropagationMethod
    source: UserPasswordAccessCredentialSource


class UserPasswordAccessCredentialSource(Model, kw_only=True):
    """Where the passwords are kept: a Secret with a key for each user."""

    secret: AccessCredentialSecretSource | None = None


class UserPasswordAccessCredentialPropagationMethod(Model, kw_only=True):
    """How passwords reach the guest."""

    qemu_guest_agent: QemuGuestAgentUserPasswordAccessCredentialPropagation | None = None


class QemuGuestAgentUserPasswordAccessCredentialPropagation(Model, kw_only=True):
    """By the guest agent, while the guest runs."""


class AccessCredentialSecretSource(Model, kw_only=True):
    """Names the Secret."""

    secret_name: str
