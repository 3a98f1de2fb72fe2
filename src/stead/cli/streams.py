"""`stead console|vnc|ssh|port-forward|screenshot`: byte streams to a machine over one WebSocket each.

The wire is KubeVirt's (`plain.kubevirt.io`, binary frames). A console reconnects by itself when the stream breaks while
the machine goes on (a restart of Stead, a live migration), for `RECONNECT_SECONDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import termios
import tty
from pathlib import Path
from typing import Any

import aiohttp
import click

from stead.cli.session import SUBRESOURCES, Session, command
from stead.kube.errors import ApiError

PROTOCOL = "plain.kubevirt.io"
#: Ctrl-], as telnet and virsh have it.
ESCAPE = 0x1D
RECONNECT_SECONDS = 30.0


def _path(session: Session, name: str, subresource: str) -> str:
    return f"{SUBRESOURCES}/namespaces/{session.namespace}/virtualmachineinstances/{name}/{subresource}"


async def _copy_in(reader: asyncio.StreamReader, socket: aiohttp.ClientWebSocketResponse) -> None:
    while data := await reader.read(65536):
        await socket.send_bytes(data)


async def _copy_out(socket: aiohttp.ClientWebSocketResponse, writer: asyncio.StreamWriter) -> None:
    async for message in socket:
        if message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
            data = message.data if isinstance(message.data, bytes) else message.data.encode()
            writer.write(data)
            await writer.drain()


class _Detach(Exception):
    """The person typed the escape character."""


async def _keyboard(keys: asyncio.Queue[bytes], socket: aiohttp.ClientWebSocketResponse) -> None:
    while True:
        data = await keys.get()
        if not data:
            return
        before, escape, _ = data.partition(bytes([ESCAPE]))
        if before:
            await socket.send_bytes(before)
        if escape:
            raise _Detach


async def _screen(socket: aiohttp.ClientWebSocketResponse) -> str:
    """Print what arrives; returns the reason with which the server closed."""
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            os.write(sys.stdout.fileno(), message.data)
        elif message.type is aiohttp.WSMsgType.TEXT:
            os.write(sys.stdout.fileno(), message.data.encode())
    return str(getattr(socket, "close_message", "") or "")


@contextlib.contextmanager
def _raw_terminal() -> Any:
    """The terminal passes every key through while inside; restored whatever happens."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin.fileno())
    tty.setraw(sys.stdin.fileno())
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)


def _read_keys(loop: asyncio.AbstractEventLoop, keys: asyncio.Queue[bytes]) -> None:
    """Feed the queue from standard input as keys come; an empty item is the end of input."""

    def readable() -> None:
        data = os.read(sys.stdin.fileno(), 4096)
        if not data:
            loop.remove_reader(sys.stdin.fileno())
        with contextlib.suppress(asyncio.QueueFull):
            keys.put_nowait(data)

    try:
        loop.add_reader(sys.stdin.fileno(), readable)
    except PermissionError:  # a regular file cannot be polled: read it whole
        for start in iter(lambda: os.read(sys.stdin.fileno(), 4096), b""):
            keys.put_nowait(start)
        keys.put_nowait(b"")


@click.command()
@click.argument("name")
@command
async def console(session: Session, name: str) -> None:
    """The serial console. Leave it with Ctrl-]."""
    await attach_console(session, name)


async def attach_console(session: Session, name: str) -> None:
    """Join this terminal with the serial console until the person leaves or the machine ends."""
    keys: asyncio.Queue[bytes] = asyncio.Queue(1024)
    click.echo(f"Connected to {name}; Ctrl-] leaves. Press Enter for a prompt.", err=True)
    loop = asyncio.get_running_loop()
    with _raw_terminal():
        _read_keys(loop, keys)
        lost_since: float | None = None
        while True:
            try:
                async with session.client.websocket(_path(session, name, "console"), PROTOCOL) as socket:
                    lost_since = None
                    typing = asyncio.create_task(_keyboard(keys, socket))
                    showing = asyncio.create_task(_screen(socket))
                    done, pending = await asyncio.wait({typing, showing}, return_when=asyncio.FIRST_COMPLETED)
                    if typing in done and typing.exception() is None and showing in pending:
                        done, pending = await asyncio.wait({showing}, timeout=2)  # end of input: show the answer
                    for task in pending:
                        task.cancel()
                    if typing.done() and isinstance(typing.exception(), _Detach):
                        return
                    if typing.done() and not typing.cancelled():
                        return
                    reason = socket.close_code
                    if reason not in (1006, 1012, 1013, None):
                        click.echo(f"\r\nThe console was closed ({reason}).\r", err=True)
                        return
            except ApiError as error:
                if lost_since is None or error.code < 500:
                    raise
            except aiohttp.ClientError:
                if lost_since is None:
                    raise
            lost_since = lost_since or loop.time()
            if loop.time() - lost_since > RECONNECT_SECONDS:
                raise click.ClickException(f"the console of {name} did not come back")
            await asyncio.sleep(0.5)


async def _serve(session: Session, name: str, what: str, address: tuple[str, int]) -> asyncio.Server:
    """Accept TCP connections on `address` (host, port) and carry each over a stream `what` of machine `name`."""
    path = _path(session, name, what)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with session.client.websocket(path, PROTOCOL) as socket:
                tasks = {
                    asyncio.create_task(_copy_in(reader, socket)),
                    asyncio.create_task(_copy_out(socket, writer)),
                }
                _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in pending:
                    task.cancel()
        except (ApiError, aiohttp.ClientError, OSError) as error:
            click.echo(_why_not(name, what, error), err=True)
        finally:
            writer.close()

    return await asyncio.start_server(carry, *address)


