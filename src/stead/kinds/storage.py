"""Claims, volumes and storage classes.

Read by the disk and volume controllers and the agent. Pure data. Source: Kubernetes 1.36, v1 and storage.k8s.io/v1.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import field

from stead.kinds.core import ObjectReference, SecretReference, TypedLocalObjectReference, TypedObjectReference
from stead.kinds.meta import (
    ATOMIC,
    KubernetesObject,
    LabelSelector,
    Model,
    Quantity,
    RawObject,
    Time,
    described,
    merged_by,
)
from stead.kinds.scheduling import NodeSelector


class PersistentVolumeClaim(KubernetesObject, kw_only=True):
    """A user's wish for a volume; bound to one, it is the disk of a machine."""

    spec: PersistentVolumeClaimSpec | None = None
    status: PersistentVolumeClaimStatus | None = None


class PersistentVolumeClaimSpec(Model, kw_only=True):
    """What volume is wanted. Fixed after creation, but for the size."""

    access_modes: Annotated[
        list[str] | None, described("ReadWriteOnce, ReadOnlyMany, ReadWriteMany, ReadWriteOncePod")
    ] = None
    selector: Annotated[LabelSelector | None, ATOMIC] = None
    resources: Annotated[VolumeResourceRequirements | None, described("`requests.storage` is the size")] = None
    volume_name: Annotated[str | None, described("the volume that it is bound to")] = None
    storage_class_name: Annotated[str | None, described("absent means the default class, empty means none")] = None
    volume_mode: Annotated[str | None, described("Filesystem (the default) or Block")] = None
    data_source: Annotated[TypedLocalObjectReference | None, ATOMIC] = None
    data_source_ref: TypedObjectReference | None = None
    volume_attributes_class_name: str | None = None


class VolumeResourceRequirements(Model, kw_only=True):
    """The size that is wanted and allowed."""

    limits: dict[str, Quantity] | None = None
    requests: dict[str, Quantity] | None = None


class PersistentVolumeClaimStatus(Model, kw_only=True):
    """What the claim got."""

    phase: Annotated[str | None, described("Pending, Bound or Lost")] = None
    access_modes: list[str] | None = None
    capacity: dict[str, Quantity] | None = None
    conditions: Annotated[list[PersistentVolumeClaimCondition] | None, merged_by("type")] = None
    allocated_resources: dict[str, Quantity] | None = None
    allocated_resource_statuses: dict[str, str] | None = None
    current_volume_attributes_class_name: str | None = None
    modify_volume_status: ModifyVolumeStatus | None = None


class PersistentVolumeClaimCondition(Model, kw_only=True):
    """Something under way on a claim, such as a resize."""

    type: str
    status: str
    last_probe_time: Time | None = None
    last_transition_time: Time | None = None
    reason: str | None = None
    message: str | None = None


class ModifyVolumeStatus(Model, kw_only=True):
    """How a change of the volume's attributes goes."""

    status: str
    target_volume_attributes_class_name: str | None = None


class PersistentVolume(KubernetesObject, kw_only=True):
    """A volume that exists, on one host or on shared storage."""

    spec: PersistentVolumeSpec | None = None
    status: PersistentVolumeStatus | None = None


class PersistentVolumeSpec(Model, kw_only=True):
    """Where a volume is, how large, and whose."""

    capacity: dict[str, Quantity] | None = None
    access_modes: list[str] | None = None
    claim_ref: Annotated[ObjectReference | None, described("the claim that it belongs to"), ATOMIC] = None
    persistent_volume_reclaim_policy: Annotated[
        str | None, described("what happens when the claim goes: Delete, Retain or Recycle")
    ] = None
    storage_class_name: str | None = None
    mount_options: list[str] | None = None
    volume_mode: str | None = None
    node_affinity: Annotated[VolumeNodeAffinity | None, described("the hosts that can reach it")] = None
    volume_attributes_class_name: str | None = None
    csi: Annotated[
        CSIPersistentVolumeSource | None, described("driver `stead.io`, handle `<pool-uid>/<volume-uid>`")
    ] = None
    local: RawObject | None = None
    host_path: RawObject | None = None
    nfs: RawObject | None = None
    iscsi: RawObject | None = None
    fc: RawObject | None = None
    rbd: RawObject | None = None
    cephfs: RawObject | None = None
    flex_volume: RawObject | None = None
    flocker: RawObject | None = None
    cinder: RawObject | None = None
    glusterfs: RawObject | None = None
    quobyte: RawObject | None = None
    azure_file: RawObject | None = None
    azure_disk: RawObject | None = None
    gce_persistent_disk: RawObject | None = None
    aws_elastic_block_store: RawObject | None = None
    vsphere_volume: RawObject | None = None
    photon_persistent_disk: RawObject | None = None
    portworx_volume: RawObject | None = None
    scale_io: RawObject | None = field(default=None, name="scaleIO")
    storageos: RawObject | None = None


class VolumeNodeAffinity(Model, kw_only=True):
    """Hosts from which a volume can be used."""

    required: Annotated[NodeSelector | None, ATOMIC] = None


class CSIPersistentVolumeSource(Model, kw_only=True):
    """A volume that a storage driver made."""

    driver: str
    volume_handle: str
    read_only: bool | None = None
    fs_type: str | None = None
    volume_attributes: dict[str, str] | None = None
    controller_publish_secret_ref: Annotated[SecretReference | None, ATOMIC] = None
    node_stage_secret_ref: Annotated[SecretReference | None, ATOMIC] = None
    node_publish_secret_ref: Annotated[SecretReference | None, ATOMIC] = None
    controller_expand_secret_ref: Annotated[SecretReference | None, ATOMIC] = None
    node_expand_secret_ref: Annotated[SecretReference | None, ATOMIC] = None


class PersistentVolumeStatus(Model, kw_only=True):
    """Where a volume is in its life."""

    phase: Annotated[str | None, described("Pending, Available, Bound, Released or Failed")] = None
    message: str | None = None
    reason: str | None = None
    last_phase_transition_time: Time | None = None


class StorageClass(KubernetesObject, kw_only=True):
    """A kind of storage that claims can ask for."""

    provisioner: Annotated[str, described("`stead.io` for the pools of our hosts")]
    parameters: Annotated[dict[str, str] | None, described("for `stead.io`: `pool`, the name of the pool")] = None
    reclaim_policy: Annotated[str | None, described("Delete (the default) or Retain")] = None
    mount_options: list[str] | None = None
    allow_volume_expansion: bool | None = None
    volume_binding_mode: Annotated[str | None, described("Immediate (the default) or WaitForFirstConsumer")] = None
    allowed_topologies: list[TopologySelectorTerm] | None = None


class TopologySelectorTerm(Model, kw_only=True):
    """Places where volumes of a class may be made."""

    match_label_expressions: list[TopologySelectorLabelRequirement] | None = None


class TopologySelectorLabelRequirement(Model, kw_only=True):
    """One label of a place and the values allowed."""

    key: str
    values: list[str]
