"""What a terminal shows: tables on stdout, a progress bar on stderr."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from convsync.facts import Json

stdout = Console()
stderr = Console(stderr=True)

ENDED = frozenset(("succeeded", "partial", "failed", "cancelled", "paused"))
_POLL_SECONDS = 0.25
_ANY_WIDTH = 10_000


class Table:
    """Rows under one header per column. Whatever the terminal is wide, no id, time or text is cut off.

    Cells may come from outside: what would be markup is text, and control characters are spelt out.
    """

    def __init__(self, *headers: str) -> None:
        self._headers = headers
        self._rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        self._rows.append(tuple(escape_controls(cell) for cell in cells))

    def show(self) -> None:
        """On stdout: as a table where it fits, else each row as lines of its own. A file has room for all."""
        table = RichTable(*self._headers, box=None, pad_edge=False, header_style="bold")
        for row in self._rows:
            table.add_row(*map(Text, row))
        needed = Measurement.get(stdout, stdout.options.update(max_width=_ANY_WIDTH), table).maximum
        if needed <= stdout.width:
            stdout.print(table)
        elif not stdout.is_terminal:
            Console(file=stdout.file, width=needed, color_system=None).print(table)
        else:
            self._show_rows()

    def _show_rows(self) -> None:
        wide = max(map(len, self._headers))
        for number, row in enumerate(self._rows):
            if number:
                stdout.print()
            for header, cell in zip(self._headers, row, strict=True):
                stdout.print(Text.assemble((header.ljust(wide), "bold"), f"  {cell}"), soft_wrap=True)


class Bar:
    """A progress bar over conversations read; without an expected number it shows that something moves."""

    def __init__(self, display: Progress) -> None:
        self._display = display

    async def follow(
        self,
        read: Callable[[], Awaitable[Json]],
        *,
        expected: int | None = None,
        stop: asyncio.Event | None = None,
    ) -> Json:
        """Show a run until it ends (or `stop` is set) and return it."""
        task = self._display.add_task("sync", total=expected, counts="")
        while True:
            run = await read()
            ended = run["status"] in ENDED
            seen = run["conversations_seen"]
            whole = run["status"] == "succeeded"
            self._display.update(
                task,
                completed=seen,
                total=seen if whole else (max(expected, seen) if expected else None),
                description=f"{run['mode']} sync",
                counts=f"{run['messages_added']:,} messages",
            )
            if ended or (stop is not None and stop.is_set()):
                return run
            await asyncio.sleep(_POLL_SECONDS)


@asynccontextmanager
async def progress(*, quiet: bool) -> AsyncIterator[Bar]:
    """A bar on stderr; `quiet` shows none."""
    display = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),  # the whole line fits into 80 columns
        MofNCompleteColumn(),
        TextColumn("conversations, {task.fields[counts]}"),
        TimeElapsedColumn(),
        console=stderr,
        disable=quiet,
    )
    with display:
        yield Bar(display)


def show_pages(pages: list[Json], *, token_errors: bool = True) -> None:
    if not pages:
        stdout.print("There are no Pages yet: convsync page add PAGE_ID --token-stdin", highlight=False)
        return
    table = Table(
        "Page",
        "Name",
        "Token",
        "Freshness",
        "Conversations",
        "Messages",
        "Calls",
        "Last sync",
        "Dead letters",
        "Last webhook",
    )
    for document in pages:
        run = document["last_run"]
        table.add_row(
            document["page_id"],
            document["name"] or "",
            document["token"],
            document["freshness"],
            str(document["conversations"]),
            str(document["messages"]),
            str(document["budget"]["calls"]),
            f"{run['mode']} {run['status']}{_time_left(run)}" if run else "none yet",
            str(document["dead_letters"]),
            _time(document["last_webhook_at"]) or "none yet",
        )
    table.show()
    for document in pages:
        if document["freshness_reason"]:
            why = _with_reason(document["freshness"], document["freshness_reason"])
            stdout.print(f"Page {document['page_id']}: {why}", highlight=False, markup=False)
        if token_errors:
            show_token_error(document)
        show_budget(document)
        show_proof(document)


def show_proof(page: Json) -> None:
    """How much of a Page is proved, and how many of its webhooks never came."""
    proof, losses = page["certificate"], page["webhook_losses"]
    told = (
        f"Page {page['page_id']}: {proof['complete']:,} of {proof['conversations']:,} conversations complete"
    )
    if proof["verified_since"]:
        told += f" as of {_time(proof['verified_since'])}"
    if proof["unreadable"]:
        told += f"; {proof['unreadable']:,} messages unreadable"
    if proof["list_known"]:
        told += f"; all conversations known as of {_time(proof['list_walked_at'])}"
    else:
        told += "; not known whether these are all"
    if proof["purged_before"]:
        told += f"; nothing is held of before {_time(proof['purged_before'])}"
    if losses["since"] is None:
        told += "; no webhooks yet"
    elif losses["last_day"]:
        told += f"; the webhooks of {losses['last_day']:,} messages of the last day never came"
    stdout.print(told, highlight=False, markup=False, soft_wrap=True)


def show_life(life: Json) -> None:
    """The life of one message, for people."""
    conversation = life["conversation"] or {}
    lines = [f"{life['message_id']} of Page {life['page_id']}: {life['state'].replace('_', ' ')}"]
    if life["stored"]:
        body = life["stored"]["body"]
        lines.append(f"  text: {body if body is not None else 'none'}")
        copies = [name for name in ("webhook", "graph") if life[f"{name}_copy"]]
        lines.append(f"  told by: {', '.join(copies) or life['stored']['source']}")
    if conversation:
        lines.append(
            f"  conversation {conversation['conversation_id']} with {conversation['sender_id']}: "
            + _proved(conversation)
        )
    if life["loss"]:
        counts = "counts as lost" if life["loss"]["counts"] else "does not count as lost"
        lines.append(f"  its webhook has not come; it {counts}")
    stdout.print(escape_controls("\n".join(lines)), highlight=False, markup=False, soft_wrap=True)
    table = Table("When", "What", "")
    for one in life["life"]:
        table.add_row(one["at"], one["what"].replace("_", " "), one["detail"] or "")
    table.show()


def _proved(conversation: Json) -> str:
    if conversation.get("deleted_at"):
        return f"deleted, seen at {conversation['deleted_at']}"
    if conversation["complete"]:
        return f"complete as of {conversation['verified_at']} (run {conversation['verified_run_id']})"
    if conversation["failed_at"]:
        return f"not complete, its thread could not be read at {conversation['failed_at']}"
    if conversation["unreadable"]:
        return f"not complete, {conversation['unreadable']} of its messages are unreadable"
    return "not complete, no sync has read its thread to the end"


def _with_reason(state: str, reason: str | None) -> str:
    return f"{state} ({reason})" if reason else state


def _time_left(run: Json) -> str:
    if run["eta_seconds"] is None:
        return ""
    return f", {timedelta(seconds=run['eta_seconds'])} left"


def show_run(run: Json) -> None:
    how = _with_reason(run["status"], run["reason"])
    stdout.print(
        f"run {run['run_id']}: {how}; {run['conversations_seen']} conversations read, "
        f"{run['messages_added']} messages added, {run['calls']} calls",
        highlight=False,
    )
    for batch in run["failed_batches"]:
        error = batch["error"]
        line = f"  batch {batch['batch']}: {error.get('message', '')}"
        if trace := error.get("trace_id"):
            line += f" (trace {trace})"
        stdout.print(escape_controls(line), highlight=False, markup=False)
        if told := error.get("told"):
            stdout.print(f"    {told}", highlight=False, markup=False)


def show_token_error(page: Json) -> None:
    """Why a Page's token is refused and what to do about it; nothing, if it is not."""
    if page["token_error"]:
        text = f"Page {page['page_id']}: {page['token_error']}"
        stdout.print(escape_controls(text), highlight=False, markup=False)


