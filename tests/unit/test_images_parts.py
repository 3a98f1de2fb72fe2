"""Small parts of the images and storage rooms: confinement, golden sources, partition tables, names."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import zlib

import pytest

from stead.images import bootdisk, catalogue, golden
from stead.images.child import Program, run_program
from stead.images.oci import labels_from_environment, reference_from_text
from stead.images.sources import Policy, SourceError

PROBE = """
import ctypes, os, socket
def say(what, act):
    try: act(); print(what, "allowed")
    except OSError as error: print(what, error.errno)
say("shadow", lambda: open("/etc/shadow").read(1))
say("network", lambda: socket.socket())
say("setuid", lambda: os.setuid(0))
def unshare():
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "")
say("unshare", unshare)
print("uid", os.getuid() != 0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take up another uid")
async def test_a_confined_program_reaches_neither_files_nor_network_nor_privileges() -> None:
    out = await run_program(Program(arguments=("/usr/bin/env", "python3", "-c", PROBE)))
    assert out.split() == ["shadow", "13", "network", "1", "setuid", "1", "unshare", "1", "uid", "True"]


async def test_a_confined_program_ends_with_its_caller() -> None:
    task = asyncio.create_task(run_program(Program(arguments=("sleep", "4711.5"))))
    await asyncio.sleep(0.8)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert b"4711.5" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, check=True).stdout


def test_only_the_distributions_own_archives_are_used() -> None:
    texts = {
        "sources.list": "deb http://archive.example/debian bookworm main contrib\n# deb http://no bookworm main\n"
        "deb [signed-by=/etc/third.gpg] https://third.example bookworm main\n"
        "deb-src http://archive.example/debian bookworm main\ndeb http://archive.example/debian trixie main\n",
        "debian.sources": "Types: deb\nURIs: http://security.example/debian-security\nSuites: bookworm-security\n"
        "Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        "Types: deb\nURIs: https://tools.example\nSuites: nodistro\nComponents: main\n",
    }
    assert golden.sources_from_texts(texts, "bookworm").splitlines() == [
        "deb http://archive.example/debian bookworm main contrib",
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://security.example/debian-security "
        "bookworm-security main",
    ]


def test_the_release_names_the_image() -> None:
    release = golden.host_release('ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n')
    assert release.name == "debian12"
    with pytest.raises(golden.GoldenError, match="fedora"):
        golden.host_release("ID=fedora\n")


def test_both_partition_tables_are_sound() -> None:
    sectors = 1 << 20
    head, tail = bootdisk.gpt([bootdisk.Partition(bootdisk._EFI_SYSTEM, "efi", 2048, 4095)], sectors)
    assert (len(head), len(tail)) == (34 * 512, 33 * 512)
    for header in (head[512:1024], tail[-512:]):
        stored = int.from_bytes(header[16:20], "little")
        assert zlib.crc32(header[:16] + bytes(4) + header[20:92]) == stored
        assert int.from_bytes(header[88:92], "little") == zlib.crc32(head[1024:])
    assert head[510:512] == b"\x55\xaa"


@pytest.mark.parametrize(
    ("text", "host", "name", "target"),
    [
        ("docker://quay.io/containerdisks/fedora:43", "quay.io", "containerdisks/fedora", "43"),
        ("ubuntu", "docker.io", "library/ubuntu", "latest"),
        ("localhost:5000/a/b", "localhost:5000", "a/b", "latest"),
        (f"r.io/a@sha256:{'0' * 64}", "r.io", "a", f"sha256:{'0' * 64}"),
    ],
)
def test_references_are_read_as_docker_reads_them(text: str, host: str, name: str, target: str) -> None:
    found = reference_from_text(text)
    assert (found.host, found.name, found.target) == (host, name, target)


@pytest.mark.parametrize("text", ["", "UPPER/case", "a b", "r.io/a@sha256:12", "r.io/../a", "docker://"])
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(SourceError):
        reference_from_text(text)


def test_variables_of_an_image_become_labels() -> None:
    found = labels_from_environment(("INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE=u1.medium", "PATH=/bin"))
    assert found == {"instancetype.kubevirt.io/default-instancetype": "u1.medium"}


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1", "224.0.0.1", "255.255.255.255"],
)
def test_addresses_of_this_host_and_segment_are_not_for_importers(address: str) -> None:
    assert Policy().refusal(address, 80)
    assert not Policy().refusal("10.1.2.3", 80)
    assert not Policy().refusal("2001:db8::1", 80) or sys.version_info >= (3, 11)


def test_the_catalogue_names_what_exists() -> None:
    names = [entry.name for entry in catalogue.PUBLISHED]
    assert len(names) == len(set(names))
    assert "ubuntu2404" in names
    newest = {"ubuntu": "ubuntu2604", "debian": "debian13-cloud", "fedora": "fedora", "rocky": "rocky10", "no": None}
    for name, found in newest.items():
        entry = catalogue.find(name)
        assert (entry.name if entry else None) == found
    for entry in catalogue.PUBLISHED:
        for item in catalogue.objects(entry, "images"):
            assert item["metadata"]["labels"]["instancetype.kubevirt.io/default-preference"] == entry.preference
