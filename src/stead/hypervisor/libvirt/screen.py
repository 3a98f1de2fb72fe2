"""A screenshot as PNG. libvirt hands out what QEMU made: PNG where it can, else PPM, which is turned into PNG here.

Called by the driver in a pool thread. `png_from_ppm` is pure. Source: the Netpbm and PNG specifications.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import libvirt

from stead.hypervisor.contract import Failed

MAX_BYTES = 64 * 1024 * 1024  # 4096 × 4096 pixels of 3 bytes, with room: what a guest can make us read


def read_screen(connection: libvirt.virConnect, domain: libvirt.virDomain) -> bytes:
    """PNG of the first display. Raises Failed when it is larger than `MAX_BYTES` or of an unknown kind."""
    stream = connection.newStream()
    domain.screenshot(stream, 0)
    parts: list[bytes] = []
    size = 0

    def take(_stream: Any, data: bytes, _opaque: Any) -> int:
        nonlocal size
        size += len(data)
        if size > MAX_BYTES:
            return -1
        parts.append(data)
        return 0

    stream.recvAll(take, None)
    stream.finish()
    image = b"".join(parts)
    return image if image.startswith(b"\x89PNG") else png_from_ppm(image)


def png_from_ppm(image: bytes) -> bytes:
    """A binary PPM (P6, 8 bits a channel) as PNG."""
    fields = image.split(maxsplit=4)
    if len(fields) < 5 or fields[0] != b"P6" or fields[3] != b"255":
        raise Failed(f"screenshot: unknown image format {image[:16]!r}")
    width, height = int(fields[1]), int(fields[2])
    pixels = image[len(image) - width * height * 3 :]
    rows = b"".join(b"\0" + pixels[row * width * 3 : (row + 1) * width * 3] for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows, 6)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
