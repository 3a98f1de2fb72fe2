"""Recorded answers that are not copied: mistakes of the original's, and what only the recorded installation had.

Used by `tests/api_oracle.py`; `docs/reference/differences.md` lists the same for readers. Such answers count as equal,
whatever ours is counts as a difference again as soon as it is neither the original's nor the one expected here. Pure.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

#: roles whose rules an aggregation controller fills, which the recorded server had not
_AGGREGATED = ("view", "edit", "admin")
#: answers that only the recorded installation could give: "area/scenario" → step → what it had
_INSTALLATION: dict[str, dict[int, str]] = {
    "kubevirt/subresource-verbs": {10: "a controller had started the machine"},
    "lists/paging-all-namespaces": {3: "more widgets of others"},
    "negotiation/table-builtin-kinds": {26: "priority classes of its own"},
    "rbac/builtin-roles": {6: "another order of making its roles"},
    "rbac/escalation-without-star": {6: "a role `view` without rules"},
}


def better(request: Json, recorded: Json, status: int, body: Any) -> str:
    """Why our answer is better than the recorded one, or ""."""
    path = request["path"].partition("?")[0]
    reason = body.get("reason") if isinstance(body, dict) else ""
    if recorded["status"] == 500 and status in (400, 409, 422) and reason:
        return "500 for what the client did wrong"
    if recorded["status"] == 500 and status == 501 and path.endswith("/guestfs"):
        return "500 for what is not there"
    if request["method"] == "HEAD" and recorded["status"] == 405 and status in (200, 404):
        return "HEAD refused"
    if recorded["status"] == status == 409 and _causes(body) == _causes(recorded["body"]) != []:
        return "managers in random order"
    if recorded["status"] == 200 and status == 401 and str(request.get("auth", "")).startswith("$"):
        return "token good for seconds after its object went"
    return ""


def installation(name: str, step: int, request: Json, recorded: Json, body: Any) -> str:
    """What only the recorded server had, if that decides an answer, or ""."""
    if step in _INSTALLATION.get(name, {}):
        return _INSTALLATION[name][step]
    path = request["path"]
    if path in ("/version", "/apis/subresources.kubevirt.io/v1/version", "/apis/subresources.kubevirt.io/v1/healthz"):
        return "its version"
    role = path.rpartition("/clusterroles/")[2]
    if role in _AGGREGATED and isinstance(body, dict) and {**body, "rules": None}.keys() == recorded["body"].keys():
        return "roles without rules"
    return ""


def _causes(body: Any) -> list[tuple[str, str]]:
    causes = (body.get("details") or {}).get("causes") or [] if isinstance(body, dict) else []
    return sorted((cause.get("field", ""), cause.get("message", "")) for cause in causes)
