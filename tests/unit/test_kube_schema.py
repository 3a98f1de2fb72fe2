"""Schemas from Structs; pruning, defaulting and validation as apiextensions does them."""

from __future__ import annotations

import enum
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from stead.kube import schema as sc
from stead.kube.patch import merge_patch


class Mode(enum.StrEnum):
    AUTO = "Auto"
    MANUAL = "Manual"


class Port(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """One port."""

    port: int
    protocol: Annotated[str | None, Meta(extra_json_schema={"default": "TCP"})] = None


class Spec(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """What is wanted."""

    memory_size: Annotated[int | str, Meta(description="How much.")] | None = None
    mode: Mode | None = None
    kind: Literal["a", "b"] | None = None
    ports: (
        Annotated[
            list[Port],
            Meta(
                extra_json_schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"]}
            ),
        ]
        | None
    ) = None
    labels: dict[str, str] | None = None
    free: dict[str, Any] | None = None
    child: Spec | None = None
    size: Annotated[int, Meta(ge=0, le=100, extra_json_schema={"default": 3})] | None = None


class Widget(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """A widget."""

    metadata: dict[str, Any] | None = None
    spec: Spec


class Bare(msgspec.Struct):
    metadata: dict[str, Any] = {}


def test_struct_becomes_a_structural_schema() -> None:
    schema = sc.schema_from_struct(Widget)
    assert list(schema["properties"]) == ["apiVersion", "kind", "metadata", "spec"]
    assert schema["required"] == ["spec"]
    spec = schema["properties"]["spec"]
    assert spec["description"] == "What is wanted."
    fields = spec["properties"]
    assert fields["memorySize"] == {"x-kubernetes-int-or-string": True, "description": "How much."}
    assert fields["mode"] == {"type": "string", "enum": ["Auto", "Manual"]}
    assert fields["kind"] == {"type": "string", "enum": ["a", "b"]}
    assert fields["ports"]["x-kubernetes-list-map-keys"] == ["port", "protocol"]
    assert fields["ports"]["items"]["required"] == ["port"]
    assert fields["free"] == {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    assert fields["child"] == {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    assert fields["size"] == {"type": "integer", "minimum": 0, "maximum": 100, "default": 3}


def test_prune_reports_paths_and_shares_what_is_untouched() -> None:
    schema = sc.schema_from_struct(Widget)
    obj = {"kind": "Widget", "metadata": {"name": "a", "odd": 1},
           "spec": {"foo": 1, "free": {"x": 1}, "ports": [{"port": 1, "bad": 2}], "labels": {"any": "x"}},
           "top": 1}  # fmt: skip
    before = json.dumps(obj)
    pruned, unknown = sc.prune(schema, obj)
    assert unknown == ["metadata.odd", "spec.foo", "spec.ports[0].bad", "top"]
    assert pruned["spec"] == {"free": {"x": 1}, "ports": [{"port": 1}], "labels": {"any": "x"}}
    assert pruned["spec"]["free"] is obj["spec"]["free"]
    assert json.dumps(obj) == before
    assert sc.prune(schema, pruned) == (pruned, [])
    assert sc.prune(schema, pruned)[0] is pruned


def test_a_struct_without_fields_keeps_everything() -> None:
    obj = {"metadata": {"name": "a"}, "anything": {"goes": [1]}}
    assert sc.prune(sc.schema_from_struct(Bare), obj) == (obj, [])


def test_defaults_and_nulls() -> None:
    schema = sc.schema_from_struct(Widget)
    obj = {"spec": {"size": None, "mode": None, "ports": [{"port": 1}], "free": {"n": None}}}
    assert sc.default(schema, obj) == {
        "spec": {"size": 3, "ports": [{"port": 1, "protocol": "TCP"}], "free": {"n": None}}
    }


@pytest.mark.parametrize(
    ("spec", "field", "reason", "message"),
    [
        ({"size": "x"}, "spec.size", "FieldValueTypeInvalid",
         'Invalid value: "string": spec.size in body must be of type integer: "string"'),
        ({"size": 101}, "spec.size", "FieldValueInvalid",
         "Invalid value: 101: spec.size in body should be less than or equal to 100"),
        ({"mode": "Odd"}, "spec.mode", "FieldValueNotSupported",
         'Unsupported value: "Odd": supported values: "Auto", "Manual"'),
        ({"ports": [{}]}, "spec.ports[0].port", "FieldValueRequired", "Required value"),
        ({"memorySize": True}, "spec.memorySize", "FieldValueTypeInvalid",
         'Invalid value: "boolean": spec.memorySize in body must be of type integer,string: "boolean"'),
        ({"ports": [{"port": 1}, {"port": 1}]}, "spec.ports[1]", "FieldValueDuplicate", 'Duplicate value: {"port":1}'),
        ({"labels": {"a": 1}}, "spec.labels.a", "FieldValueTypeInvalid",
         'Invalid value: "integer": spec.labels.a in body must be of type string: "integer"'),
    ],
)  # fmt: skip
def test_validation_texts(spec: dict[str, Any], field: str, reason: str, message: str) -> None:
    causes = sc.validate(sc.schema_from_struct(Widget), {"spec": spec})
    assert causes == [{"field": field, "reason": reason, "message": message}]


def test_junctors_and_formats() -> None:
    schema = {"type": "object", "properties": {
        "one": {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        "any": {"anyOf": [{"minimum": 5}, {"maximum": 1}]},
        "when": {"type": "string", "format": "date-time"},
    }}  # fmt: skip
    assert sc.validate(schema, {"one": {"a": 1}, "any": 7, "when": "2026-01-01T00:00:00Z"}) == []
    texts = [c["message"] for c in sc.validate(schema, {"one": {"a": 1, "b": 2}, "any": 3, "when": "x"})]
    assert any("Found 2 valid alternatives" in t for t in texts)
    assert any("at least one schema (anyOf)" in t for t in texts)
    assert any("must be of type date-time" in t for t in texts)


def test_type_mismatch_speaks_like_the_decoder() -> None:
    schema = sc.schema_from_struct(Widget)
    words = "json: cannot unmarshal number into Go struct field"
    text = sc.type_mismatch(schema, {"metadata": {"labels": {"a": 5}}}, "ConfigMap")
    assert text == f"{words} ObjectMeta.metadata.labels of type string"
    text = sc.type_mismatch({"properties": {"metadata": sc.OBJECT_META}}, {"metadata": {"labels": {"a": 5}}}, "Widget")
    assert text == f"{words} ObjectMeta.labels of type string"
    assert sc.type_mismatch(schema, {"spec": {"mode": 5}}, "Widget") == f"{words} Widget.spec.mode of type string"
    assert sc.type_mismatch(schema, {"metadata": {"labels": {"a": "b"}, "x": 1}}, "ConfigMap") is None


def test_recorded_rules() -> None:
    """The recorded CEL scenario: which rules break, and how that is said."""
    folder = os.environ.get("STEAD_ORACLE")
    if not folder:
        print("not replayed")
        return
    scenario = next(s for s in json.loads((Path(folder) / "api/crd.json").read_text()) if s["name"] == "cel")
    steps = [s for s in scenario["steps"] if "request" in s]
    crd = steps[0]["request"]["body"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema = sc.object_schema(crd)
    stored: dict[str, Any] = {}
    replayed = 0
    for step in steps[1:]:
        request, answer = step["request"], step["response"]
        if "customresourcedefinitions" in request["path"]:
            break  # the rules change from here on
        body = request["body"]
        if request["method"] == "PATCH":
            body = merge_patch(stored["/a"], body)
        causes = sc.validate(
            schema, sc.default(schema, body), old=stored["/a"] if request["method"] == "PATCH" else sc.ABSENT
        )
        recorded = (answer["body"].get("details") or {}).get("causes", [])
        assert causes == recorded, request["body"]
        if answer["status"] in {200, 201} and body["metadata"]["name"] == "a":
            stored["/a"] = body
        replayed += 1
    assert replayed > 5


def test_recorded_custom_resource_validation() -> None:
    """Every answer of the recorded CRD scenario, when the oracle is at hand."""
    folder = os.environ.get("STEAD_ORACLE")
    if not folder:
        print("not replayed")
        return
    fixtures = json.loads((Path(folder) / "api/fixtures.json").read_text())
    crd = fixtures["widgets"][0]["request"]["body"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema = sc.object_schema(crd)
    scenarios = json.loads((Path(folder) / "api/crd.json").read_text())
    steps = next(s for s in scenarios if s["name"] == "cr-schema-validation")["steps"]
    replayed = 0
    for step in steps:
        body, answer = step["request"].get("body"), step["response"]
        if answer["status"] not in {201, 422} or not isinstance(body, dict) or "status" in body:
            continue
        obj = sc.default(schema, sc.prune(schema, body)[0])
        causes = {(c["field"], c["reason"], c["message"]) for c in sc.validate(schema, obj)}
        recorded = {
            (c["field"], c["reason"], c["message"])
            for c in (answer["body"].get("details") or {}).get("causes", [])
            if "accessor error" not in c["message"]
        }
        assert causes == recorded
        if answer["status"] == 201:
            assert obj.get("spec") == answer["body"].get("spec")
        replayed += 1
    assert replayed > 30
