"""Recorded answers that are mistakes of the original's, and what of ours counts as better.

Used by `tests/api_oracle.py`; `docs/reference/differences.md` lists the same mistakes for readers. Pure.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def better(request: Json, recorded: Json, status: int, body: Any) -> str:
    """Why our answer is better than the recorded one, or ""."""
    reason = body.get("reason") if isinstance(body, dict) else ""
    if recorded["status"] == 500 and status in (400, 409, 422) and reason:
        return "500 for what the client did wrong"
    if request["method"] == "HEAD" and recorded["status"] == 405 and status in (200, 404):
        return "HEAD refused"
    return ""
