"""Roles and bindings of rbac.authorization.k8s.io/v1.

Read by the authoriser. Pure data. Source: Kubernetes API (1.36).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import field

from stead.kinds.meta import ATOMIC, KubernetesObject, LabelSelector, Model, described


class Role(KubernetesObject, kw_only=True):
    """Permissions inside one namespace."""

    rules: list[PolicyRule] | None = None


class ClusterRole(KubernetesObject, kw_only=True):
    """Permissions in all namespaces, and on what has none."""

    rules: list[PolicyRule] | None = None
    aggregation_rule: Annotated[
        AggregationRule | None, described("when set, `rules` are collected from the selected roles")
    ] = None


class PolicyRule(Model, kw_only=True):
    """Verbs allowed on resources, or on plain URLs."""

    verbs: list[str]
    api_groups: list[str] | None = None
    resources: Annotated[list[str] | None, described("plurals; `pods/log` is a subresource, `*` is all")] = None
    resource_names: list[str] | None = None
    non_resource_ur_ls: list[str] | None = field(default=None, name="nonResourceURLs")


class AggregationRule(Model, kw_only=True):
    """Which roles make up an aggregated role."""

    cluster_role_selectors: list[LabelSelector] | None = None


class RoleBinding(KubernetesObject, kw_only=True):
    """Gives a role's permissions to subjects, inside one namespace."""

    role_ref: Annotated[RoleRef, described("fixed after creation"), ATOMIC]
    subjects: list[Subject] | None = None


class ClusterRoleBinding(KubernetesObject, kw_only=True):
    """Gives a cluster role's permissions to subjects everywhere."""

    role_ref: Annotated[RoleRef, ATOMIC]
    subjects: list[Subject] | None = None


class RoleRef(Model, kw_only=True):
    """The role that a binding gives."""

    kind: str
    name: str
    api_group: str | None = None


class Subject(Model, kw_only=True):
    """Who receives the permissions."""

    kind: Annotated[str, described("User, Group or ServiceAccount")]
    name: str
    api_group: str | None = None
    namespace: str | None = None
