"""Pages: a token goes in, sealed at once, and never comes out."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from convsync.web.routing import allowed_page, read_body, route, sees_page
from convsync.web.state import STORE, TOKENS

PageId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z_.-]+$")]


class NewPage(BaseModel):
    """The body of POST /api/pages."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    page_id: PageId
    name: str | None = Field(default=None, max_length=500)
    owner_ref: str | None = Field(default=None, max_length=500)
    token: SecretStr | None = None

    @field_validator("token")
    @classmethod
    def _sendable(cls, value: SecretStr | None) -> SecretStr | None:
        """A token travels in a header: the newline of a pasted one would break every call."""
        if value is None:
            return None
        token = value.get_secret_value().strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("must be printable ASCII without spaces")
        return SecretStr(token)


@route("GET", "/api/pages", access="read")
async def list_pages(request: web.Request) -> web.Response:
    pages = await request.app[STORE].list_pages()
    return web.json_response({"pages": [page for page in pages if sees_page(request, page["page_id"])]})


@route("POST", "/api/pages", access="operate")
async def add_page(request: web.Request) -> web.Response:
    body = await read_body(request, NewPage)
    page_id = allowed_page(request, body.page_id)
    box = request.app[TOKENS]
    token = body.token.get_secret_value() if body.token else None
    page = await request.app[STORE].add_page(
        page_id=page_id,
        name=body.name,
        owner_ref=body.owner_ref,
        token_sealed=box.seal(page_id, token) if token else None,
        token_key_id=box.key_id if token else None,
    )
    return web.json_response(page, status=201)


@route("GET", "/api/pages/{page_id}", access="read")
async def get_page(request: web.Request) -> web.Response:
    page_id = allowed_page(request, request.match_info["page_id"])
    return web.json_response(await request.app[STORE].get_page(page_id=page_id))


@route("DELETE", "/api/pages/{page_id}", access="operate")
async def remove_page(request: web.Request) -> web.Response:
    page_id = allowed_page(request, request.match_info["page_id"])
    return web.json_response(await request.app[STORE].remove_page(page_id=page_id))
