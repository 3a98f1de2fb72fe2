"""The benchmark's guest disk and its measuring client: bytes that firmware, kernel and servers take."""

from __future__ import annotations

import asyncio
import os
import ssl
import struct
from pathlib import Path
from typing import Any

from stead import pki
from stead.cli import bench

guest: Any = bench.load("guest")
http: Any = bench.load("http")
processes: Any = bench.load("processes")


def test_the_disk_has_one_active_partition_that_fills_it(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(b"filesystem")
    guest._assemble(tmp_path / "disk", part, b"B" * 512, b"C" * 700)
    disk = (tmp_path / "disk").read_bytes()
    status, kind, first, sectors = disk[446], disk[450], *struct.unpack("<II", disk[454:462])
    assert (status, kind, first) == (0x80, 0x83, 2048)
    assert (first + sectors) * 512 == len(disk) == guest.DISK_BYTES
    assert disk[510:512] == b"\x55\xaa"
    assert disk[512:516] == b"CCCC"
    assert disk[1 << 20 :].startswith(b"filesystem")


def test_the_initramfs_ends_with_its_trailer_and_is_aligned() -> None:
    archive = guest._initramfs(b"\x7fELF" * 3)
    assert archive.startswith(b"070701")
    assert len(archive) % 4 == 0
    assert b"TRAILER!!!\0" in archive[-16:]


def test_own_memory_and_time_can_be_read() -> None:
    assert processes.pss_bytes(os.getpid()) > 1_000_000
    assert processes.cpu_seconds(os.getpid()) > 0
    assert os.getpid() in processes.descendants([os.getppid()])


async def test_the_bare_server_keeps_and_fans_out_what_it_is_given(tmp_path: Path) -> None:
    authority = pki.ensure_authority(tmp_path / "pki", "test")
    pair = pki.Pair(tmp_path / "s.crt", tmp_path / "s.key")
    pki.ensure_certificate(authority, pair, pki.Identity("bare", names=("127.0.0.1",)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server = await asyncio.start_server(
        http.Bare(str(tmp_path / "log"), str(tmp_path / "commits")).serve, "127.0.0.1", 0, ssl=context
    )
    port = server.sockets[0].getsockname()[1]
    trusted = pki.client_context(authority.certificate)
    watching, writing = [await http.Connection("127.0.0.1", port, trusted).open() for _ in range(2)]
    lines: Any = watching.watch("/things?watch=1")
    first = asyncio.create_task(anext(lines))
    await asyncio.sleep(0.1)
    assert await writing.call("POST", "/things", b'{"a":1}') == (200, b'{"a":1}')
    assert await asyncio.wait_for(first, 10) == b'{"type":"ADDED","object":{"a":1}}'
    assert (await writing.call("GET", "/things/a"))[1] == b'{"a":1}'
    assert (tmp_path / "log").stat().st_size == 4096
    for connection in (watching, writing):
        await connection.close()
    server.close()
