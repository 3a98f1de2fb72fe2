"""A host's network for tests, apart from this machine's own: the calling thread lives in it until the end of the block.

`with outer_network() as outer:` puts the test's thread (and all threads and processes started from it) into a fresh
network namespace whose `uplink` leads to a second one, `the world`, where `outer.in_world(...)` starts processes. Both
end with the block. Private libvirtds started inside live in it, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

HOST_ADDRESS, WORLD_ADDRESS = "192.0.2.2", "192.0.2.1"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class OuterNetwork:
    """The namespaces of one test."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.world: subprocess.Popen[bytes] | None = None

    def in_world(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a process in the world; it is ended with the block."""
        assert self.world is not None
        inside = ["nsenter", "-t", str(self.world.pid), "-n", *command]
        process = subprocess.Popen(inside, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.processes.append(process)
        return process


def run(*command: str) -> str:
    """Run a command in the current network namespace; its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _move(handle: int) -> None:
    assert _libc.setns(handle, _CLONE_NEWNET) == 0, "cannot change the network namespace"


def _ip(*words: str) -> None:
    run("ip", *words)


@contextlib.contextmanager
def outer_network() -> Iterator[OuterNetwork]:
    """See the module. Needs root."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    outer = OuterNetwork()
    try:
        assert _libc.unshare(_CLONE_NEWNET) == 0, "cannot make a network namespace (root is needed)"
        outer.world = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        ours = os.readlink("/proc/thread-self/ns/net")
        while os.readlink(f"/proc/{outer.world.pid}/ns/net") == ours:
            assert outer.world.poll() is None, "the world did not start"
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "uplink", "type", "veth", "peer", "name", "host", "netns", str(outer.world.pid))
        _ip("address", "add", f"{HOST_ADDRESS}/24", "dev", "uplink")
        _ip("link", "set", "uplink", "up")
        for words in ("link set lo up", f"address add {WORLD_ADDRESS}/24 dev host", "link set host up"):
            run("nsenter", "-t", str(outer.world.pid), "-n", "ip", *words.split())
        _ip("route", "add", "default", "via", WORLD_ADDRESS)
        yield outer
    finally:
        for process in [*outer.processes, outer.world]:
            if process is not None:
                process.kill()
                process.wait()
        _move(home)
        os.close(home)
