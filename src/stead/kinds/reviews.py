"""Questions about identity and permission: authentication.k8s.io/v1 and authorization.k8s.io/v1.

Create-only: the answer comes back in the created object and nothing is stored. Pure data. Source: Kubernetes 1.36.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import field

from stead.kinds.meta import Int64, KubernetesObject, Model, RawObject, Time, described


class SubjectAccessReview(KubernetesObject, kw_only=True):
    """Asks whether someone may do something."""

    spec: SubjectAccessReviewSpec
    status: SubjectAccessReviewStatus | None = None


class LocalSubjectAccessReview(KubernetesObject, kw_only=True):
    """Asks whether someone may do something in this namespace."""

    spec: SubjectAccessReviewSpec
    status: SubjectAccessReviewStatus | None = None


class SelfSubjectAccessReview(KubernetesObject, kw_only=True):
    """Asks whether the caller may do something (`kubectl auth can-i`)."""

    spec: SelfSubjectAccessReviewSpec
    status: SubjectAccessReviewStatus | None = None


class SubjectAccessReviewSpec(Model, kw_only=True):
    """Who, and what: exactly one of the two attribute sets."""

    resource_attributes: ResourceAttributes | None = None
    non_resource_attributes: NonResourceAttributes | None = None
    user: str | None = None
    groups: list[str] | None = None
    extra: dict[str, list[str]] | None = None
    uid: str | None = None


class SelfSubjectAccessReviewSpec(Model, kw_only=True):
    """What the caller wants to do: exactly one of the two."""

    resource_attributes: ResourceAttributes | None = None
    non_resource_attributes: NonResourceAttributes | None = None


class ResourceAttributes(Model, kw_only=True):
    """A request on an API object."""

    namespace: str | None = None
    verb: str | None = None
    group: str | None = None
    version: str | None = None
    resource: str | None = None
    subresource: str | None = None
    name: str | None = None
    field_selector: RawObject | None = None
    label_selector: RawObject | None = None


class NonResourceAttributes(Model, kw_only=True):
    """A request on a plain URL."""

    path: str | None = None
    verb: str | None = None


class SubjectAccessReviewStatus(Model, kw_only=True):
    """The answer."""

    allowed: bool | None = None
    denied: bool | None = None
    reason: str | None = None
    evaluation_error: str | None = None


class SelfSubjectRulesReview(KubernetesObject, kw_only=True):
    """Asks for all that the caller may do in a namespace (`kubectl auth can-i --list`)."""

    spec: SelfSubjectRulesReviewSpec
    status: SubjectRulesReviewStatus | None = None


class SelfSubjectRulesReviewSpec(Model, kw_only=True):
    """The namespace that is asked about."""

    namespace: str | None = None


class SubjectRulesReviewStatus(Model, kw_only=True):
    """The rules found."""

    resource_rules: list[ResourceRule] | None = None
    non_resource_rules: list[NonResourceRule] | None = None
    incomplete: bool | None = None
    evaluation_error: str | None = None


class ResourceRule(Model, kw_only=True):
    """Verbs allowed on resources."""

    verbs: list[str]
    api_groups: list[str] | None = None
    resources: list[str] | None = None
    resource_names: list[str] | None = None


class NonResourceRule(Model, kw_only=True):
    """Verbs allowed on URLs."""

    verbs: list[str]
    non_resource_ur_ls: list[str] | None = field(default=None, name="nonResourceURLs")


class SelfSubjectReview(KubernetesObject, kw_only=True):
    """Asks who the caller is (`kubectl auth whoami`)."""

    status: SelfSubjectReviewStatus | None = None


class SelfSubjectReviewStatus(Model, kw_only=True):
    """The caller, as the server sees it."""

    user_info: UserInfo | None = None


class UserInfo(Model, kw_only=True):
    """An authenticated identity."""

    username: str | None = None
    uid: str | None = None
    groups: list[str] | None = None
    extra: dict[str, list[str]] | None = None


class TokenReview(KubernetesObject, kw_only=True):
    """Asks whom a bearer token belongs to."""

    spec: TokenReviewSpec
    status: TokenReviewStatus | None = None


class TokenReviewSpec(Model, kw_only=True):
    """The token to check."""

    token: str | None = None
    audiences: list[str] | None = None


class TokenReviewStatus(Model, kw_only=True):
    """What the token proves."""

    authenticated: bool | None = None
    user: UserInfo | None = None
    audiences: list[str] | None = None
    error: str | None = None


class TokenRequest(KubernetesObject, kw_only=True):
    """Asks for a short-lived token of a service account."""

    spec: TokenRequestSpec
    status: TokenRequestStatus | None = None


class TokenRequestSpec(Model, kw_only=True):
    """Whom the token is for and how long it lives."""

    audiences: list[str] | None = None
    expiration_seconds: Annotated[Int64 | None, described("seconds, 600 at least, 3600 when absent")] = None
    bound_object_ref: BoundObjectReference | None = None


class BoundObjectReference(Model, kw_only=True):
    """The object whose deletion ends the token's life."""

    kind: str | None = None
    api_version: str | None = None
    name: str | None = None
    uid: str | None = None


class TokenRequestStatus(Model, kw_only=True):
    """The token."""

    token: str | None = None
    expiration_timestamp: Time | None = None
