"""Replaying a dead letter: its raw bytes, read again by the code of today.

What a letter holds depends on who wrote it: a webhook item (the delivery with that one item in it), or an
item of a Graph answer, which only the next sync can read in its place and so is not replayed from here.
Before this version, a fact the database refused: its JSON.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Final

import orjson

from convsync import facts
from convsync.errors import InvalidArgument
from convsync.facts import Json
from convsync.store import Store
from convsync.webhook.payload import UnreadableError, parse

_FACT_KINDS: Final = frozenset(("message", "edit", "reaction", "unsend", "watermark", "thread", "page_event"))


def read_again(letter: Json) -> str:
    """The facts of a dead letter, as the JSON array `replay_dead_letter` takes. Raises InvalidArgument."""
    raw = base64.b64decode(letter["raw_base64"])
    if not raw:
        raise InvalidArgument("its bytes were not kept; its reason tells why")
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        parsed = None
    if isinstance(parsed, dict) and parsed.get("kind") in _FACT_KINDS:
        return orjson.dumps([parsed]).decode("utf-8")
    if letter["source"] == "sync":
        raise InvalidArgument(
            "an item of a Graph answer is read again by the next sync; discard it after that"
        )
    if letter["source"] == "import":
        raise InvalidArgument(
            "a row of another database: its message comes with a sync under its own id; discard it after that"
        )
    try:
        # When it came, not now: that is the time of an event that tells none.
        delivery = parse(raw, datetime.fromisoformat(letter["first_seen_at"]))
    except UnreadableError as error:
        raise InvalidArgument(f"it is still not understood: {error}") from None
    if not delivery.facts:
        raise InvalidArgument("it is still not understood: it gives no facts")
    return facts.dump(delivery.facts)


async def replay(store: Store, dead_letter_id: int) -> bool:
    """Land what a dead letter says, once: true if this call did it, false if it was settled before."""
    letter = await store.get_dead_letter(dead_letter_id=dead_letter_id)
    if letter["resolved_at"] is not None:
        return False
    return await store.replay_dead_letter(dead_letter_id=dead_letter_id, facts=read_again(letter))
