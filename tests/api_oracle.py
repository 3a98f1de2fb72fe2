"""Replays recorded scenarios of a real API server and grades our answers.

Used by `tests/wire/test_oracle_api.py`. A scenario is a list of requests with the answers that a kube-apiserver gave;
answers are normalised (uids, times, resourceVersions by rank, generated suffixes) on both sides and compared. Only
scenarios whose kinds we serve are replayed; the custom kinds of the recordings are defined as a user would.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yarl

from stead.client.contract import Client
from stead.kinds import register
from stead.kinds.foreign import is_served

#: areas that are about other things than the kinds and rules we serve
SKIPPED_AREAS = frozenset({"fixtures", "kubectl", "discovery", "kubevirt"})
#: scenarios that need what we leave out on purpose
SKIPPED = frozenset({
    "websocket",  # raw frames: tests/wire/test_watch.py speaks WebSocket
    "websocket-bearer-token",
    "gzip-large",
})  # fmt: skip

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_MICRO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")
_AGE = re.compile(r"\d+[smhd]|<invalid>|<unknown>")


class Grade(msgspec.Struct):
    """How one answer compares: exact, message, status or different; `why` shows both where they differ."""

    scenario: str
    step: int
    grade: str
    why: str = ""


def definitions(folder: Path) -> list[dict[str, Any]]:
    """The CustomResourceDefinitions that scenarios expect to be there."""
    fixtures = json.loads((folder / "fixtures.json").read_text())
    return [requests[0]["request"]["body"] for requests in fixtures.values()]


async def define(client: Client, wanted: list[dict[str, Any]]) -> None:
    """Create definitions and wait until their kinds are served."""
    for definition in wanted:
        await client.create(register.CUSTOM_RESOURCE_DEFINITION, definition)
    async with asyncio.timeout(10):
        for definition in wanted:
            name = definition["metadata"]["name"]
            while not is_served(await client.get(register.CUSTOM_RESOURCE_DEFINITION, None, name)):
                await asyncio.sleep(0.02)


def scenarios(folder: Path) -> list[dict[str, Any]]:
    """Scenarios that touch only what is served."""
    known = {(r.group, r.plural) for r in register.ALL}
    chosen = []
    for path in sorted(folder.glob("*.json")):
        if path.stem in SKIPPED_AREAS:
            continue
        for scenario in json.loads(path.read_text()):
            if scenario["name"] not in SKIPPED and _is_served(scenario, known):
                chosen.append({**scenario, "area": path.stem})
    return chosen


def _is_served(scenario: dict[str, Any], known: set[tuple[str, str]]) -> bool:
    for step in scenario["steps"]:
        if "request" not in step:
            continue
        parts = [part for part in step["request"]["path"].partition("?")[0].split("/") if part]
        if not parts or parts[0] not in ("api", "apis") or len(parts) < (3 if parts[0] == "api" else 4):
            continue
        group = "" if parts[0] == "api" else parts[1]
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if rest[0] == "watch":
            rest = rest[1:]
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            rest = rest[2:]
        absent = {"foos", "nope"}
        if (group, rest[0]) not in known and rest[0] not in absent and not group.endswith(".example.com"):
            return False
    return True


class Replay:
    """Sends scenarios to one server, one at a time."""

    def __init__(self, url: str, admin: Any, anonymous: Any) -> None:
        self._url = url
        self._contexts = {"admin": admin, "none": anonymous}

    async def run(self, scenario: dict[str, Any]) -> list[Grade]:
        """Replay one scenario and grade each answer."""
        async with aiohttp.ClientSession() as self._session:
            if scenario.get("namespace"):
                body = {"metadata": {"name": scenario["namespace"]}}
                await self._send({"method": "POST", "path": "/api/v1/namespaces", "body": body, "headers": {
                    "Content-Type": "application/json"}}, {})  # fmt: skip
            answers = await self._steps(scenario)
        return self._graded(scenario, answers)

    async def _steps(self, scenario: dict[str, Any]) -> dict[int, dict[str, Any]]:
        captured: dict[str, str] = {}
        background: dict[str, asyncio.Task[dict[str, Any]]] = {}
        answers: dict[int, dict[str, Any]] = {}
        for at, step in enumerate(scenario["steps"]):
            if "sleep" in step:
                await asyncio.sleep(min(step["sleep"], 0.3))
            elif "collect" in step:
                answers[at] = await background[step["collect"]]
            elif "background" in step:
                started = asyncio.Event()
                task = asyncio.create_task(self._send(step["request"], captured, started))
                background[step["background"]] = task
                await asyncio.wait_for(started.wait(), 10)
            else:
                answers[at] = await self._send(step["request"], captured)
                for name, pointer in (step.get("capture") or {}).items():
                    captured[name] = _pointed(answers[at], pointer)
        return answers

    async def _send(
        self, request: dict[str, Any], captured: dict[str, str], started: asyncio.Event | None = None
    ) -> dict[str, Any]:
        def filled(text: str) -> str:
            for name, value in captured.items():
                text = text.replace("${" + name + "}", value)
            return text

        headers: list[tuple[str, str]] = []
        for name, value in (request.get("headers") or {}).items():
            headers += [(name, filled(v)) for v in (value if isinstance(value, list) else [value])]
        auth = filled(request.get("auth") or "admin")
        context = self._contexts.get(auth, self._contexts["none"])
        if auth not in self._contexts:
            headers.append(("Authorization", f"Bearer {auth}"))
        url = yarl.URL(self._url + filled(request["path"]), encoded=True)
        async with self._session.request(
            request["method"], url, data=_body(request, filled), headers=headers, ssl=context, allow_redirects=False,
            skip_auto_headers=("Content-Type", "Accept", "User-Agent", "Accept-Encoding"),
        ) as response:  # fmt: skip
            if started is not None:
                started.set()
            raw = await response.read()
            return {"status": response.status, "headers": dict(response.headers), "raw": raw}

    def _graded(self, scenario: dict[str, Any], answers: dict[int, dict[str, Any]]) -> list[Grade]:
        loose = set(scenario.get("differsOnRepeat") or ())
        normal = Normaliser(scenario)
        ours = {at: normal.seen(_content(answer)) for at, answer in answers.items()}
        grades = []
        for at, content in ours.items():
            recorded = scenario["steps"][at]["response"]
            if recorded.get("reduced") or recorded.get("error"):
                continue
            grade, why = _compare(normal.final(content), answers[at], recorded)
            if grade != "exact" and at in loose and answers[at]["status"] == recorded["status"]:
                grade = "exact"
            grades.append(Grade(f"{scenario['area']}/{scenario['name']}", at, grade, why))
        return grades


def _body(request: dict[str, Any], filled: Any) -> bytes | None:
    if "body" in request:
        return filled(json.dumps(request["body"])).encode()  # type: ignore[no-any-return]
    if "bodyText" in request:
        return filled(request["bodyText"]).encode()  # type: ignore[no-any-return]
    if "bodyBase64" in request:
        return base64.b64decode(request["bodyBase64"])
    if "bodyRepeat" in request:
        repeat = request["bodyRepeat"]
        return (repeat["prefix"] + repeat["unit"] * repeat["times"] + repeat["suffix"]).encode()  # type: ignore[no-any-return]
    return None


def _pointed(answer: dict[str, Any], pointer: str) -> str:
    if pointer.startswith("header:"):
        return str(answer["headers"].get(pointer.removeprefix("header:"), ""))
    value: Any = json.loads(answer["raw"])
    for part in pointer.strip("/").split("/"):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part.replace("~1", "/").replace("~0", "~")]
        except (KeyError, IndexError, ValueError, TypeError):
            return ""
    return str(value)


def _content(answer: dict[str, Any]) -> Any:
    """JSON, a list of watch events, or text."""
    raw = answer["raw"]
    text = raw.decode("utf-8", "replace")
    if "json" not in answer["headers"].get("Content-Type", ""):
        return text
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        if answer["headers"].get("Transfer-Encoding") == "chunked" and all('"type":' in line[:12] for line in lines):
            return {"events": [json.loads(line) for line in lines]}
        return json.loads(text)
    except ValueError:
        return text


class Normaliser:
    """Makes the answers of one scenario comparable."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        self._keep_managed = bool(scenario.get("keepManagedFields"))
        self._sent = json.dumps([step.get("request") for step in scenario["steps"]])
        self._uids: dict[str, str] = {}
        self._revisions: set[int] = set()

    def seen(self, value: Any) -> Any:
        """First pass: uids, times, suffixes; revisions are only collected."""
        return self._walk(value, "")

    def _walk(self, value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {
                name: self._walk(item, name)
                for name, item in value.items()
                if name != "managedFields" or self._keep_managed
            }
        if isinstance(value, list):
            if key == "cells":
                return ["<AGE>" if isinstance(v, str) and _AGE.fullmatch(v) else self._walk(v, "") for v in value]
            return [self._walk(item, "") for item in value]
        if not isinstance(value, str):
            return value
        if key == "resourceVersion" and value.isdigit() and f'"{value}"' not in self._sent:
            if int(value):
                self._revisions.add(int(value))
            return ("RV", value)
        if key == "continue" and value:
            return "<CONTINUE>"
        return self._text(value)

    def _text(self, text: str) -> str:
        def uid(match: re.Match[str]) -> str:
            if match[0] in self._sent:
                return match[0]
            return self._uids.setdefault(match[0], f"UID#{len(self._uids) + 1}")

        text = _UUID.sub(uid, text)
        text = _MICRO.sub(lambda m: m[0] if m[0] in self._sent else "<MICROTIME>", text)
        text = _TIME.sub(lambda m: m[0] if m[0] in self._sent else "<TIME>", text)
        return _JWT.sub("<JWT>", text)

    def final(self, value: Any) -> Any:
        """Second pass: revisions by rank."""
        ranks = {number: f"RV#{at + 1}" for at, number in enumerate(sorted(self._revisions))}
        if isinstance(value, dict):
            return {name: self.final(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.final(item) for item in value]
        if isinstance(value, tuple):
            return ranks.get(int(value[1]), value[1])
        return value


def _compare(ours: Any, answer: dict[str, Any], recorded: dict[str, Any]) -> tuple[str, str]:
    """(grade, what differs)."""
    if answer["status"] != recorded["status"]:
        return "different", f"status {answer['status']} not {recorded['status']}: {_short(ours)} | {_short(recorded)}"
    wanted: Any = recorded.get("body", recorded.get("text"))
    if "events" in recorded:
        wanted = recorded["events"]
        ours = ours.get("events", ours) if isinstance(ours, dict) else ours
    wanted, ours = _loose(wanted), _loose(ours)
    if wanted == ours or (not wanted and not ours):
        return "exact", ""
    both = isinstance(wanted, dict) and isinstance(ours, dict)
    if both and wanted.get("kind") == ours.get("kind") == "Status":
        said = all(wanted.get(key) == ours.get(key) for key in ("message", "reason"))
        return "message" if said else "status", _difference(ours, wanted)
    return "status", _difference(ours, wanted)


def _loose(value: Any) -> Any:
    """Suffixes and descriptions of columns do not count."""
    if isinstance(value, dict):
        return {k: _loose(v) for k, v in value.items() if k != "description"}
    if isinstance(value, list):
        return [_loose(v) for v in value]
    if isinstance(value, str):
        return re.sub(r"(?<=-)(<RAND5>|[bcdfghjklmnpqrstvwxz2456789]{5})(?=$|\W)", "<RAND5>", value)
    return value


def _difference(ours: Any, wanted: Any, path: str = "") -> str:
    """The first difference."""
    if isinstance(ours, dict) and isinstance(wanted, dict):
        for key in sorted({*ours, *wanted}):
            if ours.get(key, "∅") != wanted.get(key, "∅"):
                return _difference(ours.get(key, "∅"), wanted.get(key, "∅"), f"{path}.{key}")
    if isinstance(ours, list) and isinstance(wanted, list) and len(ours) == len(wanted):
        for at, (left, right) in enumerate(zip(ours, wanted, strict=True)):
            if left != right:
                return _difference(left, right, f"{path}[{at}]")
    return f"{path}: {_short(ours)} | wanted {_short(wanted)}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str) if not isinstance(value, str) else value
    return text[:300]
