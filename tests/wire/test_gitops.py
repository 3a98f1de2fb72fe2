"""A folder of machines kept by GitOps: applied as an ApplySet, drifting, corrected, pruned, and judged healthy.

kubectl applies on the server's side with ApplySets, all controllers run against the server, and an instant agent stands
in for a host. `tests/health_rules.py` judges as Flux and Argo CD do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from tests.api_server import RunningServer, running_server
from tests.client_programs import kubectls
from tests.health_rules import argo, condition_of, kstatus
from tests.kubectl_program import Program, kubeconfig_in

from controller_world import Plane, machine, plane
from stead.kinds import register

pytestmark = pytest.mark.asyncio(loop_scope="module")

MERGE = "application/merge-patch+json"
APPLY = "apply --server-side --force-conflicts --field-manager=git --prune --applyset=machines -f repository"
Object = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(server: RunningServer) -> AsyncIterator[Plane]:
    async with plane(server.client) as running:
        yield running


@pytest.fixture(params=kubectls(), ids=lambda path: Path(path).name)
def kubectl(request: pytest.FixtureRequest, server: RunningServer, tmp_path: Path) -> Program:
    program = Program(request.param, server.kubeconfig, tmp_path)
    program.kubeconfig = kubeconfig_in(server.kubeconfig, f"git-{program.version}", tmp_path / "kubeconfig")
    (tmp_path / "repository").mkdir()
    for name, strategy in (("one", "Always"), ("two", "Always"), ("idle", "Halted")):
        declare(program, name, strategy)
    return program


def declare(kubectl: Program, name: str, strategy: str, memory: str = "64Mi") -> None:
    """Write a machine and its settings into the repository."""
    declared = machine(name, strategy)
    declared["metadata"] = {"name": name}
    declared["spec"]["template"]["spec"]["domain"]["memory"]["guest"] = memory
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"memory": memory}}
    (kubectl.folder / "repository" / f"{name}.yaml").write_text(yaml.safe_dump_all([declared, settings]))


async def synchronise(kubectl: Program) -> str:
    """What the GitOps tool does at each change, and now and then."""
    return await kubectl.ok(f"{APPLY} -n git-{kubectl.version}", KUBECTL_APPLYSET="true")


async def until(world: Plane, kubectl: Program, name: str, holds: Callable[[Object], bool]) -> Object:
    """Wait for a machine of the repository's namespace."""
    namespace = f"git-{kubectl.version}"
    return await world.until(register.VIRTUAL_MACHINE, name, holds, seconds=30, namespace=namespace)


async def test_a_folder_is_applied_drifts_is_corrected_and_pruned(kubectl: Program, world: Plane) -> None:
    namespace = f"git-{kubectl.version}"
    await kubectl.ok(f"create ns {namespace}")
    applied = await synchronise(kubectl)
    assert applied.count("serverside-applied") == 6
    for name in ("one", "two"):
        await until(world, kubectl, name, lambda vm: (kstatus(vm), argo(vm)) == ("Current", "Healthy"))
    await until(world, kubectl, "idle", lambda vm: argo(vm) == "Suspended")

    drift: Any = {"spec": {"runStrategy": "Halted"}, "metadata": {"labels": {"mine": "kept"}}}
    await world.client.patch(register.VIRTUAL_MACHINE, namespace, "one", drift, MERGE)
    await until(world, kubectl, "one", lambda vm: argo(vm) == "Suspended")
    await synchronise(kubectl)
    healed = await until(world, kubectl, "one", lambda vm: argo(vm) == "Healthy" and kstatus(vm) == "Current")
    assert healed["spec"]["runStrategy"] == "Always"
    assert healed["metadata"]["labels"] == {**healed["metadata"]["labels"], "mine": "kept"}
    before = healed["metadata"]["resourceVersion"]
    await synchronise(kubectl)
    assert (await world.get(register.VIRTUAL_MACHINE, "one", namespace) or {})["metadata"]["resourceVersion"] == before

    (kubectl.folder / "repository" / "two.yaml").unlink()
    pruned = await synchronise(kubectl)
    assert "virtualmachine.kubevirt.io/two pruned" in pruned
    assert "configmap/two pruned" in pruned
    await world.until_gone(register.VIRTUAL_MACHINE, "two", seconds=30, namespace=namespace)
    await world.until_gone(register.VIRTUAL_MACHINE_INSTANCE, "two", seconds=30, namespace=namespace)
    assert await world.get(register.VIRTUAL_MACHINE, "one", namespace) is not None


async def test_a_change_that_needs_a_restart_is_in_progress_until_then(kubectl: Program, world: Plane) -> None:
    """As in KubeVirt: the observed generation is the one that the running guest was started from."""
    namespace = f"git-{kubectl.version}"
    await kubectl.run("create", "ns", namespace)
    await synchronise(kubectl)
    started = await until(world, kubectl, "one", lambda vm: kstatus(vm) == "Current")
    declare(kubectl, "one", "Always", "96Mi")
    await synchronise(kubectl)
    waiting = await until(world, kubectl, "one", lambda vm: condition_of(vm, "RestartRequired").get("status") == "True")
    assert (kstatus(waiting), argo(waiting)) == ("InProgress", "Healthy")
    assert waiting["metadata"]["generation"] == started["metadata"]["generation"] + 1
    await world.client.delete(register.VIRTUAL_MACHINE_INSTANCE, namespace, "one")
    changed = await until(world, kubectl, "one", lambda vm: (kstatus(vm), argo(vm)) == ("Current", "Healthy"))
    assert changed["status"]["observedGeneration"] == changed["metadata"]["generation"]
    assert condition_of(changed, "RestartRequired").get("status") != "True"
