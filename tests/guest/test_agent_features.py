"""What an instance may ask for besides disk and network, on one real guest: kernel from a registry, data disks, serial
log, a NIC on a host's bridge, keys by the guest's agent, probes of all kinds, and the end that a liveness probe brings.
"""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from tests import guest_image, image_server
from tests.agent_host import Console, Site, agent_host, condition
from tests.outer_network import run

from stead.agent.probes import Prober, Target
from stead.client.contract import Object
from stead.images.sources import Policy
from stead.kinds import register

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

BRIDGE = "br-features"


def encoded(**data: str) -> Object:
    return {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}


async def fill(site: Site) -> None:
    """Objects that the instance refers to."""
    for kind, name, data in (
        ("Secret", "keys", encoded(key="ssh-ed25519 AAAA one")),
        ("Secret", "words", encoded(word="swordfish")),
        ("ConfigMap", "answers", {"autounattend.xml": "<unattend/>"}),
        ("ServiceAccount", "robot", None),
    ):
        body: Object = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "ns"}}
        await site.client.create(register.resource_for(kind), body | ({"data": data} if data else {}))
    definition = {
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "wire", "namespace": "ns"},
        "spec": {"config": f'{{"type": "bridge", "bridge": "{BRIDGE}"}}'},
    }  # fmt: skip
    await site.client.create(register.NETWORK_ATTACHMENT_DEFINITION, definition)


def kernel_from(site: Site, registry: image_server.Registry) -> Object:
    """`firmware` with a kernel and initrd that lie in an image of the registry."""
    files: dict[str, bytes | Path] = {
        "boot/vmlinuz": guest_image.kernel_path(),
        "boot/initrd": guest_image.initrd_path(),
    }
    registry.push("kernel", "1", [image_server.layer(files)])
    site.stock._policy = Policy(allowed=("127.0.0.0/8",))
    site.stock._insecure = lambda host: host == registry.host
    container = {"image": f"{registry.host}/kernel:1", "kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd"}
    return {"kernelBoot": {"container": container, "kernelArgs": f"{guest_image.CMDLINE} stead.test=1"}}


async def seen_on_disks(console: Console) -> str:
    """Every file of every disk made from objects, with its content."""
    await console.shell("touch /run/quiet; mkdir -p /m")
    return await console.shell(
        "for d in /dev/vd? /dev/sr?; do mount -r -t iso9660 $d /m 2>/dev/null || continue;"
        ' (cd /m; find . -type f | while read f; do echo "$f = $(cat $f)"; done); umount /m; done'
    )


