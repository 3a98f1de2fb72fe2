"""CustomResourceDefinition of apiextensions.k8s.io/v1, as far as clients read it.

Stead's kinds are built in; the definitions exist so that `kubectl wait crd` and GitOps tools find them. Pure data.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import field

from stead.kinds.meta import Int32, Int64, KubernetesObject, Model, RawObject, Time, described, keyed_by


class CustomResourceDefinition(KubernetesObject, kw_only=True):
    """Describes a kind: its names, scope and schema. Read-only in Stead, whose kinds are built in."""

    spec: CustomResourceDefinitionSpec
    status: CustomResourceDefinitionStatus | None = None


class CustomResourceDefinitionSpec(Model, kw_only=True):
    """The kind that is described."""

    group: str
    names: CustomResourceDefinitionNames
    scope: Annotated[str, described("Namespaced or Cluster")]
    versions: list[CustomResourceDefinitionVersion]
    conversion: RawObject | None = None
    preserve_unknown_fields: bool | None = None


class CustomResourceDefinitionNames(Model, kw_only=True):
    """The names that a kind answers to."""

    plural: str
    kind: str
    singular: str | None = None
    short_names: list[str] | None = None
    list_kind: str | None = None
    categories: list[str] | None = None


class CustomResourceDefinitionVersion(Model, kw_only=True):
    """One version of a kind."""

    name: str
    served: bool
    storage: bool
    deprecated: bool | None = None
    deprecation_warning: str | None = None
    schema: CustomResourceValidation | None = None
    subresources: CustomResourceSubresources | None = None
    additional_printer_columns: list[CustomResourceColumnDefinition] | None = None
    selectable_fields: list[SelectableField] | None = None


class CustomResourceValidation(Model, kw_only=True):
    """The schema of a version."""

    open_apiv3_schema: RawObject | None = field(default=None, name="openAPIV3Schema")


class CustomResourceSubresources(Model, kw_only=True):
    """Which subresources a version has."""

    status: RawObject | None = None
    scale: CustomResourceSubresourceScale | None = None


class CustomResourceSubresourceScale(Model, kw_only=True):
    """Where the replica counts stand."""

    spec_replicas_path: str
    status_replicas_path: str
    label_selector_path: str | None = None


class CustomResourceColumnDefinition(Model, kw_only=True):
    """A column of `kubectl get`."""

    name: str
    type: str
    json_path: str
    format: str | None = None
    description: str | None = None
    priority: Int32 | None = None


class SelectableField(Model, kw_only=True):
    """A field that field selectors may use."""

    json_path: str


class CustomResourceDefinitionStatus(Model, kw_only=True):
    """Whether the kind is served, and under which names."""

    conditions: Annotated[list[CustomResourceDefinitionCondition] | None, keyed_by("type")] = None
    accepted_names: CustomResourceDefinitionNames | None = None
    stored_versions: list[str] | None = None
    observed_generation: Int64 | None = None


class CustomResourceDefinitionCondition(Model, kw_only=True):
    """One aspect of a definition's state."""

    type: str
    status: str
    last_transition_time: Time | None = None
    reason: str | None = None
    message: str | None = None
    observed_generation: Int64 | None = None