def _why_not(name: str, what: str, error: Exception) -> str:
    """One sentence about a stream that did not come about."""
    kind, _, port = what.removesuffix("/tcp").partition("/")
    end = f"port {port} of {name}" if kind == "portforward" else f"the {kind} of {name}"
    if str(error).endswith(": connection refused"):
        return f"connection to {end} refused"
    return f"connection to {end} failed: {error}"


@click.command("port-forward")
@click.argument("name")
@click.argument("ports", nargs=-1, required=True)
@click.option("--address", default="127.0.0.1", show_default=True)
@command
async def port_forward(session: Session, name: str, ports: tuple[str, ...], address: str) -> None:
    """Carry local TCP ports to a machine: LOCAL:REMOTE or PORT."""
    servers = []
    for pair in ports:
        local, _, remote = pair.partition(":")
        if not local.isdigit() or not (remote or local).isdigit():
            raise click.UsageError(f"{pair}: give LOCAL:REMOTE or PORT")
        server = await _serve(session, name, f"portforward/{remote or local}/tcp", (address, int(local)))
        bound = server.sockets[0].getsockname()[1]
        click.echo(f"Forwarding {address}:{bound} to port {remote or local} of {name}; Ctrl-C ends.")
        servers.append(server)
    await asyncio.gather(*(server.serve_forever() for server in servers))


@click.command()
@click.argument("name")
@click.option("--proxy-only", is_flag=True, help="Print the local port and leave the viewer to you.")
@click.option("--port", default=0, help="Local port; 0 picks a free one.")
@command
async def vnc(session: Session, name: str, proxy_only: bool, port: int) -> None:
    """The graphical console, in remote-viewer or another VNC viewer of this desktop."""
    server = await _serve(session, name, "vnc", ("127.0.0.1", port))
    bound = server.sockets[0].getsockname()[1]
    viewer = next((found for name_ in ("remote-viewer", "vncviewer") if (found := shutil.which(name_))), None)
    if proxy_only or viewer is None:
        hint = "" if proxy_only else " (no viewer found; install virt-viewer or tigervnc-viewer)"
        click.echo(f"VNC of {name} at 127.0.0.1:{bound}{hint}; Ctrl-C ends.")
        await server.serve_forever()
        return
    target = f"vnc://127.0.0.1:{bound}" if viewer.endswith("remote-viewer") else f"127.0.0.1::{bound}"
    process = await asyncio.create_subprocess_exec(viewer, target)
    async with server:
        await process.wait()


class _Ssh(click.Command):
    """As OpenSSH: options stand before or right after the name; the first other word begins the guest's command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put a `--` where the guest's command begins."""
        at, named = 0, False
        while at < len(args) and args[at] != "--":
            if args[at].startswith("-"):
                at += 2 if args[at] in _SSH_VALUES else 1
                continue
            if named:
                args = [*args[:at], "--", *args[at:]]
                break
            named, at = True, at + 1
        return super().parse_args(ctx, args)


_SSH_VALUES = ("-i", "--identity-file", "-p", "--port", "-l", "--user")


@click.command(cls=_Ssh)
@click.argument("target", metavar="[USER@]NAME")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("-i", "--identity-file", type=click.Path(dir_okay=False), help="Private key.")
@click.option("-l", "--user", "login", default="", help="Who logs in; else as in ssh.")
@click.option("-p", "--port", default=22, show_default=True)
@command
async def ssh(
    session: Session, target: str, words: tuple[str, ...], identity_file: str | None, login: str, port: int
) -> None:
    """Log in to a machine by OpenSSH, through Stead; WORDS are the command to run there."""
    user, _, name = target.rpartition("@")
    user = user or login
    if not shutil.which("ssh"):
        raise click.ClickException("the ssh client is not installed: apt-get install openssh-client")
    server = await _serve(session, name, f"portforward/{port}/tcp", ("127.0.0.1", 0))
    known = Path.home() / ".ssh" / "stead_known_hosts"
    arguments = [
        "ssh", "-p", str(server.sockets[0].getsockname()[1]),
        "-o", f"HostKeyAlias=vmi.{name}.{session.namespace}", "-o", f"UserKnownHostsFile={known}",
        "-o", "StrictHostKeyChecking=accept-new",
    ]  # fmt: skip
    if identity_file:
        arguments += ["-i", identity_file]
    arguments += [f"{user}@127.0.0.1" if user else "127.0.0.1", *words]
    async with server:
        process = await asyncio.create_subprocess_exec(*arguments)
        code = await process.wait()
    if code:
        raise SystemExit(code)


@click.command()
@click.argument("name")
@click.option("-f", "--file", "path", type=click.Path(dir_okay=False, path_type=Path), help="Else NAME.png.")
@command
async def screenshot(session: Session, name: str, path: Path | None) -> None:
    """Save what a machine's display shows as a PNG."""
    path = path or Path(f"{name}.png")
    data = await session.client.request_bytes("GET", _path(session, name, "vnc/screenshot"))
    path.write_bytes(data)
    click.echo(f"{path}: {len(data)} bytes")
