"""`/openapi/v2` in protobuf, decoded by Google's protoc with the message definitions that Kubernetes' clients use.

The definitions are gnostic's `OpenAPIv2.proto`, from Debian 12's package; `check` installs both.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.api_server import running_server

DEFINITIONS = Path("/usr/share/gocode/src/github.com/googleapis/gnostic/openapiv2/OpenAPIv2.proto")
MEDIA = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
GROUP_VERSION_KIND = "x-kubernetes-group-version-kind"
Message = dict[str, list[Any]]


@pytest.mark.skipif(
    not (DEFINITIONS.exists() and shutil.which("protoc")), reason="protoc or gnostic's definitions are not installed"
)
async def test_the_document_decodes_and_says_what_the_json_one_says() -> None:
    async with running_server() as server:
        async with aiohttp.ClientSession() as session:
            url = server.url + "/openapi/v2"
            async with session.get(url, ssl=server.ssl, headers={"Accept": MEDIA}) as answer:
                body = await answer.read()
            async with session.get(url, ssl=server.ssl, headers={"Accept": "application/json"}) as answer:
                document = await answer.json()
    decoded = message(lines(await text_form(body)))
    assert decoded["swagger"] == ["2.0"]
    theirs = {item["name"][0]: item["value"][0] for item in decoded["definitions"][0]["additional_properties"]}
    ours = document["definitions"]
    assert theirs.keys() == ours.keys()
    for name, schema in ours.items():
        assert fields(theirs[name]) == sorted(schema.get("properties", {})), name
        assert kinds(theirs[name]) == schema.get(GROUP_VERSION_KIND, []), name
    patched = [kinds(path["value"][0]["patch"][0]) for path in decoded["paths"][0]["path"]]
    assert {"group": "kubevirt.io", "version": "v1", "kind": "VirtualMachine"} in patched


async def text_form(body: bytes) -> str:
    """The Document message as text. protoc fails on bytes that are no such message."""
    process = await asyncio.create_subprocess_exec(
        "protoc", "--decode=openapi.v2.Document", f"-I{DEFINITIONS.parent}", DEFINITIONS.name,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate(body)
    assert process.returncode == 0, err.decode()
    return out.decode()


def lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines())


def message(rest: Iterator[str]) -> Message:
    """A message in text form as a dictionary of lists. A field that the definitions lack has a number for name."""
    found: Message = {}
    for line in rest:
        if line == "}":
            break
        name, value = re.split(r": | (?=\{)", line, maxsplit=1)
        assert not name.isdigit(), f"unknown field {name}"
        found.setdefault(name, []).append(message(rest) if value == "{" else scalar(value))
    return found


def scalar(value: str) -> Any:
    """A string without its quotes (bytes beyond ASCII are not put together), else the word as it is."""
    return json.loads(re.sub(r"\\([0-7]{3})", r"\\u0\1", value).replace("\\'", "'")) if value.startswith('"') else value


def fields(schema: Message) -> list[str]:
    """The names of a schema's properties."""
    return sorted(item["name"][0] for held in schema.get("properties", []) for item in held["additional_properties"])


def kinds(holder: Message) -> Any:
    """The group, version and kind that a schema or an operation is marked with."""
    marks = [item for item in holder.get("vendor_extension", []) if item["name"] == [GROUP_VERSION_KIND]]
    return json.loads(marks[0]["value"][0]["yaml"][0]) if marks else []