def show_budget(page: Json) -> None:
    """What keeps a Page from being called at its rate; nothing, if nothing does."""
    budget = page["budget"]
    if budget["blocked_until"]:
        whose = "the app" if budget["block_scope"] == "app" else "the Page"
        text = f"no calls until {_time(budget['blocked_until'])}, Meta told {whose} to wait"
        if budget["block_reason"]:
            text += f": {budget['block_reason']}"
    elif budget["pace_reason"]:
        why = {
            "usage": f"{budget['usage_percent']} % of its allowance is used",
            "app_usage": f"{budget['app_usage_percent']} % of the app's allowance is used",
            "slow_answers": f"answers take {budget['response_ms']:.0f} ms",
        }
        text = f"called at {budget['pace']:.0%} of its rate: {why[budget['pace_reason']]}"
    else:
        return
    stdout.print(escape_controls(f"Page {page['page_id']}: {text}"), highlight=False, markup=False)


def show_dead_letters(letters: list[Json]) -> None:
    table = Table("Id", "Page", "Source", "Reason", "Bytes", "First seen", "Last seen", "Times", "Settled")
    for letter in letters:
        table.add_row(
            letter["dead_letter_id"],
            letter["page_id"] or "",
            letter["source"],
            letter["reason"],
            str(letter["bytes"]),
            _time(letter["first_seen_at"]),
            _time(letter["last_seen_at"]),
            str(letter["attempts"]),
            letter["resolution"] or "",
        )
    table.show()


