"""The agent's HTTPS server: streams, life-cycle calls and answers about this host's machines, for the plane alone.

aiohttp.web over mutual TLS; only a client certificate of the plane is served (checked here by its common name, on top
of the CA). Changing calls go through the machine's own inbox. Errors are `v1.Status` bodies. Paths: the brief of the
agent's API, base `/v1/namespaces/{ns}/machines/{name}`; `/metrics` and `/healthz` beside it. Sub-protocol
`plain.kubevirt.io`.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog
from aiohttp import web

from stead.agent import guestinfo, relays
from stead.agent import vmi as reading
from stead.agent.arrivals import Arrivals
from stead.agent.exports import Download
from stead.agent.machine import Machine
from stead.agent.moves import Offer
from stead.agent.policy import Call
from stead.hypervisor.contract import Busy, DriverError, NotFound, Unsupported
from stead.kube.errors import ApiError, not_found

log = structlog.get_logger(__name__)

Object = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PROTOCOL = "plain.kubevirt.io"
#: what the agent of another host may ask, whose machine comes here
ARRIVALS = "/v1/arrivals"
BASE = "/v1/namespaces/{ns}/machines/{name}"
CONNECT_SECONDS = 10.0
MAX_BODY = 1024 * 1024
MAX_FRAME = 4 * 1024 * 1024
#: what is shown of a serial log: its end (virtlogd's own bound of a file is 2 MiB)
MAX_LOG = 2 * 1024 * 1024


class Uploads(Protocol):
    """What takes uploaded disk images (`agent/volumes.py`)."""

    async def upload(self, namespace: str, claim: str, format: str, body: asyncio.StreamReader | Any) -> Object:
        """Write the body into the claim's volume; returns a small JSON answer. Raises ApiError."""
        ...


class Exports(Protocol):
    """What sends disks (`agent/exports.py`)."""

    async def open(self, uid: str, format: str) -> Download:
        """The disk as bytes. Raises ApiError."""
        ...


class Host(Protocol):
    """What the server needs of the agent."""

    def machine(self, namespace: str, name: str) -> Machine | None: ...

    @property
    def knows_machines(self) -> bool:
        """False from the agent's start until it has seen which machines are its own."""
        ...

    async def metrics(self) -> bytes: ...

    @property
    def arrivals(self) -> Arrivals: ...


def _status(error: ApiError) -> web.Response:
    return web.json_response(error.status(), status=error.code)


