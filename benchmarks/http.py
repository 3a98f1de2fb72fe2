"""A lean HTTP/1.1 client and a bare server, so that what is measured is Stead and not the measuring.

`Connection` keeps one TLS connection and reads whole answers, or the lines of a watch. `bare_server` is the rival
of the API benchmarks, run as a process of its own (`python http.py CERT KEY FILE COMMITS`): it answers a GET with
fixed bytes, appends a POST's body to a file with fdatasync, then sends it to all who watch: what any durable server
must at least do. When a write that carries a number is on the disk, it says so in COMMITS, as `stamped.py` does.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import sys
import time
from collections.abc import AsyncIterator

LIMIT = 64 << 20
STAMP = re.compile(rb'"stamp":\s*"(\d+)"')


class Connection:
    """One connection, one request at a time."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._host, self._port, self._context = host, port, context
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self) -> Connection:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(
            self._host, self._port, ssl=self._context, limit=LIMIT
        )
        return self

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()

    def abort(self) -> None:
        """Hang up at once, whatever has not been sent."""
        self._writer.transport.abort()

    async def call(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request; its code and body."""
        self._send(method, path, body)
        code, headers = await self._head()
        if b"content-length" in headers:
            return code, await self._reader.readexactly(int(headers[b"content-length"]))
        parts = []
        while piece := await self._chunk():
            parts.append(piece)
        return code, b"".join(parts)

    async def watch(self, path: str) -> AsyncIterator[bytes]:
        """Lines without end."""
        self._send("GET", path, b"")
        code, _ = await self._head()
        if code != 200:
            raise OSError(f"GET {path}: {code}")
        pending = b""
        while piece := await self._chunk():
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                yield line

    def _send(self, method: str, path: str, body: bytes) -> None:
        kind = "application/json"
        self._writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nAccept: {kind}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    async def _head(self) -> tuple[int, dict[bytes, bytes]]:
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        pairs = (line.split(b":", 1) for line in lines)
        return int(first.split()[1]), {name.strip().lower(): value.strip() for name, value in pairs}

    async def _chunk(self) -> bytes:
        size = int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16)
        piece = await self._reader.readexactly(size)
        await self._reader.readexactly(2)
        return piece


class Bare:
    """The rival: nothing but sockets, fdatasync and fan-out."""

    def __init__(self, path: str, commits: str) -> None:
        self._commits = os.open(commits, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._watchers: set[asyncio.StreamWriter] = set()
        self._kept = b"{}"
        self._lock = asyncio.Lock()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, path = head.split(b" ", 2)[:2]
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                if b"watch" in path:
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    self._watchers.add(writer)
                    continue
                if method == b"POST":
                    await self._commit(body)
                answer = body if method == b"POST" else self._kept
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self._watchers.discard(writer)
            writer.close()

    async def _commit(self, body: bytes) -> None:
        async with self._lock:
            await asyncio.to_thread(self._append, body)
        self._kept = body
        line = b'{"type":"ADDED","object":' + body + b"}\n"
        chunk = b"%x\r\n%s\r\n" % (len(line), line)
        for watcher in self._watchers:
            watcher.write(chunk)

    def _append(self, body: bytes) -> None:
        os.write(self._file, body.ljust(4096))
        os.fdatasync(self._file)
        found = STAMP.search(body)
        if found is not None:
            os.write(self._commits, b"%b %.7f\n" % (found[1], time.perf_counter()))


async def bare_server(certificate: str, key: str, path: str, commits: str) -> None:
    """Serve until ended; prints its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(Bare(path, commits).serve, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(bare_server(*sys.argv[1:]))
