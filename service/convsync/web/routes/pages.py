"""Pages: a token goes in, sealed at once, and never comes out."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import Field, SecretStr, field_validator

from convsync.errors import NotFound
from convsync.web import answered
from convsync.web.asked import Asked, NoParameters, PageId, Parameters, Whole, read_body
from convsync.web.routing import Answer, allowed_page, page_in_path, query, route, visible_pages
from convsync.web.state import STORE, TOKENS


class NewPage(Asked):
    """A Page to add, or what is to change of one that is known."""

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


class ListPages(Parameters):
    after: Annotated[str | None, Field(max_length=64, description="The `next` of the part before.")] = None
    limit: Annotated[int, Whole(1, 200)] = 200


@route("GET", "/api/pages", access="read", query=ListPages, answers={200: Answer(answered.Pages)})
async def list_pages(request: web.Request) -> web.Response:
    """The Pages that the key may see, by id: how fresh each is, its budget, and what of it is proved."""
    asked = query(request, ListPages)
    # One more than asked for tells whether that is all.
    found = await request.app[STORE].list_pages(
        pages=visible_pages(request), after=asked.after, limit=asked.limit + 1
    )
    pages = found[: asked.limit]
    return web.json_response(
        {"pages": pages, "next": pages[-1]["page_id"] if len(found) > len(pages) else None}
    )


@route(
    "POST",
    "/api/pages",
    access="operate",
    query=NoParameters,
    body=NewPage,
    answers={201: Answer(answered.Page)},
    errors=(NotFound,),
)
async def add_page(request: web.Request) -> web.Response:
    """Add a Page, or change what is given of it. The token is sealed at once, and never shown."""
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


@route("GET", "/api/pages/{page_id}", access="read", query=NoParameters, answers={200: Answer(answered.Page)})
async def get_page(request: web.Request) -> web.Response:
    """One Page."""
    return web.json_response(await request.app[STORE].get_page(page_id=page_in_path(request)))


@route(
    "DELETE",
    "/api/pages/{page_id}",
    access="operate",
    query=NoParameters,
    answers={200: Answer(answered.Page)},
)
async def remove_page(request: web.Request) -> web.Response:
    """Forget the Page's token and stop its syncs. What was mirrored stays."""
    return web.json_response(await request.app[STORE].remove_page(page_id=page_in_path(request)))
