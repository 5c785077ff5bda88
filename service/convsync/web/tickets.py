"""Stream tickets: an EventSource sends no header, so it shows a 60-second ticket for one stream.

A ticket is `name.run_id.expiry.signature`, signed with the API key it was asked with: any process can
check it, nothing is stored, and the key itself is never in an address.
"""

from __future__ import annotations

import hmac
import time

from convsync.settings import ApiKey

LIFETIME_SECONDS = 60


def issue(key: ApiKey, run_id: int, *, now: float | None = None) -> str:
    expiry = int((time.time() if now is None else now) + LIFETIME_SECONDS)
    return f"{key.name}.{run_id}.{expiry}.{_signature(key, run_id, expiry)}"


def redeem(keys: list[ApiKey], ticket: str, run_id: int, *, now: float | None = None) -> ApiKey | None:
    """The key the ticket stands for, if it is genuine, for this run, and in time."""
    parts = ticket.rsplit(".", 3)
    if len(parts) != 4 or parts[1] != str(run_id) or not ticket.isascii():
        return None
    if not parts[2].isdigit() or len(parts[2]) > 12:
        return None
    expiry = int(parts[2])
    if expiry < (time.time() if now is None else now):
        return None
    for key in keys:
        if key.name == parts[0] and hmac.compare_digest(_signature(key, run_id, expiry), parts[3]):
            return key
    return None


def _signature(key: ApiKey, run_id: int, expiry: int) -> str:
    message = f"convsync stream ticket {run_id} {expiry}".encode()
    return hmac.digest(key.secret.get_secret_value().encode(), message, "sha256").hex()
