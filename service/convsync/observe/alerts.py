"""Alerts: somebody is told when something needs a person, once per cause while it lasts, and when it is over.

Whoever sees a cause calls `fire`, as often as it is seen, and `clear` when it is over; both return at once
and never raise. What is told goes to a log line in any case and, if there is a URL, as one POST:

    {"alert", "state": "firing" | "resolved", "since", "summary", "remedy", "details", "text"}

`text` says it all in one, which is what chats take (Slack, Mattermost).
`details` holds numbers, ids and error codes; never a message's text, a person's name or a secret.

What a process sees of its own work (`CAUSES`) it keeps in memory: it works while the database is away, and
a process that is restarted tells again of what still goes on. Of the processes of one service (`serve
--processes N`) one sends it. What is wrong with a Page (`PROBLEMS`) is found and remembered by the database,
for all processes together; `observe.problems` has it told by `tell`.
"""

from __future__ import annotations

import asyncio
import random
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

import aiohttp
import orjson
import structlog
from pydantic import SecretStr

from convsync.facts import Json

Post = Callable[[bytes], Awaitable[int]]
Tells = Callable[[str, str], Awaitable[bool]]

_ATTEMPTS: Final = 5
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
_POST_SECONDS: Final = 10.0
_WORTH_REPEATING: Final = frozenset((408, 425, 429))

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that needs a person. Over only if not seen for `quiet` seconds; told again after `again`."""

    name: str
    summary: str
    remedy: str
    quiet: float
    again: float


EVENT_WRITES_FAILING: Final = Cause(
    "event_writes_failing",
    "Webhook deliveries are refused, because their events could not be committed. Meta sends them again for"
    " a limited time.",
    "Look at the database: GET /readyz, the log lines group_commit.*, long transactions and locks.",
    quiet=60.0,
    again=3600.0,
)
EVENTS_REFUSED_BY_DATABASE: Final = Cause(
    "events_refused_by_database",
    "The database will never take some events as they are. They are kept as dead letters.",
    "convsync dead-letters list --json shows the reason; replay them after the fix, or discard them.",
    quiet=60.0,
    again=86_400.0,
)
CAUSES: Final = (EVENT_WRITES_FAILING, EVENTS_REFUSED_BY_DATABASE)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a Page, by the name that the database has for it."""

    name: str
    summary: str
    remedy: str


PROBLEMS: Final = {
    problem.name: problem
    for problem in (
        Problem(
            "token_invalid",
            "Meta refuses the token of a Page. Nothing of the Page is read until it has another.",
            "Make a new token for the Page, then: convsync page add PAGE_ID --token-stdin.",
        ),
        Problem(
            "sync_failed",
            "A sync of a Page failed. What it had read is kept; the mirror is as old as the last one that"
            " succeeded.",
            "convsync status PAGE_ID shows why. Once that is mended: convsync sync PAGE_ID --retry RUN_ID.",
        ),
        Problem(
            "sync_partial",
            "A sync of a Page could not read everything, after all its retries. The rest is stored.",
            "convsync status PAGE_ID shows what is left and why; convsync sync PAGE_ID --retry RUN_ID reads"
            " it again.",
        ),
        Problem(
            "deletions_held_back",
            "More conversations are missing from a Page's list than is credible. None of them was marked as"
            " deleted.",
            "Look at the Page in Meta's inbox and at the token's permissions. If they are really gone,"
            " `convsync deletions allow PAGE_ID RUN_ID` lets a retry of that run ask for each of them.",
        ),
        Problem(
            "webhooks_silent",
            "A sync found messages of a Page that no webhook told, and none has come since.",
            "Look at the webhook's address in the app's settings and at the proxy before the service, then:"
            " convsync page subscribe PAGE_ID.",
        ),
        Problem(
            "sync_overdue",
            "No sync of a Page has succeeded for long, and none has failed: it is not begun, or does not go"
            " on.",
            "Does a convsync serve run? convsync psql -f sql/ops/stuck_syncs.sql shows what does not go on.",
        ),
    )
}


