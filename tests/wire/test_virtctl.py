"""KubeVirt's own virtctl, unmodified, where `VIRTCTL` names it: each command's exchange, and the recorded outputs.

The agent is a fake (`fake_agent_http`); real guests are reached in `tests/guest`. Command lines whose answer needs a
kind that is not served yet are left out of the replay.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from tests.api_server import RunningServer, running_server
from tests.fake_agent_http import PNG, FakeAgentHttp, fake_agent, running_machine
from tests.oracle import oracle_folder
from tests.wire.test_oracle_http import World

from stead.kinds import register

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif("VIRTCTL" not in os.environ, reason="VIRTCTL names no virtctl: a real client is not run"),
]

#: share of recorded command lines whose exit code and output are the same
FLOOR = 0.95
#: kinds, or parts of the recording's build, that are not here
LEFT_OUT = re.compile(
    r"vmexport|expose|migrate|memory-dump|objectgraph|credentials|template|usbredir|adm |help|options|version"
    r"| create$|ssh |evacuate"
)
_NOISE = re.compile(r'"timestamp":"[^"]*"|"pos":"[^"]*"')


class Virtctl:
    """Runs the program against one server."""

    def __init__(self, server: RunningServer, agent: FakeAgentHttp, folder: Path) -> None:
        self.server, self.agent, self.folder = server, agent, folder

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        """Start a command."""
        environment = {"KUBECONFIG": str(self.server.kubeconfig), "HOME": str(self.folder), "PATH": os.environ["PATH"]}
        return await asyncio.create_subprocess_exec(
            os.environ["VIRTCTL"], *words, env=environment, cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def __call__(self, *words: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr without the remark on the binary's missing version)."""
        process = await self.start(*words)
        async with asyncio.timeout(40):
            out, err = await process.communicate()
        kept = [line for line in err.decode().splitlines(keepends=True) if "valid semver" not in line]
        return process.returncode or 0, out.decode(), "".join(kept)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def virtctl(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Virtctl]:
    async with running_server() as server, fake_agent(server.client) as agent:
        await running_machine(server.client, "web")
        yield Virtctl(server, agent, tmp_path_factory.mktemp("virtctl"))


@pytest.mark.parametrize(
    ("words", "said", "called"),
    [
        ("pause vm web", "VMI web was scheduled to pause\n", "pause"),
        ("pause vmi web", "VMI web was scheduled to pause\n", "pause"),
        ("soft-reboot web", "VMI web was scheduled to soft-reboot\n", "softreboot"),
        ("reset web", "VMI web was scheduled to reset\n", "reset"),
    ],
)
async def test_changes_reach_the_agent(virtctl: Virtctl, words: str, said: str, called: str) -> None:
    virtctl.agent.calls.clear()
    assert (await virtctl(*words.split()))[:2] == (0, said)
    assert [call[1].rsplit("/")[-1] for call in virtctl.agent.calls if call[0] == "PUT"] == [called]


async def test_guest_information_and_screenshot(virtctl: Virtctl) -> None:
    for command, expected in (("guestosinfo", '"7.2"'), ("userlist", '"ann"'), ("fslist", '"vda"')):
        code, out, _ = await virtctl(command, "web")
        assert (code, expected in out) == (0, True), command
    assert (await virtctl("vnc", "screenshot", "web", "-f", "shot.png"))[0] == 0
    assert (virtctl.folder / "shot.png").read_bytes() == PNG


async def test_versions_and_devices(virtctl: Virtctl) -> None:
    code, out, _ = await virtctl("version")
    assert (code, "Server Version" in out) == (0, True)


@pytest.mark.parametrize(("kind", "protocol"), [("vmi/web", "tcp"), ("vm/web", "tcp")])
async def test_port_forward_joins_a_local_port(virtctl: Virtctl, kind: str, protocol: str) -> None:
    port = free_port()
    process = await virtctl.start("port-forward", kind, f"{protocol}/{port}:22")
    try:
        reader, writer = await connected(port)
        async with asyncio.timeout(20):
            assert await reader.readexactly(32) == b"hello from web/portforward/22/tcp"[:32]
            await reader.readexactly(1)
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
        writer.close()
    finally:
        await ended(process)


async def test_port_forward_of_udp(virtctl: Virtctl) -> None:
    port = free_port()
    process = await virtctl.start("port-forward", "vmi/web", f"udp/{port}:53")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.connect(("127.0.0.1", port))
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(30):
                answer = b""
                while not answer:
                    with contextlib.suppress(OSError, TimeoutError):
                        await loop.sock_sendall(sender, b"query")
                        async with asyncio.timeout(0.5):
                            answer = await loop.sock_recv(sender, 100)
        assert answer in (b"query", b"hello from web/portforward/53/udp")
    finally:
        await ended(process)


async def test_vnc_by_proxy(virtctl: Virtctl) -> None:
    port = free_port()
    process = await virtctl.start("vnc", "web", "--proxy-only", "--port", str(port))
    try:
        reader, writer = await connected(port)
        async with asyncio.timeout(20):
            assert await reader.readexactly(18) == b"hello from web/vnc"
        writer.close()
    finally:
        await ended(process)


