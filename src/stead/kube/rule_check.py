"""Whether the CEL rules of a schema can be compiled: `x-kubernetes-validations` of a definition, before it is stored.

Called by `structural_rules`. A rule that this server could not evaluate is refused here, never skipped later. Pure.
Fields that a rule names on `self` are looked up in the schema, as CEL's type checker would. Texts follow cel-go and
apiextensions as recorded from kube-apiserver 1.36; where our parser knows less than cel-go its own words are used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from stead.kube.cel import Unsupported, compile_rule, is_transition
from stead.kube.errors import cause
from stead.kube.structural import EMBEDDED, INT_OR_STRING, PRESERVE, RULES, Schema

_REASONS = ("FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired")
_EXPECTED = (
    "expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, "
    "IDENTIFIER}"
)
_SCALARS = {"integer": "int", "number": "double", "string": "string", "boolean": "bool"}
_TEXT = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'')
_PATH = re.compile(r"(?<![\w.])self((?:\.[A-Za-z_]\w*)+)(\()?")
_COST = (
    "Forbidden: estimated messageExpression cost exceeds budget by factor of more than 100x (try simplifying the rule, "
    "or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
)
_TOTAL = "Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"
_SCHEMA_COST = (
    "Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by "
    "factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where "
    "arrays, maps, and strings are declared)"
)


def check_rules(schema: Schema, path: str, unrelated: str = "") -> Iterator[dict[str, str]]:
    """Causes for the rules of one schema node; `unrelated` is the path of a list above whose items have no past."""
    rules = schema.get(RULES) or ()
    for index, rule in enumerate(rules):
        yield from _check_rule(rule, schema, f"{path}.{RULES}[{index}]")
    if any(str(rule.get("reason") or _REASONS[0]) not in _REASONS or not _text_of(rule) for rule in rules):
        return
    for index, rule in enumerate(rules):
        place = f"{path}.{RULES}[{index}]"
        yield from _compiled(rule, schema, place)
        yield from _past(rule, place, unrelated)


def _past(rule: dict[str, Any], path: str, unrelated: str) -> Iterator[dict[str, str]]:
    """Causes for a rule that asks for an old value where there is none."""
    text = _text_of(rule)
    if is_transition(text):
        if unrelated:
            complaint = f"oldSelf cannot be used on the uncorrelatable portion of the schema within {unrelated}"
            yield cause(f"{path}.rule", f"Invalid value: {json.dumps(text, ensure_ascii=False)}: {complaint}")
    elif rule.get("optionalOldSelf") is not None:
        said = json.dumps(rule["optionalOldSelf"])
        complaint = "may not be set if oldSelf is not used in rule"
        yield cause(f"{path}.optionalOldSelf", f"Invalid value: {said}: {complaint}")


def _text_of(rule: dict[str, Any]) -> str:
    return str(rule.get("rule") or "").strip()


def _check_rule(rule: dict[str, Any], schema: Schema, path: str) -> Iterator[dict[str, str]]:
    if not _text_of(rule):
        yield cause(f"{path}.rule", "Required value: rule is not specified", "FieldValueRequired")
    reason = rule.get("reason")
    if reason is not None and reason not in _REASONS:
        listed = ", ".join(f'"{name}"' for name in _REASONS)
        text = f"Unsupported value: {json.dumps(reason)}: supported values: {listed}"
        yield cause(f"{path}.reason", text, "FieldValueNotSupported")
    message = str(rule.get("message") or "")
    if message and not message.strip():
        yield cause(
            f"{path}.message", "Invalid value: " + json.dumps(message) + ": message must be non-empty if specified"
        )
    elif "\n" in message or "\r" in message:
        yield cause(f"{path}.message", f"Invalid value: {json.dumps(message)}: must not contain line breaks")


def _compiled(rule: dict[str, Any], schema: Schema, path: str) -> Iterator[dict[str, str]]:
    if trouble := _trouble(_text_of(rule), schema):
        yield cause(f"{path}.rule", f"Invalid value: {_shown(rule)}: compilation failed: {trouble}")
        return
    expression = str(rule.get("messageExpression") or "").strip()
    if not expression:
        return
    if trouble := _trouble(expression, schema):
        text = f"Invalid value: {_shown(rule)}: messageExpression compilation failed: {trouble}"
        yield cause(f"{path}.messageExpression", text)
    elif "+" in expression and re.search(r"\bstring\(", expression):
        # Text made by string() has no known length, which the original's estimate of costs never forgives.
        yield cause(f"{path}.messageExpression", _COST, "FieldValueForbidden")
        yield cause(f"{path}.messageExpression", _TOTAL, "FieldValueForbidden")
        root = re.sub(r"(openAPIV3Schema).*", r"\1", path)
        yield cause(root, _SCHEMA_COST, "FieldValueForbidden")


def _trouble(text: str, schema: Schema) -> str:
    """Why a rule does not compile, or ""."""
    try:
        compile_rule(text)
    except Unsupported as error:
        if "unexpected end" in str(error):
            return _placed(text, len(text), f"Syntax error: mismatched input '<EOF>' {_EXPECTED}")
        return _placed(text, 0, str(error))
    return _unknown_field(text, schema)


def _placed(text: str, at: int, message: str) -> str:
    return f"ERROR: <input>:1:{at + 1}: {message}\n | {text}\n | {'.' * at}^"


def _unknown_field(text: str, schema: Schema) -> str:
    """What the type checker says about a field that `self` does not have."""
    bare = _TEXT.sub(lambda match: '"' + " " * (len(match[0]) - 2) + '"', text)
    for match in _PATH.finditer(bare):
        names = match[1][1:].split(".")
        if match[2]:
            names = names[:-1]
        at, here = match.start() + 4, schema
        for name in names:
            if here.get(INT_OR_STRING) or here.get(EMBEDDED) or (here.get(PRESERVE) and "properties" not in here):
                break
            if here.get("type") in _SCALARS:
                return _placed(text, at, f"type '{_SCALARS[here['type']]}' does not support field selection")
            declared = here.get("properties")
            if here.get("type") != "object" or not declared:
                break
            plain = name.replace("__dash__", "-").replace("__dot__", ".").replace("__slash__", "/").strip("_")
            found = declared.get(name) or declared.get(plain)
            if found is None:
                if name in ("apiVersion", "kind", "metadata"):
                    break
                return _placed(text, at, f"undefined field '{name}'")
            at, here = at + 1 + len(name), found
    return ""


def _shown(rule: dict[str, Any]) -> str:
    """A rule as Go prints the struct."""
    value = {
        "Rule": rule.get("rule") or "", "Message": rule.get("message") or "",
        "MessageExpression": rule.get("messageExpression") or "", "Reason": rule.get("reason"),
        "FieldPath": rule.get("fieldPath") or "", "OptionalOldSelf": rule.get("optionalOldSelf"),
    }  # fmt: skip
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
