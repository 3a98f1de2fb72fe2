"""Patches and RBAC beside models of another hand: the pseudo-code of RFC 7386, RFC 6902 on a mutable copy, and
`tests.rbac_evaluator` with rules drawn at random."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.rbac_evaluator import Policy, Question, may

from stead.kube import patch
from stead.kube.errors import ApiError
from stead.server.authz import Attributes, rule_allows, uncovered

NAMES = st.sampled_from(["a", "b", "x/y", "a~b", "0", "1"])
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "t"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=10
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)


def _merged(target: Any, change: Any) -> Any:
    """RFC 7386, section 2, word for word."""
    if not isinstance(change, dict):
        return change
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in change.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = _merged(target.get(name), value)
    return target


def _without_nulls_in_lists(value: Any) -> Any:
    """The API server's library drops nulls also inside of lists, where the RFC keeps them."""
    if isinstance(value, dict):
        return {name: _without_nulls_in_lists(item) for name, item in value.items()}
    return [] if isinstance(value, list) else value


@given(OBJECTS, OBJECTS.map(_without_nulls_in_lists))
def test_merge_patch_is_that_of_the_rfc(obj: Any, change: Any) -> None:
    assert patch.is_equal(patch.merge_patch(obj, change), _merged(obj, change))


class _Refused(Exception):
    pass


def _walk(obj: Any, parts: list[str]) -> Any:
    for part in parts:
        if isinstance(obj, dict) and part in obj:
            obj = obj[part]
        elif isinstance(obj, list) and part.isdigit() and int(part) < len(obj):
            obj = obj[int(part)]
        else:
            raise _Refused
    return obj


def _put(obj: Any, parts: list[str], value: Any) -> None:
    place, last = _walk(obj, parts[:-1]), parts[-1]
    if isinstance(place, dict):
        place[last] = value
    elif isinstance(place, list) and (last == "-" or (last.isdigit() and int(last) <= len(place))):
        place.insert(len(place) if last == "-" else int(last), value)
    else:
        raise _Refused


def _take(obj: Any, parts: list[str]) -> Any:
    value = _walk(obj, parts)
    place = _walk(obj, parts[:-1])
    if isinstance(place, dict):
        del place[parts[-1]]
    else:
        del place[int(parts[-1])]
    return value


def _patched(obj: Any, operations: list[Any]) -> Any:
    """RFC 6902 on a copy that changes in place; `_Refused` where an operation does not apply."""
    obj = copy.deepcopy(obj)
    for each in operations:
        parts, value = each["path"], copy.deepcopy(each.get("value"))
        if each["op"] == "add":
            _put(obj, parts, value)
        elif each["op"] == "remove":
            _take(obj, parts)
        elif each["op"] == "replace":
            _take(obj, parts)
            _put(obj, parts, value)
        elif each["op"] == "move":
            _put(obj, parts, _take(obj, each["from"]))
        elif each["op"] == "copy":
            _put(obj, parts, copy.deepcopy(_walk(obj, each["from"])))
        elif each["op"] == "test" and not patch.is_equal(_walk(obj, parts), value):
            raise _Refused
    return obj


PATHS = st.lists(st.sampled_from(["a", "b", "x/y", "a~b", "0", "1", "-"]), min_size=1, max_size=3)
OPERATIONS = st.lists(
    st.builds(
        lambda op, path, origin, value: {"op": op, "path": path, "from": origin, "value": value},
        st.sampled_from(["add", "add", "remove", "replace", "move", "copy", "test"]), PATHS, PATHS, VALUES,
    ),
    max_size=4,
)  # fmt: skip


def _pointer(parts: list[str]) -> str:
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def _written(each: Any) -> Any:
    found = {"op": each["op"], "path": _pointer(each["path"])}
    if each["op"] in ("move", "copy"):
        return {**found, "from": _pointer(each["from"])}
    return found if each["op"] == "remove" else {**found, "value": each["value"]}


