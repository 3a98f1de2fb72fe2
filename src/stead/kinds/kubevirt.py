"""The KubeVirt object: defaults, limits and feature gates for all machines.

Read by admission and controllers. Pure data. Source: KubeVirt 1.8, with later fields that were recorded.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from stead.kinds.core import LocalObjectReference
from stead.kinds.meta import (
    AS_SET,
    ATOMIC,
    NULLABLE,
    Duration,
    Int32,
    Int64,
    KubernetesObject,
    LabelSelector,
    Model,
    NullableTime,
    Quantity,
    described,
    keyed_by,
    one_of,
    stored_default,
)
from stead.kinds.scheduling import Affinity, Toleration


class KubeVirt(KubernetesObject, kw_only=True):
    """The one object that configures machines everywhere."""

    spec: KubeVirtSpec
    status: KubeVirtStatus | None = None


class KubeVirtSpec(Model, kw_only=True):
    """What is configured. Fields about the installation are kept but change nothing in Stead."""

    certificate_rotate_strategy: KubeVirtCertificateRotateStrategy | None = None
    configuration: KubeVirtConfiguration | None = None
    customize_components: CustomizeComponents | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: list[LocalObjectReference] | None = None
    image_registry: str | None = None
    image_tag: str | None = None
    infra: ComponentConfig | None = None
    monitor_account: str | None = None
    monitor_namespace: str | None = None
    product_component: str | None = None
    product_name: str | None = None
    product_version: str | None = None
    service_monitor_namespace: str | None = None
    synchronization_port: str | None = None
    uninstall_strategy: Annotated[str | None, described("RemoveWorkloads or BlockUninstallIfWorkloadsExist")] = None
    workload_update_strategy: KubeVirtWorkloadUpdateStrategy | None = None
    workloads: ComponentConfig | None = None


class KubeVirtStatus(Model, kw_only=True):
    """Which version runs, and how well."""

    conditions: list[KubeVirtCondition] | None = None
    default_architecture: str | None = None
    generations: list[GenerationStatus] | None = None
    observed_deployment_config: str | None = None
    observed_deployment_id: str | None = field(default=None, name="observedDeploymentID")
    observed_generation: Int64 | None = None
    observed_kube_virt_registry: str | None = None
    observed_kube_virt_version: str | None = None
    operator_version: str | None = None
    outdated_virtual_machine_instance_workloads: Int32 | None = None
    phase: str | None = None
    synchronization_addresses: list[str] | None = None
    target_deployment_config: str | None = None
    target_deployment_id: str | None = field(default=None, name="targetDeploymentID")
    target_kube_virt_registry: str | None = None
    target_kube_virt_version: str | None = None


class KubeVirtCondition(Model, kw_only=True):
    """One aspect of the installation's health."""

    status: str
    type: str
    last_probe_time: NullableTime | None = None
    last_transition_time: NullableTime | None = None
    message: str | None = None
    reason: str | None = None


class GenerationStatus(Model, kw_only=True):
    """The last generation seen of an installed object."""

    group: str
    last_generation: Int64
    name: str
    resource: str
    hash: str | None = None
    namespace: str | None = None


