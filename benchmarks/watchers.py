"""Many watchers in a process of their own, cheap enough that what is measured is the server.

Run as a program (`python watchers.py ORDER`, ORDER a JSON object): opens `count` TLS connections that watch `path`,
says `ready`, reads until `expected` events came on each of the sampled ones, or a second after its input is closed, and
prints what it saw. Every connection is read at once; only the sampled ones, spread evenly over all, are deciphered: the
clock of an event is read when it has come whole. The order of numbers is checked on each sampled connection.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import sys
import time
from typing import Any

import msgspec

STAMP = re.compile(rb'"stamp":\s*"(\d+)"')


class Order(msgspec.Struct):
    """What to watch. `context` are the files of a client: CA, and certificate and key or ""."""

    host: str
    port: int
    context: tuple[str, str, str]
    path: str
    count: int
    sampled: int
    expected: int


class Seen(msgspec.Struct):
    """Of one sampled connection: arrivals by number, and how many came doubled or out of order."""

    times: dict[int, float] = {}
    faults: int = 0
    rest: bytes = b""
    last: int = -1

    def take(self, data: bytes, now: float) -> None:
        """Lines, as far as they have come."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            found = STAMP.search(line)
            if found is None:
                continue
            number = int(found[1])
            self.faults += number != self.last + 1
            self.last = number
            self.times.setdefault(number, now)


def _open(order: Order, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection((order.host, order.port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = context.wrap_socket(plain, server_hostname=order.host)
    connection.sendall(f"GET {order.path} HTTP/1.1\r\nHost: {order.host}\r\nContent-Length: 0\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(4096)
        if not piece:
            raise OSError("a watch was refused")
        head += piece
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise OSError(f"a watch was refused: {head[:200]!r}")
    connection.setblocking(False)
    return connection


def _deciphered(connection: ssl.SSLSocket) -> bytes:
    data = b""
    while True:
        try:
            piece = connection.recv(262144)
        except (ssl.SSLWantReadError, BlockingIOError):
            return data
        if not piece:
            return data
        data += piece


def follow(order: Order) -> dict[str, Any]:
    """Watch; the samples."""
    context = ssl.create_default_context(cafile=order.context[0])
    if order.context[1]:
        context.load_cert_chain(order.context[1], order.context[2])
    connections = [_open(order, context) for _ in range(order.count)]
    step = max(1, order.count // order.sampled)
    sampled = {connections[at].fileno(): (connections[at], Seen()) for at in range(0, order.count, step)}
    poll = select.epoll()
    for connection in connections:
        poll.register(connection.fileno(), select.EPOLLIN)
    poll.register(0, select.EPOLLIN)
    # Others' sockets are read past OpenSSL: their bytes are of no interest, only that they are taken.
    plain = {each.fileno(): socket.socket(fileno=socket.dup(each.fileno())) for each in connections
             if each.fileno() not in sampled}  # fmt: skip
    waste = bytearray(1 << 20)
    print("ready", flush=True)
    ends = float("inf")
    while time.perf_counter() < ends:
        for descriptor, _ in poll.poll(0.2):
            if descriptor == 0:
                poll.unregister(0)
                ends = time.perf_counter() + 1
            elif descriptor in sampled:
                connection, seen = sampled[descriptor]
                seen.take(_deciphered(connection), time.perf_counter())
            elif not plain[descriptor].recv_into(waste):
                poll.unregister(descriptor)
        if all(len(seen.times) >= order.expected for _, seen in sampled.values()):
            break
    found = [seen for _, seen in sampled.values()]
    return {"times": [seen.times for seen in found], "faults": sum(seen.faults for seen in found)}


if __name__ == "__main__":
    print(msgspec.json.encode(follow(msgspec.json.decode(sys.argv[1], type=Order))).decode(), flush=True)
