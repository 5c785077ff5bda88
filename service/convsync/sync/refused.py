"""A list that Meta refuses as such, told from one that fails otherwise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from convsync.graph.catalogue import LISTING_REFUSED, MAY_BE_REFUSED_LISTING
from convsync.graph.client import node_path
from convsync.graph.errors import GraphError

Probe: TypeAlias = Callable[[str, Mapping[str, str | int]], Awaitable[GraphError | None]]
"""Makes one call for what becomes of it; `None` if it is answered."""


async def named(error: GraphError, page_id: str, probe: Probe) -> GraphError:
    """The error with which a Page's list failed, as a refused listing if it is one.

    It is, if not one conversation of it comes and the Page answers otherwise.
    """
    if error.rule.name not in MAY_BE_REFUSED_LISTING:
        return error
    one: dict[str, str | int] = {"platform": "messenger", "limit": 1, "fields": "id"}
    refusal = await probe(node_path(page_id, "conversations"), one)
    if refusal is None or refusal.rule.name not in MAY_BE_REFUSED_LISTING:
        return error
    answers = await probe(node_path(page_id), {"fields": "id"}) is None
    return error.inferred(LISTING_REFUSED) if answers else error
