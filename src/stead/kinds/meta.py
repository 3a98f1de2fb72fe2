"""What all kinds share: object metadata, label selectors, named scalar types, and schema markers for fields.

Every module of kinds builds on this one. The markers are `msgspec.Meta` values for `Annotated`: they say what types
alone cannot (how lists merge, nullability, CEL rules), and reach the structural schema unchanged. Pure data. Source:
apimachinery meta/v1, and the x-kubernetes extensions of apiextensions.k8s.io/v1.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct, field

_QUANTITY_PATTERN = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)

#: a number with an optional unit: 512Mi, 1.5Gi, 500m, 3
Quantity: TypeAlias = Annotated[
    str | int, Meta(extra_json_schema={"x-kubernetes-int-or-string": True, "pattern": _QUANTITY_PATTERN})
]
#: a port number or name, a count or a percentage
IntOrString: TypeAlias = Annotated[int | str, Meta(extra_json_schema={"x-kubernetes-int-or-string": True})]
Int32: TypeAlias = Annotated[int, Meta(extra_json_schema={"format": "int32"})]
Int64: TypeAlias = Annotated[int, Meta(extra_json_schema={"format": "int64"})]
#: RFC 3339, whole seconds, UTC
Time: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
#: RFC 3339 with exactly six decimals
MicroTime: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
#: a time that may also be written as null
NullableTime: TypeAlias = Annotated[str | None, Meta(extra_json_schema={"format": "date-time", "nullable": True})]
#: as Go writes it: 1h30m, 5m0s
Duration: TypeAlias = str
#: any object; nothing in it is pruned
RawObject: TypeAlias = Annotated[dict[str, Any], Meta(extra_json_schema={"x-kubernetes-preserve-unknown-fields": True})]
#: metadata of a template, kept as it was written
EmbeddedMetadata: TypeAlias = Annotated[
    dict[str, Any], Meta(extra_json_schema={"x-kubernetes-preserve-unknown-fields": True, "nullable": True})
]

#: set or replaced as a whole, never merged field by field
ATOMIC = Meta(extra_json_schema={"x-kubernetes-map-type": "atomic"})
#: the same for a list
ATOMIC_LIST = Meta(extra_json_schema={"x-kubernetes-list-type": "atomic"})
#: a list without duplicates, merged by value
AS_SET = Meta(extra_json_schema={"x-kubernetes-list-type": "set"})
#: the same for built-in kinds, whose strategic merge patch merges it too
MERGED_SET = Meta(extra_json_schema={"x-kubernetes-list-type": "set", "x-kubernetes-patch-strategy": "merge"})
#: null is a value here, not a mistake
NULLABLE = Meta(extra_json_schema={"nullable": True})
#: fields that we do not know are kept
PRESERVED = Meta(extra_json_schema={"x-kubernetes-preserve-unknown-fields": True})


def described(text: str) -> Meta:
    """What `kubectl explain` and the reference say of a field."""
    return Meta(description=text)


def stored_default(value: bool | str) -> Meta:
    """What the server writes into objects that leave the field out. (A Struct's own default is for reading only.)"""
    return Meta(extra_json_schema={"default": value})


def one_of(*values: str) -> Meta:
    """The allowed texts, in the order in which a refusal lists them (a Literal's are sorted)."""
    return Meta(extra_json_schema={"enum": list(values)})


def keyed_by(*keys: str) -> Meta:
    """A list whose items are told apart by these fields, and merged one by one in server-side apply."""
    return Meta(extra_json_schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)})


def merged_by(key: str) -> Meta:
    """The same for built-in kinds, whose strategic merge patch merges by that key too."""
    return Meta(
        extra_json_schema={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": [key],
            "x-kubernetes-patch-strategy": "merge",
            "x-kubernetes-patch-merge-key": key,
        }
    )


def rule(expression: str, message: str) -> Meta:
    """A CEL rule over the field (`self`), and what is said when it is false."""
    return Meta(extra_json_schema={"x-kubernetes-validations": [{"rule": expression, "message": message}]})


def rules(*pairs: tuple[str, str]) -> Meta:
    """Several CEL rules over one field, in the order in which they are told."""
    return Meta(extra_json_schema={"x-kubernetes-validations": [{"rule": r, "message": m} for r, m in pairs]})


class Model(Struct, rename="camel", omit_defaults=True, kw_only=True):
    """A JSON object. Absent fields are None; unknown ones are ignored on reading."""


class KubernetesObject(Model, kw_only=True):
    """What every object of the API has."""

    api_version: str | None = None
    kind: str | None = None
    metadata: ObjectMeta | None = None


class ObjectMeta(Model, kw_only=True):
    """Name, identity, labels and bookkeeping of an object."""

    name: Annotated[str | None, described("unique in its namespace; fixed after creation")] = None
    generate_name: Annotated[str | None, described("prefix of a name that the server makes up")] = None
    namespace: str | None = None
    labels: Annotated[dict[str, str] | None, described("short values that selectors match")] = None
    annotations: Annotated[dict[str, str] | None, described("any text that tools keep here")] = None
    uid: str | None = None
    resource_version: Annotated[str | None, described("changes with every write; compare for equality only")] = None
    generation: Annotated[Int64 | None, described("counts changes of what is declared")] = None
    creation_timestamp: NullableTime = None
    deletion_timestamp: Annotated[NullableTime, described("when set, it goes as soon as its finalizers are gone")] = (
        None
    )
    deletion_grace_period_seconds: Int64 | None = None
    finalizers: Annotated[list[str] | None, MERGED_SET] = None
    owner_references: Annotated[list[OwnerReference] | None, merged_by("uid")] = None
    managed_fields: Annotated[list[ManagedFieldsEntry] | None, described("who last set which field")] = None
    self_link: str | None = None


class OwnerReference(Model, kw_only=True):
    """An object whose deletion takes this one with it."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: Annotated[bool | None, described("the one owner that manages this object")] = None
    block_owner_deletion: Annotated[
        bool | None, described("a foreground deletion of the owner waits for this object")
    ] = None


class ManagedFieldsEntry(Model, kw_only=True):
    """The fields that one manager set."""

    manager: str | None = None
    operation: str | None = None
    api_version: str | None = None
    time: Time | None = None
    fields_type: str | None = None
    fields_v1: RawObject | None = field(default=None, name="fieldsV1")
    subresource: str | None = None


class LabelSelector(Model, kw_only=True):
    """Selects objects by their labels; all conditions together. Empty selects everything."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelSelectorRequirement] | None = None


class LabelSelectorRequirement(Model, kw_only=True):
    """One test on a label."""

    key: str
    operator: Annotated[str, described("In, NotIn, Exists or DoesNotExist")]
    values: list[str] | None = None


class Condition(Model, kw_only=True):
    """One aspect of an object's state, for programs and people."""

    type: str
    status: Annotated[str, described("True, False or Unknown")]
    observed_generation: Int64 | None = None
    last_transition_time: Time | None = None
    reason: str | None = None
    message: str | None = None
