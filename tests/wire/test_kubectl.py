"""The real kubectl against the server: a day's commands, with every version that is at hand.

`tests/client_programs.py` says which programs: the oldest and the newest. Recorded
command lines of kubectl 1.32 against a real API server are replayed where `STEAD_ORACLE` names them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests import api_oracle
from tests.api_server import RunningServer, running_server
from tests.client_programs import fetched, kubectls

from stead.kinds import register

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: share of recorded command lines whose exit code and output are the same
FLOOR = 0.95
#: command lines about kinds that are not served, about texts of documentation, or about the servers' versions
LEFT_OUT = re.compile(
    r"deploy|svc|pdb|\bjob\b|(?<!=)\bpods\b|^explain|^api-|^version|^cluster-info|scale cm|recs|get all|can-i --list"
)
MACHINE = """\
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: web, labels: {app: shop}}
spec:
  runStrategy: Halted
  template: {spec: {domain: {devices: {}, memory: {guest: 128Mi}}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {app: shop}}
data: {colour: red}
"""


class Kubectl:
    """Runs one kubectl against one server, in a folder of its own."""

    def __init__(self, program: str, server: RunningServer, folder: Path) -> None:
        self.program, self.server, self.folder = program, server, folder

    async def run(self, *words: str, editor: str = "") -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        environment = {
            "KUBECONFIG": str(self.server.kubeconfig), "HOME": str(self.folder), "PATH": os.environ["PATH"],
            "KUBE_EDITOR": editor, "TMPDIR": str(self.folder),
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            self.program, *words, env=environment, cwd=self.folder, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    async def __call__(self, line: str, editor: str = "") -> str:
        """The output of a command that must succeed."""
        code, out, err = await self.run(*line.split(), editor=editor)
        assert code == 0, f"{line}: {err}"
        return out


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[RunningServer]:
    async with running_server() as running:
        yield running


@pytest.fixture(params=kubectls(), ids=lambda program: Path(program).name)
def kubectl(request: pytest.FixtureRequest, server: RunningServer, tmp_path: Path) -> Kubectl:
    (tmp_path / "shop.yaml").write_text(MACHINE)
    return Kubectl(request.param, server, tmp_path)


async def test_a_days_work(kubectl: Kubectl) -> None:
    version = Path(kubectl.program).name.replace(".", "-")
    await kubectl(f"create ns day-{version}")
    here = f"-n day-{version}"
    assert "created" in await kubectl(f"{here} apply -f shop.yaml")
    assert (await kubectl(f"{here} apply -f shop.yaml")).count("unchanged") == 2
    (kubectl.folder / "shop.yaml").write_text(MACHINE.replace("128Mi", "192Mi"))
    code, out, _ = await kubectl.run(*f"{here} diff -f shop.yaml".split())
    assert (code, "+          guest: 192Mi" in out) == (1, True)
    assert "serverside-applied" in await kubectl(f"{here} apply --server-side --force-conflicts -f shop.yaml")
    assert (await kubectl(f"{here} get vm -o name")).strip() == "virtualmachine.kubevirt.io/web"
    guest = "jsonpath={.spec.template.spec.domain.memory.guest}"
    assert await kubectl(f"{here} get vm web -o {guest}") == "192Mi"
    assert "STATUS" in await kubectl(f"{here} get vm -o wide --sort-by=.metadata.name --show-labels")
    assert "Run Strategy:  Halted" in await kubectl(f"{here} describe vm web")
    await kubectl(f"{here} edit vm web", editor=f"{shutil.which('sed')} -i s/Halted/Manual/")
    assert await kubectl(f"{here} get vm web -o jsonpath={{.spec.runStrategy}}") == "Manual"
    await kubectl(f'{here} patch vm web --type merge -p {{"spec":{{"runStrategy":"Halted"}}}}')
    await kubectl(f'{here} patch vm web --type json -p [{{"op":"add","path":"/metadata/labels/x","value":"1"}}]')
    await kubectl(f'{here} patch cm settings -p {{"data":{{"size":"big"}}}}')
    await kubectl(f"{here} label vm web tier=front")
    await kubectl(f"{here} annotate vm web note=kept")
    await kubectl(f"{here} wait vm/web --for=jsonpath={{.spec.runStrategy}}=Halted --timeout=10s")
    assert await kubectl(f"{here} get vm -l app=shop,tier=front,x=1 -o name")
    assert "deleted" in await kubectl(f"{here} delete vm web --cascade=background")
    assert "deleted" in await kubectl(f"{here} delete -f shop.yaml --ignore-not-found")


async def test_explain_and_discovery(kubectl: Kubectl) -> None:
    text = await kubectl("explain vm.spec --recursive")
    assert "runStrategy" in text
    assert "dataVolumeTemplates" in text
    assert "source" in await kubectl("explain datavolume.spec")
    assert "data" in await kubectl("explain configmap")
    listed = await kubectl("api-resources -o name")
    assert {"virtualmachines.kubevirt.io", "datavolumes.cdi.kubevirt.io", "nodes"} <= set(listed.split())
    assert "ok" in await kubectl("get --raw /readyz")


async def test_access(kubectl: Kubectl) -> None:
    version = Path(kubectl.program).name.replace(".", "-")
    here = f"-n acc-{version}"
    await kubectl(f"create ns acc-{version}")
    await kubectl(f"{here} create sa ann")
    await kubectl(f"{here} create role reader --verb=get,list --resource=virtualmachines.kubevirt.io")
    await kubectl(f"{here} create rolebinding reader --role reader --serviceaccount acc-{version}:ann")
    await kubectl(f"{here} create secret generic s --from-literal=a=b")
    ann = f"--as system:serviceaccount:acc-{version}:ann"
    assert (await kubectl(f"{here} auth can-i list virtualmachines.kubevirt.io {ann}")).strip() == "yes"
    code, out, _ = await kubectl.run(*f"{here} auth can-i delete virtualmachines.kubevirt.io {ann}".split())
    assert (code, out.strip()) == (1, "no")
    token = (await kubectl(f"{here} create token ann --duration 10m")).strip()
    assert token.count(".") == 2
    code, _, err = await kubectl.run(*f"{here} get secrets {ann}".split())
    assert (code, "is forbidden" in err) == (1, True)


async def test_hosts_are_cordoned_and_described(kubectl: Kubectl, server: RunningServer) -> None:
    name = f"host-{Path(kubectl.program).name.replace('.', '-')}"
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    made = await server.client.create(register.NODE, node)
    status = {"conditions": [{"type": "Ready", "status": "True"}], "capacity": {"cpu": "2", "memory": "1Gi"}}
    await server.client.update(register.NODE, {**made, "status": status}, "status")
    await kubectl(f"cordon {name}")
    assert "SchedulingDisabled" in await kubectl(f"get node {name}")
    await kubectl(f"uncordon {name}")
    assert "Unschedulable:      false" in await kubectl(f"describe node {name}")


async def test_unknown_fields_and_bad_values_are_told(kubectl: Kubectl) -> None:
    (kubectl.folder / "typo.yaml").write_text(MACHINE.replace("runStrategy", "runStrategi"))
    code, _, err = await kubectl.run("apply", "-f", "typo.yaml")
    assert code == 1
    assert re.search(r"runStrategi", err)
    (kubectl.folder / "bad.yaml").write_text(MACHINE.replace("128Mi", "lots"))
    code, _, err = await kubectl.run("create", "-f", "bad.yaml", "--validate=false")
    assert code == 1
    assert "quantities must match the regular expression" in err or "in body" in err


async def test_recorded_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = os.environ.get("STEAD_ORACLE")
    folder = Path(root) / "api" if root else None
    if folder is None or not folder.is_dir() or not kubectls():
        with capsys.disabled():
            print("\nrecorded kubectl command lines: not replayed")
        return
    recorded = json.loads((folder / "kubectl.json").read_text())
    for name, text in recorded["files"].items():
        (tmp_path / name).write_text(text)
    misses = []
    async with running_server() as server:
        await api_oracle.define(server.client, api_oracle.definitions(folder))
        program = Kubectl(recorded_by(), server, tmp_path)
        kept = [case for case in recorded["commands"] if not LEFT_OUT.search(" ".join(case["args"]))]
        for case in kept:
            editor = f"sh ./{case['editor']}" if case.get("editor") else ""
            ours = await program.run(*case["args"], editor=editor)
            theirs = (case["exit"], case["stdout"], case["stderr"])
            if [comparable(part) for part in ours] != [comparable(part) for part in theirs]:
                misses.append(f"{' '.join(case['args'])}\n  ours   {ours}\n  theirs {theirs}")
    total = len(kept)
    with capsys.disabled():
        print(f"\nrecorded kubectl command lines: {total - len(misses)} of {total} equal")
        if os.environ.get("STEAD_ORACLE_SHOW"):
            print("\n".join(misses))
    assert 1 - len(misses) / total >= FLOOR


def recorded_by() -> str:
    """The kubectl nearest to the one that was recorded, 1.32: texts changed later."""
    return next((path for path in fetched("kubectl")), kubectls()[-1])


def comparable(value: object) -> object:
    """Output without what differs from run to run."""
    if not isinstance(value, str):
        return value
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|<TIME>", "<time>", value)
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|UID#\d+|<UUID>", "<uid>", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \+0000", "<time>", text)
    text = re.sub(r"eyJ[\w.-]+|<JWT>", "<token>", text)
    text = re.sub(r"X509SHA256=\w+", "X509SHA256=<HEX>", text)
    text = re.sub(r"(Resource Version: +)(\d+|<RV>)", r"\1<rv>", text)
    text = re.sub(r"W\d{4} [\d:.]+ +\d+|<KLOG>", "<log>", text)
    text = re.sub(r'(resourceVersion"?: )"[^"]*"', r"\1<rv>", text)
    text = re.sub(r"\b(\d+(ms|[smhd]))+\b|<AGE>", "<age>", text)
    text = re.sub(r"/tmp/\S+|<TMP>|https://127.0.0.1:\d+|https://<SERVER>|<SERVER>", "<here>", text)
    return re.sub(r"[ \t]+", " ", text)
