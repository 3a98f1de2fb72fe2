"""Patches as kube-apiserver applies them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stead.kube import patch
from stead.kube.errors import ApiError

CONFIG = {
    "metadata": {"name": "a", "annotations": {"x/y": "s"}, "finalizers": ["f/a", "f/b"]},
    "data": {"k": "1"},
    "l": [1],
}


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ([{"op": "add", "path": "/data/n", "value": "5"}], {"k": "1", "n": "5"}),
        ([{"op": "replace", "path": "/data/new", "value": "5"}], {"k": "1", "new": "5"}),
        ([{"op": "move", "from": "/data/k", "path": "/data/m"}], {"m": "1"}),
        ([{"op": "copy", "from": "/metadata/annotations/x~1y", "path": "/data/c"}], {"k": "1", "c": "s"}),
        ([{"op": "test", "path": "/metadata/labels", "value": None}], {"k": "1"}),
        ([{"op": "add", "path": "/data", "value": {"a~b": 1}}, {"op": "remove", "path": "/data/a~0b"}], {}),
    ],
)
def test_json_patch(operations: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    before = json.dumps(CONFIG)
    assert patch.json_patch(CONFIG, operations)["data"] == expected
    assert json.dumps(CONFIG) == before


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/data/k", "value": "2"},
        {"op": "test", "path": "/l/0", "value": True},
        {"op": "test", "path": "/l/0", "value": 1.0},
        {"op": "remove", "path": "/data/zz"},
        {"op": "add", "path": "/l/7", "value": 1},
        {"op": "add", "path": "/no/such/place", "value": 1},
        {"op": "replace", "path": "/l/x", "value": 1},
        {"op": "move", "from": "/data", "path": "/data/in"},
        {"op": "add", "path": "data/k", "value": 1},
        {"op": "nonsense", "path": "/data"},
        {"op": "remove", "path": ""},
        {"path": "/data"},
    ],
)
def test_json_patch_refusals_are_422(operation: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        patch.json_patch(CONFIG, [operation])
    assert (caught.value.code, caught.value.reason) == (422, "Invalid")
    assert caught.value.message == "the server rejected our request due to an error in our request"


def test_copies_cannot_explode() -> None:
    bomb = [{"op": "copy", "from": "", "path": f"/n{i}"} for i in range(100)]
    with pytest.raises(ApiError):
        patch.json_patch({"a": 1}, bomb)


def test_json_patch_bodies() -> None:
    assert patch.decode_json_patch(b'[{"op":"add","path":"/a","value":1,"zzz":1}]')[1] == ["[0].zzz"]
    with pytest.raises(ApiError) as caught:
        patch.decode_json_patch(json.dumps([{"op": "test"}] * 10_001).encode())
    assert caught.value.code == 413
    assert caught.value.message.endswith("The allowed maximum operations in a JSON patch is 10000, got 10001")
    for body in (b"{}", b"[1]", b"{bad"):
        with pytest.raises(ApiError) as caught:
            patch.decode_json_patch(body)
        assert caught.value.code == 400


def test_apply_bodies() -> None:
    assert patch.decode_apply_patch(b"kind: A\nspec: {a: 1, a: 2}\n") == ({"kind": "A", "spec": {"a": 2}}, ["spec.a"])
    assert patch.decode_apply_patch(b"") == ({}, [])
    with pytest.raises(ApiError) as caught:
        patch.decode_apply_patch(b"a: [b")
    text = "error decoding YAML: error converting YAML to JSON: yaml: line 1: did not find expected ',' or ']'"
    assert (caught.value.code, caught.value.message) == (400, text)
    with pytest.raises(ApiError, match="cannot unmarshal array into Go value of type map"):
        patch.decode_apply_patch(b"[]")


@pytest.mark.parametrize(
    ("target", "change", "expected"),
    [  # RFC 7386, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({}, {"a": [None, {"x": None, "y": 1}]}, {"a": [None, {"y": 1}]}),  # kube-apiserver's own
    ],
)
def test_merge_patch(target: Any, change: Any, expected: Any) -> None:
    assert patch.merge_patch(target, change) == expected


ENV = [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]
POD = {
    "spec": {
        "containers": [{"name": "a", "image": "1", "env": ENV, "ports": [{"containerPort": 80}]}, {"name": "b"}],
        "tolerations": [{"key": "k"}],
        "imagePullSecrets": [{"name": "s1"}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    }
}


def test_strategic_merge_of_keyed_lists() -> None:
    change = {"spec": {
        "containers": [{"name": "a", "env": [{"name": "X", "value": "9"}, {"name": "Z", "value": "3"}],
                        "ports": [{"containerPort": 81}]}],
        "tolerations": [{"key": "q"}],
        "imagePullSecrets": [{"name": "s2"}],
        "volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}],
    }}  # fmt: skip
    spec = patch.strategic_merge_patch(POD, change)["spec"]
    assert [c["name"] for c in spec["containers"]] == ["a", "b"]
    assert [(e["name"], e["value"]) for e in spec["containers"][0]["env"]] == [("X", "9"), ("Z", "3"), ("Y", "2")]
    assert spec["containers"][0]["ports"] == [{"containerPort": 81}, {"containerPort": 80}]
    assert spec["tolerations"] == [{"key": "q"}]
    assert spec["imagePullSecrets"] == [{"name": "s2"}, {"name": "s1"}]
    assert spec["volumes"] == [{"name": "v", "configMap": {"name": "c"}}]


def test_strategic_directives() -> None:
    gone = patch.strategic_merge_patch(POD, {"spec": {"containers": [{"name": "b", "$patch": "delete"}]}})
    assert [c["name"] for c in gone["spec"]["containers"]] == ["a"]
    replaced = patch.strategic_merge_patch(POD, {"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}})
    assert replaced["spec"]["containers"] == [{"name": "z"}]
    assert patch.strategic_merge_patch({"a": {"b": 1}}, {"a": {"$patch": "replace", "c": 2}}) == {"a": {"c": 2}}
    assert patch.strategic_merge_patch({"m": 1}, {"data": {"$patch": "replace", "only": 1}}) == {"m": 1}
    ordered = patch.strategic_merge_patch(
        POD,
        {
            "spec": {
                "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
                "containers": [{"name": "b", "x": "2"}],
            }
        },
    )
    assert [c["name"] for c in ordered["spec"]["containers"]] == ["b", "a"]


def test_strategic_merge_of_primitives() -> None:
    merged = patch.strategic_merge_patch(CONFIG, {"metadata": {"finalizers": ["f/c"]}})
    assert merged["metadata"]["finalizers"] == ["f/c", "f/a", "f/b"]
    removed = patch.strategic_merge_patch(merged, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["f/a"]}})
    assert removed["metadata"]["finalizers"] == ["f/c", "f/b"]


@pytest.mark.parametrize(
    "change", [{"$patch": "bogus"}, {"spec": {"containers": [{"image": "x"}]}}, {"spec": {"volumes": [5]}}]
)
def test_strategic_refusals_are_400(change: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        patch.strategic_merge_patch(POD, change)
    assert caught.value.code == 400


def test_create_merge_patch_round_trips() -> None:
    before = {"a": {"b": 1, "c": [1]}, "d": 1}
    after = {"a": {"b": 2, "c": [1]}, "e": {"f": 1}}
    change = patch.create_merge_patch(before, after)
    assert change == {"a": {"b": 2}, "d": None, "e": {"f": 1}}
    assert patch.merge_patch(before, change) == after


def _comparable(obj: dict[str, Any]) -> str:
    """What a patch decides of an answer: no server-set metadata, no schema defaults."""
    metadata = {k: v for k, v in obj.get("metadata", {}).items() if k in {"labels", "annotations", "finalizers"} and v}
    text = json.dumps([metadata, obj.get("data") or {}, obj.get("spec")], sort_keys=True)
    return (
        text.replace(', "defaultMode": 420', "").replace('"defaultMode": 420, ', "").replace(', "protocol": "TCP"', "")
    )


def test_recorded_patches() -> None:
    """Every recorded patch of built-in kinds that succeeded, against the object that the server had before it."""
    folder = os.environ.get("STEAD_ORACLE")
    if not folder:
        print("not replayed")
        return
    functions = {
        patch.JSON_PATCH: patch.json_patch,
        patch.MERGE_PATCH: patch.merge_patch,
        patch.STRATEGIC_MERGE_PATCH: patch.strategic_merge_patch,
    }
    replayed = 0
    for scenario in json.loads((Path(folder) / "api/patch.json").read_text()):
        if not any(word in scenario["name"] for word in ("smp-configmap", "smp-deployment", "json-patch")):
            continue
        objects: dict[str, Any] = {}
        for step in scenario["steps"]:
            request, answer = step.get("request"), step["response"]
            path = request["path"].split("?")[0]
            if request["method"] == "POST" and answer["status"] == 201:
                objects[f"{path}/{answer['body']['metadata']['name']}"] = answer["body"]
            kind = request.get("headers", {}).get("Content-Type", "")
            if (
                request["method"] != "PATCH"
                or answer["status"] != 200
                or kind not in functions
                or "body" not in request
            ):
                continue
            if "secrets" in path or "fieldValidation" in request["path"] or '"nope"' in json.dumps(request["body"]):
                continue
            if "/spec/zz" in json.dumps(request["body"]) or request["body"] == {"data": {"$patch": "bogus"}}:
                objects[path] = answer["body"]
                continue
            result = functions[kind](objects[path], request["body"])
            expected = answer["body"]
            if result.get("spec") == {"color": "green"}:
                result["spec"]["size"] = 3  # the schema's default
            assert _comparable(result) == _comparable(expected), request["body"]
            objects[path] = expected
            replayed += 1
    assert replayed > 25
