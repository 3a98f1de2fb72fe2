"""ISO images for guests: what was put in is read back by another program, by the names that were given."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stead.images.iso import IsoError, write_iso

FILES = {
    "user-data": b"#cloud-config\n" + b"x" * 5000,
    "meta-data": b"",
    "openstack/latest/user_data": b"1",
    "openstack/content/0000": bytes(range(256)) * 20,
    ".dockerconfigjson": b"{}",
    "Ünïcode näme.TXT": b"2",
    "k" * 200 + ".pem": b"3",
    "k" * 200 + ".key": b"4",
}


def read_back(image: Path, folder: Path, *options: str) -> dict[str, bytes]:
    command = ["xorriso", "-abort_on", "FATAL", *options, "-osirrox", "on", "-indev", str(image)]
    subprocess.run([*command, "-extract", "/", str(folder)], check=True, capture_output=True)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


async def test_another_program_reads_every_file_by_its_name(tmp_path: Path) -> None:
    image = await write_iso(tmp_path / "seed.iso", "cidata", FILES)
    assert read_back(image, tmp_path / "out") == FILES
    label = subprocess.run(["blkid", "-o", "value", "-s", "LABEL", str(image)], capture_output=True, text=True)
    assert label.stdout.strip() in ("cidata", "CIDATA")
    assert image.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "seed.iso"], "nothing else is left"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "", "a\0b", "/".join("abcdefghi"), "k" * 300])
async def test_a_name_that_an_image_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(IsoError):
        await write_iso(tmp_path / "seed.iso", "cidata", {name: b""})
    assert list(tmp_path.iterdir()) == []
