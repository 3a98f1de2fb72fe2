"""Imports, uploads and golden images: cdi.kubevirt.io/v1beta1 and its upload token.

Read by the disk controllers. Pure data. Source: CDI's published OpenAPI document.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from stead.kinds.core import LocalObjectReference, ResourceRequirements, TypedLocalObjectReference, TypedObjectReference
from stead.kinds.meta import (
    ATOMIC,
    Duration,
    Int32,
    KubernetesObject,
    LabelSelector,
    Model,
    Time,
    described,
    one_of,
    rule,
)
from stead.kinds.scheduling import Affinity, Toleration
from stead.kinds.storage import PersistentVolumeClaimSpec, VolumeResourceRequirements


class DataVolume(KubernetesObject, kw_only=True):
    """Makes a claim of the same name and fills it from a source."""

    spec: DataVolumeSpec
    status: DataVolumeStatus | None = None


class DataVolumeSpec(Model, kw_only=True):
    """What to fill and from where."""

    checkpoints: list[DataVolumeCheckpoint] | None = None
    content_type: Annotated[
        str | None,
        described("kubevirt (a disk image, the default) or archive (a tar file)"),
        one_of("kubevirt", "archive"),
    ] = None
    final_checkpoint: bool | None = None
    preallocation: Annotated[bool | None, described("allocates all space at once")] = None
    priority_class_name: str | None = None
    pvc: Annotated[PersistentVolumeClaimSpec | None, described("the claim, taken as it is; excludes `storage`")] = None
    service_account_name: str | None = None
    source: Annotated[DataVolumeSource | None, described("where the data comes from; excludes `sourceRef`")] = None
    source_ref: Annotated[DataVolumeSourceRef | None, described("a DataSource that says where the data comes from")] = (
        None
    )
    storage: Annotated[StorageSpec | None, described("the claim, with gaps filled from the StorageProfile")] = None


class DataVolumeStatus(Model, kw_only=True):
    """How the filling goes."""

    claim_name: str | None = None
    conditions: list[DataVolumeCondition] | None = None
    phase: str | None = None
    progress: Annotated[str | None, described("`45.30%`, or `N/A`")] = None
    restart_count: Int32 | None = None


class DataVolumeCondition(Model, kw_only=True):
    """One aspect: Ready, Bound or Running."""

    status: str
    type: str
    last_heartbeat_time: Time | None = None
    last_transition_time: Time | None = None
    message: str | None = None
    reason: str | None = None


class DataVolumeSource(Model, kw_only=True):
    """Where the data comes from. Exactly one."""

    blank: DataVolumeBlankImage | None = None
    gcs: DataVolumeSourceGCS | None = None
    http: DataVolumeSourceHTTP | None = None
    imageio: DataVolumeSourceImageIO | None = None
    pvc: DataVolumeSourcePVC | None = None
    registry: DataVolumeSourceRegistry | None = None
    s3: DataVolumeSourceS3 | None = None
    snapshot: DataVolumeSourceSnapshot | None = None
    upload: DataVolumeSourceUpload | None = None
    vddk: DataVolumeSourceVDDK | None = None


class DataVolumeBlankImage(Model, kw_only=True):
    """An empty disk."""


class DataVolumeSourceUpload(Model, kw_only=True):
    """Waits for a client to send the data."""


class DataVolumeSourceGCS(Model, kw_only=True):
    """An object in Google Cloud Storage."""

    url: str
    secret_ref: str | None = None


class DataVolumeSourceHTTP(Model, kw_only=True):
    """A file on a web server."""

    url: str
    cert_config_map: Annotated[str | None, described("ConfigMap with certificates to trust")] = None
    checksum: Annotated[str | None, described("`algorithm:hex`; md5, sha1, sha256 or sha512")] = None
    extra_headers: Annotated[list[str] | None, described("request headers as whole lines")] = None
    insecure_skip_verify: bool | None = None
    secret_extra_headers: Annotated[list[str] | None, described("Secrets whose values are whole header lines")] = None
    secret_ref: Annotated[str | None, described("Secret with accessKeyId (user) and secretKey (password)")] = None


class DataVolumeSourceImageIO(Model, kw_only=True):
    """A disk of oVirt."""

    disk_id: str
    url: str
    cert_config_map: str | None = None
    insecure_skip_verify: bool | None = None
    secret_ref: str | None = None


class DataVolumeSourcePVC(Model, kw_only=True):
    """A copy of another claim."""

    name: str
    namespace: str


class DataVolumeSourceRegistry(Model, kw_only=True):
    """A container disk from a registry."""

    cert_config_map: str | None = None
    image_stream: str | None = None
    platform: PlatformOptions | None = None
    pull_method: Annotated[str | None, described("pod (the default) or node")] = None
    secret_ref: str | None = None
    url: Annotated[str | None, described("`docker://…` or `oci-archive://…`")] = None


class PlatformOptions(Model, kw_only=True):
    """Which of a multi-architecture image to take."""

    architecture: str | None = None


class DataVolumeSourceS3(Model, kw_only=True):
    """An object in S3."""

    url: str
    cert_config_map: str | None = None
    secret_ref: str | None = None


class DataVolumeSourceSnapshot(Model, kw_only=True):
    """A copy of a volume snapshot."""

    name: str
    namespace: str


class DataVolumeSourceVDDK(Model, kw_only=True):
    """A disk of VMware vSphere."""

    backing_file: str | None = None
    cert_config_map: str | None = None
    extra_args: str | None = None
    init_image_url: str | None = field(default=None, name="initImageURL")
    secret_ref: str | None = None
    thumbprint: str | None = None
    url: str | None = None
    uuid: str | None = None


class DataVolumeSourceRef(Model, kw_only=True):
    """Names a DataSource."""

    kind: str
    name: str
    namespace: str | None = None


class DataVolumeCheckpoint(Model, kw_only=True):
    """One stage of an import in stages."""

    current: str
    previous: str


class StorageSpec(Model, kw_only=True):
    """The claim to make; gaps are filled from the StorageProfile."""

    access_modes: list[str] | None = None
    data_source: Annotated[TypedLocalObjectReference | None, ATOMIC] = None
    data_source_ref: TypedObjectReference | None = None
    resources: VolumeResourceRequirements | None = None
    selector: Annotated[LabelSelector | None, ATOMIC] = None
    storage_class_name: str | None = None
    volume_mode: Literal["Block", "Filesystem", "FromStorageProfile"] | None = None
    volume_name: str | None = None


class DataSource(KubernetesObject, kw_only=True):
    """A stable name for the newest version of an image."""

    spec: DataSourceSpec
    status: DataSourceStatus | None = None


class DataSourceSpec(Model, kw_only=True):
    """What it stands for."""

    source: DataSourceSource


class DataSourceSource(Model, kw_only=True):
    """Exactly one of a claim, a snapshot or another DataSource."""

    data_source: DataSourceRefSourceDataSource | None = None
    pvc: DataVolumeSourcePVC | None = None
    snapshot: DataVolumeSourceSnapshot | None = None


class DataSourceRefSourceDataSource(Model, kw_only=True):
    """Names another DataSource."""

    name: str
    namespace: str


class DataSourceStatus(Model, kw_only=True):
    """What it resolves to."""

    conditions: list[DataSourceCondition] | None = None
    source: DataSourceSource | None = None


class DataSourceCondition(Model, kw_only=True):
    """One aspect: Ready."""

    status: str
    type: str
    last_heartbeat_time: Time | None = None
    last_transition_time: Time | None = None
    message: str | None = None
    reason: str | None = None


class DataImportCron(KubernetesObject, kw_only=True):
    """Imports an image again whenever it has changed."""

    spec: DataImportCronSpec
    status: DataImportCronStatus | None = None


class DataImportCronSpec(Model, kw_only=True):
    """What to import, when, and how many to keep."""

    managed_data_source: Annotated[str, described("DataSource that follows the newest import")]
    schedule: Annotated[str, described("cron text in UTC; empty never polls")]
    template: DataVolume
    garbage_collect: Annotated[str | None, described("Outdated (the default) or Never")] = None
    created_by: Annotated[str | None, described("who created it, as JSON; written by the server")] = None
    imports_to_keep: Annotated[Int32 | None, described("3 when absent")] = None
    retention_policy: Annotated[
        str | None, described("whether imports outlive this object: All (the default) or None")
    ] = None
    service_account_name: str | None = None


class DataImportCronStatus(Model, kw_only=True):
    """What was imported last."""

    conditions: list[DataImportCronCondition] | None = None
    current_imports: list[ImportStatus] | None = None
    last_execution_timestamp: Time | None = None
    last_import_timestamp: Time | None = None
    last_imported_pvc: DataVolumeSourcePVC | None = field(default=None, name="lastImportedPVC")
    source_format: str | None = None


class DataImportCronCondition(Model, kw_only=True):
    """One aspect: Progressing or UpToDate."""

    status: str
    type: str
    last_heartbeat_time: Time | None = None
    last_transition_time: Time | None = None
    message: str | None = None
    reason: str | None = None


class ImportStatus(Model, kw_only=True):
    """An import that is under way."""

    data_volume_name: str = field(name="DataVolumeName")
    digest: str = field(name="Digest")


class StorageProfile(KubernetesObject, kw_only=True):
    """What a storage class can do, so that DataVolumes need not say it."""

    spec: StorageProfileSpec
    status: StorageProfileStatus | None = None


class StorageProfileSpec(Model, kw_only=True):
    """What an administrator knows better than the built-in table."""

    claim_property_sets: Annotated[list[ClaimPropertySet], Meta(max_length=8)] | None = None
    clone_strategy: str | None = None
    data_import_cron_source_format: str | None = None
    snapshot_class: str | None = None


class StorageProfileStatus(Model, kw_only=True):
    """What is in effect."""

    claim_property_sets: list[ClaimPropertySet] | None = None
    clone_strategy: str | None = None
    conditions: list[CDICondition] | None = None
    data_import_cron_source_format: str | None = None
    provisioner: str | None = None
    snapshot_class: str | None = None
    storage_class: str | None = None


class ClaimPropertySet(Model, kw_only=True):
    """Access modes and volume mode that go together."""

    access_modes: Annotated[
        Annotated[list[str], Meta(max_length=4)],
        rule(
            "self.all(am, am in ['ReadWriteOnce', 'ReadOnlyMany', 'ReadWriteMany', 'ReadWriteOncePod'])",
            "Illegal AccessMode",
        ),
    ]
    volume_mode: Literal["Block", "Filesystem"] | None = None


class UploadTokenRequest(KubernetesObject, kw_only=True):
    """Asks for a token to upload into a claim."""

    spec: UploadTokenRequestSpec
    status: UploadTokenRequestStatus | None = None


class UploadTokenRequestSpec(Model, kw_only=True):
    """The claim to upload into."""

    pvc_name: str


class UploadTokenRequestStatus(Model, kw_only=True):
    """The token."""

    token: str | None = None


class CDI(KubernetesObject, kw_only=True):
    """Configures imports and uploads."""

    spec: CDISpec
    status: CDIStatus | None = None


class CDISpec(Model, kw_only=True):
    """What is configured. Fields about the installation are kept but change nothing in Stead."""

    cert_config: CDICertConfig | None = None
    clone_strategy_override: str | None = None
    config: CDIConfigSpec | None = None
    customize_components: CustomizeComponents | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    infra: ComponentConfig | None = None
    priority_class: str | None = None
    uninstall_strategy: str | None = None
    workload: NodePlacement | None = None


class CDIStatus(Model, kw_only=True):
    """Which version runs, and how well."""

    conditions: list[CDICondition] | None = None
    observed_version: str | None = None
    operator_version: str | None = None
    phase: str | None = None
    target_version: str | None = None


class CDICondition(Model, kw_only=True):
    """One aspect of the installation's health."""

    status: str
    type: str
    last_heartbeat_time: Time | None = None
    last_transition_time: Time | None = None
    message: str | None = None
    reason: str | None = None


