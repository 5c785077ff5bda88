"""Stream tickets: an EventSource sends no header, so it shows a 60-second ticket for one stream.

A ticket is `name.stream.expiry.signature`, signed with the API key it was asked with: any process can check
it, nothing is stored, and the key itself is never in an address. `stream` is a run's id, or `changes`.
"""

from __future__ import annotations

import hmac
import time
from typing import Final

from convsync.settings import ApiKey

LIFETIME_SECONDS = 60
CHANGES: Final = "changes"
"""The stream of the change feed."""


def issue(key: ApiKey, stream: str, *, now: float | None = None) -> str:
    expiry = int((time.time() if now is None else now) + LIFETIME_SECONDS)
    return f"{key.name}.{stream}.{expiry}.{_signature(key, stream, expiry)}"


def redeem(keys: list[ApiKey], ticket: str, stream: str, *, now: float | None = None) -> ApiKey | None:
    """The key the ticket stands for, if it is genuine, for this stream, and in time."""
    parts = ticket.rsplit(".", 3)
    if len(parts) != 4 or parts[1] != stream or not ticket.isascii():
        return None
    if not parts[2].isdigit() or len(parts[2]) > 12:
        return None
    expiry = int(parts[2])
    if expiry < (time.time() if now is None else now):
        return None
    for key in keys:
        if key.name == parts[0] and hmac.compare_digest(_signature(key, stream, expiry), parts[3]):
            return key
    return None


def _signature(key: ApiKey, stream: str, expiry: int) -> str:
    message = f"convsync stream ticket {stream} {expiry}".encode()
    return hmac.digest(key.secret.get_secret_value().encode(), message, "sha256").hex()