async def test_an_instance_gets_all_that_it_asks_for(tmp_path: Path) -> None:
    async with agent_host(tmp_path) as site:
        with image_server.registry() as registry:
            run("ip", "link", "add", BRIDGE, "type", "bridge")
            run("ip", "address", "add", "203.0.113.1/24", "dev", BRIDGE)
            run("ip", "link", "set", BRIDGE, "up")
            await fill(site)
            names = ("seed", "answers", "account", "about", "secret")
            await site.create(
                domain={
                    "memory": {"guest": "192Mi"},
                    "firmware": kernel_from(site, registry),
                    "devices": {
                        "disks": [{"name": name, "disk": {"bus": "virtio"}} for name in names],
                        "interfaces": [{"name": "default", "masquerade": {}}, {"name": "wire", "bridge": {}}],
                        "logSerialConsole": True,
                    },
                },
                networks=[{"name": "default", "pod": {}}, {"name": "wire", "multus": {"networkName": "wire"}}],
                volumes=[
                    {"name": "seed", "cloudInitConfigDrive": {"userData": "#cloud-config\n"}},
                    {"name": "answers", "sysprep": {"configMap": {"name": "answers"}}},
                    {"name": "account", "serviceAccount": {"serviceAccountName": "robot"}},
                    {"name": "about", "downwardAPI": {
                        "fields": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                    {"name": "secret", "secret": {"secretName": "words"}},
                ],
                accessCredentials=[{"sshPublicKey": {
                    "source": {"secret": {"secretName": "keys"}},
                    "propagationMethod": {"qemuGuestAgent": {"users": ["root"]}}}}],
                readinessProbe={
                    "httpGet": {"port": 80, "path": "/index.html"}, "periodSeconds": 1, "timeoutSeconds": 5},
                livenessProbe={  # its delay leaves time to boot: on a busy host a guest that boots would be ended by it
                    "exec": {"command": ["/bin/ls", "/etc/passwd"]}, "periodSeconds": 1, "timeoutSeconds": 10,
                    "failureThreshold": 3, "initialDelaySeconds": 100},
            )  # fmt: skip
            vmi = await site.running()
            console = await site.console()
            await console.until("stead-guest: seed ConfigDrive")
            await console.until("stead-guest: address 10.0.2.2")
            assert "stead.test=1" in await console.shell("cat /proc/cmdline")
            content = await seen_on_disks(console)
            for expected in (
                "Autounattend.xml = <unattend/>",
                "namespace = ns",
                "token = ",
                "name = web",
                "word = sword",
            ):
                assert expected in content, content
            assert "1 packets received" in await console.shell(
                "ip addr add 203.0.113.2/24 dev eth1; ip link set eth1 up; sleep 1; ping -c 1 -W 10 203.0.113.1"
            )

            await site.until(lambda v: condition(v, "AgentConnected") is not None)
            await site.until(lambda v: (condition(v, "AccessCredentialsSynchronized") or {}).get("status") == "True")
            assert "ssh-ed25519 AAAA one" in await console.shell("cat /root/.ssh/authorized_keys")

            machine = site.agent.machines[vmi["metadata"]["uid"]]
            await check_probes(machine)
            await site.until(lambda v: condition(v, "Ready")["status"] == "True")  # type: ignore[index]
            await console.shell("killall httpd")
            vmi = await site.until(lambda v: condition(v, "Ready")["status"] == "False")  # type: ignore[index]
            assert condition(vmi, "Ready")["reason"] == "ReadinessProbeFailed"  # type: ignore[index]

            status, text = await site.call("seriallog", "get")
            assert status == 200
            assert b"stead-guest: seed ConfigDrive" in text
            await console.shell("mv /etc/passwd /etc/gone")
            vmi = await site.until(lambda v: v["status"]["phase"] == "Failed", seconds=180)
            assert any("liveness" in event["message"] for event in site.client.of("events"))
            await site.delete()
            await site.gone()
            run("ip", "link", "delete", BRIDGE)


async def check_probes(machine: Any) -> None:
    """Each kind of probe, once where it must succeed and once where it must fail."""

    async def ask(command: str, arguments: dict[str, Any] | None) -> Any:
        return await machine.shop.hypervisor.agent_command(machine.uid, command, arguments)

    target = Target(ask, lambda: machine.address, lambda: True)
    expected: list[tuple[Object, bool]] = [
        ({"guestAgentPing": {}}, True),
        ({"exec": {"command": ["/bin/true"]}}, True),
        ({"exec": {"command": ["/bin/false"]}}, False),
        ({"exec": {"command": ["/no/such/program"]}}, False),
        ({"tcpSocket": {"port": 7}}, True),
        ({"tcpSocket": {"port": 9}}, False),
        ({"httpGet": {"port": 80, "path": "index.html"}}, True),
        ({"httpGet": {"port": 80, "path": "/nothing"}}, False),
    ]
    for probe, healthy in expected:
        heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        full = probe | {"timeoutSeconds": 15, "failureThreshold": 1}

        def note(verdict: bool, heard: asyncio.Future[bool] = heard) -> None:
            if not heard.done():
                heard.set_result(verdict)

        task = asyncio.create_task(Prober(full, target, healthy=not healthy, changed=note).run())
        try:
            assert await asyncio.wait_for(heard, 40) is healthy, probe
        finally:
            task.cancel()
