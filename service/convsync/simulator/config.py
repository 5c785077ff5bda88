"""What a simulated Facebook is made of, and the documented defaults every demo and test starts from.

None of these values is a secret: they belong to a Page, an app and people that do not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from convsync.simulator.rules import DEFAULT_RULES, GraphRules

DEFAULT_PAGE_ID = "100000000000001"
DEFAULT_PAGE_NAME = "Harbour Bicycles"
DEFAULT_PAGE_TOKEN = "sim-page-token-100000000000001"  # noqa: S105 - opens nothing but this simulator
DEFAULT_APP_ID = "200000000000001"
DEFAULT_APP_SECRET = "sim-app-secret"  # noqa: S105 - opens nothing but this simulator
DEFAULT_VERIFY_TOKEN = "sim-verify-token"  # noqa: S105 - opens nothing but this simulator
# An older version is answered by the oldest usable one, a newer one does not exist.
NEWEST_GRAPH_VERSION = "v26.0"
OLDEST_GRAPH_VERSION = "v21.0"
DEFAULT_PORT = 8765

# The generated past ends here, always: a simulator that is started again with the same seed then has the
# same messages at the same times, and a mirror made before the restart is still right. Live traffic uses
# the clock.
DEFAULT_NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)

_MORE_NAMES = ("Café Zürich", "متجر النخيل", "花と本の店", "Łódź Ceramics", "O'Brien & Søns", "Пекарня №7")


@dataclass(frozen=True, slots=True)
class SimulatedPage:
    """A Page with the token that reads its conversations."""

    page_id: str
    name: str
    token: str


def default_pages(count: int = 1) -> tuple[SimulatedPage, ...]:
    """The first `count` (1 to 999) documented Pages: ids count up from 100000000000001, tokens are
    `sim-page-token-<page id>`."""
    if not 1 <= count <= 999:
        raise ValueError("a simulator has between 1 and 999 Pages")
    pages = [SimulatedPage(DEFAULT_PAGE_ID, DEFAULT_PAGE_NAME, DEFAULT_PAGE_TOKEN)]
    for offset in range(1, count):
        page_id = str(int(DEFAULT_PAGE_ID) + offset)
        name = _MORE_NAMES[(offset - 1) % len(_MORE_NAMES)]
        pages.append(SimulatedPage(page_id, name, f"sim-page-token-{page_id}"))
    return tuple(pages)


@dataclass(frozen=True, slots=True)
class LifePlan:
    """What customers and agents do while the simulator runs.

    `rate` things per simulated second on each Page, at moments that are random and the same for a `seed`
    (None: the population's). `kinds` are weights of kinds (None: the ordinary mix). `silent`: no webhook
    tells. It ends after `count` things on each Page (None: never).
    """

    rate: float
    seed: int | None = None
    kinds: Mapping[str, float] | None = None
    silent: bool = False
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Something that is done at a time: `at` simulated seconds after the start, or, `at_calls` given, when so
    many Graph calls have come. `do` is a name of `timeline.ACTIONS`, `what` is what that takes. A planted
    fault is taken back at `until` (simulated seconds) or `until_calls`.
    """

    do: str
    what: Mapping[str, Any]
    at: float = 0.0
    at_calls: int | None = None
    until: float | None = None
    until_calls: int | None = None


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """Everything a simulated Graph API needs to start.

    `conversations` and `messages` (the mean per conversation) hold for each Page, as does `longest`: one
    thread has so many messages, whatever the mean (0: as it comes). `calls_per_second` is the
    Conversations API limit per Page, 0 switches it off. `hourly_calls` is the Page's allowance behind the
    usage header; when it is used up calls are refused with code 80006 (None: a large allowance that is never
    enforced). `webhooks_to` is the callback URL; webhooks go to Pages whose app subscription exists,
    `subscribed` makes it exist from the start. `faults` are planted at the start, each as `POST /_sim/faults`
    takes it. `port` 0 asks the system for a free one.

    `webhook_timeout` is in real seconds, the other `webhook_` times are in simulated ones (see
    `webhooks.WebhookSender`); `webhook_faults` are as `POST /_sim/webhooks/faults` takes them. `speed` says
    how much faster than the wall simulated time runs. At 1 it is the wall's; at any other speed it begins
    where the generated past ends, so that nothing is dated in the future for long. `life` goes on all
    the while, `timeline` is what is done when; see `scenario.py` for both as a file.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    seed: int = 1
    conversations: int = 1000
    messages: float = 30.0
    longest: int = 0
    now: datetime = DEFAULT_NOW
    calls_per_second: float = 2.0
    hourly_calls: int | None = None
    pages: tuple[SimulatedPage, ...] = default_pages()
    app_id: str = DEFAULT_APP_ID
    app_secret: str = DEFAULT_APP_SECRET
    verify_token: str = DEFAULT_VERIFY_TOKEN
    require_appsecret_proof: bool = False
    webhooks_to: str | None = None
    webhook_timeout: float = 5.0
    webhook_retries: int = 3
    webhook_retry_delay: float = 0.2
    webhook_backoff: float = 30.0
    webhook_alert_after: float = 900.0
    webhook_unsubscribe_after: float = 3600.0
    echo_before_answer: bool = True
    subscribed: bool = False
    faults: tuple[Mapping[str, Any], ...] = ()
    webhook_faults: tuple[Mapping[str, Any], ...] = ()
    speed: float = 1.0
    life: LifePlan | None = None
    timeline: tuple[Step, ...] = ()
    max_conversations_per_call: int = 200
    max_messages_per_call: int = 100
    graph: GraphRules = DEFAULT_RULES

    @property
    def app_token(self) -> str:
        """The app access token, `<app id>|<app secret>`, that `/debug_token` takes."""
        return f"{self.app_id}|{self.app_secret}"
