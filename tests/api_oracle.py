"""Replays recorded scenarios of a real API server and grades our answers.

Used by `tests/wire/test_oracle_api.py`. A scenario is a list of requests with the answers that a kube-apiserver gave,
compared by `api_compare`. Every request is sent; answers about kinds that we do not serve are not graded. The custom
kinds of the recordings are defined as a user would. `api_better` knows the mistakes that we do not copy.
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
from tests.api_better import better, installation
from tests.api_compare import Comparison, Pairs, reduced

from stead.client.contract import Client
from stead.kinds import register
from stead.kinds.foreign import is_served as is_defined
from stead.server.catalogue import SUBRESOURCE_GROUP
from stead.server.discovery import KUBEVIRT_SUBRESOURCES

#: files that hold no scenarios
NO_SCENARIOS = frozenset({"fixtures", "kubectl"})
_KINDS = {(r.group, r.plural) for r in register.ALL}
_GROUPS = {r.group for r in register.ALL} | {"subresources.kubevirt.io"}
#: scenarios that need what we leave out on purpose
SKIPPED = frozenset({
    "websocket",  # raw frames: tests/wire/test_watch.py speaks WebSocket
    "websocket-bearer-token",
    "gzip-large",
})  # fmt: skip


class Grade(msgspec.Struct):
    """How one answer compares: exact, better, message, status or different; `why` shows what differs."""

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
            while not is_defined(await client.get(register.CUSTOM_RESOURCE_DEFINITION, None, name)):
                await asyncio.sleep(0.02)


def scenarios(folder: Path) -> list[dict[str, Any]]:
    """The scenarios, each with its area."""
    return [
        {**scenario, "area": path.stem}
        for path in sorted(folder.glob("*.json"))
        if path.stem not in NO_SCENARIOS
        for scenario in json.loads(path.read_text())
        if scenario["name"] not in SKIPPED
    ]


def needs_history_gone(scenario: dict[str, Any]) -> bool:
    """Whether a scenario asks for revisions that a server must have forgotten."""
    return bool(re.match(r"revision \d+ ", scenario.get("about") or ""))


def is_served(path: str) -> bool:
    """Whether a request is about what we serve; kinds of user's definitions and invented ones count."""
    parts = [part for part in path.partition("?")[0].split("/") if part]
    if not parts or parts[0] not in ("api", "apis"):
        return True
    group = "" if parts[0] == "api" else parts[1] if len(parts) > 1 else ""
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    if not rest:
        return group in ("", "nope.io") or group in _GROUPS or group.endswith(".example.com")
    if rest[0] == "watch":
        rest = rest[1:]
    if rest and rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        rest = rest[2:]
    if not rest or rest[0] in ("foos", "nope") or group.endswith(".example.com"):
        return True
    return (group, rest[0]) in _KINDS or group == "subresources.kubevirt.io"


def is_listed(group: str, name: str) -> bool:
    """Whether discovery should name a resource or subresource."""
    plural = name.partition("/")[0]
    if group == SUBRESOURCE_GROUP:
        return name in KUBEVIRT_SUBRESOURCES
    return ((group, plural) in _KINDS and name != "nodes/proxy") or group.endswith(".example.com")


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
            return {"status": response.status, "headers": list(response.headers.items()), "raw": raw}

    def _graded(self, scenario: dict[str, Any], answers: dict[int, dict[str, Any]]) -> list[Grade]:
        pairs, name = Pairs(), f"{scenario['area']}/{scenario['name']}"
        loose = set(scenario.get("differsOnRepeat") or ())
        started = {step["background"]: step for step in scenario["steps"] if "background" in step}
        grades = []
        for at, answer in answers.items():
            step = scenario["steps"][at]
            request = step["request"] if "request" in step else started[step["collect"]]["request"]
            if step["response"].get("error") or not is_served(request["path"]):
                continue
            grade, why = _compare(answer, step["response"], Comparison(
                pairs, is_listed, keep_managed=bool(scenario.get("keepManagedFields"))
            ))  # fmt: skip
            if grade != "exact":
                body = _content(answer)
                reason = better(request, step["response"], answer["status"], body)
                reason = reason or installation(name, at, request, step["response"], body)
                if reason:
                    grade, why = "better", reason
                elif at in loose and answer["status"] == step["response"]["status"]:
                    grade = "exact"
            grades.append(Grade(name, at, grade, f"{request['method']} {request['path']} {why}"))
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
        wanted = pointer.removeprefix("header:").lower()
        return next((value for name, value in answer["headers"] if name.lower() == wanted), "")
    try:
        value: Any = json.loads(answer["raw"])
    except ValueError:
        return ""
    for part in pointer.strip("/").split("/"):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part.replace("~1", "/").replace("~0", "~")]
        except (KeyError, IndexError, ValueError, TypeError):
            return ""
    return str(value)


def _content(answer: dict[str, Any]) -> Any:
    """JSON, a list of watch events, or text."""
    headers = {name.lower(): value for name, value in answer["headers"]}
    text = answer["raw"].decode("utf-8", "replace")
    if "json" not in headers.get("content-type", "") and not text.startswith("{"):
        return text
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        if not text.strip() and headers.get("transfer-encoding") == "chunked":
            return {"events": []}
        if headers.get("transfer-encoding") == "chunked" and lines and all('"type":' in line[:12] for line in lines):
            return {"events": [json.loads(line) for line in lines]}
        return json.loads(text)
    except ValueError:
        return text


def _compare(answer: dict[str, Any], recorded: dict[str, Any], comparison: Comparison) -> tuple[str, str]:
    """(grade, what differs)."""
    ours: Any = reduced(_content(answer), recorded.get("reduced") or "")
    if answer["status"] != recorded["status"]:
        wanted = recorded.get("body", recorded.get("text", recorded.get("events")))
        return "different", f"status {answer['status']} not {recorded['status']}: {_short(ours)} | {_short(wanted)}"
    comparison.headers(answer["headers"], recorded.get("headers") or {})
    if "protobuf" not in recorded and recorded.get("reduced") != "headers-only":
        wanted = recorded.get("body", recorded.get("text"))
        if "events" in recorded:
            wanted = recorded["events"]
            ours = ours.get("events", ours) if isinstance(ours, dict) else ours
        comparison.body(ours, wanted)
    if not comparison.found:
        return "exact", ""
    said = all(re.match(r"header|\.details|\.metadata", text) for text in comparison.found)
    return "message" if said else "status", "; ".join(comparison.found[:8])


def _short(value: Any) -> str:
    text = json.dumps(value, default=str) if not isinstance(value, str) else value
    return text[:600]
