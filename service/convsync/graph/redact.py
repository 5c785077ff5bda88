"""Take secrets out of text before it is stored, logged or raised.

Meta puts access tokens into places where nobody expects them: the `next` link of every list, the
text of some errors, the links inside attachments. Everything that leaves `convsync.graph` as text
has passed through `redact`.
"""

from __future__ import annotations

import re

MARK = "[redacted]"

# name=value in a query string (also percent-encoded, once or more often, or with JSON's escapes), and
# "name": "value" in JSON. What of the value itself is percent-encoded (an app token has a |) belongs to it.
_NAMED = re.compile(
    r"""((?:access_token|input_token|fb_exchange_token|appsecret_proof|app_?secret|client_secret)"""
    r"""(?:=|%(?:25)*3D|\\u003d|\\?["']\s*:\s*\\?["']|:\s*))"""
    r"""(?:[^&\s"'\\<>%]|%(?!(?:25)*(?:2[0267]|3[CE]|5C))[0-9A-F]{2})+""",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(Bearer|OAuth)\s+[A-Za-z0-9|._~+/=-]{12,}")
_PAGE_TOKEN = re.compile(r"\bEAA[A-Za-z0-9]{6,}")
_APP_TOKEN = re.compile(r"\b\d{6,}\|[A-Za-z0-9_-]{16,}")


def redact(text: str) -> str:
    """Return `text` with every access token, proof and app secret replaced by `[redacted]`."""
    text = _NAMED.sub(rf"\1{MARK}", text)
    text = _BEARER.sub(rf"\1 {MARK}", text)
    text = _PAGE_TOKEN.sub(MARK, text)
    return _APP_TOKEN.sub(MARK, text)
