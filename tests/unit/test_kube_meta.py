"""Names, labels, times, owners and JSON paths."""

from __future__ import annotations

import datetime
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from stead.kube import meta


@pytest.mark.parametrize("name", ["a", "a.b", "vm-1", "0", "a" * 253])
def test_good_names(name: str) -> None:
    assert meta.subdomain_errors(name) == []


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a_b", "a/b", "..", "a" * 254, "ä", "a\n"])
def test_bad_names(name: str) -> None:
    assert meta.subdomain_errors(name)


def test_label_names() -> None:
    assert meta.label_name_errors("a" * 63) == []
    assert meta.label_name_errors("a.b") == ["must not contain dots"]
    assert meta.label_name_errors("a" * 64) == ["must be no more than 63 characters"]
    assert meta.path_segment_errors("system:node") == []
    assert meta.path_segment_errors("a/b") == ["may not contain '/'"]
    assert meta.path_segment_errors("..") == ["may not be '..'"]


def test_recorded_metadata_refusals() -> None:
    """The causes of every recorded create that metadata alone made invalid."""
    folder = os.environ.get("STEAD_ORACLE")
    if not folder:
        print("not replayed")
        return
    rules = {"services": meta.label_name_errors, "namespaces": meta.label_name_errors}
    replayed = 0
    for scenario in json.loads((Path(folder) / "api/meta.json").read_text()):
        if scenario["name"] not in {"name-validation", "label-annotation-validation", "owner-references"}:
            continue
        uids: dict[str, str] = {}
        for step in scenario["steps"]:
            request, answer = step.get("request", {}), step.get("response", {})
            body = request.get("body")
            for name in step.get("capture", {}):
                uids[name] = answer["body"]["metadata"]["uid"]
            if request.get("method") != "POST" or not isinstance(body, dict) or answer["status"] not in {201, 422}:
                continue
            for name, value in uids.items():
                body = json.loads(json.dumps(body).replace("${" + name + "}", value))
            plural = request["path"].rsplit("/", 1)[1]
            rule = rules.get(plural, meta.subdomain_errors)
            causes = meta.validate_metadata(body["metadata"], rule, builtin=plural != "widgets")
            recorded = (answer["body"].get("details") or {}).get("causes", [])
            if plural == "namespaces":  # their name label is put in before
                recorded = [c for c in recorded if c["field"] != "metadata.labels"]
            if any("generateName" in c["field"] for c in recorded + causes):
                continue
            assert causes == recorded, body
            replayed += 1
    assert replayed > 15


def test_owner_references() -> None:
    owner = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "a", "uid": "u"}}
    reference = meta.owner_reference(owner)
    obj = {"metadata": {"name": "b", "namespace": "n", "ownerReferences": [reference]}}
    assert meta.controller_of(obj) == reference
    assert meta.is_owned_by(obj, "u")
    assert not meta.is_owned_by({"metadata": {}}, "u")
    assert meta.key(obj) == "n/b"
    assert meta.validate_owner_references([reference]) == []
    assert len(meta.validate_owner_references([reference, {**reference, "name": "c"}])) == 1


def test_annotations_have_a_size() -> None:
    assert meta.validate_annotations({"a": "x" * (262_144 - 1)}) == []
    assert meta.validate_annotations({"a": "x" * 262_144})[0]["reason"] == "FieldValueTooLong"


def test_finalizers_need_a_domain() -> None:
    assert meta.validate_finalizers(["kubernetes", "orphan", "kubevirt.io/x"]) == []
    assert meta.validate_finalizers(["bad"])[0]["field"] == "metadata.finalizers[0]"
    assert meta.validate_finalizers(["bad"], domain_needed=False) == []
    assert len(meta.finalizer_warnings(["bad", "a.b/c", "orphan"])) == 1


def test_generated_names() -> None:
    assert re.fullmatch(r"vm-[bcdfghjklmnpqrstvwxz2456789]{5}", meta.generate_name("vm-"))
    assert len(meta.generate_name("x" * 300)) == 63
    assert meta.generate_name("a") != meta.generate_name("a")


def test_times() -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=datetime.UTC)
    assert meta.format_time(moment) == "2026-01-02T03:04:05Z"
    assert meta.format_micro_time(moment) == "2026-01-02T03:04:05.678901Z"
    assert meta.parse_time("2026-01-02T03:04:05.678901Z") == moment
    assert meta.parse_time("2026-01-02T04:04:05.678901999+01:00") == moment
    assert meta.parse_time(meta.now()) <= meta.parse_time(meta.now_micro())
    for text in ("", "yesterday", "2026-01-02", "2026-13-02T03:04:05Z", "2026-01-02T03:04:05"):
        with pytest.raises(ValueError):
            meta.parse_time(text)


def test_api_versions() -> None:
    assert meta.split_api_version("v1") == ("", "v1")
    assert meta.split_api_version("kubevirt.io/v1") == ("kubevirt.io", "v1")
    with pytest.raises(ValueError):
        meta.split_api_version("a/b/c")


OBJECT: dict[str, Any] = {
    "metadata": {"annotations": {"a.b/c": "x"}, "name": "n"},
    "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Paused", "status": "False"}]},
    "list": [{"v": 1}, {"v": 2}],
    "flag": False,
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".metadata.name", ["n"]), ("metadata.name", ["n"]), ("{.metadata.name}", ["n"]),
        ("$.metadata.name", ["n"]),
        (".status.conditions[?(@.type=='Ready')].status", ["True"]),
        (".status.conditions[?(@.type==\"X\")].status", []),
        (".status.conditions[?(@.type!='Ready')].type", ["Paused"]),
        (".list[*].v", [1, 2]), (".list[0].v", [1]),
        (".list[-1].v", [2]), (".list[7].v", []), (".metadata.annotations['a.b/c']", ["x"]), (".nope.x", []),
        (".metadata.annotations.a\\.b/c", ["x"]), (".flag", [False]), (".metadata.name.x", []), (".", [OBJECT]),
    ],
)  # fmt: skip
def test_json_paths(path: str, expected: list[Any]) -> None:
    assert meta.read_path(OBJECT, path) == expected
    assert meta.first_at(OBJECT, path) == (expected[0] if expected else None)


@pytest.mark.parametrize("path", [".a[", ".a..b", ".a[x]", ".a[?(@.x>1)]", "["])
def test_other_path_syntax_is_refused(path: str) -> None:
    with pytest.raises(ValueError):
        meta.compile_path(path)
