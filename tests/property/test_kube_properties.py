"""Laws of the kube room: patches, selectors, quantities, schemas, field ownership, decoders."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stead.kube import apply as ap
from stead.kube import encoding, fieldset, patch, protobuf, quantity, selectors
from stead.kube import schema as sc
from stead.kube.errors import ApiError

NAMES = st.sampled_from(["a", "b", "c", "spec", "x/y", "a~b"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=5))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=12
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)
NOT_NULL = st.recursive(
    SCALARS.filter(lambda v: v is not None),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
WITHOUT_NULLS = st.dictionaries(NAMES, NOT_NULL, max_size=4)


def _code(function: Callable[..., Any], *arguments: Any) -> int:
    """0 if the call succeeds, the HTTP code if it refuses."""
    try:
        function(*arguments)
    except ApiError as error:
        return error.code
    return 0


@given(VALUES, VALUES)
def test_merge_patch_is_idempotent_and_changes_nothing_it_was_given(obj: Any, change: Any) -> None:
    before = json.dumps([obj, change])
    once = patch.merge_patch(obj, change)
    assert patch.merge_patch(once, change) == once
    assert json.dumps([obj, change]) == before


@given(WITHOUT_NULLS, WITHOUT_NULLS)
def test_a_made_merge_patch_leads_there(before: Any, after: Any) -> None:
    assert patch.is_equal(patch.merge_patch(before, patch.create_merge_patch(before, after)), after)


POINTERS = st.lists(st.sampled_from(["a", "b", "spec", "x~1y", "a~0b", "0", "1", "-", "-1", "99"]), max_size=3).map(
    lambda parts: "".join("/" + p for p in parts)
)
OPERATIONS = st.lists(
    st.fixed_dictionaries(
        {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]), "path": POINTERS},
        optional={"from": POINTERS, "value": VALUES},
    ),
    max_size=5,
)


@given(OBJECTS, OPERATIONS)
def test_json_patches_work_or_refuse_with_422_and_never_touch_the_original(obj: Any, operations: Any) -> None:
    before = json.dumps(obj)
    assert _code(patch.json_patch, obj, operations) in {0, 422}
    assert json.dumps(obj) == before


@given(OBJECTS, NAMES, VALUES)
def test_add_then_test_then_remove(obj: Any, name: str, value: Any) -> None:
    path = "/" + name.replace("~", "~0").replace("/", "~1")
    added = patch.json_patch(
        obj, [{"op": "add", "path": path, "value": value}, {"op": "test", "path": path, "value": value}]
    )
    assert added[name] == value
    assert patch.json_patch(added, [{"op": "remove", "path": path}]) == {k: v for k, v in obj.items() if k != name}


@given(WITHOUT_NULLS, WITHOUT_NULLS)
def test_strategic_merge_without_lists_of_keys_is_a_merge_patch(obj: Any, change: Any) -> None:
    assert patch.strategic_merge_patch(obj, change) == patch.merge_patch(obj, change)


ITEMS = st.lists(st.sampled_from("abcdef"), unique=True, max_size=6)


@given(ITEMS, ITEMS)
def test_strategic_lists_keep_every_item_once(server: list[str], change: list[str]) -> None:
    obj = {"volumes": [{"name": n, "s": 1} for n in server]}
    merged = patch.strategic_merge_patch(obj, {"volumes": [{"name": n, "p": 1} for n in change]})["volumes"]
    names = [v["name"] for v in merged]
    assert sorted(names) == sorted({*server, *change})
    assert [n for n in names if n in change] == change
    assert all(("s" in v, "p" in v) == (v["name"] in server, v["name"] in change) for v in merged)


# --- quantities and selectors -----------------------------------------------------------------------------------

SUFFIXES = st.sampled_from(["", "m", "u", "n", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "e3", "E-2"])
NUMBERS = st.decimals(0, 10**6, places=3).map(lambda d: f"{d:f}")


@given(NUMBERS, SUFFIXES)
def test_canonical_quantities_mean_the_same_and_are_stable(number: str, suffix: str) -> None:
    parsed = quantity.parse(number + suffix)
    text = str(parsed)
    assert quantity.parse(text) == parsed
    assert quantity.canonical(text) == text


@given(st.integers(0, 2**60), st.integers(0, 2**60))
def test_quantities_order_as_numbers(left: int, right: int) -> None:
    one, two = quantity.quantity_from_bytes(left), quantity.quantity_from_bytes(right)
    assert (one < two) == (left < right)
    assert int(quantity.parse(str(one))) == left
    assert (one + two).value == Fraction(left + right)


@given(st.text(max_size=20))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    assert quantity.is_quantity(text) in {True, False}


KEYS = st.from_regex(r"[a-z]([a-z0-9.-]{0,8}[a-z0-9])?", fullmatch=True).filter(lambda k: k not in {"in", "notin"})
TERMS = st.one_of(
    KEYS, KEYS.map("!{}".format), st.tuples(KEYS, st.sampled_from(["=", "==", "!="]), KEYS).map("".join),
    st.tuples(KEYS, st.sampled_from(["in", "notin"]), st.lists(KEYS, min_size=1, max_size=3)).map(
        lambda t: f"{t[0]} {t[1]} ({','.join(t[2])})"
    ),
)  # fmt: skip


@given(st.lists(TERMS, max_size=4).map(",".join), st.dictionaries(KEYS, KEYS, max_size=4))
def test_printed_selectors_parse_to_themselves(text: str, labels: dict[str, str]) -> None:
    selector = selectors.parse_labels(text)
    again = selectors.parse_labels(str(selector))
    assert str(again) == str(selector)
    assert again.matches(labels) == selector.matches(labels)


@given(KEYS, KEYS, st.dictionaries(KEYS, KEYS, max_size=4))
def test_a_selector_and_its_negation_share_nothing(key: str, value: str, labels: dict[str, str]) -> None:
    for yes, no in (
        (f"{key}={value}", f"{key}!={value}"),
        (key, f"!{key}"),
        (f"{key} in ({value})", f"{key} notin ({value})"),
    ):
        assert selectors.parse_labels(yes).matches(labels) != selectors.parse_labels(no).matches(labels)


@given(st.text(max_size=30))
def test_any_text_is_a_selector_or_a_400(text: str) -> None:
    for parse in (selectors.parse_labels, selectors.parse_fields):
        assert _code(parse, text) in {0, 400}


@given(st.text(max_size=12).filter(lambda t: "\x00" not in t))
def test_field_values_survive_escaping(value: str) -> None:
    term = selectors.FieldTerm("metadata.name", value)
    assert selectors.parse_fields(str(term)).terms == (term,)


# --- schemas and ownership --------------------------------------------------------------------------------------

LEAF = st.sampled_from(
    [{"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": "object", sc.PRESERVE: True}]
)
SCHEMAS = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=3)}),
        st.fixed_dictionaries({"type": st.just("object"), "additionalProperties": inner}),
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
    ),
    max_leaves=8,
)


@given(SCHEMAS, VALUES)
def test_pruning_twice_is_pruning_once(schema: Any, value: Any) -> None:
    before = json.dumps(value)
    pruned, unknown = sc.prune(schema, value)
    assert sc.prune(schema, pruned) == (pruned, [])
    assert (pruned == value) == (not unknown)
    assert json.dumps(value) == before


@given(SCHEMAS, VALUES)
def test_defaulting_twice_is_defaulting_once_and_validation_always_answers(schema: Any, value: Any) -> None:
    defaulted = sc.default(schema, value)
    assert sc.default(schema, defaulted) == defaulted
    assert all(c["message"] for c in sc.validate(schema, defaulted))


FIELDS = st.sampled_from("abcd")
SPECS = st.fixed_dictionaries(
    {}, optional={"m": st.dictionaries(FIELDS, FIELDS, max_size=3),
                  "l": st.lists(st.fixed_dictionaries({"name": FIELDS}, optional={"v": FIELDS}), min_size=1, max_size=3,
                                unique_by=lambda i: i["name"])},
)  # fmt: skip
OWNED = sc.object_schema({"type": "object", "properties": {"spec": {"type": "object", "properties": {
    "m": {"type": "object", "additionalProperties": {"type": "string"}},
    "l": {"type": "array", sc.LIST_TYPE: "map", sc.LIST_KEYS: ["name"], "items": {
        "type": "object", "properties": {"name": {"type": "string"}, "v": {"type": "string"}}}},
}}}})  # fmt: skip


def _config(spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "W", "metadata": {"name": "n"}, "spec": spec}


def _writer(manager: str, step: int) -> ap.Writer:
    return ap.Writer(manager=manager, api_version="v1", time=f"2026-01-01T00:00:{step:02}Z", force=True)


@given(SPECS)
def test_field_sets_survive_their_json(spec: Any) -> None:
    paths = fieldset.paths_of(OWNED, _config(spec))
    assert fieldset.paths_from_fields(fieldset.fields_from_paths(paths)) == paths


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["x", "y"]), SPECS), min_size=1, max_size=5))
def test_what_is_applied_is_there_and_applying_it_again_changes_nothing(steps: list[tuple[str, Any]]) -> None:
    obj: dict[str, Any] | None = None
    for number, (manager, spec) in enumerate(steps):
        obj = ap.apply(OWNED, obj, _config(spec), _writer(manager, number))
        assert fieldset.merge(OWNED, obj, _config(spec)) == obj
        assert ap.apply(OWNED, obj, _config(spec), _writer(manager, 59)) == obj
    assert obj is not None
    for manager in {m for m, _ in steps}:
        obj = ap.apply(OWNED, obj, {k: v for k, v in _config({}).items() if k != "spec"}, _writer(manager, 58))
    assert "managedFields" not in obj["metadata"]
    assert not obj.get("spec")


# --- decoders ---------------------------------------------------------------------------------------------------


@given(OBJECTS)
def test_encoders_and_decoders_agree(value: Any) -> None:
    assert encoding.decode(encoding.encode(value)).value == value
    assert encoding.decode(encoding.encode_yaml(value), "application/yaml").value == value


@given(st.binary(max_size=60) | st.text(alphabet="{}[]:,-&*<>\"' \n\tab0.", max_size=40).map(str.encode))
def test_any_bytes_are_decoded_or_refused(body: bytes) -> None:
    for kind in ("application/json", "application/yaml"):
        with contextlib.suppress(encoding.DecodeError):
            encoding.encode(encoding.decode(body, kind).value)
    for raw in (body, protobuf.MAGIC + body):
        assert _code(protobuf.decode, raw) in {0, 400, 415}


@given(
    st.binary(max_size=80),
    st.sampled_from(["Secret", "ConfigMap", "Node", "PersistentVolume", "Event", "DeleteOptions"]),
)
def test_any_message_is_decoded_or_refused(raw: bytes, kind: str) -> None:
    head = b"\x0a\x02v1\x12" + bytes([len(kind)]) + kind.encode()
    body = protobuf.MAGIC + b"\x0a" + bytes([len(head)]) + head + b"\x12" + bytes([len(raw)]) + raw
    assert _code(lambda: encoding.encode(protobuf.decode(body))) in {0, 400}


def test_deep_values_do_not_overflow() -> None:
    with pytest.raises(encoding.DecodeError):
        encoding.decode(b'{"a":' * 5_000 + b"1" + b"}" * 5_000)
