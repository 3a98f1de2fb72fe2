"""Replaying recorded answers of a real control plane: loading, normalising and comparing, whatever carries the request.

The folder of recordings comes by the environment variable STEAD_ORACLE (its subfolder `admission` is read here). A
transport is a callable from a case to an `Answer`; `replay` scores it by area. What a recording is, and what is
compared, is described in the recordings' own README.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_WEBHOOK_RE = re.compile(r'admission webhook "[^"]*" denied the request: ')
#: whole objects that texts quote: controllers of the recording had written into them
_QUOTED_RE = re.compile(r'(Invalid value: )"\{.*\}": ', re.DOTALL)
_UUID_RE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|<uuid-\d+>")
_TIME_RE = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z")


@dataclass
class Answer:
    """What an implementation answered: HTTP status, warnings as plain texts, and the JSON body, text or None."""

    status: int
    body: Any = None
    warnings: list[str] = field(default_factory=list)


def oracle_folder(part: str) -> Path | None:
    """Folder of one part of the recordings, or None if there are none here."""
    root = os.environ.get("STEAD_ORACLE")
    folder = Path(root) / part if root else None
    return folder if folder is not None and folder.is_dir() else None


def load_cases(folder: Path, areas: Iterable[str]) -> list[Json]:
    """The cases of some areas, each area's in the order of its file."""
    return [case for area in areas for case in json.loads((folder / f"{area}.json").read_text())]


def expected_answer(case: Json) -> Answer:
    """The recorded answer, its warnings without the HTTP header's decoration."""
    response = case["response"]
    warnings = [re.sub(r'^299 - "(.*)"$', r"\1", w).replace('\\"', '"') for w in response["warnings"]]
    return Answer(response["status"], response["body"], warnings)


def normalised(value: Any, request_text: str = "") -> Any:
    """Times and generated UUIDs replaced by placeholders, numbered by first appearance; one form for both sides."""
    seen: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        text = match.group(0)
        if text in request_text:
            return text
        return seen.setdefault(text, f"<uuid-{len(seen) + 1}>")

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: walk(node[k]) for k in sorted(node)}
        if isinstance(node, list):
            return [walk(n) for n in node]
        if isinstance(node, str):
            return _TIME_RE.sub("<time>", _UUID_RE.sub(number, node))
        return node

    return walk(value)


def _causes(body: Any) -> Counter[tuple[str, str, str]]:
    causes = ((body or {}).get("details") or {}).get("causes") or []
    short = [{**c, "message": _QUOTED_RE.sub(r'\1"{…}": ', c.get("message", ""))} for c in causes]
    return Counter((c.get("reason", ""), c["message"], c.get("field", "")) for c in short)


def _object_view(body: Json) -> Json:
    metadata = body.get("metadata") or {}
    view = {key: metadata.get(key) or None for key in ("annotations", "labels", "finalizers")}
    return {"metadata": view, "spec": body.get("spec"), "status": body.get("status")}


def differences(case: Json, answer: Answer) -> list[str]:
    """What differs from the recording; empty if the answer counts as equal."""
    expected = expected_answer(case)
    if answer.status != expected.status:
        return [f"status {answer.status}, recorded {expected.status}"]
    found: list[str] = []
    if sorted(answer.warnings) != sorted(expected.warnings):
        found.append(f"warnings {answer.warnings}, recorded {expected.warnings}")
    if expected.body is None:
        return found
    if isinstance(expected.body, str) or isinstance(answer.body, str):
        return found + ([] if answer.body == expected.body else [f"text {answer.body!r}, recorded {expected.body!r}"])
    if answer.status >= 400:
        return found + _refusal_differences(expected.body, answer.body or {}, bool(case.get("unstable")))
    if "metadata" not in expected.body or "spec" not in expected.body:
        text = json.dumps(case["request"].get("body"))
        ours, theirs = normalised(answer.body, text), normalised(expected.body, text)
        return found + ([] if ours == theirs else [f"body {ours}, recorded {theirs}"])
    text = json.dumps(case["request"].get("body"))
    ours, theirs = normalised(_object_view(answer.body), text), normalised(_object_view(expected.body), text)
    return found + list(_tree_differences(theirs, ours, ""))


