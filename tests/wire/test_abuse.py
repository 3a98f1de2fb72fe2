"""A hostile client gets short answers: nothing is parsed before it is known, memory stays bounded, others are served.

One server in a process of its own, so that its memory can be measured. `STEAD_ABUSE_SOCKETS` (default 400, up to
5,000) says how many half-open sockets are held against it. Latencies are compared within one run: an honest client
measures in turns with and without the abuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from stead import pki

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOCKETS = min(int(os.environ.get("STEAD_ABUSE_SOCKETS", "400")), 5000)
#: bytes of a body that the server takes, and what it may grow by under abuse
CAP = 3 * 1024 * 1024
MAPS = "/api/v1/namespaces/default/configmaps"
MACHINES = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
JSON, YAML, PROTOBUF = "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"
REFUSED = (400, 403, 404, 405, 406, 411, 413, 415, 422, 429, 431)

SERVER = """
import asyncio, sys
from tests.api_server import running_server
async def main():
    async with running_server() as server:
        print(server.port, server.directory, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
"""


class Target(msgspec.Struct):
    """The server under attack."""

    port: int
    pid: int
    #: with and without a certificate
    contexts: dict[bool, ssl.SSLContext]

    def tls(self, *, known: bool = True) -> ssl.SSLContext:
        """TLS as the administrator, or as nobody."""
        return self.contexts[known]

    def resident(self) -> int:
        """Bytes of memory that the process has in hand now."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def target() -> AsyncIterator[Target]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 60)
        port, folder = line.split()
        admin = pki.Pair(Path(folder, "admin.crt"), Path(folder, "admin.key"))
        ca = Path(folder, "pki", "ca.crt")
        contexts = {known: pki.client_context(ca, admin if known else None) for known in (True, False)}
        yield Target(int(port), process.pid, contexts)
    finally:
        process.stdin.close()
        process.wait(timeout=30)


def head(method: str, path: str, media: str, *more: str, length: int | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: stead", f"content-type: {media}", *more]
    if length is not None:
        lines.append(f"content-length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def raw(target: Target, data: bytes, *, known: bool = True, seconds: float = 60) -> int:
    """Send bytes as they are; the status of the answer, 0 if the connection was closed without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port, ssl=target.tls(known=known))
    try:
        async with asyncio.timeout(seconds):

            async def push() -> None:
                with contextlib.suppress(OSError):
                    for at in range(0, len(data), 65536):
                        writer.write(data[at : at + 65536])
                        await writer.drain()

            pushing = asyncio.create_task(push())
            try:
                line = await reader.readline()
            except OSError:
                line = b""
            pushing.cancel()
            return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
    finally:
        writer.transport.abort()


def deep(opening: str, closing: str, depth: int, middle: str = "1") -> bytes:
    return (opening * depth + middle + closing * depth).encode()


def in_map(data: bytes) -> bytes:
    return b'{"metadata":{"name":"x"},"data":' + data + b"}"


def yaml_bomb(levels: int, width: int) -> bytes:
    lines = ["a0: &a0 [" + ",".join(["lol"] * width) + "]"]
    lines += [f"a{n}: &a{n} [" + ",".join([f"*a{n - 1}"] * width) + "]" for n in range(1, levels)]
    return "\n".join(lines).encode()


def many_keys() -> bytes:
    """As many keys as fit under the cap; with the cap a million do not."""
    return b"{" + b",".join(b'"%d":0' % n for n in range(290_000)) + b"}"


#: name → (media, body) of a POST; small ones first. Bodies are made when used.
BODIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": (JSON, lambda: b""),
    "null": (JSON, lambda: b"null"),
    "a number": (JSON, lambda: b"1"),
    "a string": (JSON, lambda: b'"x"'),
    "an array": (JSON, lambda: b"[]"),
    "half an object": (JSON, lambda: b'{"metadata":'),
    "two objects": (JSON, lambda: b"{}{}"),
    "trailing garbage": (JSON, lambda: b'{"metadata":{"name":"x"}} x'),
    "bad UTF-8": (JSON, lambda: in_map(b'{"a":"\xff\xfe"}')),
    "UTF-16": (JSON, lambda: '{"metadata":{"name":"x"}}'.encode("utf-16")),
    "NUL bytes": (JSON, lambda: b"\x00" * 1000),
    "NaN": (JSON, lambda: in_map(b'{"a":NaN}')),
    "Infinity": (JSON, lambda: in_map(b'{"a":-Infinity}')),
    "a huge number": (JSON, lambda: in_map(b'{"a":1e999999}')),
    "a million digits": (JSON, lambda: in_map(b'{"a":' + b"9" * 1_000_000 + b"}")),
    "a million digits, YAML": (YAML, lambda: b"metadata: {name: x}\ndata: {a: " + b"9" * 1_000_000 + b"}"),
    "hexadecimal megabyte, YAML": (YAML, lambda: b"metadata: {name: X}\ndata: {a: 0x" + b"f" * 1_000_000 + b"}"),
    "arrays 100,000 deep": (JSON, lambda: deep("[", "]", 100_000)),
    "arrays never closed": (JSON, lambda: b"[" * 1_000_000),
    "objects 100,000 deep": (JSON, lambda: deep('{"a":', "}", 100_000)),
    "objects 20,000 deep in data": (JSON, lambda: in_map(deep('{"a":', "}", 20_000))),
    "YAML flow 100,000 deep": (YAML, lambda: deep("[", "]", 100_000)),
    "YAML maps 100,000 deep": (YAML, lambda: deep("{a: ", "}", 100_000)),
    "YAML blocks 2,000 deep": (YAML, lambda: "\n".join(" " * n + "a:" for n in range(2000)).encode()),
    "YAML dashes 100,000 deep": (YAML, lambda: b"- " * 100_000 + b"1"),
    "YAML bomb": (YAML, lambda: yaml_bomb(9, 9)),
    "YAML bomb, wide": (YAML, lambda: yaml_bomb(4, 200)),
    "YAML alias to itself": (YAML, lambda: b"a: &a [*a]"),
    "YAML alias to nothing": (YAML, lambda: b"a: *b"),
    "YAML merge keys": (YAML, lambda: b"a: &a {b: 1}\nmetadata: {name: X, <<: *a}\n"),
    "YAML python object": (YAML, lambda: b"!!python/object/apply:os.system ['true']"),
    "YAML two documents": (YAML, lambda: b"a: 1\n---\nb: 2\n"),
    "YAML tabs": (YAML, lambda: b"a:\n\tb: 1"),
    "YAML bad UTF-8": (YAML, lambda: b"a: \xff\xff"),
    "YAML anchors by the thousand": (YAML, lambda: b"\n".join(b"a%d: &x%d 1" % (n, n) for n in range(20_000))),
    "YAML percent directive": (YAML, lambda: b"%YAML 9.9\n---\na: 1"),
    "a million keys": (JSON, lambda: b"{" + b",".join(b'"%d":0' % n for n in range(1_000_000)) + b"}"),
    "300,000 keys": (JSON, lambda: many_keys()),
    "300,000 keys in data": (JSON, lambda: in_map(many_keys())),
    "300,000 labels": (JSON, lambda: b'{"metadata":{"name":"x","labels":' + many_keys() + b"}}"),
    "100,000 duplicates": (JSON, lambda: in_map(b"{" + b",".join([b'"a":"1"'] * 100_000) + b',"b":1}')),
    "a key of a megabyte": (JSON, lambda: in_map(b'{"' + b"k" * 1_000_000 + b'":"1"}')),
    "a name of a megabyte": (JSON, lambda: b'{"metadata":{"name":"' + b"n" * 1_000_000 + b'"}}'),
    "a name with slashes": (JSON, lambda: b'{"metadata":{"name":"../../etc/passwd"}}'),
    "a name with NUL": (JSON, lambda: b'{"metadata":{"name":"a\\u0000b"}}'),
    "metadata is a list": (JSON, lambda: b'{"metadata":[]}'),
    "wrong kind": (JSON, lambda: b'{"kind":"Secret","apiVersion":"v1","metadata":{"name":"x"}}'),
    "map too large": (JSON, lambda: in_map(json.dumps({"a": "x" * 1_100_000}).encode())),
    "protobuf garbage": (PROTOBUF, lambda: b"k8s\x00" + bytes(range(256)) * 100),
    "protobuf without magic": (PROTOBUF, lambda: b"\x0a\xff\xff\xff\xff\x0f" * 100),
    "protobuf lengths that lie": (PROTOBUF, lambda: b"k8s\x00\x0a\xff\xff\xff\xff\x7f"),
    "protobuf groups": (PROTOBUF, lambda: b"k8s\x00" + b"\x0b" * 500_000),
    "protobuf varint without end": (PROTOBUF, lambda: b"k8s\x00" + b"\xff" * 500_000),
    "magic under JSON": (JSON, lambda: b"k8s\x00" + b"{}"),
    "gzip bomb": (JSON, lambda: gzip.compress(b" " * 50_000_000)),
    "gzip of gzip": (JSON, lambda: gzip.compress(gzip.compress(b"[" * 10_000_000))),
    "form": ("application/x-www-form-urlencoded", lambda: b"a=1"),
    "CBOR": ("application/cbor", lambda: b"\xa1\x61a\x01"),
    "XML": ("text/xml", lambda: b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"),
    "type of a megabyte": ("x" * 100_000, lambda: b"{}"),
    "type with parameters": ("application/json; charset=utf-7", lambda: b"+AHs-"),
    "4 MB": (JSON, lambda: in_map(b'{"a":"' + b"x" * 4_000_000 + b'"}')),
    "100 MB": (JSON, lambda: b" " * 100_000_000),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
async def test_hostile_bodies_are_refused_and_memory_stays_bounded(target: Target, name: str) -> None:
    media, make = BODIES[name]
    body = make()
    before = target.resident()
    began = time.monotonic()
    status = await raw(target, head("POST", MAPS, media, length=len(body)) + body)
    assert status in REFUSED, f"{name}: {status} after {time.monotonic() - began:.1f} s"
    after = target.resident()
    grown = (after - before) / CAP
    # Parsing makes objects of text: what a whole body of the cap's size may cost for a moment is the bound below.
    assert grown < 40, f"{name}: {grown:.1f} times the cap"


async def test_all_hostile_bodies_again_leave_no_memory_behind(target: Target) -> None:
    async def all_of_them() -> None:
        for media, make in BODIES.values():
            body = make()
            if len(body) < 5_000_000:
                await raw(target, head("POST", MAPS, media, length=len(body)) + body)

    # Each was sent once by the tests before: what a server keeps for its own use, it has by now.
    before = target.resident()
    await all_of_them()
    assert target.resident() - before <= 2 * CAP


@pytest.mark.parametrize("name", list(BODIES)[::6])
async def test_nothing_is_parsed_before_the_caller_is_known(target: Target, name: str) -> None:
    media, make = BODIES[name]
    body = make()
    assert await raw(target, head("POST", MAPS, media, length=len(body)) + body, known=False) in (401, 403)


async def test_who_is_not_known_is_refused_before_a_body_comes(target: Target) -> None:
    assert await raw(target, head("POST", MAPS, JSON, length=CAP), known=False, seconds=10) in (401, 403)
    assert (
        await raw(target, head("POST", MAPS, JSON, "authorization: Bearer x", length=CAP), known=False, seconds=10)
        == 401
    )


HEADS: dict[str, Callable[[], bytes]] = {
    "20,000 headers": lambda: head("GET", MAPS, JSON, *[f"x-{n}: {n}" for n in range(20_000)]),
    "a header of 8 MB": lambda: head("GET", MAPS, JSON, "x: " + "y" * 8_000_000),
    "a header name of a megabyte": lambda: head("GET", MAPS, JSON, "x" * 1_000_000 + ": y"),
    "a path of 2 MB": lambda: head("GET", "/" + "a" * 2_000_000, JSON),
    "a length that is no number": lambda: head("POST", MAPS, JSON, "content-length: ten"),
    "a negative length": lambda: head("POST", MAPS, JSON, "content-length: -1"),
    "two lengths": lambda: head("POST", MAPS, JSON, "content-length: 2", "content-length: 3") + b"{}x",
    "length and chunks": lambda: (
        head("POST", MAPS, JSON, "transfer-encoding: chunked", "content-length: 4") + b"0\r\n\r\n"
    ),
    "a chunk size that is no number": lambda: head("POST", MAPS, JSON, "transfer-encoding: chunked") + b"zz\r\n{}",
    "a chunk of 2^63": lambda: head("POST", MAPS, JSON, "transfer-encoding: chunked") + b"ffffffffffffffffff\r\n{}",
    "a strange transfer coding": lambda: head("POST", MAPS, JSON, "transfer-encoding: gzip, identity") + b"{}",
    "no HTTP": lambda: b"\x16\x03\x01\x02\x00" * 100 + b"\r\n\r\n",
    "HTTP/9.9": lambda: b"GET / HTTP/9.9\r\n\r\n",
    "a method of its own": lambda: head("STEAL", MAPS, JSON),
    "a header with NUL": lambda: head("GET", MAPS, JSON, "x: a\x00b"),
    "a bare line feed": lambda: b"GET / HTTP/1.1\nhost: a\n x: y\n\n",
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
async def test_hostile_heads_are_refused(target: Target, name: str) -> None:
    assert await raw(target, HEADS[name]()) in (0, *REFUSED)


async def test_chunks_above_the_cap_are_413(target: Target) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert await raw(target, head("POST", MAPS, JSON, "transfer-encoding: chunked") + chunk * 80) == 413


async def test_an_object_above_its_cap_is_413(target: Target) -> None:
    body = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "big"}, "spec": {
        "runStrategy": "Halted", "template": {"spec": {
            "domain": {"devices": {"disks": [{"name": f"d{n}", "disk": {}} for n in range(1)]},
                       "memory": {"guest": "1Gi"}},
            "volumes": [{"name": "d0", "emptyDisk": {"capacity": "1Gi"}}],
        }, "metadata": {"annotations": {"a": "x" * 1_700_000}}},
    }}  # fmt: skip
    encoded = json.dumps(body).encode()
    assert await raw(target, head("POST", MACHINES, JSON, length=len(encoded)) + encoded) == 413


async def honest(target: Target, count: int) -> list[float]:
    """Seconds of `count` reads by a client that behaves, each on a connection of its own."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        assert await raw(target, head("GET", f"{MAPS}/kube-root-ca.crt", JSON, "connection: close"), seconds=30) in (
            200,
            404,
        )
        found.append(time.perf_counter() - began)
    return found


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


async def test_a_client_whose_hello_comes_in_pieces_is_served(target: Target) -> None:
    """Nothing is spent on a connection before its first TLS record is whole; a slow one is still no hostile one."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = target.tls().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    async with asyncio.timeout(60):
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                data = outgoing.read()
                for piece in filter(None, (data[:1], data[1:4], data[4:7], data[7:100], data[100:])):
                    writer.write(piece)
                    await asyncio.sleep(0.1)
                incoming.write(await reader.read(65536))
        tls.write(head("GET", f"{MAPS}/kube-root-ca.crt", JSON, "connection: close"))
        writer.write(outgoing.read())
        answer = b""
        while b"\r\n" not in answer:
            incoming.write(await reader.read(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                answer += tls.read(65536)
    writer.close()
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 404"))


async def half_open(target: Target, kind: int, held: list[asyncio.StreamWriter]) -> None:
    """One socket that says nothing, or starts TLS and says half a head."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(20):
            context = target.tls(known=False) if kind == 0 else None
            _, writer = await asyncio.open_connection("127.0.0.1", target.port, ssl=context)
            held.append(writer)
            if kind == 0:
                writer.write(b"GET /api HTTP/1.1\r\nhost: st")
            elif kind == 1:
                writer.write(b"\x16\x03\x01\x02\x00\x01")


async def test_half_open_sockets_and_slow_clients_keep_nobody_out(target: Target) -> None:
    held: list[asyncio.StreamWriter] = []
    calm, harried = await honest(target, 20), list[float]()
    calm.clear()
    before = target.resident()
    dribbling = True

    async def dribble() -> None:
        while dribbling:
            for writer in held[::16]:
                with contextlib.suppress(OSError, RuntimeError):
                    writer.write(b"x")
            await asyncio.sleep(0.5)

    slow = asyncio.create_task(dribble())
    try:
        for _ in range(4):
            calm += await honest(target, 25)
            for start in range(0, SOCKETS // 4, 50):
                await asyncio.gather(*(half_open(target, n % 8 and 1 + n % 2, held) for n in range(start, start + 50)))
            harried += await honest(target, 25)
            # The next calm turn is without them.
            for writer in held:
                writer.transport.abort()
            held.clear()
            await asyncio.sleep(0.1)
        for start in range(0, SOCKETS, 50):
            await asyncio.gather(*(half_open(target, n % 8 and 1 + n % 2, held) for n in range(start, start + 50)))
        await honest(target, 5)
        grown = target.resident() - before
    finally:
        dribbling = False
        await slow
        for writer in held:
            writer.transport.abort()
    assert p99(harried) <= max(2 * p99(calm), 0.25)
    # OpenSSL and asyncio take a little for each that is kept; those beyond the server's bound are ended.
    assert grown <= 2 * CAP + min(SOCKETS, 1000) * 64 * 1024, f"{grown / SOCKETS / 1024:.0f} KiB a socket"
