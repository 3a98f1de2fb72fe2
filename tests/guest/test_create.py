"""virt-install's line with real guests: an installer from a served tree, the installed machine; an adopted disk."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests import guest_image
from tests.installer_server import UBUNTU, UBUNTU_NETBOOT, serving
from tests.stead_host import VM, SteadHost, phase, stead_host

from stead.config import Pool

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def images(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[SteadHost, Path]]:
    """A Stead with a registered directory `images`, as libvirt's own is."""
    # not below pytest's own folders, which only root may enter: machines run under users of their own
    folder = Path(tempfile.mkdtemp(prefix="images-"))
    folder.chmod(0o711)
    try:
        place = tmp_path_factory.mktemp("stead")
        async with stead_host(place, pools=(Pool(name="images", path=folder),), with_registry=False) as host:
            yield host, folder
    finally:
        shutil.rmtree(folder)


async def test_the_line_installs_from_a_served_tree_and_then_boots_the_disk(images: tuple[SteadHost, Path]) -> None:
    stead, folder = images
    await stead.host.run("ip", "link", "add", "br0", "type", "bridge")
    await stead.host.run("ip", "link", "set", "br0", "up")
    linux, initrd = UBUNTU
    files = {linux: guest_image.kernel_path().read_bytes(), initrd: guest_image.initrd_path().read_bytes()}
    with serving(files) as server:
        # tests/data/virt-install.txt with the directory and the server of this test, and memory that a test can spare
        told = await stead.stead(
            "create", "--name", "web01", "--memory", "2048", "--vcpus", "2", "--cpu", "host-passthrough",
            "--disk", f"path={folder}/web01.qcow2,size=30,format=qcow2", "--os-variant", "ubuntu24.04",
            "--network", "bridge=br0,model=virtio", "--graphics", "none", "--location", f"{server}{UBUNTU_NETBOOT}/",
            "--noautoconsole",
        )  # fmt: skip
        assert "stead create --finish web01" in told
        await stead.wait_machine("web01", "running")
    console = await stead.console("web01")
    await console.until("stead-guest: ready", 150)
    assert (folder / "web01.qcow2").read_bytes()[:4] == b"QFI\xfb"
    assert "console=ttyS0" in await stead.stead("xml", "web01")
    finishing = asyncio.create_task(stead.stead("create", "--finish", "web01"))
    await asyncio.sleep(2)
    await console.ws.send_bytes(b"\nreboot -f\n")
    assert "is installed and starts from its disk" in await finishing
    await stead.wait_machine("web01", "running")
    xml = await stead.stead("xml", "web01")
    assert "<kernel>" not in xml
    assert f"{folder}/web01.qcow2" in xml
    machine = await stead.get(VM, "web01")
    assert machine is not None
    assert machine["spec"]["runStrategy"] == "RerunOnFailure"
    await stead.delete("web01")

    async def is_gone() -> bool:
        return not (folder / "web01.qcow2").exists()

    await stead.until(is_gone, "the disk is gone with its machine", 60)


async def test_an_imported_disk_boots_and_outlives_its_machine(images: tuple[SteadHost, Path]) -> None:
    stead, folder = images
    disk = folder / "ready.qcow2"
    shutil.copy(guest_image.disk_image("qcow2"), disk)
    await stead.stead(
        "create", "--name", "imported", "--memory", "256", "--import", "--disk", str(disk), "--osinfo", "linux2022",
        "--noautoconsole", "--wait", "0",
    )  # fmt: skip
    console = await stead.booted("imported", seconds=240)
    assert "stead-guest: ready" in console.text
    told = await stead.stead(
        "create", "--name", "thief", "--memory", "256", "--import", "--disk", f"{disk}", "--osinfo", "linux2022",
        "--noautoconsole",
    )  # fmt: skip
    assert "is created" in told
    await stead.until_vm("thief", lambda vm: "imported-rootdisk" in str(vm) or "DataVolume" in str(vm["status"]), 60)
    assert await stead.vmi("thief") is None or phase(await stead.vmi("thief") or {}) != "Running"
    await stead.delete("thief")
    await stead.delete("imported")
    await asyncio.sleep(2)
    assert disk.exists()
