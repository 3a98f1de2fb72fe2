"""An installer's kernel and initrd come from a server or a pool into the machine's own folder, within limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.installer_server import closed_url, serving

from stead.agent import kernels
from stead.agent.prepared import NotReady, Unsupported
from stead.agent.stock import Stock
from stead.images.containerdisks import ContainerDisks
from stead.images.sources import Policy
from stead.storage.pools import Pool, VolumeSpec

LOOPBACK = Policy(allowed=("127.0.0.0/8",))
FILES = {"/tree/images/vmlinuz": b"kernel" * 1000, "/tree/initrd.gz": b"initrd"}
IDS = (4711, 4711)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "machine"
    made.mkdir()
    return made


def stock(tmp_path: Path, policy: Policy = LOOPBACK) -> Stock:
    return Stock([Pool(tmp_path / "pool", "images")], ContainerDisks(tmp_path / "disks"), policy)


def container(base: str, kernel: str = "/images/vmlinuz", initrd: str = "/initrd.gz") -> dict[str, Any]:
    return {"image": base, "kernelPath": kernel, "initrdPath": initrd}


async def test_files_of_a_served_tree_belong_to_the_machine(tmp_path: Path, folder: Path) -> None:
    with serving(FILES) as server:
        made = await kernels.prepare(container(f"{server}/tree/"), folder, IDS, stock(tmp_path))
    assert Path(made.kernel).read_bytes() == FILES["/tree/images/vmlinuz"]
    assert Path(made.initrd).read_bytes() == b"initrd"
    facts = Path(made.kernel).stat()
    assert (facts.st_uid, facts.st_mode & 0o777, Path(made.kernel).parent) == (4711, 0o400, folder)
    again = await kernels.prepare(container(f"{server}/tree/"), folder, IDS, stock(tmp_path))  # the server is gone
    assert again == made


async def test_a_server_that_fails_is_told_and_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    with serving({"/tree/images/vmlinuz": b"k"}) as server:
        with pytest.raises(NotReady, match=r"initrd\.gz.*404"):
            await kernels.prepare(container(f"{server}/tree/"), folder, IDS, stock(tmp_path))
    with pytest.raises(NotReady, match=r"127\.0\.0\.1"):
        await kernels.prepare(container(closed_url(), "/x"), folder, IDS, stock(tmp_path))
    assert [path.name for path in folder.iterdir()] == ["boot-kernel"]


async def test_addresses_that_imports_may_not_reach_are_refused(tmp_path: Path, folder: Path) -> None:
    with serving(FILES) as server:
        with pytest.raises(NotReady, match="loopback"):
            await kernels.prepare(container(f"{server}/tree/"), folder, IDS, stock(tmp_path, Policy()))


async def test_files_of_a_pool_are_copied_unless_they_are_someones_volume(tmp_path: Path, folder: Path) -> None:
    materials = stock(tmp_path)
    pool = Pool(tmp_path / "pool", "images")
    (pool.path / "vmlinuz").write_bytes(b"kernel")
    made = await kernels.prepare(container(f"file://{pool.path}/", "/vmlinuz", ""), folder, IDS, materials)
    assert (Path(made.kernel).read_bytes(), made.initrd) == (b"kernel", "")
    pool.create(VolumeSpec(uid="u1", size_bytes=1 << 20, file="disk.raw"))
    (pool.path / "link").symlink_to("/etc/shadow")
    for name in ("disk.raw", "link", "u1/volume.json", "pool.json", "absent"):
        with pytest.raises(NotReady):
            await kernels.prepare(container(f"file://{pool.path}/", "", f"/{name}"), folder, IDS, materials)
    with pytest.raises(NotReady, match="not a registered directory"):
        await kernels.prepare(container("file:///etc/", "/hostname", ""), folder / "..", IDS, materials)


@pytest.mark.parametrize("path", ["/../x", "/a b", "/x?y=1", "//x", "/x/"])
async def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path, folder: Path, path: str) -> None:
    with pytest.raises(Unsupported, match="kernelPath"):
        await kernels.prepare(container("http://127.0.0.1:1/t/", path), folder, IDS, stock(tmp_path))