class KubeVirtConfiguration(Model, kw_only=True):
    """Defaults and limits for all machines."""

    additional_guest_memory_overhead_ratio: str | None = None
    api_configuration: ReloadableComponentConfiguration | None = None
    architecture_configuration: ArchConfiguration | None = None
    auto_cpu_limit_namespace_label_selector: Annotated[LabelSelector | None, ATOMIC] = field(
        default=None, name="autoCPULimitNamespaceLabelSelector"
    )
    changed_block_tracking_label_selectors: Annotated[ChangedBlockTrackingSelectors | None, NULLABLE] = None
    common_instancetypes_deployment: Annotated[CommonInstancetypesDeployment | None, NULLABLE] = None
    controller_configuration: ReloadableComponentConfiguration | None = None
    cpu_model: Annotated[str | None, described("for machines that set none")] = None
    cpu_request: Quantity | None = None
    default_runtime_class: str | None = None
    developer_configuration: DeveloperConfiguration | None = None
    emulated_machines: list[str] | None = None
    eviction_strategy: Annotated[str | None, described("for machines that set none")] = None
    handler_configuration: ReloadableComponentConfiguration | None = None
    hypervisors: Annotated[list[HypervisorConfiguration], Meta(max_length=1)] | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    instancetype: Annotated[InstancetypeConfiguration | None, NULLABLE] = None
    ksm_configuration: KSMConfiguration | None = None
    live_update_configuration: LiveUpdateConfiguration | None = None
    machine_type: str | None = None
    mediated_devices_configuration: MediatedDevicesConfiguration | None = None
    mem_balloon_stats_period: Int64 | None = None
    migrations: MigrationConfiguration | None = None
    min_cpu_model: str | None = field(default=None, name="minCPUModel")
    network: NetworkConfiguration | None = None
    obsolete_cpu_models: dict[str, bool] | None = field(default=None, name="obsoleteCPUModels")
    ovmf_path: str | None = None
    permitted_host_devices: PermittedHostDevices | None = None
    role_aggregation_strategy: Literal["AggregateToDefault", "Manual"] | None = None
    seccomp_configuration: SeccompConfiguration | None = None
    selinux_launcher_type: str | None = None
    smbios: SMBiosConfiguration | None = None
    support_container_resources: Annotated[list[SupportContainerResources] | None, keyed_by("type")] = None
    supported_guest_agent_versions: list[str] | None = None
    tls_configuration: TLSConfiguration | None = None
    virt_template_deployment: Annotated[VirtTemplateDeployment | None, NULLABLE] = None
    virtual_machine_instances_per_node: Int32 | None = None
    virtual_machine_options: VirtualMachineOptions | None = None
    vm_rollout_strategy: Annotated[
        str | None, described("LiveUpdate (the default) or Stage"), one_of("Stage", "LiveUpdate"), NULLABLE
    ] = None
    vm_state_storage_class: str | None = None
    webhook_configuration: ReloadableComponentConfiguration | None = None
    confidential_compute: Annotated[ConfidentialComputeConfiguration | None, NULLABLE] = None
    persistent_reservation_configuration: Annotated[PersistentReservationConfiguration | None, NULLABLE] = None


class KubeVirtCertificateRotateStrategy(Model, kw_only=True):
    """How certificates are renewed."""

    self_signed: KubeVirtSelfSignConfiguration | None = None


class KubeVirtSelfSignConfiguration(Model, kw_only=True):
    """Life times of our own certificates."""

    ca: CertConfig | None = None
    ca_overlap_interval: Duration | None = None
    ca_rotate_interval: Duration | None = None
    cert_rotate_interval: Duration | None = None
    server: CertConfig | None = None


class CertConfig(Model, kw_only=True):
    """Life time of a certificate."""

    duration: Duration | None = None
    renew_before: Duration | None = None


class ComponentConfig(Model, kw_only=True):
    """Where components run, and how many."""

    node_placement: NodePlacement | None = None
    replicas: Int32 | None = None


class NodePlacement(Model, kw_only=True):
    """Hosts that components may run on."""

    affinity: Affinity | None = None
    node_selector: dict[str, str] | None = None
    tolerations: list[Toleration] | None = None


class CustomizeComponents(Model, kw_only=True):
    """Changes to installed components."""

    flags: Flags | None = None
    patches: list[CustomizeComponentsPatch] | None = None


class CustomizeComponentsPatch(Model, kw_only=True):
    """A patch for an installed object."""

    patch: str
    resource_name: Annotated[str, Meta(min_length=1)]
    resource_type: Annotated[str, Meta(min_length=1)]
    type: str


class Flags(Model, kw_only=True):
    """Extra command line flags of components."""

    api: dict[str, str] | None = None
    controller: dict[str, str] | None = None
    handler: dict[str, str] | None = None