class CDICertConfig(Model, kw_only=True):
    """Life times of certificates."""

    ca: CertConfig | None = None
    client: CertConfig | None = None
    server: CertConfig | None = None


class CertConfig(Model, kw_only=True):
    """Life time of a certificate."""

    duration: Duration | None = None
    renew_before: Duration | None = None


class CustomizeComponents(Model, kw_only=True):
    """Changes to installed components."""

    flags: Flags | None = None
    patches: list[CustomizeComponentsPatch] | None = None


class CustomizeComponentsPatch(Model, kw_only=True):
    """A patch for an installed object."""

    patch: str
    resource_name: str
    resource_type: str
    type: str


class Flags(Model, kw_only=True):
    """Extra command line flags of components."""

    api: dict[str, str] | None = None
    controller: dict[str, str] | None = None
    upload_proxy: dict[str, str] | None = None


class ComponentConfig(Model, kw_only=True):
    """Where components run, and how many."""

    affinity: Affinity | None = None
    api_server_replicas: Int32 | None = None
    deployment_replicas: Int32 | None = None
    node_selector: dict[str, str] | None = None
    tolerations: list[Toleration] | None = None
    upload_proxy_replicas: Int32 | None = None


class NodePlacement(Model, kw_only=True):
    """Hosts that components may run on."""

    affinity: Affinity | None = None
    node_selector: dict[str, str] | None = None
    tolerations: list[Toleration] | None = None


