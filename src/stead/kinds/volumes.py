"""Where the data of a machine's disks and file systems comes from.

Pure data. Source: KubeVirt 1.8, kubevirt.io/v1.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from stead.kinds.core import DownwardAPIVolumeFile, LocalObjectReference
from stead.kinds.meta import ATOMIC, Model, Quantity, described, rule, stored_default


class Volume(Model, kw_only=True):
    """A source of data with a name; disks and file systems refer to it. Exactly one source is set."""

    name: str
    cloud_init_config_drive: CloudInitConfigDriveSource | None = None
    cloud_init_no_cloud: CloudInitNoCloudSource | None = None
    config_map: ConfigMapVolumeSource | None = None
    container_disk: ContainerDiskSource | None = None
    container_path: ContainerPathVolumeSource | None = None
    data_volume: DataVolumeReference | None = None
    downward_api: DownwardAPIVolumeSource | None = field(default=None, name="downwardAPI")
    downward_metrics: DownwardMetricsVolumeSource | None = None
    empty_disk: EmptyDiskSource | None = None
    ephemeral: EphemeralVolumeSource | None = None
    host_disk: HostDisk | None = None
    memory_dump: MemoryDumpVolumeSource | None = None
    persistent_volume_claim: PersistentVolumeClaimVolumeSource | None = None
    secret: SecretVolumeSource | None = None
    service_account: ServiceAccountVolumeSource | None = None
    sysprep: SysprepSource | None = None


class CloudInitConfigDriveSource(Model, kw_only=True):
    """User data for cloud-init or Ignition, given as a config drive."""

    network_data: str | None = None
    network_data_base64: str | None = None
    network_data_secret_ref: Annotated[LocalObjectReference | None, ATOMIC] = None
    secret_ref: Annotated[LocalObjectReference | None, ATOMIC] = None
    user_data: Annotated[str | None, described("plain text, 2048 bytes at most; more belongs in `secretRef`")] = None
    user_data_base64: str | None = None


class CloudInitNoCloudSource(Model, kw_only=True):
    """User data for cloud-init, given as a NoCloud disk."""

    network_data: str | None = None
    network_data_base64: str | None = None
    network_data_secret_ref: Annotated[
        LocalObjectReference | None, described("Secret with the key `networkdata` (or `networkData`)"), ATOMIC
    ] = None
    secret_ref: Annotated[
        LocalObjectReference | None, described("Secret with the key `userdata` (or `userData`)"), ATOMIC
    ] = None
    user_data: Annotated[str | None, described("plain text, 2048 bytes at most; more belongs in `secretRef`")] = None
    user_data_base64: str | None = None


class ConfigMapVolumeSource(Model, kw_only=True):
    """Files from a ConfigMap."""

    name: str | None = None
    optional: bool | None = None
    volume_label: str | None = None


class ContainerDiskSource(Model, kw_only=True):
    """A disk from a container image. Changes are lost when the guest stops."""

    image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secret: Annotated[str | None, described("Secret with the registry's credentials")] = None
    path: Annotated[str | None, described("file in the image; the only file in `/disk` when absent")] = None


class ContainerPathVolumeSource(Model, kw_only=True):
    """A directory of the process that runs the guest."""

    path: Annotated[
        Annotated[str, Meta(max_length=4096)],
        rule("self.startsWith('/')", "path must be absolute (start with '/')"),
        rule("!self.contains('..')", "path must not contain '..'"),
    ]
    read_only: Annotated[
        bool | None, rule("self == true", "readOnly must be true, write access is not supported"), stored_default(True)
    ] = None


class DataVolumeReference(Model, kw_only=True):
    """The disk that a DataVolume fills."""

    name: str
    hotpluggable: Annotated[bool | None, described("true if it may be attached and detached while the guest runs")] = (
        None
    )


class DownwardAPIVolumeSource(Model, kw_only=True):
    """Files with fields of the machine."""

    fields: list[DownwardAPIVolumeFile] | None = None
    volume_label: str | None = None


class DownwardMetricsVolumeSource(Model, kw_only=True):
    """Metrics of the host, as a disk that the guest can read."""


class EmptyDiskSource(Model, kw_only=True):
    """An empty disk that lives as long as the instance."""

    capacity: Quantity


class EphemeralVolumeSource(Model, kw_only=True):
    """A claim as a read-only base; changes are lost when the guest stops."""

    persistent_volume_claim: PersistentVolumeClaimVolumeSource | None = None


class HostDisk(Model, kw_only=True):
    """A disk image file on the host."""

    path: str
    type: Annotated[str, described("Disk (must exist) or DiskOrCreate")]
    capacity: Annotated[Quantity | None, described("size of the image if it has to be made")] = None
    shared: bool | None = None


class MemoryDumpVolumeSource(Model, kw_only=True):
    """A claim that receives a dump of the guest's memory."""

    claim_name: str
    hotpluggable: bool | None = None
    read_only: bool | None = None


class PersistentVolumeClaimVolumeSource(Model, kw_only=True):
    """The disk that a claim holds."""

    claim_name: str
    hotpluggable: Annotated[bool | None, described("true if it may be attached and detached while the guest runs")] = (
        None
    )
    read_only: bool | None = None


class SecretVolumeSource(Model, kw_only=True):
    """Files from a Secret."""

    optional: bool | None = None
    secret_name: str | None = None
    volume_label: str | None = None


class ServiceAccountVolumeSource(Model, kw_only=True):
    """Token and certificate of a service account."""

    service_account_name: str | None = None


class SysprepSource(Model, kw_only=True):
    """Answer files for Windows' sysprep."""

    config_map: Annotated[LocalObjectReference | None, ATOMIC] = None
    secret: Annotated[LocalObjectReference | None, ATOMIC] = None


class UtilityVolume(Model, kw_only=True):
    """A claim that the host uses for its work on the guest."""

    claim_name: str
    name: str
    read_only: bool | None = None
    type: Annotated[str | None, described("Backup or MemoryDump")] = None
