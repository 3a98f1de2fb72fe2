"""CEL as validation rules in schemas use it, compiled to closures.

Called by `validation` for `x-kubernetes-validations`. Knows `self`, `oldSelf`, the language with its macros and
optionals, and the functions of `cel_functions` and `cel_library`: what Kubernetes 1.34 gives to such rules. Anything
else raises `Unsupported` when a rule is compiled, so that it is refused rather than skipped. No loops but over given
lists, and each evaluation has a budget. Expressions are not typed: a wrong type is found when the rule is evaluated.
Compiled rules are cached; safe from any thread. Source: the CEL language definition.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from stead.kube import cel_macros
from stead.kube.cel_functions import CALLS, METHODS
from stead.kube.cel_macros import Env, Macro, Node
from stead.kube.cel_operators import LEVELS, OPERATORS, field, find, find_field, index, negative, truth
from stead.kube.cel_tokens import Unsupported, field_name, literal, tokens_of
from stead.kube.cel_values import TYPES, Maybe, RuleError, evaluating, no_overload, spend

__all__ = ["MAX_RULE_LENGTH", "RuleError", "Unsupported", "compile_rule", "is_transition"]

#: longest rule that we compile, and its deepest nesting
MAX_RULE_LENGTH = 4096
_MAX_DEPTH = 40

_LITERALS: dict[str, Any] = {"true": True, "false": False, "null": None}
_NAMESPACES = frozenset(name.partition(".")[0] for name, _ in CALLS if "." in name)


@lru_cache(maxsize=1024)
def compile_rule(rule: str) -> Callable[[Any, Any], Any]:
    """A function of (self, oldSelf) for a CEL expression. Raises Unsupported; the function raises RuleError."""
    if len(rule) > MAX_RULE_LENGTH:
        raise Unsupported(f"rule is longer than {MAX_RULE_LENGTH} characters")
    try:
        node = _Parser(tokens_of(rule)).parse()
    except RecursionError:
        raise Unsupported("nested too deeply") from None

    def evaluate(value: Any, old: Any = None) -> Any:
        with evaluating():
            try:
                return node({"self": value, "oldSelf": old})
            except RuleError:
                raise
            except RecursionError:
                raise RuleError("expression is nested too deeply to be evaluated") from None
            except (TypeError, ValueError, ArithmeticError, re.error) as error:
                raise RuleError(str(error)) from error

    return evaluate


@lru_cache(maxsize=1024)
def is_transition(rule: str) -> bool:
    """Whether the rule compares with the old value, and so holds for a create."""
    try:
        tokens = tokens_of(rule)
    except Unsupported:
        return False
    before = [("", ""), *tokens]
    return any(
        token == ("name", "oldSelf") and previous[1] not in (".", ".?")
        for previous, token in zip(before, tokens, strict=False)
    )


class _Parser:
    """Recursive descent by precedence; every method returns a closure over the environment."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._position = 0
        self._depth = 0
        self._scope = ["self", "oldSelf"]
        #: operand and name of the field selection that the member parsed last ends with, for `has`
        self._selected: tuple[Node, str] | None = None

    def parse(self) -> Node:
        """The whole expression."""
        node = self._ternary()
        if self._position < len(self._tokens):
            raise Unsupported(f"unexpected {self._tokens[self._position][1]!r}")
        return node

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        at = self._position + ahead
        return self._tokens[at] if at < len(self._tokens) else ("end", "")

    def _at(self, *ops: str) -> str:
        """The operator (or the word `in`) at hand if it is one of these, taken; else ""."""
        kind, text = self._peek()
        if text in ops and (kind == "op" or text == "in"):
            self._position += 1
            return text
        return ""

    def _expect(self, op: str) -> None:
        if not self._at(op):
            raise Unsupported(f"expected {op!r}" if self._peek()[0] != "end" else "unexpected end of the rule")

    def _name(self) -> str:
        kind, text = self._peek()
        if kind != "name":
            raise Unsupported(f"expected a name, found {text!r}" if kind != "end" else "unexpected end of the rule")
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
            node = lambda env: yes(env) if truth(test(env)) else no(env)  # noqa: E731 - all nodes are lambdas
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
        if level == len(LEVELS):
            return self._unary()
        node = self._binary(level + 1)
        while op := self._at(*LEVELS[level]):
            node = _operation(OPERATORS[op], node, self._binary(level + 1))
        return node

    def _unary(self) -> Node:
        if self._at("!"):
            inner = self._unary()
            return lambda env: not truth(inner(env))
        if self._at("-"):
            inner = self._unary()
            return lambda env: negative(inner(env))
        return self._member()

    # --- what stands behind a value -----------------------------------------------------------------------------

    def _member(self) -> Node:
        node = self._primary()
        self._selected = None
        while op := self._at(".", ".?", "[", "[?"):
            selected: tuple[Node, str] | None = None
            if op == ".":
                name = self._name()
                if self._at("("):
                    node = self._call(node, name)
                else:
                    selected = (node, field_name(name))
                    node = _part(field, *selected)
            elif op == ".?":
                node = _part(find_field, node, field_name(self._name()))
            else:
                at = self._ternary()
                self._expect("]")
                node = _operation(index if op == "[" else find, node, at)
            self._selected = selected
        return node

    def _call(self, target: Node, name: str) -> Node:
        if name in cel_macros.ONE_VARIABLE | cel_macros.TWO_VARIABLES:
            return self._macro(target, name)
        return _function(METHODS, name, [target, *self._arguments()])

    def _macro(self, target: Node, name: str) -> Node:
        variables = [self._name()]
        self._expect(",")
        both = name in cel_macros.EITHER and self._peek()[0] == "name" and self._peek(1) == ("op", ",")
        if name in cel_macros.TWO_VARIABLES or both:
            variables.append(self._name())
            self._expect(",")
        self._scope += variables
        condition, body = None, self._ternary()
        if name in cel_macros.FILTERED and self._at(","):
            condition, body = body, self._ternary()
        del self._scope[-len(variables) :]
        self._expect(")")
        return cel_macros.build(Macro(name, target, tuple(variables), condition, body))

    def _arguments(self) -> list[Node]:
        arguments: list[Node] = []
        if self._at(")"):
            return arguments
        while True:
            arguments.append(self._ternary())
            if self._at(")"):
                return arguments
            self._expect(",")

    # --- values -------------------------------------------------------------------------------------------------

    def _primary(self) -> Node:
        if self._at("("):
            node = self._ternary()
            self._expect(")")
            return node
        if op := self._at("[", "[?"):
            return self._list(is_optional=op == "[?")
        if op := self._at("{", "{?"):
            return self._map(is_optional=op == "{?")
        kind, text = self._peek()
        if kind == "end":
            raise Unsupported("unexpected end of the rule")
        self._position += 1
        if kind == "op":
            raise Unsupported(f"unexpected {text!r}")
        if kind != "name" or text in _LITERALS:
            value = _LITERALS[text] if kind == "name" else literal(kind, text)
            return lambda env: value
        return self._named(text)

    def _named(self, text: str) -> Node:
        if self._at("("):
            return self._has() if text == "has" else _function(CALLS, text, self._arguments())
        if text in self._scope:
            return lambda env: env[text]
        if text in _NAMESPACES and self._peek() == ("op", ".") and self._peek(2) == ("op", "("):
            name = f"{text}.{self._peek(1)[1]}"
            self._position += 3
            return _function(CALLS, name, self._arguments())
        if text in TYPES:
            return lambda env: TYPES[text]
        raise Unsupported(f"undeclared reference to '{text}' (in container '')")

    def _has(self) -> Node:
        self._member()
        selected = self._selected
        self._expect(")")
        if selected is None:
            raise Unsupported("invalid argument to has() macro")
        return lambda env: _part(find_field, *selected)(env).is_present

    def _list(self, *, is_optional: bool) -> Node:
        items: list[tuple[bool, Node]] = []
        while is_optional or not self._at("]"):
            is_optional = is_optional or bool(self._at("?"))
            items.append((is_optional, self._ternary()))
            is_optional = False
            if not self._at(","):
                self._expect("]")
                break
        return lambda env: [item for some, node in items for item in _some(node(env), is_optional=some)]

    def _map(self, *, is_optional: bool) -> Node:
        pairs: list[tuple[bool, Node, Node]] = []
        while is_optional or not self._at("}"):
            is_optional = is_optional or bool(self._at("?"))
            key = self._ternary()
            self._expect(":")
            pairs.append((is_optional, key, self._ternary()))
            is_optional = False
            if not self._at(","):
                self._expect("}")
                break
        return lambda env: {key(env): held for some, key, node in pairs for held in _some(node(env), is_optional=some)}


