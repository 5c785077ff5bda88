"""Page tokens at rest: sealed before they reach the database, opened only to make a call.

AES-256-GCM; the Page's id is authenticated with the token, so a sealed token moved to another Page's row
does not open. The sealed form is nonce (12 bytes) + ciphertext. The key never goes to the database.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE = 12


class TokenKeyError(Exception):
    """The key is malformed, or is not the one that sealed this token."""


def new_key() -> str:
    """A fresh key in the form of the setting TOKEN_KEY: 32 bytes, base64url."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode("ascii")


def key_from_file(path: Path) -> str:
    """The key kept at `path`; made there, readable by its owner only, if there is none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        pass
    key = new_key()
    # A name of its own for each writer: threads share a process id, and a killed process leaves its file.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        # A link, unlike a rename, fails when another process was first: then its key is the key.
        os.link(temporary, path)
    except FileExistsError:
        return path.read_text(encoding="ascii").strip()
    finally:
        temporary.unlink()
    # What is sealed with this key may reach the disk before the directory does.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return key


class TokenBox:
    """Seals and opens Page tokens with one key."""

    def __init__(self, key: str) -> None:
        try:
            raw = base64.urlsafe_b64decode(key.strip() + "=" * (-len(key.strip()) % 4))
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != 32:
            raise TokenKeyError("TOKEN_KEY must be 32 bytes in base64url, as `convsync page new-key` prints")
        self._raw = raw
        self._cipher = AESGCM(raw)
        self.key_id = hashlib.sha256(b"convsync token key" + raw).hexdigest()[:16]

    def derived_key(self, purpose: str) -> bytes:
        """A key of 32 bytes for something else, the same in every process; it tells nothing of this one."""
        return HKDF(SHA256(), 32, salt=None, info=f"convsync {purpose}".encode()).derive(self._raw)

    def seal(self, page_id: str, token: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._cipher.encrypt(nonce, token.encode("utf-8"), page_id.encode("utf-8"))

    def open(self, page_id: str, sealed: bytes) -> str:
        """The token. `TokenKeyError` if another key sealed it, or it belongs to another Page."""
        try:
            plain = self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], page_id.encode("utf-8"))
        except (InvalidTag, ValueError):
            raise TokenKeyError(
                f"the token of Page {page_id} was sealed with another TOKEN_KEY; add the Page again"
            ) from None
        return plain.decode("utf-8")