class KubeVirtWorkloadUpdateStrategy(Model, kw_only=True):
    """How running machines get new software."""

    batch_eviction_interval: Duration | None = None
    batch_eviction_size: Int32 | None = None
    workload_update_methods: list[str] | None = None


class ArchConfiguration(Model, kw_only=True):
    """Settings by architecture."""

    amd64: ArchSpecificConfiguration | None = None
    arm64: ArchSpecificConfiguration | None = None
    default_architecture: str | None = None
    ppc64le: ArchSpecificConfiguration | None = None
    s390x: ArchSpecificConfiguration | None = None


class ArchSpecificConfiguration(Model, kw_only=True):
    """Settings of one architecture."""

    emulated_machines: list[str] | None = None
    machine_type: str | None = None
    ovmf_path: str | None = None


class ChangedBlockTrackingSelectors(Model, kw_only=True):
    """Machines whose changed blocks are recorded."""

    namespace_label_selector: Annotated[LabelSelector | None, ATOMIC] = None
    virtual_machine_label_selector: Annotated[LabelSelector | None, ATOMIC] = None


class CommonInstancetypesDeployment(Model, kw_only=True):
    """Whether the shipped instancetypes and preferences are installed."""

    enabled: Annotated[bool | None, NULLABLE] = None


class ReloadableComponentConfiguration(Model, kw_only=True):
    """Settings of a component that need no restart."""

    rest_client: RESTClientConfiguration | None = None


class RESTClientConfiguration(Model, kw_only=True):
    """How a component talks to the API server."""

    rate_limiter: RateLimiter | None = None


class RateLimiter(Model, kw_only=True):
    """How fast requests are sent."""

    token_bucket_rate_limiter: TokenBucketRateLimiter | None = None


class TokenBucketRateLimiter(Model, kw_only=True):
    """Requests a second, with bursts."""

    burst: Int32
    qps: float


class DeveloperConfiguration(Model, kw_only=True):
    """Feature gates and settings for tests."""

    cluster_profiler: bool | None = None
    cpu_allocation_ratio: Annotated[Int32 | None, described("virtual CPUs for each host CPU, 10 when absent")] = None
    disabled_feature_gates: Annotated[list[str] | None, described("features that are switched off")] = None
    disk_verification: DiskVerification | None = None
    feature_gates: Annotated[list[str] | None, described("features that are switched on")] = None
    log_verbosity: LogVerbosity | None = None
    memory_overcommit: Annotated[Int32, Meta(ge=10)] | None = None
    minimum_cluster_tsc_frequency: Int64 | None = field(default=None, name="minimumClusterTSCFrequency")
    minimum_reserve_pvc_bytes: Int64 | None = field(default=None, name="minimumReservePVCBytes")
    node_selectors: dict[str, str] | None = None
    pvc_tolerate_less_space_up_to_percent: Int32 | None = None
    use_emulation: Annotated[bool | None, described("lets machines run without KVM")] = None


class DiskVerification(Model, kw_only=True):
    """Limits of the check of disk images."""

    memory_limit: Quantity


class LogVerbosity(Model, kw_only=True):
    """How much each component logs, 0 to 9."""

    node_verbosity: dict[str, Int32] | None = None
    virt_api: Int32 | None = field(default=None, name="virtAPI")
    virt_controller: Int32 | None = None
    virt_handler: Int32 | None = None
    virt_launcher: Int32 | None = None
    virt_operator: Int32 | None = None
    virt_synchronization_controller: Int32 | None = None


class HypervisorConfiguration(Model, kw_only=True):
    """A hypervisor that may be used."""

    name: Annotated[str | None, one_of("kvm", "hyperv-direct")] = None


class InstancetypeConfiguration(Model, kw_only=True):
    """How machines refer to instancetypes."""

    reference_policy: Annotated[
        str | None,
        described("reference (the default), expand or expandAll"),
        one_of("reference", "expand", "expandAll"),
        NULLABLE,
    ] = None


