"""Server-side apply against the original: random applies and updates by three managers, judged step by step by the
structured-merge-diff library that kube-apiserver uses (tests/oracle_smd).

Compared are the object, every manager's field set, and the conflicts. `STEAD_APPLY_CASES` says how many cases.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest
from tests import oracle_smd

from stead.kube import apply as ap
from stead.kube import fieldset as fs
from stead.kube import schema as sc
from stead.kube.errors import ApiError

Object = dict[str, Any]
CASES = int(os.environ.get("STEAD_APPLY_CASES", "400"))

_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_PORT: Object = {"type": "object", "properties": {
    "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}, "name": {"type": "string"},
    "labels": _STRINGS,
}}  # fmt: skip
OURS = {"type": "object", "properties": {
    "apiVersion": {"type": "string"}, "kind": {"type": "string"},
    "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
    "spec": {"type": "object", "properties": {
        "color": {"type": "string"}, "size": {"type": "integer"}, "map": _STRINGS,
        "ports": {"type": "array", sc.LIST_TYPE: "map", sc.LIST_KEYS: ["port", "protocol"], "items": _PORT},
        "tags": {"type": "array", sc.LIST_TYPE: "set", "items": {"type": "string"}},
        "atoms": {"type": "array", sc.LIST_TYPE: "atomic", "items": {"type": "string"}},
        "atomicMap": {**_STRINGS, sc.MAP_TYPE: "atomic"},
        "inner": {"type": "object", "properties": {"a": {"type": "string"}, "map": _STRINGS}},
        "free": {"type": "object", sc.PRESERVE: True},
    }},
}}  # fmt: skip
THEIRS = """
types:
- name: root
  map:
    fields:
    - {name: apiVersion, type: {scalar: string}}
    - {name: kind, type: {scalar: string}}
    - name: metadata
      type: {map: {fields: [{name: name, type: {scalar: string}}]}}
    - {name: spec, type: {namedType: spec}}
- name: spec
  map:
    fields:
    - {name: color, type: {scalar: string}}
    - {name: size, type: {scalar: numeric}}
    - {name: map, type: {namedType: strings}}
    - name: ports
      type: {list: {elementType: {namedType: port}, elementRelationship: associative, keys: [port, protocol]}}
    - {name: tags, type: {list: {elementType: {scalar: string}, elementRelationship: associative}}}
    - {name: atoms, type: {list: {elementType: {scalar: string}, elementRelationship: atomic}}}
    - {name: atomicMap, type: {map: {elementType: {scalar: string}, elementRelationship: atomic}}}
    - name: inner
      type: {map: {fields: [{name: a, type: {scalar: string}}, {name: map, type: {namedType: strings}}]}}
    - {name: free, type: {namedType: deduced}}
- name: strings
  map: {elementType: {scalar: string}}
- name: port
  map:
    fields:
    - {name: port, type: {scalar: numeric}}
    - {name: protocol, type: {scalar: string}, default: TCP}
    - {name: name, type: {scalar: string}}
    - {name: labels, type: {namedType: strings}}
- name: atomic
  scalar: untyped
  list: {elementType: {namedType: atomic}, elementRelationship: atomic}
  map: {elementType: {namedType: atomic}, elementRelationship: atomic}
- name: deduced
  scalar: untyped
  list: {elementType: {namedType: atomic}, elementRelationship: atomic}
  map: {elementType: {namedType: deduced}, elementRelationship: separable}
