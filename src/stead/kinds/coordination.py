"""What controllers use to agree: leases (coordination.k8s.io/v1) and revisions (apps/v1).

Pure data. Source: Kubernetes API (1.36).
"""

from __future__ import annotations

from typing import Annotated

from stead.kinds.meta import Int32, Int64, KubernetesObject, MicroTime, Model, RawObject, described


class Lease(KubernetesObject, kw_only=True):
    """A lock or heart-beat with an owner and a time."""

    spec: LeaseSpec | None = None


class LeaseSpec(Model, kw_only=True):
    """Who holds the lease and until when."""

    holder_identity: str | None = None
    lease_duration_seconds: Annotated[Int32 | None, described("others may take over this long after `renewTime`")] = (
        None
    )
    acquire_time: MicroTime | None = None
    renew_time: MicroTime | None = None
    lease_transitions: Int32 | None = None
    strategy: str | None = None
    preferred_holder: str | None = None


class ControllerRevision(KubernetesObject, kw_only=True):
    """An immutable copy of data that a controller must remember, such as an instancetype's spec."""

    revision: Int64
    data: RawObject | None = None