def show_schema_drift(drift: list[Json]) -> None:
    """What Meta sends that this release does not know; nothing, if there is nothing."""
    if not drift:
        return
    stdout.print("\nUnknown to this release, kept with its events:", highlight=False)
    table = Table("Name", "Page", "Source", "First seen", "Last seen", "Times")
    for one in drift:
        table.add_row(
            one["name"],
            one["page_id"] or "",
            one["source"],
            _time(one["first_seen_at"]),
            _time(one["last_seen_at"]),
            str(one["occurrences"]),
        )
    table.show()


def show_refused_facts(refused: list[Json]) -> None:
    """What was told and not stored, of an erased person or too old; nothing, if there is nothing."""
    if not refused:
        return
    stdout.print("\nTold and not stored:", highlight=False)
    table = Table("Page", "Source", "Reason", "First refused", "Last refused", "Facts")
    for one in refused:
        table.add_row(
            one["page_id"],
            one["source"],
            one["reason"],
            _time(one["first_refused_at"]),
            _time(one["last_refused_at"]),
            str(one["facts"]),
        )
    table.show()


def show_feed(feed: Json) -> None:
    """What the change feed holds back, and whose it is; the consumers that have not read everything."""
    if feed["held_back"]:
        by = ""
        if feed["blocking_pid"] is not None:
            by = f", by {feed['blocking_application'] or 'a session'} (process {feed['blocking_pid']}"
            by += (
                f", in a transaction since {_time(feed['blocking_since'])})"
                if feed["blocking_since"]
                else ")"
            )
        held = f"{feed['held_back']} changes are held back since {_time(feed['held_since'])}{by}"
        stdout.print(Text(escape_controls(f"\nThe change feed: {held}.")))
    behind = [one for one in feed["consumers"] if one["behind"]]
    if behind:
        stdout.print("\nConsumers of the change feed that have something to read:", highlight=False)
        table = Table("Consumer", "Changes", "Seconds behind")
        for one in behind:
            table.add_row(one["consumer"], str(one["behind"]), str(one["behind_seconds"]))
        table.show()


def _time(told: str | None) -> str:
    """A time of the database's to the second, as psql shows it; nothing, if there is none."""
    if told is None:
        return ""
    moment = datetime.fromisoformat(told).astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}+00"


def escape_controls(text: str) -> str:
    """Text that came from outside, fit for a terminal: control characters are spelt out."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
