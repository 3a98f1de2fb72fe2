"""What the source of a migration may say to this host's libvirt: the calls of one peer-to-peer migration, nothing else.

The agents join the two libvirts by a stream; without this, whoever is root on one host could command the other's
libvirt while a machine moves. Pure; fed by the target's agent with what arrives. A message is its length (4 bytes, all
included), program, version, procedure, type, serial and status (4 bytes each), then arguments. Source: libvirt's
virnetprotocol.x and remote_protocol.x; the calls were seen with 9.0.
"""

from __future__ import annotations

import struct

from stead.hypervisor.contract import Unsupported

_HEADER = struct.Struct(">7I")
#: what libvirt itself allows of a message
_MOST_BYTES = 32 << 20
_REMOTE, _KEEPALIVE = 0x20008086, 0x6B656570
_CALL = 0
_OPEN, _CLOSE, _SUPPORTS, _AUTHENTICATION = 1, 2, 60, 66
_PREPARE, _FINISH = 303, 306  # domain_migrate_prepare3_params, domain_migrate_finish3_params
_CLOSE_NOTICES = (360, 361)
_ALLOWED = frozenset({_OPEN, _CLOSE, _SUPPORTS, _AUTHENTICATION, _PREPARE, _FINISH, *_CLOSE_NOTICES})


class Gate:
    """For one connection, about one machine. Confined to the task that feeds it."""

    def __init__(self, uid: str) -> None:
        self._uid = uid.encode()
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
            if procedure == _PREPARE and program == _REMOTE and self._uid not in message:
                raise Unsupported("a peer's machine is not the one that is on its way")
            passed.append(message)
        return b"".join(passed)
