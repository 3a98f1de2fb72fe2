"""Compares one answer with the recorded one: status, headers and body, placeholders paired instead of equal.

Used by `tests/api_oracle.py`. A recording stands in placeholders (`UID#2`, `RV#3`, `<TIME>`…): a recorded text is read
as a pattern for ours. Uids and resourceVersions must pair one to one over a whole scenario, and revisions keep their
order; those of lists, tables and bookmarks only have to be numbers, since others wrote to the recorded server. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec

Json = dict[str, Any]

#: headers that must be as recorded; those not named are framing, or differ on every answer
HEADERS = ("Content-Type", "Warning", "Retry-After", "Cache-Control", "Vary", "Allow", "Content-Encoding",
           "X-Content-Type-Options", "Location", "Etag", "Expires")  # fmt: skip

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_PATTERNS = {
    "<TIME>": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "<MICROTIME>": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z",
    "<RAND5>": r"[a-z0-9]{5}", "<JWT>": r"[\w-]+\.[\w-]+\.[\w-]+", "<CONTINUE>": r"[\w=-]+",
    "<CLUSTERIP>": r"[0-9a-f.:]+", "<NODEPORT>": r"\d+", "<AGE>": r"\d+[smhdy][0-9smhdy]*|<invalid>|<unknown>|0s",
    "<ETAG>": r'"?[\w-]+"?', "<SERVER>": r"[\w.:\[\]-]+", "<HEX>": r"[0-9a-fA-F]+", "<UUID>": _UUID, "<HASH>": r"\w+",
    "<RV>": r"\d+",
}  # fmt: skip
_PLACEHOLDER = re.compile(r"(UID#\d+|RV#\d+|" + "|".join(map(re.escape, _PATTERNS)) + ")")
_WEBHOOK = re.compile(r'^admission webhook "[^"]*" denied the request: ')
_LISTS = re.compile(r"(^|\.object)\.metadata\.resourceVersion$")


class Pairs(msgspec.Struct):
    """Which recorded uid and revision stands for which of ours, in one scenario."""

    known: dict[str, str] = {}

    def fit(self, theirs: str, ours: str) -> bool:
        """Whether a pair fits what is known; it is kept if it does."""
        if theirs in self.known:
            return self.known[theirs] == ours
        same_kind = {t: o for t, o in self.known.items() if t[:2] == theirs[:2]}
        if ours in same_kind.values():
            return False
        if theirs.startswith("RV#"):
            number = int(theirs[3:])
            if any((int(t[3:]) < number) != (int(o) < int(ours)) for t, o in same_kind.items()):
                return False
        self.known[theirs] = ours
        return True


class Comparison:
    """Collects what differs in one answer."""

    def __init__(self, pairs: Pairs, is_served: Callable[[str, str], bool], *, keep_managed: bool) -> None:
        self._pairs = pairs
        self._is_served = is_served
        self._keep_managed = keep_managed
        self._loose_revisions = False
        self.found: list[str] = []

    def headers(self, ours: list[tuple[str, str]], theirs: Json) -> None:
        """Compare the headers that count."""
        for name in HEADERS:
            mine = sorted(value for key, value in ours if key.lower() == name.lower())
            wanted = theirs.get(name, [])
            wanted = sorted(wanted) if isinstance(wanted, list) else [wanted]
            if len(mine) != len(wanted) or not all(map(self._text_fits, mine, wanted)):
                self.found.append(f"header {name}: {mine} | wanted {wanted}")

    def body(self, ours: Any, theirs: Any) -> None:
        """Compare bodies, or lists of watch events."""
        if ours in (None, "") and theirs in (None, ""):
            return
        events = ours.get("events") if isinstance(ours, dict) else None
        if events == []:
            ours = []
        elif events is not None and isinstance(theirs, dict):
            ours = events[0]  # a watch by its path, of one event: recorded as an object
        if not ours and not theirs:
            return
        if isinstance(theirs, dict):
            self._loose_revisions = "items" in theirs or "rows" in theirs
            if theirs.get("kind") == "APIResourceList" and isinstance(ours, dict):
                ours, theirs = _in_one_order(ours), _in_one_order(theirs, self._is_served)
        self._walk(ours, theirs, "")

    def _walk(self, ours: Any, theirs: Any, path: str) -> None:
        if path.endswith(".managedFields"):
            # They are in the order of their times, which are the same or not within a second.
            ours, theirs = (sorted(v, key=_manager) if isinstance(v, list) else v for v in (ours, theirs))
        if isinstance(ours, dict) and isinstance(theirs, dict):
            self._walk_object(ours, theirs, path)
        elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
            for at, (left, right) in enumerate(zip(ours, theirs, strict=True)):
                self._walk(left, right, f"{path}[{at}]")
        elif isinstance(ours, str) and isinstance(theirs, str):
            number = path.endswith("resourceVersion") and ours.isdigit() and theirs.startswith("RV#")
            if number and self._loose_revisions and _LISTS.search(path):
                return
            if not self._text_fits(ours, theirs):
                self.found.append(f"{path}: {_short(ours)} | wanted {_short(theirs)}")
        elif ours != theirs or type(ours) is not type(theirs):
            self.found.append(f"{path}: {_short(ours)} | wanted {_short(theirs)}")

    def _walk_object(self, ours: Json, theirs: Json, path: str) -> None:
        before = self._loose_revisions
        if theirs.get("type") == "BOOKMARK":
            self._loose_revisions = True
        for key in sorted({*ours, *theirs}):
            if key == "managedFields" and not self._keep_managed:
                continue
            # Texts of documentation are our own.
            if key == "description" and key in ours and key in theirs:
                continue
            if key not in ours or key not in theirs:
                shown = ours.get(key, "∅"), theirs.get(key, "∅")
                self.found.append(f"{path}.{key}: {_short(shown[0])} | wanted {_short(shown[1])}")
            else:
                self._walk(ours[key], theirs[key], f"{path}.{key}")
        self._loose_revisions = before

    def _text_fits(self, ours: str, theirs: str) -> bool:
        if "?hash=" in theirs:
            ours, theirs = (text.partition("?hash=")[0] for text in (ours, theirs))
        # There are no webhooks here to name.
        theirs = _WEBHOOK.sub("", theirs)
        parts = _PLACEHOLDER.split(theirs)
        if len(parts) == 1:
            return ours == theirs
        names = parts[1::2]
        pattern = "".join(
            f"({_UUID if part[:4] == 'UID#' else r'[0-9]+' if part[:3] == 'RV#' else _PATTERNS[part]})"
            if at % 2
            else re.escape(part)
            for at, part in enumerate(parts)
        )
        found = re.fullmatch(pattern, ours)
        if found is None:
            return False
        # Inside a longer text a revision may be that of the server, which others moved.
        whole = len(parts) == 3 and not parts[0] and not parts[2]
        pairs = zip(names, found.groups(), strict=True)
        return all(
            self._pairs.fit(name, value) for name, value in pairs if name[:4] == "UID#" or (name[:3] == "RV#" and whole)
        )


def _manager(entry: Json) -> tuple[str, ...]:
    return tuple(str(entry.get(key, "")) for key in ("operation", "manager", "apiVersion", "subresource"))


def _in_one_order(listed: Json, is_served: Callable[[str, str], bool] | None = None) -> Json:
    """A list of resources by name, since the original's order is random; kinds that are not served are left out."""
    group = listed["groupVersion"].rpartition("/")[0]
    kept = [r for r in listed["resources"] or [] if is_served is None or is_served(group, r["name"])]
    return {**listed, "resources": sorted(kept, key=lambda each: str(each["name"]))}


def reduced(body: Any, how: str) -> Any:
    """A body of ours cut down as the recording was, where it kept only a part."""
    if how == "rec5" and isinstance(body, dict):
        return {"has": "apis/rec5.example.com/v1" in body["paths"]}
    if how == "names" and isinstance(body, dict) and "items" in body:
        names = [item["metadata"]["name"] for item in body["items"]]
        return {"kind": body["kind"], "names": names, "hasContinue": bool(body["metadata"].get("continue"))}
    if how.startswith("kindonly") and isinstance(body, dict):
        return {key: body[key] for key in ("kind", "apiVersion") if key in body}
    return body


def _short(value: Any) -> str:
    text = json.dumps(value, default=str) if not isinstance(value, str) else repr(value)
    return text[:600]
