"""CEL's words: a rule split into tokens, and literals as values.

Called by `cel`. Pure. Raises Unsupported for what is no CEL. Source: the CEL language definition.
"""

from __future__ import annotations

import re
from typing import Any

from stead.kube.cel_values import INT_MAX

_TOKEN_RE = re.compile(
    r"""(?:\s|//[^\n]*(?:\n|$))*(?:
        (?P<number>(?:\d+\.\d+|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|0[xX][0-9a-fA-F]+[uU]?|\d+[uU]?)
      | (?P<long>(?:[rR][bB]?|[bB][rR]?)?(?:"{3}(?:\\.|[^\\])*?"{3}|'{3}(?:\\.|[^\\])*?'{3}))
      | (?P<text>(?:[rR][bB]?|[bB][rR]?)?(?:"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<op>==|!=|<=|>=|&&|\|\||\.\?|\[\?|\{\?|[-+*/%<>!?:.,()\[\]{}])
      | (?P<end>$)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|X([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.))", re.DOTALL
)
_PLAIN = {
    "n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v",
    "\\": "\\", "?": "?", '"': '"', "'": "'", "`": "`",
}  # fmt: skip
#: words that are no names
_RESERVED = (
    "as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in", "let", "loop",
    "namespace", "null", "package", "return", "true", "var", "void", "while",
)  # fmt: skip
_ESCAPED = re.compile(r"__(underscores|dot|dash|slash)__")
_SPELLED = {"underscores": "__", "dot": ".", "dash": "-", "slash": "/"}


class Unsupported(ValueError):
    """The rule is no CEL, or uses more of it than we know."""


def tokens_of(rule: str) -> list[tuple[str, str]]:
    """Kind and text of each token; strings are of kind `text` or `long`. Raises Unsupported."""
    tokens: list[tuple[str, str]] = []
    position = 0
    while position < len(rule):
        # A rule may end while a place, `[?x]`, is no operator of its own.
        match = _TOKEN_RE.match(rule, position)
        if not match or not match.lastgroup:
            raise Unsupported(f"syntax error at position {position}")
        if match.lastgroup == "end":
            break
        tokens.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return tokens


def literal(kind: str, text: str) -> Any:
    """The value of a number or a string. Raises Unsupported."""
    if kind == "number":
        return _number(text)
    start = len(text) - len(text.lstrip("rRbB"))
    marks, quotes = text[:start].lower(), 3 if kind == "long" else 1
    body = text[start + quotes : -quotes]
    if "b" not in marks:
        return body if "r" in marks else _ESCAPE.sub(_unescaped, body)
    return body.encode() if "r" in marks else _bytes(body)


def _number(text: str) -> int | float:
    if text[:2] in ("0x", "0X"):
        value = int(text.rstrip("uU"), 16)
    elif "." in text or "e" in text.lower():
        return float(text)
    else:
        value = int(text.rstrip("uU")) if len(text) < 40 else INT_MAX + 2
    if value > INT_MAX + 1:
        raise Unsupported("invalid int literal")
    return value


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3] or match[4]
    if code or match[5]:
        point = int(code, 16) if code else int(match[5], 8)
        if point > 0x10FFFF or 0xD800 <= point <= 0xDFFF:
            raise Unsupported("unicode code point is invalid")
        return chr(point)
    if match[6] not in _PLAIN:
        raise Unsupported(f"unable to unescape string: \\{match[6]}")
    return _PLAIN[match[6]]


def _bytes(body: str) -> bytes:
    found, position = b"", 0
    for match in _ESCAPE.finditer(body):
        found += body[position : match.start()].encode()
        if match[3] or match[4]:
            raise Unsupported("unable to unescape bytes: \\u")
        text = _unescaped(match)
        found += text.encode("latin-1") if match[6] is None else text.encode()
        position = match.end()
    return found + body[position:].encode()


def field_name(name: str) -> str:
    """The field that an identifier in a rule stands for: names that are no CEL identifiers are escaped in rules."""
    inner = name[2:-2]
    if len(name) > 4 and name.startswith("__") and name.endswith("__") and inner in _RESERVED:
        return inner
    return _ESCAPED.sub(lambda match: _SPELLED[match[1]], name)
