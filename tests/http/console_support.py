"""A person at the console, as the HTTP tests act: with a browser's headers and cookies, without scripts."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import Any

from http_support import OPERATE_KEY, Service

BROWSER = {
    "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
}
_TOKEN = re.compile(r'name="csrf" value="([0-9a-f]{64})"')
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class Shown:
    """What the browser got."""

    status: int
    headers: Any
    text: str
    path: str

    @property
    def words(self) -> str:
        """What a person reads, with single spaces."""
        return " ".join(html.unescape(_TAG.sub(" ", self.text)).split())


@dataclass
class Person:
    """`headers` are sent with every request; whoever logs in has the cookie in the client's jar."""

    service: Service
    headers: dict[str, str] = field(default_factory=lambda: dict(BROWSER))

    async def see(self, path: str, status: int = 200, *, follow: bool = True, **headers: str) -> Shown:
        return await self._ask("GET", path, None, status, follow, headers)

    async def send(
        self, path: str, status: int = 200, *, follow: bool = True, token: str | None = None, **fields: str
    ) -> Shown:
        """Send a form, with this session's token unless another is given."""
        if token is None:
            token = await self.token()
        return await self._ask("POST", path, {"csrf": token, **fields}, status, follow, {})

    async def token(self) -> str:
        """The token of the forms; empty for who has no session."""
        found = _TOKEN.search((await self.see("/")).text)
        return found[1] if found else ""

    async def log_in(self, key: str = OPERATE_KEY, status: int = 200, **more: str) -> Shown:
        return await self._ask("POST", "/console/login", {"key": key, **more}, status, True, {})

    async def _ask(
        self,
        method: str,
        path: str,
        data: dict[str, str] | None,
        status: int,
        follow: bool,
        headers: dict[str, str],
    ) -> Shown:
        async with self.service.client.request(
            method, path, data=data, headers=self.headers | headers, allow_redirects=follow
        ) as answer:
            shown = Shown(answer.status, answer.headers, await answer.text(), str(answer.url.relative()))
        assert shown.status == status, shown.text
        return shown
