"""Sessions of the console: who logged in with an API key, in a signed cookie. Nothing is stored.

The cookie is `name.expiry.nonce.signature`. It is signed with a key made of the server's TOKEN_KEY and of the
API key it stands for: any process can check it, taking an API key away ends its sessions, and nobody can
guess at an API key by a cookie. What a session may do is what its key may do, with two differences:

- it reads, anywhere; it changes something only through the console's forms, which carry its CSRF token;
- for what another site makes a browser ask for it does not count, by `Sec-Fetch-Site`, else by `Origin`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from convsync.settings import ApiKey
from convsync.web.routing import BadRequest, Forbidden

LIFETIME_SECONDS = 12 * 3600
# A name with this prefix no other host, and no page without TLS, can set in a browser.
SECURE_COOKIE = "__Host-convsync"
PLAIN_COOKIE = "convsync"
CSRF_FIELD = "csrf"
_SAFE = frozenset(("GET", "HEAD"))


@dataclass(frozen=True, slots=True)
class Session:
    """`csrf` is the token that every form of this session carries."""

    key: ApiKey
    expires: int
    csrf: str

    @property
    def expired(self) -> bool:
        return time.time() >= self.expires


async def read_form(request: web.Request) -> dict[str, str]:
    """The fields of a form that was sent, the first of each name; none, if what was sent is no form."""
    if request.content_type != "application/x-www-form-urlencoded":
        return {}
    try:
        given = await request.post()
    except (ValueError, LookupError):  # not of its charset, or of one that nobody knows
        raise BadRequest("the form cannot be read") from None
    return {name: value for name in given if isinstance(value := given[name], str)}


def _host(origin: str) -> str:
    """Of an origin; `?`, which no host is, where there is none."""
    try:
        return urlsplit(origin).netloc or "?"
    except ValueError:
        return "?"


def _is_embedded(request: web.Request) -> bool:
    """Whether a picture, frame or script of another site asks for this; a link from there may lead here."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    return site not in ("none", "same-origin") and (
        request.headers.get("Sec-Fetch-Mode") != "navigate"
        or request.headers.get("Sec-Fetch-Dest", "document") != "document"
    )


SESSION: web.RequestKey[Session] = web.RequestKey("session", Session)


class Sessions:
    """Issues sessions and opens them again, in whichever process has the same keys."""

    def __init__(self, keys: Sequence[ApiKey], server_key: bytes, public_url: str | None = None) -> None:
        self._keys = keys
        self._server_key = server_key
        public = urlsplit(public_url or "")
        self._public_host = public.netloc if public.scheme == "https" else None

    def issue(self, key: ApiKey, *, now: float | None = None) -> str:
        expires = int((time.time() if now is None else now) + LIFETIME_SECONDS)
        name = base64.urlsafe_b64encode(key.name.encode()).decode().rstrip("=")
        told = f"{name}.{expires}.{secrets.token_hex(16)}"
        return f"{told}.{self._digest(key, 'session', told)}"

    def open(self, cookie: str, *, now: float | None = None) -> Session | None:
        """The session, if it is genuine and has not expired."""
        told, _, signature = cookie.rpartition(".")
        parts = told.split(".")
        if len(parts) != 3 or not cookie.isascii() or not parts[1].isdigit() or len(parts[1]) > 12:
            return None
        try:
            name = base64.urlsafe_b64decode(parts[0] + "=" * (-len(parts[0]) % 4)).decode()
        except (binascii.Error, ValueError):
            return None
        expires = int(parts[1])
        if expires <= (time.time() if now is None else now):
            return None
        for key in self._keys:
            if key.name == name and hmac.compare_digest(self._digest(key, "session", told), signature):
                return Session(key, expires, self._digest(key, "csrf", told))
        return None

    def _digest(self, key: ApiKey, purpose: str, told: str) -> str:
        own = hmac.digest(self._server_key, key.secret.get_secret_value().encode(), "sha256")
        return hmac.digest(own, f"convsync console {purpose} {told}".encode(), "sha256").hex()

    # In a request

    async def of(self, request: web.Request) -> Session | None:
        """The session a request may act with, if it has one. Forbidden for a form of another site's."""
        session = self.open(request.cookies.get(self._cookie(request), ""))
        if session is None:
            return None
        if request.method in _SAFE:
            return None if _is_embedded(request) else session
        if not request.path.startswith("/console/"):
            return None  # the API changes something for a key alone
        self.refuse_other_sites(request)
        given = (await read_form(request)).get(CSRF_FIELD, "")
        if not hmac.compare_digest(session.csrf.encode(), given.encode()):
            raise Forbidden("this form is not of your session: load the page again, and send it once more")
        return session

    def begin(self, request: web.Request, response: web.StreamResponse, key: ApiKey) -> None:
        """Let the browser have a session from here on."""
        response.set_cookie(
            self._cookie(request),
            self.issue(key),
            max_age=LIFETIME_SECONDS,
            path="/",
            secure=self._is_secure(request),
            httponly=True,
            samesite="Lax",
        )

    def end(self, request: web.Request, response: web.StreamResponse) -> None:
        response.del_cookie(
            self._cookie(request),
            path="/",
            secure=self._is_secure(request),
            httponly=True,
            samesite="Lax",
        )

    def refuse_other_sites(self, request: web.Request) -> None:
        """Forbidden, unless the browser says that a page of this very service sent the request."""
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None:
            own = site == "same-origin"
        else:  # an old browser, or one that is not on a secure connection
            own = _host(request.headers.get("Origin", "")) in (request.host, self._public_host)
        if not own:
            raise Forbidden("another site sent this request")

    def _is_secure(self, request: web.Request) -> bool:
        """Whether the browser speaks https, with us or with a proxy before us."""
        return (
            request.secure
            or request.headers.get("X-Forwarded-Proto", "").split(",")[0].strip().lower() == "https"
            or (self._public_host is not None and request.host == self._public_host)
        )

    def _cookie(self, request: web.Request) -> str:
        return SECURE_COOKIE if self._is_secure(request) else PLAIN_COOKIE