def _refusal_differences(expected: Json, body: Json, unstable: bool) -> list[str]:
    found = []
    if (body.get("reason") or "") != (expected.get("reason") or ""):
        found.append(f"reason {body.get('reason')!r}, recorded {expected.get('reason')!r}")
    ours, theirs = _causes(body), _causes(expected)
    if ours != theirs:
        found += [f"cause not recorded: {c}" for c in ours - theirs] + [f"cause missing: {c}" for c in theirs - ours]
    else:
        texts = (_WEBHOOK_RE.sub("", each.get("message") or "") for each in (expected, body))
        recorded, message = (_QUOTED_RE.sub(r'\1"{…}": ', text) for text in texts)
        if message != recorded and not unstable:
            found.append(f"message {message!r}, recorded {recorded!r}")
    return found


def _tree_differences(theirs: Any, ours: Any, path: str) -> Iterable[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(set(theirs) | set(ours)):
            yield from _tree_differences(theirs.get(key), ours.get(key), f"{path}.{key}")
    elif theirs != ours and not _is_generated(theirs, ours):
        yield f"{path}: {json.dumps(ours)}, recorded {json.dumps(theirs)}"


def _is_generated(theirs: Any, ours: Any) -> bool:
    """Whether both are the same name but for a generated suffix."""
    if not (isinstance(theirs, str) and isinstance(ours, str) and "<rand>" in theirs):
        return False
    return re.fullmatch(re.escape(theirs).replace("<rand>", "[a-z0-9]{5}"), ours) is not None


def not_copied(case: Json, answer: Answer) -> str:
    """Why an answer that differs counts as equal, or "": a mistake of theirs, or what only their installation had.

    `docs/reference/differences.md` lists the same for readers.
    """
    recorded, path = case["response"], case["request"]["path"].partition("?")[0]
    subresource = path.startswith("/apis/subresources.kubevirt.io/")
    if recorded["status"] == 500 and answer.status < 500:
        return "500 where nothing is wrong, or the client is"
    if recorded["status"] == 401 and answer.status == 404 and "unknown api endpoint" in str(recorded["body"]):
        return "401 for a path that is not there"
    if recorded["status"] == answer.status == 404 and "is not served any more" in str(answer.body):
        return "a bare 404 for an old version, whose successor is named here"
    if subresource and recorded["status"] == 406 and answer.status != 406:
        return "406 for an answer without a body"
    if recorded["status"] == answer.status == 422 and "Checked value must be of type integer" in str(recorded["body"]):
        return "texts about formats of numbers that nobody sent"
    if path.endswith("/version") and isinstance(answer.body, dict) and "gitVersion" in answer.body:
        return "their version"
    if path.endswith("/objectgraph") and answer.status == recorded["status"] == 200:
        missing = set(re.findall(r"'kind': '(\w+)'", str(recorded["body"]))) - set(
            re.findall(r"'kind': '(\w+)'", str(answer.body))
        )
        return "pods, and what their controllers had made" if missing <= {"Pod", "ControllerRevision", "Secret"} else ""
    return ""


@dataclass
class Score:
    """Cases of one area that were replayed and how many agreed; `excused` of them as `not_copied` says."""

    replayed: int = 0
    equal: int = 0
    excused: int = 0
    misses: list[str] = field(default_factory=list)

    def count(self, case: Json, answer: Answer) -> None:
        """Compare one answer and count it."""
        found = differences(case, answer)
        excuse = not_copied(case, answer) if found else ""
        self.replayed += 1
        self.equal += not found or bool(excuse)
        self.excused += bool(excuse)
        if found and not excuse:
            self.misses.append(f"{case['area']}/{case['name']}: " + "; ".join(found))

    @property
    def share(self) -> float:
        """Agreeing cases as a share of those replayed; 1.0 of none."""
        return self.equal / self.replayed if self.replayed else 1.0


def replay(cases: Iterable[Json], transport: Callable[[Json], Answer | None]) -> dict[str, Score]:
    """Send every case; a transport answers None for a case that it does not carry. Scores by area."""
    scores: dict[str, Score] = {}
    for case in cases:
        answer = transport(case)
        if answer is None:
            continue
        score = scores.setdefault(case["area"], Score())
        score.count(case, answer)
    return scores


def report(scores: dict[str, Score], *, show_misses: bool = False) -> str:
    """A table of the scores, with the misses if asked for."""
    lines = [
        f"{area:22} {s.equal:4}/{s.replayed:<4} {s.share:6.1%} ({s.excused} not copied)"
        for area, s in sorted(scores.items())
    ]
    total, equal = sum(s.replayed for s in scores.values()), sum(s.equal for s in scores.values())
    lines.append(f"{'all':22} {equal:4}/{total:<4} {equal / total if total else 1:6.1%}")
    if show_misses:
        lines += [miss for s in scores.values() for miss in s.misses]
    return "\n".join(lines)
