"""What `stead create` makes is accepted by the API as it is, is taken back on failure, and loses its installer."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.api_server import RunningServer, running_server
from tests.installer_server import UBUNTU, UBUNTU_NETBOOT, serving

from stead.cli.main import main
from stead.client.contract import Selection
from stead.kinds import register
from stead.kinds.catalogue import cluster_instancetypes, cluster_preferences
from stead.kube.errors import ApiError

NAMESPACE = "default"
IMAGES = "kubevirt-os-images"


async def run(server: RunningServer, *words: str) -> Result:
    """One `stead create` against the server, with libvirt's images folder as a pool."""
    settings = server.directory / "stead.toml"
    settings.write_text(
        f'state_dir = "{server.directory}/state"\nrun_dir = "{server.directory}/run"\n'
        '[[pools]]\nname = "images"\npath = "/var/lib/libvirt/images"\n'
    )
    arguments = ["--config", str(settings), "--kubeconfig", str(server.kubeconfig), "create", *words]
    return await asyncio.to_thread(CliRunner().invoke, main, arguments)


async def prepare(server: RunningServer) -> None:
    """Namespace, preferences and instancetypes, as the controllers of a running Stead make them."""
    for name in (NAMESPACE, IMAGES):
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        with contextlib.suppress(ApiError):
            await server.client.create(register.NAMESPACE, namespace)
    image = {
        "apiVersion": register.DATA_SOURCE.api_version,
        "kind": "DataSource",
        "metadata": {
            "name": "debian12",
            "namespace": IMAGES,
            "labels": {
                "instancetype.kubevirt.io/default-instancetype": "u1.small",
                "instancetype.kubevirt.io/default-preference": "debian",
            },
        },
        "spec": {"source": {"pvc": {"name": "debian12", "namespace": IMAGES}}},
    }
    await server.client.create(register.DATA_SOURCE, image)
    wanted = ("ubuntu", "linux", "debian", "windows.11", "u1.small")
    for resource, found in (
        (register.CLUSTER_PREFERENCE, cluster_preferences()),
        (register.CLUSTER_INSTANCETYPE, cluster_instancetypes()),
    ):
        for item in found:
            if item["metadata"]["name"] in wanted:
                await server.client.create(resource, item)


async def machine(server: RunningServer, name: str) -> dict[str, Any]:
    return await server.client.get(register.VIRTUAL_MACHINE, NAMESPACE, name)


