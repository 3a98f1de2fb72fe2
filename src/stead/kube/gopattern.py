r"""Regular expressions as Go's RE2 writes them, compiled by Python.

Called for `pattern` in schemas and by CEL's `matches` and `find`. Compiled patterns are cached; safe from any thread.
What differs and matters in practice is translated: `$` never matches before a last newline, `\z` is `\Z`, and a flag
such as `(?i)` may stand anywhere. Raises `re.error` for what Python cannot compile.
"""

from __future__ import annotations

import re
from functools import lru_cache

_FLAGS = re.compile(r"(?<!\\)\(\?([ims]+)\)")


@lru_cache(maxsize=512)
def compile_go(pattern: str) -> re.Pattern[str]:
    """A Go pattern as Python's."""
    flags = "".join(sorted(set("".join(_FLAGS.findall(pattern)))))
    text = _FLAGS.sub("", pattern).replace(r"\z", r"\Z")
    text = re.sub(r"(?<!\\)\$$", r"\\Z", text)
    return re.compile(f"(?{flags}){text}" if flags else text)
