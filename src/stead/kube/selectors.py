"""Label and field selectors: text → requirements → does this object match?

The server parses query parameters with `parse_labels` and `parse_fields`; controllers read `LabelSelector` objects with
`labels_from_object`. A parsed selector is immutable and hashable by its canonical text, so that a watch index can share
one evaluation among equal selectors. Safe from any thread. Grammar and error texts follow apimachinery's `labels` and
`fields` packages as recorded from kube-apiserver 1.36. A syntax error is `ApiError("BadRequest", …)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from stead.kube.errors import ApiError
from stead.kube.meta import first_at, go_quote, label_value_errors, qualified_name_errors, scalar_text

#: longest selector text that we parse; far above what any client sends
MAX_SELECTOR_LENGTH = 64 * 1024


class Requirement(msgspec.Struct, frozen=True):
    """One term. `op` is exists | ! | = | == | != | in | notin | gt | lt; `values` are sorted for in and notin."""

    key: str
    op: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels satisfy this term; `!=` and `notin` are true for an absent key, as in Kubernetes."""
        value = labels.get(self.key)
        match self.op:
            case "exists":
                return value is not None
            case "!":
                return value is None
            case "=" | "==" | "in":
                return value in self.values
            case "!=" | "notin":
                return value not in self.values
        return value is not None and self._compare(value)

    def _compare(self, value: str) -> bool:
        if not _INTEGER_RE.fullmatch(value):
            return False
        return int(value) > int(self.values[0]) if self.op == "gt" else int(value) < int(self.values[0])

    def __str__(self) -> str:
        match self.op:
            case "exists":
                return self.key
            case "!":
                return "!" + self.key
            case "in" | "notin":
                return f"{self.key} {self.op} ({','.join(self.values)})"
            case "gt" | "lt":
                return f"{self.key}{'>' if self.op == 'gt' else '<'}{self.values[0]}"
        return f"{self.key}{self.op}{self.values[0]}"


class LabelSelector(msgspec.Struct, frozen=True):
    """A conjunction of requirements; empty selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        """Whether all requirements hold for an object's labels (None = no labels)."""
        return all(r.matches(labels or {}) for r in self.requirements)

    def __bool__(self) -> bool:
        return bool(self.requirements)

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements))


class FieldTerm(msgspec.Struct, frozen=True):
    """One `field=value` or `field!=value` term."""

    field: str
    value: str
    equal: bool = True

    def __str__(self) -> str:
        escaped = self.value.replace("\\", "\\\\").replace(",", "\\,").replace("=", "\\=")
        return f"{self.field}{'=' if self.equal else '!='}{escaped}"


class FieldSelector(msgspec.Struct, frozen=True):
    """A conjunction of field terms; empty selects everything."""

    terms: tuple[FieldTerm, ...] = ()

    def matches(self, obj: dict[str, Any], read: Callable[[dict[str, Any], str], str] | None = None) -> bool:
        """Whether all terms hold. An absent field counts as "". `read(object, field)` overrides the path reader."""
        reader = read or field_value
        return all((reader(obj, t.field) == t.value) is t.equal for t in self.terms)

    def exact(self, field: str) -> str | None:
        """The value that the selector pins `field` to, or None: lets a list by metadata.name become a get."""
        return next((t.value for t in self.terms if t.field == field and t.equal), None)

    def __bool__(self) -> bool:
        return bool(self.terms)

    def __str__(self) -> str:
        return ",".join(map(str, self.terms))


EVERYTHING = LabelSelector()
ALL_FIELDS = FieldSelector()


def field_value(obj: dict[str, Any], field: str) -> str:
    """The text of a field by path; absent is "", false of an absent boolean likewise is what the caller maps."""
    return scalar_text(first_at(obj, field))


# --- labels -----------------------------------------------------------------------------------------------------

