"""Meta's `signed_request`: who asks for deletion, or took the app away. A pure function.

`base64url(signature) + "." + base64url(payload)`; the signature is HMAC-SHA256 of the encoded payload under
the App Secret. https://developers.facebook.com/docs/development/create-an-app/app-dashboard/data-deletion-callback
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from typing import Any

import orjson


class BadSignedRequest(ValueError):
    """It is not a signed request, or not signed with our secret."""


def read_signed_request(text: str, secrets: Sequence[str]) -> dict[str, Any]:
    """The payload of a signed request; `user_id` and `profile_id` come as text, or are missing."""
    encoded_signature, _, encoded_payload = text.partition(".")
    signature, raw = _decode(encoded_signature), _decode(encoded_payload)
    genuine = False
    for secret in secrets:
        if secret:
            genuine |= hmac.compare_digest(
                hmac.digest(secret.encode(), encoded_payload.encode(), "sha256"), signature
            )
    if not genuine:
        raise BadSignedRequest("the signature is missing or wrong")
    try:
        payload = orjson.loads(raw)
    except orjson.JSONDecodeError:
        payload = None
    if not isinstance(payload, dict) or str(payload.get("algorithm", "")).upper() != "HMAC-SHA256":
        raise BadSignedRequest("the payload is not an object signed with HMAC-SHA256")
    for name in ("user_id", "profile_id"):
        value = payload.pop(name, None)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value) not in ("", "0"):
            payload[name] = str(value)
    return payload


def _decode(text: str) -> bytes:
    text = text.rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadSignedRequest("it is not base64url") from None