async def test_console_carries_keys_and_output_and_leaves_by_its_escape(virtctl: Virtctl) -> None:
    master, slave = os.openpty()
    environment = {"KUBECONFIG": str(virtctl.server.kubeconfig), "HOME": str(virtctl.folder)}
    process = await asyncio.create_subprocess_exec(
        os.environ["VIRTCTL"], "console", "web", env=environment, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    os.set_blocking(master, False)
    try:
        await seen(master, b"hello from web/console")
        os.write(master, b"ls\n")
        await seen(master, b"ls")
        os.write(master, b"\x1d")
        async with asyncio.timeout(20):
            assert await process.wait() == 0
    finally:
        await ended(process)
        os.close(master)


async def test_power_commands_write_the_machine(virtctl: Virtctl) -> None:
    client = virtctl.server.client
    await running_machine(client, "pw")
    assert (await virtctl("stop", "pw", "--dry-run"))[:2] == (0, "Dry Run execution\nVM pw was scheduled to stop\n")
    assert (await virtctl("restart", "pw"))[:2] == (0, "VM pw was scheduled to restart\n")
    machine = await client.get(register.VIRTUAL_MACHINE, "default", "pw")
    assert [request["action"] for request in machine["status"]["stateChangeRequests"]] == ["Stop", "Start"]
    await client.patch(register.VIRTUAL_MACHINE, "default", "pw", {"status": {"stateChangeRequests": None}}, "status")
    assert (await virtctl("stop", "pw"))[:2] == (0, "VM pw was scheduled to stop\n")
    machine = await client.get(register.VIRTUAL_MACHINE, "default", "pw")
    assert machine["spec"]["runStrategy"] == "Halted"


@pytest.mark.parametrize(
    "words",
    [
        "--memory 256Mi --run-strategy Halted --volume-containerdisk src:registry.example/guest:1,bootorder:1",
        "--instancetype u1.small --preference fedora --volume-import type:blank,size:1Gi --user ann --ssh-key k",
        "--volume-import type:http,url:http://images.example/a.qcow2,size:2Gi --cloud-init configdrive --user ann",
        "--volume-pvc src:data --infer-instancetype=false --infer-preference=false --termination-grace-period 5",
        "--volume-import type:registry,url:docker://registry.example/a:1,size:1Gi --volume-sysprep src:cfg",
        "--access-cred type:ssh,src:keys,method:ga,user:ann --volume-import type:pvc,src:default/base"
        " --infer-instancetype=false --infer-preference=false",
    ],
)
async def test_what_create_vm_prints_is_accepted(virtctl: Virtctl, words: str) -> None:
    code, out, err = await virtctl("create", "vm", "--name", "made", *words.split())
    assert code == 0, err
    path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines?dryRun=All&fieldValidation=Strict"
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            virtctl.server.url + path, data=out, ssl=virtctl.server.ssl, headers={"Content-Type": "application/yaml"}
        ) as response,
    ):
        assert response.status == 201, await response.text()


async def test_recorded_outputs(virtctl: Virtctl, capsys: pytest.CaptureFixture[str]) -> None:
    folder = oracle_folder("admission")
    if folder is None:
        with capsys.disabled():
            print("\nrecorded virtctl outputs: not replayed (STEAD_ORACLE is unset)")
        return
    files = virtctl.folder
    (files / "pw.txt").write_text("pond-pass\n")
    (files / "disk.img").write_bytes(bytes(1024))
    (files / "bad.yaml").write_text("kind: [\n")
    (files / "vm.yaml").write_text(VM_FILE)
    recorded = [c for c in json.loads((folder / "virtctl.json").read_text()) if not c["timedOut"]]
    kept = [c for c in recorded if not LEFT_OUT.search(c["command"])]
    misses = []
    async with running_server() as server, aiohttp.ClientSession() as session:
        await World(server, session).fixtures(json.loads((folder / "fixtures.json").read_text()))
        program = Virtctl(server, virtctl.agent, files)
        for case in kept:
            words = words_of(case["command"].replace("/files/", f"{files}/"))
            code, out, err = await program(*words)
            ours = (code, comparable(out, files), comparable(err, files))
            theirs = (case["exit"], comparable(case["stdout"], files), comparable(case["stderr"], files))
            if ours != theirs:
                misses.append(f"{case['command']}\n  ours   {ours}\n  theirs {theirs}")
    with capsys.disabled():
        print(f"\nrecorded virtctl outputs: {len(kept) - len(misses)} of {len(kept)} equal")
        if os.environ.get("STEAD_ORACLE_SHOW"):
            print("\n".join(misses))
    assert len(misses) <= (1 - FLOOR) * len(kept)


VM_FILE = """\
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: from-file}
spec:
  runStrategy: Halted
  instancetype: {kind: VirtualMachineInstancetype, name: oak-2x1}
  preference: {kind: VirtualMachinePreference, name: heron}
  template:
    spec:
      domain: {devices: {}}
      volumes: [{name: root, containerDisk: {image: "registry.invalid/guest/tiny:1.0"}}]
"""


def words_of(command: str) -> list[str]:
    """The words after the program's name."""
    return shlex.split(command)[1:]


def comparable(text: str, files: Path) -> str:
    """Output without what differs from run to run."""
    text = _NOISE.sub("", text.replace(f"{files}/", "/files/"))
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "<time>", text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|<uuid-\d+>", "<uuid>", text)
    text = re.sub(r"(resourceVersion: )\S+", r"\1<rv>", text)
    return re.sub(r"\b(name: (?:vm|clone)|imported-volume)-(<rand>|[a-z0-9]{5})\b", r"\1-<rand>", text)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as soon as somebody listens."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)


async def seen(descriptor: int, wanted: bytes) -> None:
    """Read a terminal until some text has come."""
    found = b""
    async with asyncio.timeout(30):
        while wanted not in found:
            with contextlib.suppress(BlockingIOError):
                found += os.read(descriptor, 4096)
            await asyncio.sleep(0.05)


async def ended(process: asyncio.subprocess.Process) -> None:
    """End a command that is still there."""
    if process.returncode is None:
        process.terminate()
    async with asyncio.timeout(10):
        await process.wait()
