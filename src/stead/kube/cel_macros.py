"""CEL's macros, of one variable and of two: all, exists, existsOne, filter, map, transformList, transformMap,
transformMapEntry, and optMap and optFlatMap of optionals.

Called by `cel` with parts that are already compiled. Nodes are closures over the environment; each iteration costs
from the rule's budget. Sources: the CEL language definition; cel-go's extension for two variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from stead.kube.cel_operators import truth
from stead.kube.cel_values import ITERATION, NONE, Maybe, RuleError, no_overload, spend

Env = dict[str, Any]
Node = Callable[[Env], Any]

#: by how many variables they take; `map` and the transformations may have a filter before their last part
ONE_VARIABLE = frozenset({"all", "exists", "exists_one", "existsOne", "filter", "map", "optMap", "optFlatMap"})
TWO_VARIABLES = frozenset({"transformList", "transformMap", "transformMapEntry"})
EITHER = frozenset({"all", "exists", "existsOne", "exists_one"})
FILTERED = frozenset({"map"}) | TWO_VARIABLES


class Macro(NamedTuple):
    """A macro's parts."""

    name: str
    target: Node
    variables: tuple[str, ...]
    #: given for those that are `FILTERED`, else None
    condition: Node | None
    body: Node


def build(macro: Macro) -> Node:
    """The node of a macro."""
    match macro.name:
        case "all":
            return _decided(macro, deciding=False)
        case "exists":
            return _decided(macro, deciding=True)
        case "exists_one" | "existsOne":
            return lambda env: sum(truth(macro.body(inner)) for _, _, inner in _scopes(macro, env)) == 1
        case "filter":
            return lambda env: [first for first, _, inner in _scopes(macro, env) if truth(macro.body(inner))]
        case "map" | "transformList":
            return lambda env: [macro.body(inner) for _, _, inner in _chosen(macro, env)]
        case "transformMap":
            return lambda env: {first: macro.body(inner) for first, _, inner in _chosen(macro, env)}
        case "transformMapEntry":
            return lambda env: _entries(macro, env)
    return _optional(macro)


def _scopes(macro: Macro, env: Env) -> Iterator[tuple[Any, Any, Env]]:
    """For each item: what the first variable is, what the second is, and the environment with them."""
    value = macro.target(env)
    if not isinstance(value, list | dict):
        raise no_overload()
    if len(macro.variables) == 1:
        pairs: Iterator[tuple[Any, Any]] = ((item, None) for item in value)
    else:
        pairs = iter(value.items()) if isinstance(value, dict) else iter(enumerate(value))
    for pair in pairs:
        spend(ITERATION)
        yield (*pair, {**env, **dict(zip(macro.variables, pair, strict=False))})


def _chosen(macro: Macro, env: Env) -> Iterator[tuple[Any, Any, Env]]:
    for scope in _scopes(macro, env):
        if macro.condition is None or truth(macro.condition(scope[2])):
            yield scope


def _decided(macro: Macro, *, deciding: bool) -> Node:
    """`exists` (true decides) and `all` (false decides): the deciding item wins even if others fail."""

    def evaluate(env: Env) -> bool:
        failure: RuleError | None = None
        for _, _, inner in _scopes(macro, env):
            try:
                if truth(macro.body(inner)) is deciding:
                    return deciding
            except RuleError as error:
                spend(0)  # a spent budget is no failure of one item
                failure = failure or error
        if failure is not None:
            raise failure
        return not deciding

    return evaluate


def _entries(macro: Macro, env: Env) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for _, _, inner in _chosen(macro, env):
        made = macro.body(inner)
        if not isinstance(made, dict):
            raise no_overload()
        for key, value in made.items():
            if key in found:
                raise RuleError(f"insert failed: key {key} already exists")
            found[key] = value
    return found


def _optional(macro: Macro) -> Node:
    def evaluate(env: Env) -> Maybe:
        value = macro.target(env)
        if not isinstance(value, Maybe):
            raise no_overload()
        if not value.is_present:
            return NONE
        result = macro.body({**env, macro.variables[0]: value.value})
        if macro.name == "optMap":
            return Maybe(result)
        if not isinstance(result, Maybe):
            raise no_overload()
        return result

    return evaluate