@settings(max_examples=400)
@given(OBJECTS, OPERATIONS)
def test_json_patch_is_that_of_the_rfc_wherever_both_apply(obj: Any, operations: Any) -> None:
    """The server's library is laxer than the RFC in a few places (`test` of what is absent), never otherwise."""
    try:
        wanted = _patched(obj, operations)
    except _Refused:
        return
    for each in operations:  # into oneself, which the RFC forbids
        if each["op"] == "move" and each["path"][: len(each["from"])] == each["from"]:
            return
    assert patch.is_equal(patch.json_patch(obj, [_written(each) for each in operations]), wanted)


WORDS = st.sampled_from(["*", "get", "x", "y", "x/s", "*/s", "", "y/s"])
RULES = st.fixed_dictionaries(
    {"verbs": st.lists(st.sampled_from(["*", "get", "put"]), max_size=2)},
    optional={
        "apiGroups": st.lists(st.sampled_from(["", "g", "*"]), max_size=2), "resources": st.lists(WORDS, max_size=3),
        "resourceNames": st.lists(st.sampled_from(["n", "m"]), max_size=2),
        "nonResourceURLs": st.lists(st.sampled_from(["*", "/a", "/a/*", "/a*"]), max_size=2),
    },
)  # fmt: skip
QUESTIONS = st.builds(
    Question, st.sampled_from(["get", "put", "zap"]), st.sampled_from(["", "g"]), st.sampled_from(["x", "y"]),
    st.sampled_from(["", "s", "t"]), st.just(""), st.sampled_from(["", "n", "m"]),
    st.sampled_from(["", "", "/a", "/a/b", "/ab"]),
)  # fmt: skip


def _policy(rules: list[Any]) -> Policy:
    role = {"metadata": {"name": "r"}, "rules": rules}
    binding = {"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
               "subjects": [{"kind": "User", "name": "u"}]}  # fmt: skip
    return Policy([role], [], [binding], [])


def _asked(asked: Question) -> Attributes:
    if asked.path:
        return Attributes(verb=asked.verb, path=asked.path)
    resource = f"{asked.plural}/{asked.sub}" if asked.sub else asked.plural
    return Attributes(verb=asked.verb, group=asked.group, resource=resource, name=asked.name)


@settings(max_examples=600)
@given(RULES, QUESTIONS)
def test_a_rule_allows_what_the_other_evaluator_allows(rule: Any, asked: Question) -> None:
    assert rule_allows(rule, _asked(asked)) is may(_policy([rule]), "u", set(), asked)


@settings(max_examples=600)
@given(st.lists(RULES, max_size=3), RULES, QUESTIONS)
def test_what_is_covered_gives_nothing_that_was_not_held(held: list[Any], wanted: Any, asked: Question) -> None:
    """No escalation: if a rule may be granted, it allows nothing that its giver could not do."""
    if not uncovered(held, [wanted]) and may(_policy([wanted]), "u", set(), asked):
        assert may(_policy(held), "u", set(), asked)


KEYED = {"type": "object", "properties": {"l": {
    "type": "array", "x-kubernetes-patch-merge-key": "name", "x-kubernetes-patch-strategy": "merge",
    "items": {"type": "object", "properties": {"name": {"type": "string"}}},
}}}  # fmt: skip
ITEMS = st.lists(
    st.dictionaries(st.sampled_from(["name", "v", "$patch", "$retainKeys"]), VALUES, max_size=3) | SCALARS, max_size=3
)
DIRECTIVES = st.dictionaries(
    st.sampled_from(["l", "$patch", "$deleteFromPrimitiveList/l", "$setElementOrder/l", "$retainKeys", "a"]),
    ITEMS | VALUES | st.sampled_from(["replace", "delete", "merge"]), max_size=3,
)  # fmt: skip


@settings(max_examples=600)
@given(st.fixed_dictionaries({"l": ITEMS}), DIRECTIVES)
def test_any_strategic_patch_works_or_is_refused(obj: Any, change: Any) -> None:
    before = copy.deepcopy([obj, change])
    with contextlib.suppress(ApiError):
        patch.strategic_merge_patch(obj, change, KEYED)
    assert [obj, change] == before
