"""CustomResourceDefinitions: what is structural, who gets which names, what an update may leave as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from stead.kinds.foreign import resources_of, version_order
from stead.kinds.resource import Resource
from stead.kube.structural_rules import check_structural
from stead.kube.validation import ABSENT, validate
from stead.server import definition_rules, foreign
from stead.server.definition_status import decide_status, terminating

Object = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"


def root(**properties: Any) -> Object:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(("schema", "field", "text"), [
    ({"properties": {}}, "s.type", "must not be empty at the root"),
    ({"type": "string"}, "s.type", "must be object at the root"),
    (root(a={"type": "array"}), "s.properties[a].items", "must be specified"),
    (root(a={"type": "strin"}), "s.properties[a].type", "supported values"),
    (root(a={"type": "object", "additionalProperties": False}), "s.properties[a].additionalProperties", "false"),
    (root(a={"type": "object", "properties": {"b": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
     "s.properties[a].additionalProperties", "mutual exclusive"),
    (root(a={"type": "string", "x-kubernetes-int-or-string": True}), "s.properties[a].type", "must be empty if"),
    (root(a={"type": "string", "pattern": "("}), "s.properties[a].pattern", "valid regular expression"),
    (root(a={"type": "array", "uniqueItems": True, "items": {"type": "string"}}), "s.properties[a].uniqueItems",
     "quadratic"),
    (root(a={"type": "integer", "default": "x"}), "s.properties[a].default", "must be of type integer"),
    (root(a={"type": "object", "x-kubernetes-embedded-resource": True}), "s.properties[a].properties",
     "must not be empty if"),
    (root(a={"type": "object", "properties": {"b": {"type": "integer"}},
             "x-kubernetes-validations": [{"rule": "self.c > 1"}]}),
     "s.properties[a].x-kubernetes-validations[0].rule", "undefined field 'c'"),
])  # fmt: skip
def test_what_is_not_structural_says_where(schema: Object, field: str, text: str) -> None:
    causes = check_structural(schema, "s")
    assert [each["field"] for each in causes] == [field], causes
    assert text in causes[0]["message"]


@pytest.mark.parametrize("inner", [
    "x", 1, {"type": 1}, {"type": "object", "properties": "x"}, {"type": "object", "properties": {"b": "x"}},
    {"type": "array", "items": 5}, {"type": "string", "maxLength": "5"}, {"type": "string", "nullable": "yes"},
    {"type": "string", "x-kubernetes-validations": ["x"]}, {"allOf": [1]}, {"type": "integer", "maximum": True},
    {"type": "string", "x-kubernetes-validations": [{"rule": 5}]},
    {"type": "string", "x-kubernetes-validations": [{"rule": "true", "fieldPath": True}]},
    {"type": "object", "required": [{}]}, {"type": "array", "x-kubernetes-list-map-keys": [[]]},
])  # fmt: skip
def test_what_is_no_schema_is_refused_before_anything_reads_it(inner: Any) -> None:
    causes = check_structural(root(a=inner), "s")
    assert causes
    assert causes[0]["field"].startswith("s.properties[a]")


@pytest.mark.parametrize("inner", [
    {"x-kubernetes-preserve-unknown-fields": True},
    {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
    {"type": "object", "additionalProperties": {"type": "string"}},
    {"type": "object", "x-kubernetes-embedded-resource": True, "x-kubernetes-preserve-unknown-fields": True},
    {"type": "object", "properties": {"b": {"type": "string"}}, "oneOf": [{"required": ["b"]}]},
    {"type": "string", "x-kubernetes-validations": [{"rule": "self.startsWith('a') && self.size() < 9"}]},
])  # fmt: skip
def test_what_is_structural_passes(inner: Object) -> None:
    assert check_structural(root(a=inner), "s") == []


def definition(plural: str, kind: str, **status: Any) -> Object:
    names = {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"}
    versions = [{"name": name, "served": True, "storage": name == "v1", "schema": {"openAPIV3Schema": root()}}
                for name in ("v1alpha1", "v1", "v1beta2")]  # fmt: skip
    return {
        "metadata": {"name": f"{plural}.example.org", "uid": "u"}, "status": status,
        "spec": {"group": "example.org", "scope": "Cluster", "names": names, "versions": versions},
    }  # fmt: skip


def condition(status: Object, kind: str) -> Object:
    return next(c for c in status["conditions"] if c["type"] == kind)


def test_a_name_stays_with_who_has_it_and_a_served_kind_stays_served() -> None:
    first = definition("as", "A")
    first["status"] = decide_status(first, [], NOW)
    assert condition(first["status"], "Established")["status"] == "True"
    assert decide_status(first, [], "later") == first["status"]
    second = decide_status(definition("bs", "A"), [first], NOW)
    assert second["acceptedNames"] == {"plural": "bs", "kind": ""}
    assert condition(second, "NamesAccepted")["message"] == '"AList" is already in use'
    assert condition(second, "Established")["reason"] == "NotAccepted"
    first["spec"]["names"]["singular"] = "b"
    owner = definition("cs", "B")
    owner["status"] = decide_status(owner, [], NOW)
    changed = decide_status(first, [owner], NOW)
    assert condition(changed, "NamesAccepted")["reason"] == "SingularConflict"
    assert condition(changed, "Established")["status"] == "True"
    gone = terminating(first, NOW)
    assert gone["metadata"]["finalizers"] == ["customresourcecleanup.apiextensions.k8s.io"]
    assert terminating(gone, "later") == gone


def test_versions_are_offered_from_stable_to_alpha() -> None:
    assert [r.versions[0] for r in resources_of(definition("as", "A"))] == ["v1", "v1beta2", "v1alpha1"]
    assert sorted(["v2", "v10", "v1beta1", "foo", "v3alpha1"], key=version_order) == [
        "v10", "v2", "v1beta1", "v3alpha1", "foo",
    ]  # fmt: skip


def test_a_read_shows_an_object_as_it_is_defined_now() -> None:
    schema = root(a={"type": "string", "default": "A"}, metadata={"type": "object"}, apiVersion={"type": "string"})
    kind = Resource(group="example.org", version="v2", versions=("v2",), kind="A", plural="as", singular="a",
                    struct=schema, edition="u/1")  # fmt: skip
    shown = foreign.as_defined(kind, {"apiVersion": "example.org/v1", "metadata": {}, "old": 1}, "v1")
    assert shown == {"apiVersion": "example.org/v1", "metadata": {}, "a": "A"}


def test_an_update_is_not_refused_for_what_it_leaves_alone() -> None:
    schema = root(spec=root(a={"type": "integer", "maximum": 1}, b={"type": "integer"}))
    schema["properties"]["spec"]["required"] = ["c"]
    old = {"spec": {"a": 5, "b": 1}}
    for new, fields in (({"spec": {"a": 5, "b": 1}, "x": 1}, []), ({"spec": {"a": 5, "b": 2}}, ["spec.c"])):
        kept, warnings = foreign.ratchet(validate(schema, new), old, new)
        assert [each["field"] for each in kept] == fields
        assert any("less than or equal to 1" in text for text in warnings)


def test_items_of_a_map_list_have_a_past() -> None:
    item = root(k={"type": "string"}, v={"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]})
    schema = {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item}
    old = [{"k": "a", "v": "1"}, {"k": "b", "v": "2"}]
    assert validate(schema, [{"k": "b", "v": "2"}, {"k": "c", "v": "9"}], old=old) == []
    assert [c["field"] for c in validate(schema, [{"k": "b", "v": "3"}], old=old)] == ["[0].v"]
    assert validate(schema, [{"k": "b", "v": "3"}], old=ABSENT) == []


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield (*path, key)
        yield from places(item, (*path, key))


def test_no_oddity_inside_a_schema_breaks_the_rules_that_judge_it() -> None:
    inner = {
        "type": "object", "required": ["a"], "properties": {
            "a": {"type": "integer", "default": 1, "maximum": 3, "enum": [1, 2]},
            "s": {"type": "string", "pattern": "a", "x-kubernetes-validations": [{"rule": "self=='a'"}]},
            "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                  "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}}},
            "i": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        },
    }  # fmt: skip
    whole = definition("as", "A")
    whole["spec"]["versions"] = [{
        "name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": root(spec=inner)},
        "subresources": {"scale": {"specReplicasPath": ".spec.a", "statusReplicasPath": ".status.a"}},
        "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".spec.a"}],
        "selectableFields": [{"jsonPath": ".spec.s"}],
    }]  # fmt: skip
    assert definition_rules.check(definition_rules.prepare(whole, None), None) == []
    schema = ("spec", "versions", 0, "schema")
    for path in [path for path in places(whole) if path[:4] == schema and len(path) > 4]:
        for odd in (None, 5, "x", [], {}, True, [{}], ["x"], -1.5, [None]):
            broken = copy.deepcopy(whole)
            above = broken
            for step in path[:-1]:
                above = above[step]
            above[path[-1]] = odd
            definition_rules.check(definition_rules.prepare(broken, None), None)


def test_an_old_value_is_asked_for_only_where_there_is_one() -> None:
    rule = {"rule": "self == oldSelf.orValue(self)", "optionalOldSelf": True}
    text = {"type": "string", "x-kubernetes-validations": [rule]}
    named = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "text": text}}
    mapped = {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": named}
    loose = {"type": "array", "items": named}
    useless = {"type": "string", "x-kubernetes-validations": [{"rule": "self != ''", "optionalOldSelf": True}]}
    root = {"type": "object", "properties": {"mapped": mapped, "loose": loose, "useless": useless}}
    found = [(c["field"], c["message"]) for c in check_structural(root, "s")]
    assert found == [
        (
            "s.properties[loose].items.properties[text].x-kubernetes-validations[0].rule",
            'Invalid value: "self == oldSelf.orValue(self)": oldSelf cannot be used on the uncorrelatable portion of '
            "the schema within s.properties[loose]",
        ),
        (
            "s.properties[useless].x-kubernetes-validations[0].optionalOldSelf",
            "Invalid value: true: may not be set if oldSelf is not used in rule",
        ),
    ]
