"""Snapshots of single volumes: snapshot.storage.k8s.io/v1, as far as hosts make them.

Made by people, by the snapshot controller for machines and by DataImportCrons; carried out by the agent of the host
that holds the volume. VolumeSnapshotContent is not served: what a snapshot is on its host follows from its uid. Pure
data. Source: kubernetes-csi external-snapshotter 8.
"""

from __future__ import annotations

from typing import Annotated

from stead.kinds.meta import KubernetesObject, Model, NullableTime, Quantity, described, one_of


class VolumeSnapshot(KubernetesObject, kw_only=True):
    """The content of a volume at one moment. It does not depend on the volume, which may go or change."""

    spec: VolumeSnapshotSpec
    status: VolumeSnapshotStatus | None = None


class VolumeSnapshotSpec(Model, kw_only=True):
    """What is kept."""

    source: VolumeSnapshotSource
    volume_snapshot_class_name: Annotated[str | None, described("absent means the default class")] = None


class VolumeSnapshotSource(Model, kw_only=True):
    """The claim whose volume is kept."""

    persistent_volume_claim_name: str | None = None
    volume_snapshot_content_name: Annotated[str | None, described("not supported: contents are not served")] = None


class VolumeSnapshotStatus(Model, kw_only=True):
    """How far it is."""

    bound_volume_snapshot_content_name: str | None = None
    creation_time: Annotated[NullableTime, described("the moment that it shows")] = None
    ready_to_use: Annotated[bool | None, described("volumes can be made from it")] = None
    restore_size: Annotated[Quantity | None, described("the least size of a volume made from it")] = None
    error: VolumeSnapshotError | None = None


class VolumeSnapshotError(Model, kw_only=True):
    """What went wrong last; it is tried again."""

    message: str | None = None
    time: NullableTime = None


class VolumeSnapshotClass(KubernetesObject, kw_only=True):
    """A way of making snapshots."""

    driver: Annotated[str, described("stead.io for the pools of hosts")]
    deletion_policy: Annotated[str, one_of("Delete", "Retain"), described("Delete: the data goes with the object")]
    parameters: dict[str, str] | None = None
