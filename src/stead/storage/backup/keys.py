"""The key of a repository and what is derived from it: names of granules, keys of files, the seal of small objects.

Pure. The key (32 random bytes) never enters the repository: what lies there is a check value, so that a wrong key is
told at once. Every file has a key of its own, derived from its random salt, so that no nonce is ever used twice,
however much is written. The kind of an object and the repository's id are part of what is authenticated: an object
cannot be passed off as another kind, nor as one of another repository.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
SALT_BYTES = 32
TAG_BYTES = 16
_MAGIC = b"STEADBK1"
_TEXT = "stead-backup-key-1:"


class BackupError(Exception):
    """A backup, or a repository, is not as it must be. `reason`: Damaged, WrongKey, NotFound, TooNew, Busy, Invalid,
    NoSpace or Failed. The message names the object.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def new_secret() -> bytes:
    """A new key."""
    return os.urandom(KEY_BYTES)


def text_from_secret(secret: bytes) -> str:
    """The key as one line of text, with a check of its own against slips of the pen."""
    check = hashlib.sha256(secret).digest()[:4]
    return _TEXT + base64.urlsafe_b64encode(secret + check).decode()


def secret_from_text(text: str) -> bytes:
    """The key of such a line. Raises BackupError Invalid."""
    body = text.strip()
    if not body.startswith(_TEXT):
        raise BackupError("Invalid", f"a backup key begins with {_TEXT}")
    try:
        raw = base64.b64decode(body.removeprefix(_TEXT), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise BackupError("Invalid", "the backup key is not complete") from error
    secret, check = raw[:KEY_BYTES], raw[KEY_BYTES:]
    if len(secret) != KEY_BYTES or check != hashlib.sha256(secret).digest()[:4]:
        raise BackupError("Invalid", "the backup key is not complete or has a slip in it")
    return secret


class Keys:
    """What is derived from the key for one repository."""

    def __init__(self, secret: bytes, repository: str) -> None:
        if len(secret) != KEY_BYTES:
            raise BackupError("Invalid", f"a backup key has {KEY_BYTES} bytes, not {len(secret)}")
        self._root = hmac.digest(secret, b"stead backup 1 " + repository.encode(), "sha256")
        self._names = self._derived(b"granule names")
        self.check = self._derived(b"check").hex()

    def _derived(self, purpose: bytes) -> bytes:
        return hmac.digest(self._root, purpose, "sha256")

    def name_granule(self, data: bytes) -> bytes:
        """The keyed name of a granule's content, 32 bytes: equal content has one name, which tells nothing without
        the key.
        """
        return hmac.digest(self._names, data, "sha256")

    def file_cipher(self, kind: str, salt: bytes) -> AESGCM:
        """The cipher of one file; nonces are its own business."""
        return AESGCM(hmac.digest(self._derived(b"file " + kind.encode()), salt, "sha256"))

    def seal(self, kind: str, data: bytes) -> bytes:
        """One whole object."""
        salt = os.urandom(SALT_BYTES)
        return _MAGIC + salt + self.file_cipher(kind, salt).encrypt(bytes(12), data, kind.encode())

    def unseal(self, kind: str, name: str, data: bytes) -> bytes:
        """The content of a whole object; BackupError Damaged names it."""
        if not data.startswith(_MAGIC) or len(data) < len(_MAGIC) + SALT_BYTES + TAG_BYTES:
            raise BackupError("Damaged", f"{name} is torn: it is no sealed object")
        salt = data[len(_MAGIC) : len(_MAGIC) + SALT_BYTES]
        try:
            return self.file_cipher(kind, salt).decrypt(bytes(12), data[len(_MAGIC) + SALT_BYTES :], kind.encode())
        except InvalidTag as error:
            raise BackupError("Damaged", f"{name} is damaged: its seal does not hold") from error