class KSMConfiguration(Model, kw_only=True):
    """Hosts on which equal memory pages are shared."""

    node_label_selector: Annotated[LabelSelector | None, ATOMIC] = None


class LiveUpdateConfiguration(Model, kw_only=True):
    """How far CPUs and memory can grow without a restart."""

    max_cpu_sockets: Int64 | None = None
    max_guest: Quantity | None = None
    max_hotplug_ratio: Annotated[
        Int64 | None, described("limit as a multiple of what a machine boots with, 4 when absent")
    ] = None


class MediatedDevicesConfiguration(Model, kw_only=True):
    """Virtual GPUs that hosts make."""

    enabled: bool | None = None
    mediated_device_types: list[str] | None = None
    mediated_devices_types: list[str] | None = None
    node_mediated_device_types: list[NodeMediatedDeviceTypesConfig] | None = None


class NodeMediatedDeviceTypesConfig(Model, kw_only=True):
    """Virtual GPUs that selected hosts make."""

    node_selector: dict[str, str]
    mediated_device_types: list[str] | None = None
    mediated_devices_types: list[str] | None = None


class MigrationConfiguration(Model, kw_only=True):
    """Limits and options of live migration."""

    allow_auto_converge: bool | None = None
    allow_post_copy: bool | None = None
    allow_workload_disruption: bool | None = None
    bandwidth_per_migration: Quantity | None = None
    completion_timeout_per_gi_b: Int64 | None = None
    disable_tls: bool | None = field(default=None, name="disableTLS")
    match_se_linux_level_on_migration: bool | None = field(default=None, name="matchSELinuxLevelOnMigration")
    network: str | None = None
    node_drain_taint_key: str | None = None
    parallel_migrations_per_cluster: Int64 | None = None
    parallel_outbound_migrations_per_node: Int64 | None = None
    progress_timeout: Int64 | None = None
    unsafe_migration_override: bool | None = None
    utility_volumes_timeout: Int64 | None = None
    max_downtime_ms: Annotated[Int64, Meta(ge=1, le=2000000)] | None = None
    experimental: MigrationExperimental | None = None


class MigrationExperimental(Model, kw_only=True):
    """Options of live migration that may change."""

    compression: Literal["none", "zstd"] | None = None
    downtime_tuning: DowntimeTuning | None = None
    stall_detector: StallDetector | None = None


class StallDetector(Model, kw_only=True):
    """When a migration counts as stalled."""

    completion_timeout_factor: Quantity | None = None
    ewma_alpha: Quantity | None = None
    patience_window_decay_factor: Quantity | None = None
    precopy_possible_factor: Quantity | None = None
    stall_margin: Annotated[Int32, Meta(ge=0, le=100)] | None = None
    stall_progress_timeout: Annotated[Int32, Meta(ge=0)] | None = None
    switchover_timeout: Annotated[Int32, Meta(ge=0)] | None = None


class DowntimeTuning(Model, kw_only=True):
    """How the allowed pause of the guest grows during a migration."""

    cooldown_seconds: Annotated[Int32, Meta(ge=1)] | None = None
    initial_ms: Annotated[Int32, Meta(ge=1)] | None = None
    start_after_iteration: Annotated[Int32, Meta(ge=1)] | None = None
    steps: Annotated[Int32, Meta(ge=1)] | None = None


class NetworkConfiguration(Model, kw_only=True):
    """Defaults of interfaces."""

    binding: dict[str, InterfaceBindingPlugin] | None = None
    default_network_interface: Annotated[
        str | None, described("binding of the interface that is added when there is none: bridge or masquerade")
    ] = None
    permit_bridge_interface_on_pod_network: bool | None = None
    permit_slirp_interface: bool | None = None


class InterfaceBindingPlugin(Model, kw_only=True):
    """A way of binding interfaces that is registered."""

    compute_resource_overhead: ResourceRequirementsWithoutClaims | None = None
    domain_attachment_type: str | None = None
    downward_api: str | None = field(default=None, name="downwardAPI")
    migration: InterfaceBindingMigration | None = None
    network_attachment_definition: str | None = None
    sidecar_image: str | None = None


