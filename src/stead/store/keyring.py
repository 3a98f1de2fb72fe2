"""Keys that seal stored values, and the seal itself.

Called by `store.sealed` and the composition root; all but `read` is pure. A keyring is text, one key a line (32 random
bytes in base64; `#` begins a comment): the first key seals, every key opens. A key's name follows from the key, so that
a wrong key is told from a damaged value and no two keys share a name.

A sealed value is `MARK`, the key's name (8 bytes), a salt (32 bytes) and AES-256-GCM's output. Each value has a key of
its own, derived from the ring's by HKDF-SHA256 and the salt, so that nonces never repeat; where the value is stored is
authenticated with it, so that nobody can move a sealed value to another object. So does KMS v2 of Kubernetes.
"""

from __future__ import annotations

import base64
import binascii
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

#: stored JSON never begins with a zero byte
MARK = b"\0stead-sealed-1\0"
KEY_BYTES = 32
NAME_BYTES = 8
SALT_BYTES = 32
#: seconds that a key command may take
COMMAND_SECONDS = 30.0
_NONCE = bytes(12)


class KeyringError(Exception):
    """No usable keys, or none that opens a value; the text says which and never contains a key."""


class Keyring:
    """Keys by name; the first seals. Raises KeyringError when there is none or one is malformed."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise KeyringError(f"a keyring holds one key a line, each {KEY_BYTES} bytes in base64")
        self._keys = {_derived(key, b"", b"stead key name")[:NAME_BYTES]: key for key in keys}
        self._first = next(iter(self._keys))

    def seal(self, where: str, value: bytes) -> bytes:
        """The sealed form of `value`, which is stored under the key `where`."""
        salt = os.urandom(SALT_BYTES)
        cipher = AESGCM(_derived(self._keys[self._first], salt, b"stead value"))
        return MARK + self._first + salt + cipher.encrypt(_NONCE, value, where.encode())

    def open(self, where: str, value: bytes) -> bytes:
        """The plain form; a value that was never sealed is returned as it is. Raises KeyringError."""
        if not value.startswith(MARK):
            return value
        at = len(MARK)
        name, at = value[at : at + NAME_BYTES], at + NAME_BYTES
        salt, at = value[at : at + SALT_BYTES], at + SALT_BYTES
        key = self._keys.get(name)
        if key is None:
            known = ", ".join(held.hex() for held in self._keys)
            raise KeyringError(f"{where} is sealed with the key {name.hex()}, which is not among those given ({known})")
        try:
            return AESGCM(_derived(key, salt, b"stead value")).decrypt(_NONCE, value[at:], where.encode())
        except InvalidTag:
            raise KeyringError(f"{where} was changed after it was sealed with the key {name.hex()}") from None

    def is_current(self, value: bytes) -> bool:
        """Whether the value is sealed with the key that seals now."""
        return value.startswith(MARK + self._first)


def _derived(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt or None, info=purpose).derive(key)


def parse(text: str, source: str) -> Keyring:
    """The keyring that `text` holds; `source` is named in errors. Raises KeyringError."""
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        try:
            keys.append(base64.b64decode(word, validate=True))
        except (binascii.Error, ValueError):
            raise KeyringError(f"{source}, line {number}: not base64") from None
    try:
        return Keyring(keys)
    except KeyringError as error:
        raise KeyringError(f"{source}: {error}") from None


def new_key() -> str:
    """A line for a keyring."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def read(path: Path, command: Sequence[str] = (), tpm: str = "") -> Keyring:
    """The keyring that `command` prints or the TPM's `tpm` holds, else the file's. Blocks. Raises KeyringError."""
    setting = "secrets_key_command"
    if tpm:
        setting, command = "secrets_key_tpm", ("tpm2_unseal", "--object-context", tpm)
    if not command:
        try:
            return parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise KeyringError(f"the keys that open Secrets cannot be read from {path}: {error}") from error
    try:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=COMMAND_SECONDS, check=True
        )
        return parse(done.stdout.decode(), f"the output of {command[0]}")
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
        reason = f"ended with {error.returncode}" if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise KeyringError(f"{setting} {tpm or command[0]}: {reason}") from None
