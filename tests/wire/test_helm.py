"""Helm 3 and helm 4 against the server: a chart with a machine, a ConfigMap and a Secret, a release's whole life.

Helm 3 creates and patches, helm 4 applies on the server's side; both keep their releases in Secrets, which they write
in protobuf. The programs come from `tests/client_programs.py`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.api_server import RunningServer, running_server
from tests.client_programs import fetched
from tests.kubectl_program import Program, kubeconfig_in

from stead.client.contract import Selection
from stead.kinds import register
from stead.kube.errors import ApiError

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHART = Path(__file__).parent.parent / "data" / "chart"
WAIT = "--wait --timeout 30s"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


@pytest.fixture(params=fetched("helm"), ids=lambda path: Path(path).name)
def helm(request: pytest.FixtureRequest, server: RunningServer, tmp_path: Path) -> Program:
    program = Program(request.param, server.kubeconfig, tmp_path)
    program.kubeconfig = kubeconfig_in(server.kubeconfig, program.version, tmp_path / "kubeconfig")
    return program


async def memory(server: RunningServer, namespace: str) -> tuple[str, str]:
    """What the machine and the ConfigMap of the release say."""
    machine = await server.client.get(register.VIRTUAL_MACHINE, namespace, "shop-web")
    settings = await server.client.get(register.CONFIG_MAP, namespace, "shop-settings")
    return machine["spec"]["template"]["spec"]["domain"]["memory"]["guest"], settings["data"]["memory"]


async def test_a_release_is_installed_upgraded_rolled_back_and_removed(helm: Program, server: RunningServer) -> None:
    here = helm.version
    await helm.ok(f"install shop {CHART} --create-namespace --namespace {here} {WAIT}")
    assert await memory(server, here) == ("128Mi", "128Mi")
    secret = await server.client.get(register.SECRET, here, "shop-key")
    assert secret["data"] == {"key": "dmFsdWU="}
    machine = await server.client.get(register.VIRTUAL_MACHINE, here, "shop-web")
    assert machine["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"

    await helm.ok(f"upgrade shop {CHART} --set memory=192Mi {WAIT}")
    assert await memory(server, here) == ("192Mi", "192Mi")
    assert await listed(helm) == [("shop", "2", "deployed")]
    assert "192Mi" in await helm.ok("get manifest shop")
    assert len(json.loads(await helm.ok("history shop -o json"))) == 2

    await helm.ok(f"rollback shop 1 {WAIT}")
    assert await memory(server, here) == ("128Mi", "128Mi")
    assert await listed(helm) == [("shop", "3", "deployed")]

    await helm.ok(f"uninstall shop {WAIT}")
    assert await listed(helm) == []
    for resource, name in ((register.VIRTUAL_MACHINE, "shop-web"), (register.SECRET, "shop-key")):
        with pytest.raises(ApiError, match="not found"):
            await server.client.get(resource, here, name)
    left = await server.client.list(register.SECRET, Selection(namespace=here))
    assert [item["metadata"]["name"] for item in left.items] == []


async def listed(helm: Program) -> list[tuple[Any, ...]]:
    """The releases: name, revision, status."""
    return [(r["name"], r["revision"], r["status"]) for r in json.loads(await helm.ok("list -o json"))]


async def test_a_refused_chart_is_told_and_leaves_the_release_as_it_was(helm: Program, server: RunningServer) -> None:
    here = f"refused-{helm.version}"
    await helm.ok(f"install shop {CHART} --create-namespace -n {here} {WAIT}")
    ran = await helm.run("upgrade", "shop", str(CHART), "-n", here, "--set", "memory=lots")
    assert ran.code == 1
    assert "quantities must match" in ran.err or "spec.template.spec.domain.memory.guest" in ran.err
    assert (await memory(server, here))[0] == "128Mi"
    assert "failed" in await helm.ok(f"status shop -n {here}")
    await helm.ok(f"upgrade shop {CHART} -n {here} --set memory=192Mi --history-max 2 {WAIT}")
    assert await memory(server, here) == ("192Mi", "192Mi")


async def test_a_chart_rendered_against_the_server_changes_nothing(helm: Program, server: RunningServer) -> None:
    here = f"dry-{helm.version}"
    await helm.ok(f"install shop {CHART} --create-namespace -n {here} --dry-run=server")
    with pytest.raises(ApiError, match="not found"):
        await server.client.get(register.NAMESPACE, "", here)
