"""Is a delivery from Meta, and is a subscription request meant for us. Pure functions.

Meta signs the bytes on the wire (which are ASCII-escaped JSON) with the App Secret: so the raw body is
verified before anything parses it.
https://developers.facebook.com/docs/graph-api/webhooks/getting-started#event-notifications
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence

_HEX_LENGTH = 64


def verify(raw: bytes, header_sha256: str | None, secrets: Sequence[str]) -> bool:
    """Whether `X-Hub-Signature-256` is the HMAC-SHA256 of `raw` under one of the App Secrets.

    Several secrets allow a rotation without a lost delivery; an empty one never matches. The prefix
    `sha256=` and the case of the digits do not matter; the legacy sha1 header is not accepted, nor is
    any other algorithm. The comparison takes the same time wherever the digests differ, and all
    secrets are always tried.
    """
    if header_sha256 is None:
        return False
    algorithm, separator, digits = header_sha256.strip().rpartition("=")
    if separator and algorithm.strip().lower() != "sha256":
        return False
    digits = digits.strip()
    if len(digits) != _HEX_LENGTH:
        return False
    try:
        claimed = bytes.fromhex(digits)
    except ValueError:
        return False
    genuine = False
    for secret in secrets:
        if secret:
            genuine |= hmac.compare_digest(hmac.digest(secret.encode(), raw, "sha256"), claimed)
    return genuine


def verification_challenge(query: Mapping[str, str], verify_token: str) -> str | None:
    """The challenge to send back to the verification GET, or None when the answer is 403.

    The parameters are `hub.mode`, `hub.verify_token` and `hub.challenge`. An empty configured token
    matches nothing: a service without a token cannot be subscribed by a stranger.
    """
    challenge = query.get("hub.challenge")
    token = query.get("hub.verify_token")
    if not verify_token or not token or not challenge or query.get("hub.mode") != "subscribe":
        return None
    if not hmac.compare_digest(_utf8(token), _utf8(verify_token)):
        return None
    return challenge


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
