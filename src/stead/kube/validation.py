"""Which rules of its schema an object breaks, in the API server's words.

Called through `schema`. Stateless but for compiled patterns and rules; safe from any thread. Follows go-openapi's
validator and apiextensions' list-type and CEL checks as recorded from kube-apiserver 1.36.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from stead.kube.cel import Unsupported, compile_rule, is_transition
from stead.kube.cel_values import NONE, Maybe, RuleError
from stead.kube.cel_view import view
from stead.kube.errors import cause
from stead.kube.gopattern import compile_go
from stead.kube.meta import parse_time
from stead.kube.structural import INT_OR_STRING, LIST_KEYS, LIST_TYPE, OBJECT_META, RULES, Schema, child, join, type_of

Causes = list[dict[str, str]]


#: stands for "there is no old value": rules that compare with it hold
ABSENT: Any = object()
#: reasons after which CEL rules are not tried
_BLOCKING = frozenset({
    "FieldValueNotSupported", "FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid",
})  # fmt: skip
_UNCHECKED = (
    "Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)


def validate(schema: Schema, value: Any, path: str = "", name: str | None = None, old: Any = ABSENT) -> Causes:
    """`details.causes` for all that breaks the schema, in schema order.

    `path` is the field path of causes; `name` the path that texts show, where that differs (the status subresource is
    validated with path "status" and name ""). `old` is the stored value of an update, for CEL rules that compare.
    Rules are checked only where all else is well, and a cause says so.
    """
    causes = _Validation().check(schema, value, path, path if name is None else name)
    return with_unchecked(schema, causes) if causes else list(_broken_rules(schema, value, old, path))


def with_unchecked(schema: Schema, causes: Causes) -> Causes:
    """`causes`, and one more if they keep rules of the schema from being checked."""
    said = any(each["message"] == _UNCHECKED for each in causes)
    unchecked = not said and has_rules(schema) and any(each.get("reason") in _BLOCKING for each in causes)
    return [*causes, cause("<nil>", _UNCHECKED)] if unchecked else causes


def _invalid(path: str, value: Any, text: str) -> dict[str, str]:
    return cause(path or "<nil>", f"Invalid value: {_shown(value)}: {text}")


def _too_many(path: str, count: int, most: int) -> dict[str, str]:
    items = "item" if most == 1 else "items"
    return cause(path, f"Too many: {count}: must have at most {most} {items}", "FieldValueTooMany")


def _shown(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


_JUNCTORS = frozenset({"allOf", "anyOf", "oneOf", "not"})


class _Validation:
    """The checks of one pass; no state, the class only groups them."""

    def check(self, schema: Schema, value: Any, path: str, name: str) -> Causes:
        if value is None and (schema.get("nullable") or "type" not in schema):
            return []
        causes = self._type(schema, value, path, name)
        if "enum" in schema:
            causes += self._enum(schema, value, path)
        if isinstance(value, str):
            causes += self._string(schema, value, path, name)
        elif isinstance(value, bool):
            pass
        elif isinstance(value, int | float):
            causes += self._number(schema, value, path, name)
        elif isinstance(value, list):
            causes += self._list(schema, value, path, name)
        elif isinstance(value, dict):
            causes += self._object(schema, value, path, name)
        if not _JUNCTORS.isdisjoint(schema):
            causes += self._junctors(schema, value, path, name)
        return causes

    def _type(self, schema: Schema, value: Any, path: str, name: str) -> Causes:
        actual = type_of(value)
        if schema.get(INT_OR_STRING):
            allowed = ["integer", "string"]
        elif wanted := schema.get("type"):
            allowed = [wanted]
        else:
            return []
        if actual in allowed or (actual == "integer" and allowed == ["number"]):
            return []
        text = f'Invalid value: "{actual}": {name} in body must be of type {",".join(allowed)}: "{actual}"'
        causes = [cause(path or "<nil>", text, "FieldValueTypeInvalid")]
        if actual == "number" and allowed == ["integer"]:
            kind = f"format {schema['format']}" if schema.get("format") else "(default format)"
            causes.append(cause("<nil>", f'Invalid value: "": Checked value must be of type integer {kind} in {name}'))
        return causes

    def _enum(self, schema: Schema, value: Any, path: str) -> Causes:
        allowed = schema.get("enum")
        if not allowed or value in allowed:
            return []
        listed = ", ".join(_shown(v) for v in allowed)
        text = f"Unsupported value: {_shown(value)}: supported values: {listed}"
        return [cause(path, text, "FieldValueNotSupported")]

    def _string(self, schema: Schema, value: str, path: str, name: str) -> Causes:
        causes: Causes = []
        longest, shortest, pattern = schema.get("maxLength"), schema.get("minLength"), schema.get("pattern")
        if longest is not None and len(value) > longest:
            causes.append(cause(path, f"Too long: may not be more than {longest} bytes", "FieldValueTooLong"))
        if shortest is not None and len(value) < shortest:
            causes.append(_invalid(path, value, f"{name} in body should be at least {shortest} chars long"))
        if pattern is not None and not compile_go(pattern).search(value):
            causes.append(_invalid(path, value, f"{name} in body should match '{pattern}'"))
        form = schema.get("format", "")
        if not _has_format(form, value):
            text = f"Invalid value: {_shown(value)}: {name} in body must be of type {form}: {_shown(value)}"
            causes.append(cause(path, text, "FieldValueTypeInvalid"))
        return causes

    def _number(self, schema: Schema, value: int | float, path: str, name: str) -> Causes:
        causes: Causes = []
        top, bottom, step = schema.get("maximum"), schema.get("minimum"), schema.get("multipleOf")
        if top is not None and (value > top or (value == top and schema.get("exclusiveMaximum"))):
            less = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
            causes.append(_invalid(path, value, f"{name} in body should be {less} {top}"))
        if bottom is not None and (value < bottom or (value == bottom and schema.get("exclusiveMinimum"))):
            more = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
            causes.append(_invalid(path, value, f"{name} in body should be {more} {bottom}"))
        if step and value % step:
            causes.append(_invalid(path, value, f"{name} in body should be a multiple of {step}"))
        form = schema.get("format")
        bits = {"int32": 31, "int64": 63}.get(form or "")
        if bits and schema.get("type") == "integer" and not -(2**bits) <= value < 2**bits:
            causes.append(
                cause("<nil>", f'Invalid value: "": Checked value must be of type integer with format {form} in {name}')
            )
        return causes

    def _list(self, schema: Schema, value: list[Any], path: str, name: str) -> Causes:
        causes: Causes = []
        most, least, items = schema.get("maxItems"), schema.get("minItems"), schema.get("items")
        if most is not None and len(value) > most:
            causes.append(_too_many(path, len(value), most))
        if least is not None and len(value) < least:
            causes.append(_invalid(path, len(value), f"{name} in body should have at least {least} items"))
        if isinstance(items, dict):
            for index, item in enumerate(value):
                causes += self.check(items, item, f"{path}[{index}]", f"{name}[{index}]")
        return causes + list(_duplicates(schema, value, path))

    def _object(self, schema: Schema, value: dict[str, Any], path: str, name: str) -> Causes:
        causes: Causes = []
        most, least = schema.get("maxProperties"), schema.get("minProperties")
        if most is not None and len(value) > most:
            causes.append(_too_many(path, len(value), most))
        if least is not None and len(value) < least:
            causes.append(_invalid(path, len(value), f"{name} in body should have at least {least} properties"))
        for key in schema.get("required", []):
            if key not in value:
                causes.append(cause(join(path, key), "Required value", "FieldValueRequired"))
        for key, item in value.items():
            inner = child(schema, key)
            # The metadata of an object has rules of its own (see `type_mismatch` and `meta.validate_metadata`).
            if inner is not None and inner is not OBJECT_META:
                causes += self.check(inner, item, join(path, key), join(name, key))
        return causes

    def _junctors(self, schema: Schema, value: Any, path: str, name: str) -> Causes:
        causes: Causes = []
        for part in schema.get("allOf", []):
            causes += self.check(part, value, path, name)
        if options := schema.get("anyOf"):
            results = [self.check(o, value, path, name) for o in options]
            if all(results):
                causes.append(
                    _invalid(path, _summary(value), f"{name} in body must validate at least one schema (anyOf)")
                )
                causes += results[0]
        if options := schema.get("oneOf"):
            results = [self.check(o, value, path, name) for o in options]
            valid = sum(not r for r in results)
            if valid != 1:
                found = "Found none valid" if not valid else f"Found {valid} valid alternatives"
                text = f"{name} in body must validate one and only one schema (oneOf). {found}"
                causes.append(_invalid(path, _summary(value), text))
                causes += results[0] if not valid else []
        if (inverse := schema.get("not")) and not self.check(inverse, value, path, name):
            causes.append(_invalid(path, _summary(value), f"{name} in body must not validate the schema (not)"))
        return causes


def _summary(value: Any) -> Any:
    """What messages show of a structure: nothing."""
    return "" if isinstance(value, dict | list) else value


def _has_format(form: str, value: str) -> bool:
    if form == "date-time":
        try:
            parse_time(value)
        except ValueError:
            return False
    elif form == "date":
        return re.fullmatch(r"\d{4}-\d{2}-\d{2}", value) is not None
    elif form == "uuid":
        return re.fullmatch(r"(?i)[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", value) is not None
    elif form == "byte":
        return re.fullmatch(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", value) is not None
    return True


def _duplicates(schema: Schema, value: list[Any], path: str) -> Iterator[dict[str, str]]:
    """Causes for items that a set or map list holds twice."""
    kind = schema.get(LIST_TYPE)
    if kind not in {"set", "map"}:
        return
    keys = schema.get(LIST_KEYS, [])
    seen: set[str] = set()
    for index, item in enumerate(value):
        if kind == "map":
            if not isinstance(item, dict):
                continue
            item = {k: item[k] for k in sorted(keys) if k in item}
        text = _shown(item)
        if text in seen:
            yield cause(f"{path}[{index}]", f"Duplicate value: {text}", "FieldValueDuplicate")
        seen.add(text)


# --- CEL rules --------------------------------------------------------------------------------------------------

_REASONS = {
    "FieldValueForbidden": "Forbidden: {text}",
    "FieldValueRequired": "Required value: {text}",
    "FieldValueDuplicate": "Duplicate value: {shown}",
}


def has_rules(schema: Schema) -> bool:
    """Whether the schema or anything below it carries `x-kubernetes-validations`."""
    if schema.get(RULES):
        return True
    below = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    return any(isinstance(s, dict) and has_rules(s) for s in below)


def _broken_rules(schema: Schema, value: Any, old: Any, path: str) -> Iterator[dict[str, str]]:
    if value is None:
        return
    for rule in schema.get(RULES, []):
        if found := _broken_rule(rule, _Sides(schema, value, old), path):
            yield found
    if isinstance(value, dict):
        olds = old if isinstance(old, dict) else {}
        for key, item in value.items():
            inner = child(schema, key)
            if inner is not None and inner is not OBJECT_META and (isinstance(item, dict | list) or inner.get(RULES)):
                yield from _broken_rules(inner, item, olds.get(key, ABSENT), join(path, key))
    elif isinstance(value, list) and isinstance(items := schema.get("items"), dict):
        olds = {_map_key(schema, item): item for item in old} if isinstance(old, list) else {}
        olds.pop("", None)
        for index, item in enumerate(value):
            yield from _broken_rules(items, item, olds.get(_map_key(schema, item), ABSENT), f"{path}[{index}]")


def _map_key(schema: Schema, item: Any) -> str:
    """What tells an item of a map list apart in old and new; "" in other lists, whose items have no past."""
    if schema.get(LIST_TYPE) != "map" or not isinstance(item, dict):
        return ""
    return _shown([item.get(key) for key in schema.get(LIST_KEYS, [])])


class _Sides:
    """What a rule looks at, as its schema types it."""

    def __init__(self, schema: Schema, value: Any, old: Any) -> None:
        self.value = value
        self.is_new = old is ABSENT
        self._schema, self._old = schema, old

    def evaluate(self, text: str, is_optional: bool) -> Any:
        """The result of a rule or message; `oldSelf` is an optional where the rule says so. Raises RuleError."""
        old = None if self.is_new else view(self._schema, self._old)
        if is_optional:
            old = NONE if self.is_new else Maybe(old)
        return compile_rule(text)(view(self._schema, self.value), old)


def _broken_rule(rule: dict[str, Any], sides: _Sides, path: str) -> dict[str, str] | None:
    text: str = rule.get("rule", "")
    is_optional = rule.get("optionalOldSelf") is True
    if sides.is_new and is_transition(text) and not is_optional:
        return None
    place, value = path + rule.get("fieldPath", ""), sides.value
    message = rule.get("message") or f"failed rule: {text.strip()}"
    try:
        if sides.evaluate(text, is_optional) is True:
            return None
        if expression := rule.get("messageExpression"):
            message = _message(sides, expression, is_optional) or message
    except Unsupported as error:
        message = f"rule compile error: {error}"
    except RuleError as error:
        message = f"{error} evaluating rule: {rule.get('message') or text.strip()}"
    shown = "" if isinstance(value, dict | list) else _shown(value)
    reason = rule.get("reason") or "FieldValueInvalid"
    plain = f"Invalid value: {shown}: {message}" if shown else f"Invalid value: {message}"
    worded = _REASONS[reason].format(text=message, shown=shown) if reason in _REASONS else plain
    return cause(place, worded, reason)


def _message(sides: _Sides, expression: str, is_optional: bool) -> str:
    """What a message expression says; "" where it fails or gives no line of text: the rule's message then stands."""
    try:
        said = sides.evaluate(expression, is_optional)
    except RuleError:
        return ""
    return said if isinstance(said, str) and said.strip() and "\n" not in said and len(said) <= 5 * 1024 else ""


