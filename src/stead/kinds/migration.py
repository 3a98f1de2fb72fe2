"""Live migration as objects: one move of one instance, and policies that tune the moves of those they match.

VirtualMachineInstanceMigration is carried out by `controllers.migration` and the agents of two hosts. Pure data.
Source: KubeVirt 1.8, kubevirt.io/v1 and migrations.kubevirt.io/v1alpha1, with what was recorded.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from stead.kinds.kubevirt import MigrationExperimental
from stead.kinds.machine_status import VirtualMachineInstanceMigrationState
from stead.kinds.meta import (
    Int64,
    KubernetesObject,
    Model,
    NullableTime,
    Quantity,
    Time,
    described,
    keyed_by,
)


class VirtualMachineInstanceMigration(KubernetesObject, kw_only=True):
    """One live migration of one running instance to another host."""

    spec: VirtualMachineInstanceMigrationSpec
    status: VirtualMachineInstanceMigrationStatus | None = None


class VirtualMachineInstanceMigrationSpec(Model, kw_only=True):
    """What is to move, and where to."""

    vmi_name: Annotated[str | None, described("the running instance, in the same namespace")] = None
    added_node_selector: Annotated[
        dict[str, str] | None, described("labels that the target must have beside what the machine asks for")
    ] = None
    priority: Annotated[
        str | None, described("system-critical, user-triggered or system-maintenance; written by controllers only")
    ] = None
    receive: VirtualMachineInstanceMigrationTarget | None = None
    send_to: VirtualMachineInstanceMigrationSource | None = None


class VirtualMachineInstanceMigrationSource(Model, kw_only=True):
    """The other cluster that receives."""

    connect_url: str = field(name="connectURL")
    migration_id: str = field(name="migrationID")


class VirtualMachineInstanceMigrationTarget(Model, kw_only=True):
    """The migration of another cluster that is received."""

    migration_id: str = field(name="migrationID")


class VirtualMachineInstanceMigrationStatus(Model, kw_only=True):
    """How far it is."""

    conditions: Annotated[list[VirtualMachineInstanceMigrationCondition] | None, keyed_by("type")] = None
    migration_state: VirtualMachineInstanceMigrationState | None = None
    phase: Annotated[
        str | None,
        described("Pending, Scheduling, Scheduled, PreparingTarget, TargetReady, Running, Succeeded or Failed"),
    ] = None
    phase_transition_timestamps: list[VirtualMachineInstanceMigrationPhaseTransitionTimestamp] | None = None
    synchronization_addresses: list[str] | None = None


class VirtualMachineInstanceMigrationPhaseTransitionTimestamp(Model, kw_only=True):
    """When a phase began."""

    phase: str | None = None
    phase_transition_timestamp: Time | None = None


class VirtualMachineInstanceMigrationCondition(Model, kw_only=True):
    """One thing that is so, or not."""

    type: str
    status: str
    last_probe_time: NullableTime = None
    last_transition_time: NullableTime = None
    reason: str | None = None
    message: str | None = None


class MigrationPolicy(KubernetesObject, kw_only=True):
    """Limits and options for migrations of the machines that it matches."""

    spec: MigrationPolicySpec
    status: MigrationPolicyStatus | None = None


class MigrationPolicyStatus(Model, kw_only=True):
    """Nothing yet."""


class MigrationPolicySpec(Model, kw_only=True):
    """The policy whose selectors name most labels wins; what it leaves out is as the KubeVirt object says."""

    selectors: MigrationPolicySelectors
    allow_auto_converge: bool | None = None
    allow_post_copy: bool | None = None
    allow_workload_disruption: bool | None = None
    bandwidth_per_migration: Quantity | None = None
    completion_timeout_per_gi_b: Int64 | None = None
    max_downtime_ms: Annotated[Int64, Meta(ge=1, le=2000000)] | None = None
    experimental: MigrationExperimental | None = None


class MigrationPolicySelectors(Model, kw_only=True):
    """Labels that the namespace and the instance must all have."""

    namespace_selector: dict[str, str] | None = None
    virtual_machine_instance_selector: dict[str, str] | None = None