class InterfaceBindingMigration(Model, kw_only=True):
    """How a plugin's interface is migrated."""

    method: str | None = None


class ResourceRequirementsWithoutClaims(Model, kw_only=True):
    """Compute resources."""

    limits: dict[str, Quantity] | None = None
    requests: dict[str, Quantity] | None = None


class PermittedHostDevices(Model, kw_only=True):
    """Host devices that machines may use."""

    mediated_devices: list[MediatedHostDevice] | None = None
    pci_host_devices: list[PciHostDevice] | None = None
    usb: list[USBHostDevice] | None = None


class PciHostDevice(Model, kw_only=True):
    """A PCI device, by vendor and product."""

    pci_vendor_selector: str
    resource_name: str
    external_resource_provider: bool | None = None


class MediatedHostDevice(Model, kw_only=True):
    """A mediated device, by the name of its type."""

    mdev_name_selector: str
    resource_name: str
    external_resource_provider: bool | None = None


class USBHostDevice(Model, kw_only=True):
    """USB devices, by vendor and product."""

    resource_name: str
    external_resource_provider: bool | None = None
    selectors: list[USBSelector] | None = None


class USBSelector(Model, kw_only=True):
    """A vendor and product."""

    product: str
    vendor: str


class SeccompConfiguration(Model, kw_only=True):
    """System calls that are allowed."""

    virtual_machine_instance_profile: VirtualMachineInstanceProfile | None = None


class VirtualMachineInstanceProfile(Model, kw_only=True):
    """The seccomp profile of machines."""

    custom_profile: CustomProfile | None = None


class CustomProfile(Model, kw_only=True):
    """A seccomp profile."""

    localhost_profile: str | None = None
    runtime_default_profile: bool | None = None


class SMBiosConfiguration(Model, kw_only=True):
    """What SMBIOS tells guests."""

    family: str | None = None
    manufacturer: str | None = None
    product: str | None = None
    sku: str | None = None
    version: str | None = None


class SupportContainerResources(Model, kw_only=True):
    """Resources of a helper process."""

    resources: ResourceRequirementsWithoutClaims
    type: str


class TLSConfiguration(Model, kw_only=True):
    """Versions and ciphers of TLS."""

    ciphers: Annotated[list[str] | None, AS_SET] = None
    min_tls_version: Literal["VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"] | None = field(
        default=None, name="minTLSVersion"
    )


class VirtTemplateDeployment(Model, kw_only=True):
    """Whether the template service is installed."""

    enabled: Annotated[bool | None, NULLABLE] = None


class VirtualMachineOptions(Model, kw_only=True):
    """Switches for all machines."""

    disable_free_page_reporting: DisableFreePageReporting | None = None
    disable_serial_console_log: DisableSerialConsoleLog | None = None


class DisableFreePageReporting(Model, kw_only=True):
    """Guests do not report free pages."""


class DisableSerialConsoleLog(Model, kw_only=True):
    """Serial consoles are not logged."""


class ConfidentialComputeConfiguration(Model, kw_only=True):
    """Settings of encrypted guests."""

    tdx: Annotated[TDXConfiguration | None, NULLABLE] = None


class TDXConfiguration(Model, kw_only=True):
    """Settings of Intel TDX."""

    attestation: TDXAttestationConfiguration | None = None


class TDXAttestationConfiguration(Model, kw_only=True):
    """The quote service for Intel TDX."""

    enforced: Annotated[bool | None, stored_default(False)] = None
    qgs_socket_path: Annotated[str | None, stored_default("/var/run/tdx-qgs/qgs.socket")] = None


class PersistentReservationConfiguration(Model, kw_only=True):
    """Whether SCSI reservations are handled."""

    enabled: Annotated[bool | None, NULLABLE] = None
