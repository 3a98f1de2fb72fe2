"""What tenants may take: quotas, ranges and priorities.

ResourceQuota and LimitRange are enforced by the server at each write (`server.quota`, `server.limit_ranges`), counted
by `controllers.quota`; PriorityClass orders the machines that wait for a host. Pure data. Source: Kubernetes 1.36, v1
and scheduling.k8s.io/v1.
"""

from __future__ import annotations

from typing import Annotated

from stead.kinds.meta import ATOMIC, Int32, KubernetesObject, Model, Quantity, described


class ResourceQuota(KubernetesObject, kw_only=True):
    """Bounds for what all objects of a namespace take together."""

    spec: ResourceQuotaSpec | None = None
    status: ResourceQuotaStatus | None = None


class ResourceQuotaSpec(Model, kw_only=True):
    """The bounds, and which machines they concern."""

    hard: Annotated[
        dict[str, Quantity] | None,
        described("bound by name: requests.cpu, limits.memory, requests.storage, pods (machines), count/PLURAL.GROUP…"),
    ] = None
    scopes: Annotated[list[str] | None, ATOMIC] = None
    scope_selector: Annotated[ScopeSelector | None, ATOMIC] = None


class ScopeSelector(Model, kw_only=True):
    """All of these requirements together."""

    match_expressions: list[ScopedResourceSelectorRequirement] | None = None


class ScopedResourceSelectorRequirement(Model, kw_only=True):
    """One test on a machine; only the scope PriorityClass can be tested."""

    scope_name: str
    operator: Annotated[str, described("In, NotIn, Exists or DoesNotExist")]
    values: list[str] | None = None


class ResourceQuotaStatus(Model, kw_only=True):
    """The bounds as they are enforced and what is taken."""

    hard: dict[str, Quantity] | None = None
    used: dict[str, Quantity] | None = None


class LimitRange(KubernetesObject, kw_only=True):
    """Bounds for each machine or claim of a namespace."""

    spec: LimitRangeSpec | None = None


class LimitRangeSpec(Model, kw_only=True):
    """The bounds by type."""

    limits: Annotated[list[LimitRangeItem], ATOMIC]


class LimitRangeItem(Model, kw_only=True):
    """Bounds for one type of object."""

    type: Annotated[str, described("Container and Pod bound a machine, PersistentVolumeClaim bounds a claim")]
    max: dict[str, Quantity] | None = None
    min: dict[str, Quantity] | None = None
    default: Annotated[dict[str, Quantity] | None, described("limits of a machine that states none")] = None
    default_request: Annotated[
        dict[str, Quantity] | None, described("kept, of no effect: a machine's requests follow from its size")
    ] = None
    max_limit_request_ratio: dict[str, Quantity] | None = None


class PriorityClass(KubernetesObject, kw_only=True):
    """Which machines are placed first when hosts are short."""

    value: Int32
    global_default: Annotated[bool | None, described("the class of machines that name none")] = None
    description: str | None = None
    preemption_policy: Annotated[
        str | None, described("PreemptLowerPriority or Never; no machine is stopped for another one")
    ] = None