async def test_machines_of_all_kinds_are_accepted(tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAAC3Nz me\n")
    lines = [
        "--image debian12 --ssh-key KEY",
        "--image debian12 --instancetype u1.small --cloud-init --osinfo debian12",
        "--memory 4096 --vcpus 2,maxvcpus=4 --disk size=5 --import --osinfo win11 --tpm default "
        "--boot uefi,secure-boot=on",
        "--memory 1024,maxmemory=2048 --disk size=5,bus=sata,cache=none,serial=x1 --disk https://x.test/a.qcow2 "
        "--import --network bridge=br0,mac=52:54:00:00:00:01 --network default --graphics vnc --video virtio "
        "--sound ac97 --watchdog default --rng builtin --input tablet --memballoon none --iothreads 2 "
        "--clock offset=timezone,timezone=Europe/Berlin,hpet_present=no --cpu host-model --osinfo linux2022 "
        "--features acpi=on,hyperv.relaxed.state=on,hyperv.spinlocks.state=on,hyperv.spinlocks.retries=8191 "
        "--metadata title=T,description=D --boot hd,network",
        "--memory 512 --disk size=1 --cdrom https://x.test/debian.iso --os-variant debian12 --noreboot --nonetworks",
        "--memory 512 --nodisks --boot kernel=http://x.test/k/linux,initrd=http://x.test/k/initrd --autostart",
        "--memory 512 --disk size=1,boot.order=2 --pxe --network bridge=br0 --machine q35 --serial pty --console pty",
    ]
    async with running_server() as server:
        await prepare(server)
        for number, text in enumerate(lines):
            words = [str(key) if word == "KEY" else word for word in text.split()]
            result = await run(server, "--name", f"m{number}", *words, "--noautoconsole")
            assert result.exit_code == 0, (text, result.output)
            assert f"m{number} is created" in result.stdout
            await machine(server, f"m{number}")
        secrets = (await server.client.list(register.SECRET, Selection(NAMESPACE))).items
        owners = [
            item["metadata"]["ownerReferences"][0]["name"] for item in secrets if "m1" in item["metadata"]["name"]
        ]
        assert owners == ["m1"]


async def test_the_line_is_created_and_finished() -> None:
    async with running_server() as server:
        await prepare(server)
        with serving(UBUNTU) as tree:
            location = f"{tree}{UBUNTU_NETBOOT}/"
            disk = "path=/var/lib/libvirt/images/no-such-file-web01.qcow2,size=30,format=qcow2"
            result = await run(
                server, "--name", "web01", "--memory", "4096", "--vcpus", "2", "--cpu", "host-passthrough",
                "--disk", disk,
                "--os-variant", "ubuntu24.04", "--network", "bridge=br0,model=virtio", "--graphics", "none",
                "--location", location, "--noautoconsole",
            )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "stead create --finish web01" in result.stdout
        made = await machine(server, "web01")
        assert made["spec"]["runStrategy"] == "Once"
        attachment = await server.client.get(register.NETWORK_ATTACHMENT_DEFINITION, NAMESPACE, "br0")
        assert '"bridge":"br0"' in attachment["spec"]["config"]
        result = await run(server, "--finish", "web01")
        assert result.exit_code == 0, result.output
        done = await machine(server, "web01")
        assert done["spec"]["runStrategy"] == "RerunOnFailure"
        assert "kernelBoot" not in str(done)
        result = await run(server, "--finish", "web01")
        assert (result.exit_code, "no installation" in result.stderr) == (2, True)


async def test_what_was_created_is_taken_back_when_the_machine_is_refused() -> None:
    async with running_server() as server:
        await prepare(server)
        rest = ("--disk", "size=1", "--import", "--noautoconsole", "--network", "bridge=br7")
        greedy = {"metadata": {"name": "greedy"}, "spec": {"requirements": {"memory": {"guest": "1Ti"}}}}
        kind = register.CLUSTER_PREFERENCE
        await server.client.create(kind, {"apiVersion": kind.api_version, "kind": kind.kind, **greedy})
        words = ("--name", "a", "--memory", "512", *rest)
        result = await run(server, *words, "--preference", "greedy", "--cloud-init")
        assert result.exit_code == 1
        assert "preference" in result.stderr.splitlines()[-1]
        assert not (await server.client.list(register.SECRET, Selection(NAMESPACE))).items
        with pytest.raises(ApiError):
            await server.client.get(register.NETWORK_ATTACHMENT_DEFINITION, NAMESPACE, "br7")
        assert (await run(server, *words)).exit_code == 0
        again = await run(server, *words)
        assert (again.exit_code, "exists already" in again.stderr) == (2, True)


async def test_an_image_that_is_not_there_is_named() -> None:
    async with running_server() as server:
        await prepare(server)
        result = await run(server, "--name", "a", "--image", "debian99", "--noautoconsole")
        assert (result.exit_code, "there is no image debian99" in result.stderr) == (2, True)


async def test_another_network_of_the_same_name_is_not_taken_over() -> None:
    async with running_server() as server:
        await prepare(server)
        other = {
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": "br0", "namespace": NAMESPACE}, "spec": {"config": '{"type":"bridge","bridge":"br9"}'},
        }  # fmt: skip
        await server.client.create(register.NETWORK_ATTACHMENT_DEFINITION, other)
        words = (
            "--name",
            "a",
            "--memory",
            "512",
            "--disk",
            "size=1",
            "--import",
            "--network",
            "bridge=br0",
            "--noautoconsole",
        )
        result = await run(server, *words)
        assert result.exit_code == 2
        assert "means another network" in result.stderr
