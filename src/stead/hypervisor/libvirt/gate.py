"""What the source of a migration may say to this host's libvirt: the calls of one peer-to-peer migration, nothing else.

The agents join the two libvirts by a stream; without this, whoever is root on one host could command the other's
libvirt while a machine moves. Every description of a machine in these calls is judged by `passport.py`. Pure; fed by
the target's agent with what arrives. A message is its length (4 bytes, all included), program, version, procedure,
type, serial and status (4 bytes each), then arguments in XDR. Source: libvirt's virnetprotocol.x and remote_protocol.x,
RFC 4506; the calls were seen with 9.0.
"""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET

from stead.hypervisor.contract import Machine, Unsupported
from stead.hypervisor.libvirt.passport import Passport

_HEADER = struct.Struct(">7I")
#: what libvirt itself allows of a message
_MOST_BYTES = 32 << 20
_REMOTE, _KEEPALIVE = 0x20008086, 0x6B656570
_CALL = 0
_OPEN, _CLOSE, _SUPPORTS, _AUTHENTICATION = 1, 2, 60, 66
_PREPARE, _FINISH = 303, 306  # domain_migrate_prepare3_params, domain_migrate_finish3_params
_CLOSE_NOTICES = (360, 361)
_ALLOWED = frozenset({_OPEN, _CLOSE, _SUPPORTS, _AUTHENTICATION, _PREPARE, _FINISH, *_CLOSE_NOTICES})
#: bytes of a typed parameter's value by its type; 7 is a string
_SIZES = {1: 4, 2: 4, 3: 8, 4: 8, 5: 8, 6: 4}
_STRING = 7
_TLS = 1 << 16


class Gate:
    """For one connection, about one machine. Confined to the task that feeds it."""

    def __init__(self, machine: Machine) -> None:
        self._passport = Passport(machine)
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """What may go on now: whole messages. Raises Unsupported at the first that may not."""
        self._rest += data
        passed = []
        while len(self._rest) >= _HEADER.size:
            length, program, _, procedure, kind, _, _ = _HEADER.unpack_from(self._rest)
            if not _HEADER.size <= length <= _MOST_BYTES:
                raise Unsupported(f"a peer's message of {length} bytes")
            allowed = program == _KEEPALIVE or (program == _REMOTE and kind == _CALL and procedure in _ALLOWED)
            if not allowed:
                raise Unsupported(f"a peer's call {procedure} of program {program:#x} is no part of a migration")
            if len(self._rest) < length:
                break
            message, self._rest = self._rest[:length], self._rest[length:]
            if program == _REMOTE and procedure in (_PREPARE, _FINISH):
                self._check(procedure, message[_HEADER.size :])
            passed.append(message)
        return b"".join(passed)

    def _check(self, procedure: int, arguments: bytes) -> None:
        """What is said of the machine. Raises Unsupported."""
        try:
            strings, cookie, flags = _decoded(arguments, finish=procedure == _FINISH)
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise Unsupported(f"a peer's call {procedure} cannot be read") from error
        if procedure == _PREPARE and not flags & _TLS:
            raise Unsupported("a peer's migration without TLS")
        described = [value for name, value in strings if name == "destination_xml"]
        if procedure == _PREPARE and not described:
            raise Unsupported("a peer's migration that does not describe its machine")
        for document in described:
            self._passport.check(document)
        if cookie:
            if not cookie.startswith("<qemu-migration"):
                raise Unsupported("a peer's cookie that is none")
            try:
                root = ET.fromstring(cookie)  # noqa: S314  # no declaration can precede the root: see `Passport.check`
            except ET.ParseError as error:
                raise Unsupported(f"a peer's cookie: {error}") from error
            for domain in root.iter("domain"):
                self._passport.check_element(domain)


def _decoded(arguments: bytes, *, finish: bool) -> tuple[list[tuple[str, str]], str, int]:
    """(string parameters, cookie, flags). Raises struct.error, also for more bytes, UnicodeDecodeError, KeyError."""
    reader = _Reader(arguments)
    strings: list[tuple[str, str]] = []
    for _ in range(reader.number()):
        name, kind = reader.text(), reader.number()
        if kind == _STRING:
            strings.append((name, reader.text()))
        else:
            reader.take(_SIZES[kind])
    cookie = reader.text().rstrip("\0")
    flags = reader.number()
    if finish:
        reader.number()
    if not reader.is_done:
        raise struct.error("trailing bytes")
    return strings, cookie, flags


class _Reader:
    """XDR, from the front."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def is_done(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise struct.error("too short")
        found, self._at = self._data[self._at : end], end
        return found

    def number(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def text(self) -> str:
        size = self.number()
        found = self.take(size).decode()
        self.take(-size % 4)
        return found
