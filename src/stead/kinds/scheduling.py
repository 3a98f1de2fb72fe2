"""Rules about where a machine may run: affinity, tolerations, spreading.

Used by placement and by machine specs. Pure data. Source: Kubernetes API v1 (1.36).
"""

from __future__ import annotations

from typing import Annotated

from stead.kinds.meta import ATOMIC, Int32, Int64, LabelSelector, Model, described


class Affinity(Model, kw_only=True):
    """Rules that draw a machine to hosts or to other machines, or keep it away."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAntiAffinity | None = None


class NodeAffinity(Model, kw_only=True):
    """Which hosts a machine must or should run on."""

    required_during_scheduling_ignored_during_execution: Annotated[NodeSelector | None, ATOMIC] = None
    preferred_during_scheduling_ignored_during_execution: list[PreferredSchedulingTerm] | None = None


class NodeSelector(Model, kw_only=True):
    """Hosts that match at least one of the terms."""

    node_selector_terms: list[NodeSelectorTerm]


class NodeSelectorTerm(Model, kw_only=True):
    """All of these requirements together."""

    match_expressions: list[NodeSelectorRequirement] | None = None
    match_fields: list[NodeSelectorRequirement] | None = None


class NodeSelectorRequirement(Model, kw_only=True):
    """One test on a host's label or field."""

    key: str
    operator: Annotated[str, described("In, NotIn, Exists, DoesNotExist, Gt or Lt")]
    values: list[str] | None = None


class PreferredSchedulingTerm(Model, kw_only=True):
    """A wish, with a weight of 1 to 100."""

    weight: Int32
    preference: Annotated[NodeSelectorTerm, ATOMIC]


class PodAffinity(Model, kw_only=True):
    """Which other machines to be near to."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] | None = None
    preferred_during_scheduling_ignored_during_execution: list[WeightedPodAffinityTerm] | None = None


class PodAntiAffinity(Model, kw_only=True):
    """Which other machines to stay away from."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] | None = None
    preferred_during_scheduling_ignored_during_execution: list[WeightedPodAffinityTerm] | None = None


class PodAffinityTerm(Model, kw_only=True):
    """A set of machines, and the topology in which near and far are meant."""

    topology_key: Annotated[str, described("host label whose value tells places apart")]
    label_selector: Annotated[LabelSelector | None, ATOMIC] = None
    namespaces: list[str] | None = None
    namespace_selector: Annotated[LabelSelector | None, ATOMIC] = None
    match_label_keys: list[str] | None = None
    mismatch_label_keys: list[str] | None = None


class WeightedPodAffinityTerm(Model, kw_only=True):
    """A wish, with a weight of 1 to 100."""

    weight: Int32
    pod_affinity_term: PodAffinityTerm


class Toleration(Model, kw_only=True):
    """Lets a machine onto hosts that carry a matching taint."""

    key: str | None = None
    operator: Annotated[str | None, described("Exists or Equal (the default)")] = None
    value: str | None = None
    effect: Annotated[str | None, described("empty matches every effect")] = None
    toleration_seconds: Int64 | None = None


class TopologySpreadConstraint(Model, kw_only=True):
    """How evenly machines are spread over places."""

    max_skew: Int32
    topology_key: str
    when_unsatisfiable: Annotated[str, described("DoNotSchedule or ScheduleAnyway")]
    label_selector: Annotated[LabelSelector | None, ATOMIC] = None
    min_domains: Int32 | None = None
    node_affinity_policy: str | None = None
    node_taints_policy: str | None = None
    match_label_keys: list[str] | None = None
