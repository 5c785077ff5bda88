"""`convsync status`: how the Pages stand, what of them is proved, what is wrong and what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.text import Text

from convsync import __version__
from convsync.console import (
    escape_controls,
    show_feed,
    show_pages,
    show_refused_facts,
    show_schema_drift,
    stdout,
)
from convsync.facts import Json
from convsync.graph.versions import Lifetime, lifetime
from convsync.settings import Settings, limited_consumers, parse_api_keys
from convsync.store import Problem, Store


@dataclass(frozen=True, slots=True)
class Status:
    """What was asked of the database, at one moment or nearly so. `one` Page, or all. `embedded_in`: where
    the database is, if it is not a configured one.
    """

    one: bool
    schema_version: str | None
    pages: list[Json]
    problems: list[Problem]
    drift: list[Json]
    refused: list[Json]
    feed: Json
    graph: Lifetime
    checksum: Json | None
    embedded_in: Path | None

    def as_json(self) -> Json:
        of_all = {"release": __version__, "schema_version": self.schema_version, "pages": self.pages}
        document = {
            **(self.pages[0] if self.one else of_all),
            "problems": [asdict(problem) for problem in self.problems],
            "schema_drift": self.drift,
            "refused_facts": self.refused,
        }
        if self.checksum is not None:
            document["checksum"] = self.checksum
        return document | {"graph_version": self.graph.as_json(), "feed": self.feed}


async def ask(store: Store, settings: Settings, page_id: str | None, *, checksum: bool) -> Status:
    """Raises NotFound for a Page that is not there."""
    pages = [await store.get_page(page_id=page_id)] if page_id else await store.list_pages()
    lag = (await store.feed_lag()).as_json()
    readers = (await store.metrics()).consumers
    limited = limited_consumers(parse_api_keys(settings.api_keys) if settings.api_keys else [])
    return Status(
        one=page_id is not None,
        schema_version=await store.schema_version(),
        pages=pages,
        problems=await store.list_problems(page_id=page_id),
        drift=await store.list_schema_drift(pages=[page_id] if page_id else None),
        refused=await store.list_refused_facts(pages=[page_id] if page_id else None),
        feed=lag | {"consumers": [one for one in readers if not one["consumer"].startswith(limited)]},
        graph=lifetime(settings.graph_version),
        checksum=await store.mirror_checksum(page_id=page_id) if page_id and checksum else None,
        embedded_in=settings.data_dir if settings.embedded else None,
    )


def show(status: Status) -> None:
    show_pages(status.pages, token_errors=False)  # they are problems, below
    if not status.pages and status.embedded_in is not None:
        # Else who has not the service's settings takes it for a mirror in which nothing is wrong.
        told = (
            f"This is the embedded PostgreSQL in {status.embedded_in}: CONVSYNC_DATABASE_URL is not set here."
            " The Pages of a service are seen with the settings of that service, such as its .env"
            " (docs/deployment.md)."
        )
        stdout.print(Text(escape_controls(told)), soft_wrap=True)
    if (summed := status.checksum) is not None:
        stdout.print(
            f"checksum {summed['checksum']} of {summed['messages']:,} messages"
            f" in {summed['conversations']:,} conversations"
            + (f" since {summed['from']}" if summed["from"] else ""),
            highlight=False,
            soft_wrap=True,
        )
    if status.graph.told is not None:
        stdout.print(status.graph.told, highlight=False)
    if status.pages and not status.problems:
        told = "no problem is known; convsync doctor looks at the settings, clocks, tokens and webhooks too"
        stdout.print(f"\n{told}", highlight=False, soft_wrap=True)
    show_problems(status.problems)
    show_refused_facts(status.refused)
    show_schema_drift(status.drift)
    show_feed(status.feed)


def show_problems(problems: Sequence[Problem]) -> None:
    """What is wrong, why it matters, what mends it; nothing, if nothing is."""
    for one in problems:
        whose = f"Page {one.page_id}: " if one.page_id is not None else ""
        lines = [f"\n{whose}{one.what}", f"  why it matters: {one.why}", f"  to mend it: {one.mend}"]
        stdout.print(Text(escape_controls("\n".join(lines))), soft_wrap=True)