class CDIConfig(KubernetesObject, kw_only=True):
    """The settings of imports that are in effect. There is one, named `config`."""

    spec: CDIConfigSpec
    status: CDIConfigStatus | None = None


class CDIConfigSpec(Model, kw_only=True):
    """Settings of imports."""

    data_volume_ttl_seconds: Int32 | None = field(default=None, name="dataVolumeTTLSeconds")
    feature_gates: list[str] | None = None
    filesystem_overhead: FilesystemOverhead | None = None
    image_pull_secrets: list[LocalObjectReference] | None = None
    import_proxy: ImportProxy | None = None
    insecure_registries: Annotated[list[str] | None, described("registries that are used without TLS verification")] = (
        None
    )
    log_verbosity: Int32 | None = None
    pod_resource_requirements: ResourceRequirements | None = None
    preallocation: bool | None = None
    scratch_space_storage_class: str | None = None
    tls_security_profile: TLSSecurityProfile | None = None
    upload_proxy_url_override: str | None = field(default=None, name="uploadProxyURLOverride")
    webhook_pvc_rendering: str | None = None


class CDIConfigStatus(Model, kw_only=True):
    """Settings in effect."""

    default_pod_resource_requirements: ResourceRequirements | None = None
    filesystem_overhead: FilesystemOverhead | None = None
    image_pull_secrets: list[LocalObjectReference] | None = None
    import_proxy: ImportProxy | None = None
    preallocation: bool | None = None
    scratch_space_storage_class: str | None = None
    upload_proxy_ca: str | None = field(default=None, name="uploadProxyCA")
    upload_proxy_url: str | None = field(default=None, name="uploadProxyURL")


