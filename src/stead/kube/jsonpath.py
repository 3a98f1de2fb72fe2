"""Simple JSON paths, as printed columns, scale subresources and field selectors use them.

Read through `meta` (`read_path`, `first_at`, `compile_path`, `scalar_text`). Compiled readers are cached; safe from any
thread. The syntax is the subset of kubectl's JSONPath that CustomResourceDefinitions may use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

_STEP_RE = re.compile(
    r"""(?P<all>\[\*\]|\.\*)
      | \.(?P<field>(?:\\.|[^.\[\]\\])+)
      | \[\?\(\s*@(?P<left>[^=!<>\s]+)\s*(?P<op>==|!=)\s*(?P<right>'[^']*'|"[^"]*"|[^)\s]+)\s*\)\]
      | \[(?P<quoted>'[^']*'|"[^"]*")\]
      | \[(?P<index>-?\d+)\]""",
    re.VERBOSE,
)

_Step = Callable[[list[Any]], list[Any]]


@lru_cache(maxsize=1024)
def compile_path(path: str) -> Callable[[Any], list[Any]]:
    """A reader for a JSON path: `.a.b`, `a.b`, `['x']`, `[0]`, `[*]`, `[?(@.type=="Ready")]`, `a\\.b`.

    The reader returns every value found, in order; an absent field yields nothing. Raises ValueError for other syntax.
    Braces around the path (kubectl's form) are accepted.
    """
    text = path.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    if text.startswith("$"):
        text = text[1:]
    if text and text[0] not in ".[":
        text = "." + text
    steps: list[_Step] = []
    position = 0
    while position < len(text) and text != ".":
        match = _STEP_RE.match(text, position)
        if not match:
            raise ValueError(f"unsupported JSON path {path!r} at position {position}")
        steps.append(_step_from_match(match))
        position = match.end()

    def read(obj: Any) -> list[Any]:
        values = [obj]
        for step in steps:
            values = step(values)
        return values

    return read


def read_path(obj: Any, path: str) -> list[Any]:
    """All values that `path` names in `obj` (see `compile_path`)."""
    return compile_path(path)(obj)


def first_at(obj: Any, path: str) -> Any:
    """The first value that `path` names, or None."""
    found = compile_path(path)(obj)
    return found[0] if found else None


def _step_from_match(match: re.Match[str]) -> _Step:
    if match["field"] is not None:
        return _field_step(re.sub(r"\\(.)", r"\1", match["field"]))
    if match["quoted"] is not None:
        return _field_step(match["quoted"][1:-1])
    if match["index"] is not None:
        return _index_step(int(match["index"]))
    if match["left"] is not None:
        right = match["right"]
        wanted = right[1:-1] if right[0] in "'\"" else right
        return _filter_step(match["left"], wanted, equal=match["op"] == "==")
    return _all_step


def _field_step(name: str) -> _Step:
    return lambda values: [v[name] for v in values if isinstance(v, dict) and name in v]


def _index_step(index: int) -> _Step:
    return lambda values: [v[index] for v in values if isinstance(v, list) and -len(v) <= index < len(v)]


def _filter_step(path: str, wanted: str, *, equal: bool) -> _Step:
    inner = compile_path(path)

    def keep(item: Any) -> bool:
        found = inner(item)
        return bool(found) and (scalar_text(found[0]) == wanted) is equal

    return lambda values: [item for v in values if isinstance(v, list) for item in v if keep(item)]


def _all_step(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        found += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return found


def scalar_text(value: Any) -> str:
    """A JSON value as text: booleans in lower case, strings bare, structures as compact JSON, null as ""."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"))