@dataclass(slots=True)
class _Standing:
    """An alert that fires. `seen` and `told` are on the monotonic clock."""

    since: datetime
    seen: float
    told: float
    details: Json = field(default_factory=dict)


class Alerter:
    """Keeps what fires and tells of it. `run` does the sending and is owned by the application.

    `post` sends the bytes of a notice and returns the HTTP status; None: nobody is told but the log. It
    is tried a bounded number of times with full jitter, never longer than `post_seconds` each. At most
    `max_waiting` notices wait; what comes on top is dropped, counted and logged. `tells` says of an alert and
    its state whether this process sends it, where others may see the same cause; what `tell` sends is no
    other's.
    """

    def __init__(
        self,
        post: Post | None,
        *,
        tells: Tells | None = None,
        max_waiting: int = 100,
        post_seconds: float = _POST_SECONDS,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._post = post
        self._tells = tells
        self._post_seconds = post_seconds
        self._now = now
        self._wall = wall
        self._sleep = sleep
        self._random = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._standing: dict[tuple[Cause, str | None], _Standing] = {}
        self._waiting: asyncio.Queue[Json] = asyncio.Queue(max_waiting)

        # Notices, only ever rising.
        self.sent = 0
        self.failed = 0
        self.dropped = 0

    def firing(self, cause: Cause) -> int:
        """How often the cause fires: once, or once per Page."""
        return sum(one is cause for one, _ in self._standing)

    def fire(self, cause: Cause, details: Json | None = None, *, page_id: str | None = None) -> None:
        """The cause is seen, now. The first time it is told; `details` are the latest ones."""
        now = self._now()
        standing = self._standing.get((cause, page_id))
        if standing is not None:
            standing.seen, standing.details = now, details or {}
            return
        standing = self._standing[cause, page_id] = _Standing(self._wall(), now, now, details or {})
        self._tell(cause, page_id, standing, "firing")

    def clear(self, cause: Cause, *, page_id: str | None = None) -> None:
        """It works, now: the cause is over, unless it was seen a moment ago."""
        standing = self._standing.get((cause, page_id))
        if standing is None or self._now() - standing.seen < cause.quiet:
            return
        del self._standing[cause, page_id]
        self._tell(cause, page_id, standing, "resolved")

    def remind(self) -> None:
        """Tell again of what has fired for long. To be called every now and then."""
        now = self._now()
        for (cause, page_id), standing in self._standing.items():
            if now - standing.told >= cause.again:
                standing.told = now
                self._tell(cause, page_id, standing, "firing")

    def _tell(
        self, cause: Cause, page_id: str | None, standing: _Standing, state: Literal["firing", "resolved"]
    ) -> None:
        details = standing.details if page_id is None else {"page_id": page_id, **standing.details}
        notice = _logged(cause, state, standing.since, details)
        if self._post is None:
            return
        try:
            self._waiting.put_nowait(notice)
        except asyncio.QueueFull:
            self.dropped += 1
            _log.error("alert_dropped", alert=cause.name, state=state, waiting=self._waiting.qsize())

    async def tell(
        self, problem: Problem, state: Literal["firing", "resolved"], since: datetime, details: Json
    ) -> bool:
        """Tell of what somebody else keeps; whether it was told, to whoever there is."""
        notice = _logged(problem, state, since, details)
        return self._post is None or await self._deliver(notice)

    async def run(self) -> None:
        """Send what there is to tell, one notice after the other, until cancelled."""
        while True:
            notice = await self._waiting.get()
            try:
                if self._tells is None or await self._tells(notice["alert"], notice["state"]):
                    await self._deliver(notice)
            finally:
                self._waiting.task_done()

    async def _deliver(self, notice: Json) -> bool:
        try:
            sent = await self._send(notice)
        except Exception as error:
            # It must not end the service it reports about. Not its text: that may hold the URL.
            sent = False
            _log.error("alert_not_sent", alert=notice["alert"], error=type(error).__name__)
        if sent:
            self.sent += 1
        else:
            self.failed += 1
        return sent

    async def drain(self, seconds: float) -> None:
        """Return when everything was sent or given up, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._waiting.join()

    async def _send(self, notice: Json) -> bool:
        assert self._post is not None  # noqa: S101 - else nothing waits
        body = _body(notice)
        for attempt in range(1, _ATTEMPTS + 1):
            status = error = None
            try:
                async with asyncio.timeout(self._post_seconds):
                    status = await self._post(body)
            except (aiohttp.ClientError, OSError, TimeoutError) as failure:
                error = type(failure).__name__  # its text may hold the URL
            if status is not None and 200 <= status < 300:
                return True
            lasting = status is not None and status < 500 and status not in _WORTH_REPEATING
            if lasting or attempt == _ATTEMPTS:
                _log.error(
                    "alert_not_sent",
                    alert=notice["alert"],
                    state=notice["state"],
                    attempts=attempt,
                    status=status,
                    error=error,
                )
                return False
            await self._sleep(self._random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)))
        return False


def _notice(
    what: Cause | Problem, state: Literal["firing", "resolved"], since: datetime, details: Json
) -> Json:
    return {
        "alert": what.name,
        "state": state,
        "since": since.astimezone(UTC).isoformat(),
        "summary": what.summary,
        "remedy": _with_ids(what.remedy, details),
        "details": details,
    }


def _logged(
    what: Cause | Problem, state: Literal["firing", "resolved"], since: datetime, details: Json
) -> Json:
    """The notice, once it is in the log."""
    notice = _notice(what, state, since, details)
    if state == "firing":
        _log.error("alert", **notice)
    else:
        _log.info("alert", **notice)
    return notice


def _body(notice: Json) -> bytes:
    return orjson.dumps({**notice, "text": _text(notice)}, default=str)


async def send_test(post: Post) -> str | None:
    """Send one notice of which nothing is to be done; why it was not taken, if so."""
    test = Problem("test", "This is a test of the alert webhook: nothing is wrong.", "Nothing is to be done.")
    try:
        status = await post(_body(_notice(test, "firing", datetime.now(UTC), {})))
    except (aiohttp.ClientError, OSError, TimeoutError) as failure:
        return type(failure).__name__  # its text may hold the URL
    return None if 200 <= status < 300 else f"status {status}"


def _with_ids(remedy: str, details: Json) -> str:
    """The commands as they are to be run."""
    for word, key in (("PAGE_ID", "page_id"), ("RUN_ID", "run_id")):
        if details.get(key) is not None:
            remedy = remedy.replace(word, shlex.quote(str(details[key])))
    return remedy


def _text(notice: Json) -> str:
    what, details = f"convsync: {notice['alert']}", notice["details"]
    if "page_id" in details:
        what += f" of Page {details['page_id']}"
    elif "page_ids" in details:
        named = [*details["page_ids"], *([".."] if details["pages"] > len(details["page_ids"]) else [])]
        what += f" of {details['pages']} Pages: {', '.join(named)}"
    if notice["state"] == "resolved":
        return f"{what} is over."
    return f"{what}\n{notice['summary']}\n{notice['remedy']}"


@asynccontextmanager
async def webhook_post(url: SecretStr | None) -> AsyncIterator[Post | None]:
    """Sends a notice to the URL; None without one. The URL stays in here: it may hold a token."""
    if url is None:
        yield None
        return
    timeout = aiohttp.ClientTimeout(total=_POST_SECONDS, sock_connect=5.0)
    headers = {"Content-Type": "application/json", "User-Agent": "convsync"}
    async with aiohttp.ClientSession(
        timeout=timeout, headers=headers, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:

        async def post(body: bytes) -> int:
            # Not where a redirect says: only the operator says where alerts go.
            async with session.post(url.get_secret_value(), data=body, allow_redirects=False) as answer:
                return answer.status

        yield post
