"""Downloads of disks and manifests: export.kubevirt.io/v1 (and v1beta1).

Decided by `controllers.export`, served by `server.exports`. Pure data. Source: KubeVirt 1.8 and 1.9.
"""

from __future__ import annotations

from typing import Annotated

from stead.kinds.core import TypedLocalObjectReference
from stead.kinds.meta import ATOMIC, Duration, KubernetesObject, Model, Time, described, keyed_by
from stead.kinds.snapshot import SnapshotCondition


class VirtualMachineExport(KubernetesObject, kw_only=True):
    """Lets whoever has its token download a machine's disks."""

    spec: VirtualMachineExportSpec
    status: VirtualMachineExportStatus | None = None


class VirtualMachineExportSpec(Model, kw_only=True):
    """What can be downloaded, and for how long."""

    source: Annotated[
        TypedLocalObjectReference,
        ATOMIC,
        described("a VirtualMachine, VirtualMachineSnapshot or PersistentVolumeClaim"),
    ]
    token_secret_ref: Annotated[
        str | None, described("Secret whose key `token` opens it; made when it is not there")
    ] = None
    ttl_duration: Annotated[Duration | None, described("after which the export is deleted; 2h when absent")] = None


class VirtualMachineExportStatus(Model, kw_only=True):
    """Where to download."""

    phase: Annotated[str | None, described("Pending, Ready, Terminated or Skipped")] = None
    links: VirtualMachineExportLinks | None = None
    token_secret_ref: str | None = None
    ttl_expiration_time: Time | None = None
    service_name: str | None = None
    virtual_machine_name: str | None = None
    conditions: list[SnapshotCondition] | None = None


class VirtualMachineExportLinks(Model, kw_only=True):
    """The same by the name inside and outside of a cluster."""

    internal: VirtualMachineExportLink | None = None
    external: VirtualMachineExportLink | None = None


class VirtualMachineExportLink(Model, kw_only=True):
    """One way in: the CA to trust, and what is there."""

    cert: str
    backups: Annotated[list[VirtualMachineExportBackup] | None, keyed_by("name")] = None
    volumes: Annotated[list[VirtualMachineExportVolume] | None, keyed_by("name")] = None
    manifests: Annotated[list[VirtualMachineExportManifest] | None, keyed_by("type")] = None


class VirtualMachineExportBackup(Model, kw_only=True):
    """A backup that can be read."""

    name: str
    endpoints: Annotated[list[VirtualMachineExportBackupEndpoint] | None, keyed_by("endpoint")] = None


class VirtualMachineExportBackupEndpoint(Model, kw_only=True):
    """One face of a backup."""

    endpoint: str
    url: str


class VirtualMachineExportVolume(Model, kw_only=True):
    """A disk."""

    name: str
    formats: Annotated[list[VirtualMachineExportVolumeFormat] | None, keyed_by("format")] = None


class VirtualMachineExportVolumeFormat(Model, kw_only=True):
    """A disk's URL in one format: raw or gzip."""

    format: str
    url: str


class VirtualMachineExportManifest(Model, kw_only=True):
    """Objects to apply elsewhere: `all`, or `auth-header-secret`."""

    type: str
    url: str
