"""Erasing by operators: what HTTP and the command share."""

from __future__ import annotations

from datetime import UTC, datetime

from convsync.facts import Json
from convsync.store import Store

# So many conversations are purged in one transaction; until it ends, nobody else can write into them.
PART = 1000


def horizon(text: object) -> datetime:
    """A day (its beginning) or a time, ISO 8601; in UTC where it names no zone. Raises ValueError."""
    try:
        if not isinstance(text, str):
            raise ValueError
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a date or a time: 2025-01-31 or 2025-01-31T12:00:00Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


async def purge(store: Store, page_id: str, before: datetime) -> Json:
    """Purge a Page part by part: the counts of all of them. Whatever ends it, what was done stays done."""
    done: Json = {"events": 0, "conversations": 0}
    while True:
        part = await store.purge_events(page_id=page_id, before=before, limit=PART)
        done = part | {name: done[name] + part[name] for name in ("events", "conversations")}
        if not part["more"]:
            return done


async def purge_again(store: Store) -> int:
    """Purge every Page below its horizon: what was being ingested during its purge. How many events went."""
    return sum([(await purge(store, *known))["events"] for known in await store.list_horizons()])