"""


def _strings(draw: random.Random) -> Object:
    return {key: draw.choice("xy") for key in draw.sample("abc", draw.randint(0, 2))}


def _free(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.choice(("text", "number", "list", "map", "map")) if depth < 2 else "text"
    if kind == "map":
        return {key: _free(draw, depth + 1) for key in draw.sample("pqr", draw.randint(1, 2))}
    return {"text": draw.choice("xy"), "number": draw.randint(0, 2), "list": [draw.choice("xy")]}[kind]


def _port(draw: random.Random, port: int) -> Object:
    found: Object = {"port": port}
    if draw.random() < 0.5:
        found["protocol"] = draw.choice(("TCP", "TCP", "UDP"))
    if draw.random() < 0.5:
        found["name"] = draw.choice("xy")
    if draw.random() < 0.4:
        found["labels"] = _strings(draw)
    return found


def _spec(draw: random.Random) -> Object:
    whole: Object = {
        "color": draw.choice(("red", "blue")), "size": draw.randint(1, 2), "map": _strings(draw),
        "ports": [_port(draw, port) for port in draw.sample((80, 443), draw.randint(1, 2))],
        "tags": draw.sample(["s", "t", "u"], draw.randint(1, 3)), "atoms": draw.choices("xy", k=draw.randint(1, 2)),
        "atomicMap": {"a": draw.choice("xy")}, "inner": {"a": draw.choice("xy"), "map": _strings(draw)},
        "free": {"p": _free(draw)},
    }  # fmt: skip
    return {key: whole[key] for key in draw.sample(list(whole), draw.randint(1, 5))}


def _case(seed: int) -> list[Object]:
    draw = random.Random(seed)
    steps: list[Object] = []
    for number in range(draw.randint(2, 6)):
        op = draw.choice(("Apply", "Apply", "Update")) if number else "Apply"
        steps.append({
            "op": op, "manager": draw.choice(("ann", "bob", "cat")), "force": draw.random() < 0.4,
            "object": {"apiVersion": "x/v1", "kind": "W", "metadata": {"name": "a"}, "spec": _spec(draw)},
        })  # fmt: skip
    return steps


def _fields(sets: Object) -> dict[str, fs.Paths]:
    """Field sets without what kube-apiserver strips from them."""
    found = {name: fs.paths_from_fields(fields) - ap._STRIPPED for name, fields in sets.items()}
    return {name: paths for name, paths in found.items() if paths}


def _ours(live: Object | None, step: Object) -> tuple[Object | None, set[tuple[str, str]]]:
    """The object after a step, and conflicts as (who, path)."""
    writer = ap.Writer(manager=step["manager"], api_version="x/v1", time="2026-01-01T00:00:00Z", force=step["force"])
    if step["op"] == "Update":
        return ap.track_update(OURS, live, step["object"], writer), set()
    try:
        return ap.apply(OURS, live, step["object"], writer), set()
    except ApiError as error:
        if error.code != 409:
            raise
        return live, {(cause["message"], cause["field"]) for cause in error.details["causes"]}


def _conflicts_agree(ours: set[tuple[str, str]], theirs: Object) -> bool:
    """As many for each manager, and at paths that the manager would lose if it were forced."""
    counts: dict[str, int] = {}
    for name, number in (theirs.get("counts") or {}).items():
        manager, _, operation = name.partition("/")
        who = f'conflict with "{manager}"' + ("" if operation == "Apply" else " using x/v1")
        counts[who] = number
        lost = {fs.path_text(path) for path in fs.paths_from_fields(theirs["conflicts"][name])}
        mine = {path for message, path in ours if message == who}
        if not mine <= lost:
            return False
    return counts == {who: sum(message == who for message, _ in ours) for who in {message for message, _ in ours}}


def _managers(live: Object | None) -> dict[str, fs.Paths]:
    entries = ((live or {}).get("metadata") or {}).get("managedFields") or []
    return _fields({f"{each['manager']}/{each['operation']}": each["fieldsV1"] for each in entries})


def _comparable(value: Any) -> Any:
    """Without what the library changed since Debian's version (4.1.2): the order of merged lists, to which the
    recordings of 1.36 hold us. A null is where a map or list has lost its last item: absent or empty to us.
    """
    if isinstance(value, dict):
        return {key: kept for key, item in value.items() if (kept := _comparable(item)) not in ({}, [], None)}
    if isinstance(value, list):
        return sorted((_comparable(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return value


def _difference(steps: list[Object], outcomes: list[Object]) -> str:
    """Where ours leaves theirs first, or "". Ends where nobody owns anything: what then follows is kube-apiserver's."""
    live: Object | None = None
    for number, (step, theirs) in enumerate(zip(steps, outcomes, strict=True)):
        if theirs.get("error"):
            return ""
        live, conflicts = _ours(live, step)
        shown = json.dumps(steps[: number + 1])
        if not _conflicts_agree(conflicts, theirs):
            return f"conflicts {conflicts} instead of {theirs.get('counts')} {theirs.get('conflicts')} after {shown}"
        if _managers(live) != _fields(theirs["managers"]):
            return f"managers {_managers(live)} instead of {_fields(theirs['managers'])} after {shown}"
        mine = (live or {}).get("spec")
        if _comparable(mine) != _comparable(theirs["object"].get("spec")):
            return f"{mine} instead of {theirs['object']} after {shown}"
        # Where a map or list has lost its last item, this version leaves a null, and then compares with it.
        if not _managers(live) or "null" in json.dumps(theirs["object"]):
            return ""
    return ""


def test_apply_and_update_are_the_originals() -> None:
    try:
        oracle_smd.program()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    cases = [_case(seed) for seed in range(CASES)]
    found = oracle_smd.answers([{"schema": THEIRS, "steps": steps} for steps in cases])
    steps = sum(map(len, cases))
    assert sum(bool(each.get("error")) for outcomes in found for each in outcomes) < steps // 20
    assert sum(bool(each.get("conflicts")) for outcomes in found for each in outcomes) > steps // 20
    different = [text for case, outcomes in zip(cases, found, strict=True) if (text := _difference(case, outcomes))]
    assert different == [], f"{len(different)} of {CASES} cases"