# --- Go's decoder -----------------------------------------------------------------------------------------------

_GO_KIND = {"object": "object", "array": "array", "string": "string", "integer": "number", "number": "number"}
_GO_TYPE = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool"}


def type_mismatch(schema: Schema, obj: dict[str, Any], kind: str) -> str | None:
    """The first type error as Go's JSON decoder words it, or None. For built-in kinds and any object's metadata.

    kube-apiserver answers these with 400 `<Kind> in version "<v>" cannot be handled as a <Kind>: <this text>`. Pass
    `{"properties": {"metadata": OBJECT_META}}` for custom resources, whose other fields are validated with causes.
    """
    declared = schema.get("properties", {})
    if declared.keys() == {"metadata"}:
        return _mismatch(declared["metadata"], obj.get("metadata"), "ObjectMeta")
    return _mismatch(schema, obj, kind)


def restore_error(schema: Schema, value: Any) -> str:
    """Why a value cannot be put back into Go's type, in the words of a strategic merge; "" where it can."""
    if value is None or schema.get(INT_OR_STRING):
        return ""
    actual, wanted = type_of(value), schema.get("type")
    if wanted is not None and actual != wanted and (actual, wanted) != ("integer", "number"):
        given = _GO_VALUE.get(actual, actual)
        if wanted == "object":
            return (
                f"cannot restore struct from: {given}" if "properties" in schema else f"cannot restore map from {given}"
            )
        if wanted == "array":
            return f"cannot restore slice from {given}"
        return f"cannot convert {given} to {_GO_VALUE.get(wanted, wanted)}"
    if isinstance(value, dict):
        pairs: Any = ((child(schema, key) or {}, held) for key, held in value.items())
    elif isinstance(value, list):
        pairs = ((schema.get("items") or {}, held) for held in value)
    else:
        return ""
    return next((why for inner, held in pairs if (why := restore_error(inner, held))), "")


_GO_VALUE = {"integer": "int64", "number": "float64", "boolean": "bool", "object": "map", "array": "slice"}


def _mismatch(schema: Schema, value: Any, where: str) -> str | None:
    if value is None:
        return None
    actual, wanted = type_of(value), schema.get("type")
    matches = wanted is None or actual == wanted or (wanted == "number" and actual == "integer")
    if schema.get(INT_OR_STRING):
        matches = actual in {"integer", "string"}
    if not matches:
        kind, _, rest = where.partition(".metadata")
        field = f"ObjectMeta.metadata{rest}" if rest and "." not in kind else where
        target = _GO_TYPE.get(str(wanted), "map[string]interface {}" if wanted == "object" else "[]interface {}")
        return f"json: cannot unmarshal {_GO_KIND.get(actual, 'bool')} into Go struct field {field} of type {target}"
    if isinstance(value, dict):
        pairs = ((child(schema, k), v, f"{where}.{k}" if "properties" in schema else where) for k, v in value.items())
    elif isinstance(value, list):
        pairs = ((schema.get("items"), v, where) for v in value)
    else:
        return None
    return next((text for s, v, p in pairs if isinstance(s, dict) and (text := _mismatch(s, v, p))), None)
