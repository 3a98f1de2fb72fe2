"""The part of CEL that validation rules in schemas use, compiled to closures.

Called by `validation` for `x-kubernetes-validations`. Covers `self`, `oldSelf`, fields, indexes, literals, lists,
maps, arithmetic, comparison, `in`, `&& || ! ?:`, `has`, the macros all, exists, exists_one, filter and map, and the
functions of `cel_functions`. Anything else raises `Unsupported` when a rule is compiled, so that it is refused rather
than skipped. No loops but over given lists, and expressions are short:
evaluation is bounded. Compiled rules are cached; safe from any thread. Source: the CEL language definition.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from stead.kube.cel_functions import FUNCTIONS, RuleError

#: longest rule that we compile, and its deepest nesting
MAX_RULE_LENGTH = 4096
_MAX_DEPTH = 40

Env = dict[str, Any]
Node = Callable[[Env], Any]


class Unsupported(ValueError):
    """The rule is no CEL, or uses more of it than this module knows."""


_TOKEN_RE = re.compile(
    r"""\s*(?:
        (?P<number>\d+\.\d+(?:[eE][-+]?\d+)?|0x[0-9a-fA-F]+|\d+)u?
      | (?P<long>r?(?:"{3}(?:\\.|[^\\])*?"{3}|'{3}(?:\\.|[^\\])*?'{3}))
      | (?P<text>r?(?:"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<op>==|!=|<=|>=|&&|\|\||[-+*/%<>!?:.,()\[\]{}])
    )""",
    re.VERBOSE,
)
_LITERALS: dict[str, Any] = {"true": True, "false": False, "null": None}
_MACROS = frozenset({"all", "exists", "exists_one", "existsOne", "filter", "map"})
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


@lru_cache(maxsize=1024)
def compile_rule(rule: str) -> Callable[[Any, Any], Any]:
    """A function of (self, oldSelf) for a CEL expression. Raises Unsupported; the function raises RuleError."""
    if len(rule) > MAX_RULE_LENGTH:
        raise Unsupported(f"rule is longer than {MAX_RULE_LENGTH} characters")
    node = _Parser(_tokens(rule)).parse()

    def evaluate(value: Any, old: Any = None) -> Any:
        try:
            return node({"self": value, "oldSelf": old})
        except (TypeError, ValueError, ZeroDivisionError, re.error) as error:
            raise RuleError(str(error)) from error

    return evaluate


def is_transition(rule: str) -> bool:
    """Whether the rule compares with the old value, and so holds for a create."""
    return re.search(r"\boldSelf\b", rule) is not None


def _tokens(rule: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    position, end = 0, len(rule.rstrip())
    while position < end:
        match = _TOKEN_RE.match(rule, position)
        if not match or not match.lastgroup:
            raise Unsupported(f"syntax error at position {position}")
        tokens.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent by precedence; every method returns a closure over the environment."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._position = 0
        self._depth = 0
        self._scope = ["self", "oldSelf"]

    def parse(self) -> Node:
        """The whole expression."""
        node = self._ternary()
        if self._position < len(self._tokens):
            raise Unsupported(f"unexpected {self._tokens[self._position][1]!r}")
        return node

    def _at(self, *ops: str) -> str:
        """The operator (or the word `in`) at hand if it is one of these, taken; else ""."""
        if self._position < len(self._tokens):
            kind, text = self._tokens[self._position]
            if text in ops and (kind == "op" or text == "in"):
                self._position += 1
                return text
        return ""

    def _expect(self, op: str) -> None:
        if not self._at(op):
            raise Unsupported(f"expected {op!r}")

    def _name(self) -> str:
        kind, text = self._tokens[self._position] if self._position < len(self._tokens) else ("", "")
        if kind != "name":
            raise Unsupported(f"expected a name, found {text!r}")
        self._position += 1
        return text

    def _ternary(self) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise Unsupported("nested too deeply")
        node = self._or()
        if self._at("?"):
            yes = self._ternary()
            self._expect(":")
            no, test = self._ternary(), node
            node = lambda env: yes(env) if _truth(test(env)) else no(env)  # noqa: E731 - all nodes are lambdas
        self._depth -= 1
        return node

    def _or(self) -> Node:
        node = self._and()
        while self._at("||"):
            node = _logical(node, self._and(), decisive=True)
        return node

    def _and(self) -> Node:
        node = self._binary(0)
        while self._at("&&"):
            node = _logical(node, self._binary(0), decisive=False)
        return node

    def _binary(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self._unary()
        node = self._binary(level + 1)
        while op := self._at(*_LEVELS[level]):
            node = _operation(_OPERATORS[op], node, self._binary(level + 1))
        return node

    def _unary(self) -> Node:
        if self._at("!"):
            inner = self._unary()
            return lambda env: not _truth(inner(env))
        if self._at("-"):
            inner = self._unary()
            return lambda env: -_number(inner(env))
        return self._member()

    def _member(self) -> Node:
        node = self._primary()
        while True:
            if self._at("."):
                name = self._name()
                node = self._call(node, name) if self._at("(") else _field(node, name)
            elif self._at("["):
                index = self._ternary()
                self._expect("]")
                node = _operation(_index, node, index)
            else:
                return node

    def _call(self, target: Node, name: str) -> Node:
        if name in _MACROS:
            return self._macro_call(target, name)
        return _function(name, [target, *self._arguments()])

    def _macro_call(self, target: Node, name: str) -> Node:
        variable = self._name()
        self._expect(",")
        self._scope.append(variable)
        body = self._ternary()
        if name == "map" and self._at(","):
            target, body = _macro("filter", target, variable, body), self._ternary()
        self._scope.pop()
        self._expect(")")
        return _macro(name, target, variable, body)

    def _arguments(self) -> list[Node]:
        arguments: list[Node] = []
        if self._at(")"):
            return arguments
        while True:
            arguments.append(self._ternary())
            if self._at(")"):
                return arguments
            self._expect(",")

    def _primary(self) -> Node:
        if self._at("("):
            node = self._ternary()
            self._expect(")")
            return node
        if self._at("["):
            return self._list()
        if self._at("{"):
            return self._map()
        if self._position >= len(self._tokens):
            raise Unsupported("unexpected end of the rule")
        kind, text = self._tokens[self._position]
        self._position += 1
        if kind == "op":
            raise Unsupported(f"unexpected {text!r}")
        if kind != "name" or text in _LITERALS:
            value = _LITERALS[text] if kind == "name" else _literal(kind, text)
            return lambda env: value
        if self._at("("):
            return self._has() if text == "has" else _function(text, self._arguments())
        if text not in self._scope:
            raise Unsupported(f"undeclared reference to '{text}' (in container '')")
        return lambda env: _variable(env, text)

    def _has(self) -> Node:
        start = self._position
        node = self._member()
        if not (self._position - start >= 3 and self._tokens[self._position - 2] == ("op", ".")):
            raise Unsupported("has() needs a field")
        self._expect(")")
        return lambda env: _is_present(node, env)

    def _list(self) -> Node:
        items: list[Node] = []
        while not self._at("]"):
            items.append(self._ternary())
            if not self._at(","):
                self._expect("]")
                break
        return lambda env: [item(env) for item in items]

    def _map(self) -> Node:
        pairs: list[tuple[Node, Node]] = []
        while not self._at("}"):
            key = self._ternary()
            self._expect(":")
            pairs.append((key, self._ternary()))
            if not self._at(","):
                self._expect("}")
                break
        return lambda env: {key(env): value(env) for key, value in pairs}


# --- nodes ------------------------------------------------------------------------------------------------------


def _literal(kind: str, text: str) -> Any:
    if kind == "number":
        return float(text) if "." in text else int(text, 0) if text.startswith("0x") else int(text)
    quotes = 3 if kind == "long" else 1
    if text[0] == "r":
        return text[1 + quotes : -quotes]
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), text[quotes:-quotes])


def _variable(env: Env, name: str) -> Any:
    if name not in env:
        raise RuleError(f"undeclared reference to '{name}'")
    return env[name]


def _field(node: Node, name: str) -> Node:
    # Names that are no CEL identifiers are escaped in rules.
    name = name.replace("__dash__", "-").replace("__dot__", ".").replace("__slash__", "/")

    def read(env: Env) -> Any:
        value = node(env)
        if not isinstance(value, dict) or name not in value:
            raise RuleError(f"no such key: {name}")
        return value[name]

    return read


def _is_present(node: Node, env: Env) -> bool:
    try:
        node(env)
    except RuleError:
        return False
    return True


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RuleError("no such overload")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RuleError("no such overload")
    return value


def _logical(left: Node, right: Node, *, decisive: bool) -> Node:
    """`||` (decisive true) or `&&` (decisive false): the deciding side wins even if the other fails."""

    def evaluate(env: Env) -> bool:
        try:
            if _truth(left(env)) is decisive:
                return decisive
        except RuleError:
            if _truth(right(env)) is decisive:
                return decisive
            raise
        return _truth(right(env))

    return evaluate


def _operation(function: Callable[[Any, Any], Any], left: Node, right: Node) -> Node:
    return lambda env: function(left(env), right(env))


def _equal(left: Any, right: Any) -> bool:
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _index(value: Any, index: Any) -> Any:
    if isinstance(value, dict) and index in value:
        return value[index]
    if isinstance(value, list) and isinstance(index, int) and 0 <= index < len(value):
        return value[index]
    raise RuleError(f"no such key: {index}")


def _contains(item: Any, container: Any) -> bool:
    if isinstance(container, list | dict):
        return any(_equal(item, other) for other in container)
    raise RuleError("no such overload")


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def check(left: Any, right: Any) -> bool:
        if not (isinstance(left, str) and isinstance(right, str)):
            _number(left), _number(right)
        return compare(left, right)

    return check


def _divide(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        quotient = abs(left) // abs(right)
        return quotient if (left < 0) == (right < 0) else -quotient
    return _number(left) / _number(right)


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        return left + right
    if isinstance(left, list) and isinstance(right, list):
        return [*left, *right]
    return _number(left) + _number(right)


_LEVELS: tuple[tuple[str, ...], ...] = (("==", "!=", "<=", ">=", "<", ">", "in"), ("+", "-"), ("*", "/", "%"))
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": _equal,
    "!=": lambda a, b: not _equal(a, b),
    "<=": _ordered(lambda a, b: a <= b),
    ">=": _ordered(lambda a, b: a >= b),
    "<": _ordered(lambda a, b: a < b),
    ">": _ordered(lambda a, b: a > b),
    "in": _contains,
    "+": _add,
    "-": lambda a, b: _number(a) - _number(b),
    "*": lambda a, b: _number(a) * _number(b),
    "/": _divide,
    "%": lambda a, b: _number(a) - _divide(a, b) * b,
}


def _function(name: str, arguments: list[Node]) -> Node:
    function = FUNCTIONS.get((name, len(arguments)))
    if function is None:
        raise Unsupported(f"undeclared reference to '{name}' (in container '')")

    def call(env: Env) -> Any:
        try:
            return function(*(argument(env) for argument in arguments))
        except (TypeError, AttributeError) as error:
            raise RuleError("no such overload") from error

    return call


def _macro(name: str, target: Node, variable: str, body: Node) -> Node:
    def items(env: Env) -> list[Any]:
        value = target(env)
        if not isinstance(value, list | dict):
            raise RuleError("no such overload")
        return list(value)

    def results(env: Env) -> list[Any]:
        return [body({**env, variable: item}) for item in items(env)]

    match name:
        case "all":
            return lambda env: all(map(_truth, results(env)))
        case "exists":
            return lambda env: any(map(_truth, results(env)))
        case "exists_one" | "existsOne":
            return lambda env: sum(map(_truth, results(env))) == 1
        case "filter":
            return lambda env: [i for i, keep in zip(items(env), results(env), strict=True) if _truth(keep)]
    return results
