"""Every example is accepted as it stands: applied to a real API server with strict field validation."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from api_server import RunningServer, running_server
from stead.controllers.start import ControllerOptions, run_controllers
from stead.kinds import register
from stead.kinds.resource import Resource

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))
#: one server and one event loop for the whole module
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        ready = asyncio.Event()
        # The shipped instancetypes and preferences come with the controllers' start; then they stop.
        task = asyncio.create_task(run_controllers(running.client, ControllerOptions(), on_ready=ready.set))
        async with asyncio.timeout(60):
            await ready.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        yield running


def _resource(item: dict[str, Any]) -> Resource:
    group = item["apiVersion"].rpartition("/")[0]
    return register.resource_for(item["kind"], group)


async def _apply(server: RunningServer, item: dict[str, Any]) -> tuple[int, Any, str]:
    """Create it as kubectl does with --validate=strict; (code, answer, warnings)."""
    resource = _resource(item)
    namespace = item["metadata"].get("namespace", "default") if resource.namespaced else None
    url = f"{server.url}{resource.path(namespace)}?fieldValidation=Strict"
    async with aiohttp.ClientSession() as session, session.post(url, json=item, ssl=server.ssl) as answer:
        return answer.status, await answer.json(), answer.headers.get("Warning", "")


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
async def test_an_example_is_accepted_as_it_stands(server: RunningServer, file: Path) -> None:
    items = [item for item in yaml.safe_load_all(file.read_text(encoding="utf-8")) if item]
    assert items
    for item in items:
        code, answer, warnings = await _apply(server, item)
        name = item["metadata"]["name"]
        resource = _resource(item)
        if code == 409 and answer["reason"] == "AlreadyExists":  # web01 comes in two files
            await server.client.delete(resource, _namespace(item, resource), name)
            code, answer, warnings = await _apply(server, item)
        assert code == 201, f"{item['kind']} {name}: {answer.get('message')}"
        assert not warnings


def _namespace(item: dict[str, Any], resource: Resource) -> str | None:
    """Where an example's object lies."""
    return str(item["metadata"].get("namespace", "default")) if resource.namespaced else None


async def test_a_typing_error_in_an_example_would_be_told(server: RunningServer) -> None:
    item = yaml.safe_load((EXAMPLES / "efi.yaml").read_text(encoding="utf-8"))
    item["metadata"]["name"] = "mistyped"
    item["spec"]["template"]["spec"]["domain"]["cpu"]["coers"] = 2
    code, answer, _ = await _apply(server, item)
    assert code == 400
    assert 'unknown field "spec.template.spec.domain.cpu.coers"' in answer["message"]


async def test_the_list_of_examples_is_complete() -> None:
    listed = set(re.findall(r"\]\(([\w.-]+\.yaml)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in FILES}