# --- nodes ------------------------------------------------------------------------------------------------------


def _some(value: Any, *, is_optional: bool) -> list[Any]:
    """The value, or what an optional one holds."""
    if not is_optional:
        return [value]
    if not isinstance(value, Maybe):
        raise no_overload()
    return [value.value] if value.is_present else []


def _part(read: Callable[[Any, str], Any], node: Node, name: str) -> Node:
    return lambda env: read(node(env), name)


def _operation(function: Callable[[Any, Any], Any], left: Node, right: Node) -> Node:
    return lambda env: function(left(env), right(env))


def _logical(left: Node, right: Node, *, decisive: bool) -> Node:
    """`||` (decisive true) or `&&` (decisive false): the deciding side wins even if the other fails."""

    def evaluate(env: Env) -> bool:
        try:
            if truth(left(env)) is decisive:
                return decisive
        except RuleError:
            spend(0)  # a spent budget is no failure of one side
            if truth(right(env)) is decisive:
                return decisive
            raise
        return truth(right(env))

    return evaluate


def _function(table: dict[tuple[str, int], Callable[..., Any]], name: str, arguments: list[Node]) -> Node:
    function = table.get((name, len(arguments)))
    if function is None:
        raise Unsupported(f"undeclared reference to '{name}' (in container '')")

    def call(env: Env) -> Any:
        spend(1)
        try:
            return function(*(argument(env) for argument in arguments))
        except (TypeError, AttributeError) as error:
            raise no_overload() from error

    return call
