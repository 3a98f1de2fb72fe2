"""Carries bytes between a WebSocket of the plane and a machine's serial port, screen or network port.

Called by `streams.py`. Buffers are bounded on both sides: a reader that is slow slows its source, never fills memory.
A machine's sockets lie in a folder that its own (possibly hostile) process owns, so a socket is opened by descriptor,
without following a symlink, and must be a socket. One console session a machine: the newest closes the one before
with a reason.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import aiohttp
from aiohttp import web

CHUNK = 64 * 1024
CONNECT_SECONDS = 5.0
#: code of a close by policy (RFC 6455), used when a newer session takes over
CLOSE_REPLACED = 1008


class Sessions:
    """Who holds the console or screen of a machine. Loop-confined."""

    def __init__(self) -> None:
        self._holders: dict[tuple[str, str], web.WebSocketResponse] = {}

    def active(self, machine: str, kind: str) -> bool:
        """Somebody holds it."""
        return (machine, kind) in self._holders

    async def enter(self, machine: str, kind: str, ws: web.WebSocketResponse) -> None:
        """Become the holder; the one before is closed with the reason."""
        before = self._holders.get((machine, kind))
        self._holders[(machine, kind)] = ws
        if before is not None:
            message = f"this {kind} session was closed: a newer one was opened"
            await before.close(code=CLOSE_REPLACED, message=message.encode())

    def leave(self, machine: str, kind: str, ws: web.WebSocketResponse) -> None:
        """Stop holding, unless somebody else already does."""
        if self._holders.get((machine, kind)) is ws:
            del self._holders[(machine, kind)]

    def count(self, kind: str) -> int:
        """Open sessions of a kind."""
        return sum(1 for _, held in self._holders if held == kind)


def tail_of(path: Path, limit: int) -> bytes:
    """The last bytes of a file that root wrote. Blocking. FileNotFoundError when there is none yet."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - limit))
        return stream.read(limit)


#: a WebSocket, whichever side opened it
Stream = web.WebSocketResponse | aiohttp.ClientWebSocketResponse
Gate = Callable[[bytes], bytes]


def connect_socket(path: Path) -> socket.socket:
    """Connect to a machine's unix socket safely. Blocking, local. OSError when it is not there or not a socket."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.open(path.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise OSError(f"{path} is not a socket")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(CONNECT_SECONDS)
            connection.connect(f"/proc/self/fd/{found}")
            connection.setblocking(False)
        except OSError:
            connection.close()
            raise
        return connection
    finally:
        os.close(found)


async def open_machine_socket(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams of a machine's unix socket."""
    connection = await asyncio.to_thread(connect_socket, path)
    return await asyncio.open_unix_connection(sock=connection, limit=CHUNK)


async def relay(
    ws: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: Gate | None = None
) -> None:
    """Both ways until either side ends; closes both. `gate` sees what goes to the socket, and ends all by raising."""
    up = asyncio.create_task(_from_socket(ws, reader))
    down = asyncio.create_task(_to_socket(ws, writer, gate))
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        writer.close()
        if not ws.closed:
            await ws.close()


async def _from_socket(ws: Stream, reader: asyncio.StreamReader) -> None:
    while chunk := await reader.read(CHUNK):
        await ws.send_bytes(chunk)


async def _to_socket(ws: Stream, writer: asyncio.StreamWriter, gate: Gate | None) -> None:
    async for message in ws:
        if message.type is aiohttp.WSMsgType.BINARY:
            writer.write(message.data if gate is None else gate(message.data))
        elif message.type is aiohttp.WSMsgType.TEXT and gate is None:
            writer.write(message.data.encode())
        await writer.drain()


class _Datagrams(asyncio.DatagramProtocol):
    """Datagrams of the guest into a bounded queue; what does not fit is dropped, as UDP may."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue(maxsize=256)

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.received.full():
            self.received.put_nowait(data)


async def relay_datagrams(ws: web.WebSocketResponse, address: str, port: int) -> None:
    """One WebSocket message is one datagram, both ways."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(_Datagrams, remote_addr=(address, port))

    async def up() -> None:
        while True:
            await ws.send_bytes(await protocol.received.get())

    async def down() -> None:
        async for message in ws:
            if message.type is aiohttp.WSMsgType.BINARY:
                transport.sendto(message.data)

    tasks = (asyncio.create_task(up()), asyncio.create_task(down()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        transport.close()