class FilesystemOverhead(Model, kw_only=True):
    """Share of a volume that its file system needs, as text such as 0.06."""

    global_: str | None = field(default=None, name="global")
    storage_class: dict[str, str] | None = None


class ImportProxy(Model, kw_only=True):
    """Proxy for imports."""

    http_proxy: str | None = field(default=None, name="HTTPProxy")
    https_proxy: str | None = field(default=None, name="HTTPSProxy")
    no_proxy: str | None = None
    trusted_ca_proxy: str | None = field(default=None, name="trustedCAProxy")


class TLSSecurityProfile(Model, kw_only=True):
    """Versions and ciphers of TLS."""

    custom: CustomTLSProfile | None = None
    intermediate: IntermediateTLSProfile | None = None
    modern: ModernTLSProfile | None = None
    old: OldTLSProfile | None = None
    type: str | None = None


class CustomTLSProfile(Model, kw_only=True):
    """A profile of one's own."""

    ciphers: list[str]
    min_tls_version: str = field(name="minTLSVersion")


class IntermediateTLSProfile(Model, kw_only=True):
    """TLS 1.2 and later."""


class ModernTLSProfile(Model, kw_only=True):
    """TLS 1.3."""


class OldTLSProfile(Model, kw_only=True):
    """TLS 1.0 and later."""
