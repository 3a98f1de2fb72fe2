"""Waiting for a TLS client's first words before anything is spent on it.

Called by `serve.Door` for each connection. A half-open socket then costs a small task and not the buffers of TLS: the
bytes of the ClientHello stay in the kernel, which wakes us when its first record is whole (`SO_RCVLOWAT`). What does
not look like TLS is let through, for OpenSSL to refuse. On the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

#: content type of a handshake record, bytes of a record's head, and the most that a record may hold
_HANDSHAKE, _HEAD, _RECORD = 22, 5, 16384 + 256


async def whole_hello(connection: socket.socket) -> None:
    """Return once the first TLS record is there. Raises OSError when the client goes before."""
    seen, wanted = 0, _HEAD
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
    try:
        while True:
            await _readable(connection)
            there = connection.recv(wanted, socket.MSG_PEEK)
            if len(there) == seen:
                raise ConnectionResetError("the client went away before its hello was whole")
            seen = len(there)
            if there[0] != _HANDSHAKE:
                return
            if seen < wanted:
                continue
            if wanted > _HEAD:
                return
            wanted = _HEAD + max(1, min(int.from_bytes(there[3:5], "big"), _RECORD))
            seen = len(connection.recv(wanted, socket.MSG_PEEK))
            if seen >= wanted:
                return
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
    finally:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _readable(connection: socket.socket) -> None:
    """Wait until there is something to read, or the other side has closed."""
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection, _wake, woken)
    try:
        await woken
    finally:
        loop.remove_reader(connection)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
