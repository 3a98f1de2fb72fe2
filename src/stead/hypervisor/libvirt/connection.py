"""One connection to libvirtd: blocking calls in a thread pool, each with a deadline; connects again when libvirtd dies.

Used by the driver from the event loop. `call` runs a function of the connection in the pool and turns libvirt's errors
into the contract's four kinds. While libvirtd is away, calls wait `RECONNECT_SECONDS` for it and then raise Busy.
Callbacks of libvirt (its event thread) are handed to the event loop before anything of ours runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import libvirt

from stead.hypervisor.contract import Busy, DriverError, Failed, NotFound, Unsupported
from stead.hypervisor.libvirt.events import ensure_event_loop

T = TypeVar("T")
THREADS = 16
CALL_SECONDS = 30.0
RECONNECT_SECONDS = 10.0
_BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT = 5, 3

_KINDS: dict[int, type[DriverError]] = {
    libvirt.VIR_ERR_NO_DOMAIN: NotFound,
    libvirt.VIR_ERR_OPERATION_INVALID: Busy,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: Busy,
    libvirt.VIR_ERR_RESOURCE_BUSY: Busy,
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: Busy,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: Unsupported,
    libvirt.VIR_ERR_NO_SUPPORT: Unsupported,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: Unsupported,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: Unsupported,
}


def error_from_libvirt(operation: str, subject: str, error: libvirt.libvirtError) -> DriverError:
    """The contract's kind for a libvirt error; the message says operation, machine and libvirt's own words."""
    kind = _KINDS.get(error.get_error_code(), Failed)
    return kind(f"{operation} of {subject}: {error.get_error_message() or error}")


class Connection:
    """See the module. `on_lost` is called in the event loop whenever the connection broke and when it is back;
    `register` is called in a pool thread with each new connection, to register event callbacks on it.
    """

    def __init__(
        self, uri: str, register: Callable[[libvirt.virConnect], None], on_lost: Callable[[str], None]
    ) -> None:
        self.uri = uri
        self._register = register
        self._on_lost = on_lost
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="libvirt")
        self._connection: libvirt.virConnect | None = None
        self._connected = asyncio.Event()
        self._reconnecting: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = threading.Event()

    async def open(self) -> None:
        """Connect; raises Failed when libvirt cannot be reached within the call deadline."""
        self._loop = asyncio.get_running_loop()
        try:
            connection = await asyncio.wait_for(self._loop.run_in_executor(self._pool, self._connect), CALL_SECONDS)
        except libvirt.libvirtError as error:
            raise Failed(f"connect to libvirt at {self.uri}: {error.get_error_message()}") from error
        except TimeoutError as error:
            raise Failed(f"connect to libvirt at {self.uri}: no answer in {CALL_SECONDS:.0f} s") from error
        self._use(connection)

    async def close(self) -> None:
        self._closing.set()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.gather(self._reconnecting, return_exceptions=True)
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._pool, _close, connection)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _connect(self) -> libvirt.virConnect:
        ensure_event_loop()
        connection = libvirt.open(self.uri)
        connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
        connection.registerCloseCallback(self._closed, None)
        self._register(connection)
        return connection

    def _use(self, connection: libvirt.virConnect) -> None:
        self._connection = connection
        self._connected.set()

    def _closed(self, connection: libvirt.virConnect, reason: int, _opaque: Any) -> None:
        """libvirt's close callback, in its event thread."""
        self.post(self._on_closed, connection, reason)

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run `function` in the event loop; from any thread; nothing once closed."""
        if self._loop is not None and not self._closing.is_set():
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(function, *arguments)

    def _on_closed(self, connection: libvirt.virConnect, reason: int) -> None:
        if connection is not self._connection or self._closing.is_set():
            return
        self._connection = None
        self._connected.clear()
        self._on_lost(f"the connection to libvirt at {self.uri} broke (reason {reason})")
        self._reconnecting = asyncio.create_task(self._reconnect(connection))

    async def _reconnect(self, dead: libvirt.virConnect) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, _close, dead)
        attempt = 0
        while True:
            await asyncio.sleep(_BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)])
            attempt += 1
            try:
                connection = await asyncio.wait_for(loop.run_in_executor(self._pool, self._connect), CALL_SECONDS)
            except (libvirt.libvirtError, TimeoutError):
                continue
            self._use(connection)
            self._on_lost(f"connected to libvirt at {self.uri} again")
            return

    async def call(
        self, operation: str, subject: str, function: Callable[[libvirt.virConnect], T], seconds: float = CALL_SECONDS
    ) -> T:
        """`function(connection)` in the pool. Raises the contract's errors; Busy when it takes over `seconds`."""
        try:
            await asyncio.wait_for(self._connected.wait(), RECONNECT_SECONDS)
        except TimeoutError as error:
            raise Busy(f"{operation} of {subject}: libvirt at {self.uri} does not answer") from error
        connection = self._connection
        if connection is None:
            raise Busy(f"{operation} of {subject}: the connection to libvirt is closed")
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._pool, function, connection), seconds)
        except TimeoutError as error:
            raise Busy(f"{operation} of {subject}: libvirt did not answer in {seconds:.0f} s") from error
        except libvirt.libvirtError as error:
            if self._connection is not connection or not await loop.run_in_executor(self._pool, _is_alive, connection):
                raise Busy(f"{operation} of {subject}: libvirt went away during the call") from error
            raise error_from_libvirt(operation, subject, error) from error


def _close(connection: libvirt.virConnect) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()


def _is_alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False