_INTEGER_RE = re.compile(r"[+-]?\d{1,19}")
_WORD_RE = re.compile(r"\s*(==|!=|[=!()<>,]|[^\s=!()<>,]+)")
_SYMBOLS = frozenset(["=", "==", "!=", "!", "(", ")", "<", ">", ","])
_WORDS = frozenset({"in", "notin"})
_BEGIN = "!, identifier, or 'end of string'"


def parse_labels(text: str) -> LabelSelector:
    """The label selector that `text` (a `labelSelector` parameter) stands for."""
    if len(text) > MAX_SELECTOR_LENGTH:
        raise ApiError("BadRequest", f"selector too long: may not be more than {MAX_SELECTOR_LENGTH} bytes")
    requirements = _LabelParser(_WORD_RE.findall(text)).parse()
    return LabelSelector(tuple(sorted(requirements, key=lambda r: r.key)))


class _LabelParser:
    """Recursive descent over tokens; "" stands for the end of the text."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._position = 0

    def _peek(self) -> str:
        return self._words[self._position] if self._position < len(self._words) else ""

    def _next(self) -> str:
        word = self._peek()
        self._position += 1
        return word

    def parse(self) -> list[Requirement]:
        requirements: list[Requirement] = []
        while word := self._peek():
            if word in _SYMBOLS and word != "!":
                raise ApiError("BadRequest", f"found '{word}', expected: {_BEGIN}")
            try:
                requirements.append(self._requirement())
            except ApiError as error:
                raise ApiError("BadRequest", f"unable to parse requirement: {error.message}") from error
            separator = self._next()
            if not separator:
                break
            if separator != ",":
                raise ApiError("BadRequest", f"found '{separator}', expected: ',' or 'end of string'")
            following = self._peek()
            if (following in _SYMBOLS and following != "!") or not following:
                raise ApiError("BadRequest", f"found '{following}', expected: identifier after ','")
        return requirements

    def _requirement(self) -> Requirement:
        negated = self._peek() == "!"
        if negated:
            self._next()
        key = self._next()
        if not key or key in _SYMBOLS:
            raise ApiError("BadRequest", f"found '{key}', expected: identifier")
        _check_key(key)
        if negated or self._peek() in {"", ","}:
            return Requirement(key, "!" if negated else "exists")
        op = self._next()
        if op in {"in", "notin"}:
            return _checked(key, op, self._values())
        if op not in {"=", "==", "!=", ">", "<"}:
            raise ApiError("BadRequest", f"found '{op}', expected: in, notin, =, ==, !=, gt, lt")
        return _checked(key, {">": "gt", "<": "lt"}.get(op, op), [self._exact_value()])

    def _exact_value(self) -> str:
        if self._peek() in {"", ","}:
            return ""
        value = self._next()
        if value in _SYMBOLS:
            raise ApiError("BadRequest", f"found '{value}', expected: identifier")
        return value

    def _values(self) -> list[str]:
        if (word := self._next()) != "(":
            raise ApiError("BadRequest", f"found '{word}' expected: '('")
        if self._peek() == "" or self._peek() in _SYMBOLS - {",", ")"}:
            raise ApiError("BadRequest", f"found '{self._peek()}', expected: ',', ')' or identifier")
        values: list[str] = []
        expect_value = True
        while True:
            word = self._next()
            if word == ")":
                return [*values, ""] if expect_value else values
            if word == ",":
                if expect_value:
                    values.append("")
                expect_value = True
            elif not word or word in _SYMBOLS or not expect_value:
                expected = "',', or identifier" if word and expect_value else "',' or ')'"
                raise ApiError("BadRequest", f"found '{word}', expected: {expected}")
            else:
                values.append(word)
                expect_value = False


def _check_key(key: str) -> None:
    if errors := qualified_name_errors(key):
        raise ApiError("BadRequest", f"<nil>: Invalid value: {go_quote(key)}: {'; '.join(errors)}")


def _checked(key: str, op: str, values: list[str]) -> Requirement:
    for index, value in enumerate(values):
        if op in {"gt", "lt"} and not _INTEGER_RE.fullmatch(value):
            text = "for 'Gt', 'Lt' operators, the value must be an integer"
            raise ApiError("BadRequest", f"values[{index}]: Invalid value: {go_quote(value)}: {text}")
        if errors := label_value_errors(value):
            text = "; ".join(errors)
            raise ApiError("BadRequest", f"values[{index}][{key}]: Invalid value: {go_quote(value)}: {text}")
    return Requirement(key, op, tuple(sorted(set(values))) if op in {"in", "notin"} else tuple(values))


def labels_from_object(selector: dict[str, Any] | None) -> LabelSelector | None:
    """A `metav1.LabelSelector` object as a selector. None (absent) selects nothing and gives None; {} selects all.

    Raises `ApiError("BadRequest")` for an unknown operator or a bad key or value.
    """
    if selector is None:
        return None
    terms = [_checked(k, "=", [v]) for k, v in (selector.get("matchLabels") or {}).items()]
    operators = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}
    for expression in selector.get("matchExpressions") or []:
        op = operators.get(expression.get("operator", ""))
        if op is None:
            shown = go_quote(expression.get("operator", ""))
            raise ApiError("BadRequest", f"{shown} is not a valid label selector operator")
        _check_key(expression.get("key", ""))
        values = expression.get("values") or []
        if (op in _WORDS) != bool(values):
            needed = "must be specified" if op in _WORDS else "may not be specified"
            raise ApiError("BadRequest", f"values {needed} when `operator` is {go_quote(expression['operator'])}")
        terms.append(_checked(expression["key"], op, values))
    return LabelSelector(tuple(sorted(terms, key=lambda r: r.key)))


# --- fields -----------------------------------------------------------------------------------------------------


def parse_fields(text: str) -> FieldSelector:
    """The field selector that `text` (a `fieldSelector` parameter) stands for. Repeated terms are kept once."""
    if len(text) > MAX_SELECTOR_LENGTH:
        raise ApiError("BadRequest", f"selector too long: may not be more than {MAX_SELECTOR_LENGTH} bytes")
    terms: dict[FieldTerm, None] = {}
    for part in _split_terms(text):
        if part:
            terms[_field_term(part, text)] = None
    return FieldSelector(tuple(terms))


def _split_terms(text: str) -> list[str]:
    """Split at commas that no backslash escapes."""
    return re.findall(r"(?:\\.|[^,\\]|\\$)+", text, re.DOTALL)


def _field_term(part: str, whole: str) -> FieldTerm:
    match = re.match(r"((?:\\.|[^\\=!]|!(?!=))*)(!=|==|=)(.*)", part, re.DOTALL)
    if not match:
        raise ApiError("BadRequest", f"invalid selector: '{whole}'; can't understand '{part}'")
    field, op, raw = match.groups()
    return FieldTerm(field, _unescape(raw), op != "!=")


def _unescape(raw: str) -> str:
    out: list[str] = []
    chars = iter(raw)
    for char in chars:
        if char == "\\":
            following = next(chars, "")
            if following not in {"\\", ",", "="} or not following:
                raise ApiError("BadRequest", f"invalid field selector: invalid escape sequence: \\{following}")
            out.append(following)
        elif char in "=,":
            text = f"invalid field selector: unescaped character in value: {ord(char)}"
            raise ApiError("BadRequest", text)
        else:
            out.append(char)
    return "".join(out)


def check_fields(selector: FieldSelector, allowed: tuple[str, ...], *, tabled: bool) -> None:
    """Refuse terms on fields that the kind does not offer.

    `allowed` holds the fields besides metadata.name and metadata.namespace. `tabled`: the kind has a table of
    selectable fields (custom resources, and built-ins such as Secret or Event), which changes the words of the refusal.
    """
    for term in selector.terms:
        if term.field in {"metadata.name", "metadata.namespace"} or term.field in allowed:
            continue
        if tabled:
            raise ApiError("BadRequest", f"field label not supported: {term.field}")
        text = f'"{term.field}" is not a known field selector: only "metadata.name", "metadata.namespace"'
        raise ApiError("BadRequest", text)