def error_of(error: Exception) -> ApiError:
    """What an API client is told of a failure."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, NotFound):
        return ApiError("NotFound", str(error))
    if isinstance(error, Busy):
        return ApiError("Conflict", str(error))
    if isinstance(error, Unsupported):
        return ApiError("BadRequest", str(error))
    return ApiError("InternalError", str(error) or type(error).__name__)


class Server:
    """Routes and their handlers. `plane_names` are common names that may call; None serves anyone (unit tests, no
    TLS).
    """

    def __init__(
        self,
        host: Host,
        uploads: Uploads | None = None,
        plane_names: tuple[str, ...] | None = None,
        exports: Exports | None = None,
    ) -> None:
        self._host = host
        self._exports = exports
        self._uploads = uploads
        self._plane_names = plane_names
        self._runner: web.AppRunner | None = None
        self.sessions = relays.Sessions()
        self.port_forwards = 0

    # life --------------------------------------------------------------------------------------------------------

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        for call in Call:
            app.router.add_put(f"{BASE}/{call}", self._change(call))
        app.router.add_get(f"{BASE}/console", self._console)
        app.router.add_get(f"{BASE}/vnc", self._vnc)
        app.router.add_get(f"{BASE}/usbredir", self._refuse_usbredir)
        app.router.add_get(BASE + "/portforward/{port}", self._port_forward)
        app.router.add_get(BASE + "/portforward/{port}/{protocol}", self._port_forward)
        app.router.add_get(f"{BASE}/guestosinfo", self._guest_info)
        app.router.add_get(f"{BASE}/userlist", self._user_list)
        app.router.add_get(f"{BASE}/filesystemlist", self._filesystem_list)
        app.router.add_get(f"{BASE}/xml", self._describe)
        app.router.add_get(f"{BASE}/stats", self._statistics)
        app.router.add_get(f"{BASE}/seriallog", self._serial_log)
        app.router.add_get(f"{BASE}/screenshot", self._screenshot)
        app.router.add_put("/v1/volumes/{ns}/{pvc}/upload", self._upload)
        app.router.add_put(f"{ARRIVALS}/{{uid}}", self._welcome)
        app.router.add_get(f"{ARRIVALS}/{{uid}}/peer", self._join)
        app.router.add_get("/v1/exports/{uid}", self._export)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        return app

    async def open(self, address: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Listen; returns the port (a free one for port 0)."""
        self._runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=2.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, address, port, ssl_context=tls)
        await site.start()
        server = self._runner.addresses[0]
        return int(server[1])

    async def close(self) -> None:
        """Stop listening and end all streams."""
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        of_host = request.path.startswith(f"{ARRIVALS}/") and _common_name(request).startswith("system:node:")
        if self._plane_names is not None and not of_host and _common_name(request) not in self._plane_names:
            return _status(ApiError("Forbidden", "only the plane may call an agent"))
        try:
            return await handler(request)
        except (ApiError, DriverError) as error:
            return _status(error_of(error))
        except web.HTTPException as error:
            return _status(ApiError("", error.reason or "error", code=error.status))
        except (OSError, TimeoutError) as error:
            log.warning("a request of the plane failed", path=request.path, error=str(error))
            return _status(error_of(error))

    def _machine(self, request: web.Request) -> Machine:
        namespace, name = request.match_info["ns"], request.match_info["name"]
        machine = self._host.machine(namespace, name)
        if machine is None and not self._host.knows_machines:
            raise ApiError("ServiceUnavailable", "the agent has just started and does not know its machines yet")
        if machine is None:
            raise not_found("virtualmachineinstances", name, "kubevirt.io")
        return machine

    def _running(self, request: web.Request) -> Machine:
        machine = self._machine(request)
        if not machine.alive and not machine.was_looked_at:
            raise ApiError("ServiceUnavailable", "the agent has just started and has not looked at this machine yet")
        if not machine.alive:
            raise ApiError("Conflict", "VMI is not running")
        return machine

    # calls -------------------------------------------------------------------------------------------------------

    def _change(self, call: Call) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            machine = self._machine(request)
            body = await request.read()
            try:
                arguments = msgspec.json.decode(body, type=dict[str, Any]) if body else {}
            except msgspec.MsgspecError as error:
                raise ApiError("BadRequest", f"the body is not a JSON object: {error}") from error
            if not arguments.get("dryRun"):
                await machine.call(call, arguments)
            return web.json_response({})

        return handler

    async def _guest_info(self, request: web.Request) -> web.StreamResponse:
        machine = self._with_guest_agent(request)
        return web.json_response(guestinfo.agent_info(machine.guest.info, machine.guest.frozen))

    async def _user_list(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(guestinfo.user_list(self._with_guest_agent(request).guest.info))

    async def _filesystem_list(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(guestinfo.filesystem_list(self._with_guest_agent(request).guest.info))

    def _with_guest_agent(self, request: web.Request) -> Machine:
        machine = self._running(request)
        if machine.observed is None or not machine.observed.agent_connected:
            raise ApiError("Conflict", "VMI does not have guest agent connected")
        return machine

    async def _describe(self, request: web.Request) -> web.StreamResponse:
        machine = self._machine(request)
        return web.Response(text=await machine.shop.hypervisor.describe(machine.uid), content_type="text/plain")

    async def _serial_log(self, request: web.Request) -> web.StreamResponse:
        """What the guest has written to its serial port, as far as it is kept (virtlogd turns it at its own bound)."""
        machine = self._machine(request)
        if not reading.logs_serial_console(machine.vmi) or machine.prepared is None:
            raise ApiError("BadRequest", "The serial console of this VMI is not logged (logSerialConsole)")
        path = Path(machine.prepared.serial_log)
        text = await asyncio.to_thread(relays.tail_of, path, MAX_LOG)
        return web.Response(body=text, content_type="text/plain")

    async def _statistics(self, request: web.Request) -> web.StreamResponse:
        machine = self._running(request)
        counters = await machine.shop.hypervisor.statistics(machine.uid)
        return web.json_response({**counters, **machine.departure.counters()})

    async def _screenshot(self, request: web.Request) -> web.StreamResponse:
        machine = self._running(request)
        if not reading.has_graphics(machine.vmi):
            raise ApiError("BadRequest", "No graphics devices are present.")
        image = await machine.shop.hypervisor.screenshot(machine.uid)
        return web.Response(body=image, content_type="image/png")

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        if self._uploads is None:
            raise ApiError("ServiceUnavailable", "this host takes no uploads")
        namespace, claim = request.match_info["ns"], request.match_info["pvc"]
        answer = await self._uploads.upload(namespace, claim, request.query.get("format", ""), request.content)
        return web.json_response(answer or {})

    async def _welcome(self, request: web.Request) -> web.StreamResponse:
        """The source of a migration announces the machine. Who asks stands in its certificate."""
        arrival = self._host.arrivals.find(request.match_info["uid"], _common_name(request))
        try:
            offer = msgspec.json.decode(await request.read(), type=Offer)
        except msgspec.MsgspecError as error:
            raise ApiError("BadRequest", f"the body is no offer: {error}") from error
        return web.Response(body=msgspec.json.encode(await arrival.welcome(offer)), content_type="application/json")

    async def _join(self, request: web.Request) -> web.StreamResponse:
        """Join the source's hypervisor with ours, for as long as that machine is on its way."""
        arrivals = self._host.arrivals
        arrival = arrivals.find(request.match_info["uid"], _common_name(request))
        socket = await arrivals.peer_socket()
        gate = arrivals.gate(arrival)
        reader, writer = await relays.open_machine_socket(socket)
        ws = web.WebSocketResponse(heartbeat=10.0, max_msg_size=0, compress=False)
        await ws.prepare(request)
        await relays.relay(ws, reader, writer, gate)
        return ws

    async def _export(self, request: web.Request) -> web.StreamResponse:
        if self._exports is None:
            raise ApiError("ServiceUnavailable", "this host sends no disks")
        download = await self._exports.open(request.match_info["uid"], request.query.get("format", "raw"))
        response = web.StreamResponse()
        response.content_type = "application/octet-stream"
        if download.length >= 0:
            response.content_length = download.length
        await response.prepare(request)
        try:
            async for chunk in download.chunks:
                await response.write(chunk)
        except ApiError as error:  # the head is out: only breaking off tells the reader that this is not all
            log.warning("a download was broken off", volume=request.match_info["uid"], error=error.message)
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        body = await self._host.metrics()
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    # streams -----------------------------------------------------------------------------------------------------

    async def _console(self, request: web.Request) -> web.StreamResponse:
        machine = self._running(request)
        if not reading.has_serial_console(machine.vmi) or machine.prepared is None:
            raise ApiError("BadRequest", "No serial consoles are present.")
        return await self._exclusive(request, machine, "console", machine.prepared.serial_socket)

    async def _vnc(self, request: web.Request) -> web.StreamResponse:
        machine = self._running(request)
        if not reading.has_graphics(machine.vmi) or machine.prepared is None:
            raise ApiError("BadRequest", "No graphics devices are present.")
        keep = request.query.get("preserveSession", "") in ("true", "1")
        if keep and self.sessions.active(machine.uid, "vnc"):
            raise ApiError("ServiceUnavailable", "Active VNC connection. Request denied.")
        return await self._exclusive(request, machine, "vnc", machine.prepared.vnc_socket)

    async def _refuse_usbredir(self, request: web.Request) -> web.StreamResponse:
        self._machine(request)
        raise ApiError("Conflict", "Not configured with USB Redirection")

    async def _exclusive(self, request: web.Request, machine: Machine, kind: str, path: str) -> web.StreamResponse:
        ws = _websocket()
        await ws.prepare(request)
        # The holder before must have let go of the socket: QEMU serves one client of a serial port or screen at a
        # time.
        await self.sessions.enter(machine.uid, kind, ws)
        try:
            reader, writer = await _connect_patiently(Path(path))
            await relays.relay(ws, reader, writer)
        except OSError as error:
            await ws.close(code=1011, message=f"{kind} is not available: {error}".encode()[:120])
        finally:
            self.sessions.leave(machine.uid, kind, ws)
        return ws

    async def _port_forward(self, request: web.Request) -> web.StreamResponse:
        machine = self._running(request)
        protocol = request.match_info.get("protocol", "tcp").lower()
        port = int(request.match_info["port"]) if request.match_info["port"].isdigit() else 0
        if not 0 < port < 65536 or protocol not in ("tcp", "udp"):
            raise ApiError("BadRequest", "the port must be a number from 1 to 65535 and the protocol tcp or udp")
        address = machine.address
        if not address:
            raise ApiError("BadRequest", "no network interfaces are present")
        self.port_forwards += 1
        try:
            return await self._forward(request, (address, port), protocol)
        finally:
            self.port_forwards -= 1

    async def _forward(self, request: web.Request, target: tuple[str, int], protocol: str) -> web.StreamResponse:
        ws = _websocket()
        if protocol == "udp":
            await ws.prepare(request)
            await relays.relay_datagrams(ws, *target)
            return ws
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(*target, limit=relays.CHUNK)
        except (OSError, TimeoutError) as error:
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "timed out"
            message = f"dialing VM: {target[0]}:{target[1]}: {why.lower()}"
            raise ApiError("InternalError", message) from error
        await ws.prepare(request)
        await relays.relay(ws, reader, writer)
        return ws


async def _connect_patiently(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, giving QEMU a moment to notice that the client before has gone."""
    for _ in range(20):
        try:
            return await relays.open_machine_socket(path)
        except (ConnectionRefusedError, BlockingIOError):
            await asyncio.sleep(0.1)
    return await relays.open_machine_socket(path)


def _websocket() -> web.WebSocketResponse:
    return web.WebSocketResponse(protocols=(PROTOCOL,), heartbeat=30.0, max_msg_size=MAX_FRAME, compress=False)


def _common_name(request: web.Request) -> str:
    """Common name of the client's certificate, as TLS has verified it; "" without one."""
    certificate = request.get_extra_info("peercert") if request.transport else None
    for entry in (certificate or {}).get("subject", ()):
        for name, value in entry:
            if name == "commonName":
                return str(value)
    return ""
