"""How the simulated Graph API behaves where Meta leaves it open or an owner may choose."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_USER_ID = "300000000000001"
DEFAULT_USER_NAME = "Robin Keller"
DEFAULT_USER_TOKEN = "sim-user-token"  # noqa: S105 - opens nothing but this simulator

TWENTY = 20
"""Of how many messages of a thread Graph gives details where the rule holds."""


@dataclass(frozen=True, slots=True)
class GraphRules:
    """Standing behaviour; what happens now and then is a fault (`faults.py`).

    `user_token` belongs to a person who has every Page: it lists them and their tokens (`/me/accounts`).

    `twenty_messages` holds the platforms (`messenger`, `instagram`) where only the 20 newest messages of a
    thread can be read: older ones are listed by id and refused when asked for. Meta's reference pages print
    the rule for Instagram only, its guide for both.

    `app_hourly_calls` is the allowance of user and app tokens, behind `X-App-Usage`; used up, such calls are
    refused with code 4 (None: never). `user_hourly_calls` is that of a person, code 17; `pages_hourly_calls`
    that of calls about a Page which are not Messenger's, code 80001 with its token and 32 with a person's.

    `messaging_window`: the Page may write to a person for 24 hours after they wrote, or for 7 days with the
    tag HUMAN_AGENT; later it is error 10.

    `requests` is the share of conversations in the Requests folder (`folder=pending`, a name that no source
    gives). "Conversations in the Requests folder inactive for 30 days are not returned": a walk does not see
    them, and a mirror cannot.
    """

    user_id: str = DEFAULT_USER_ID
    user_name: str = DEFAULT_USER_NAME
    user_token: str = DEFAULT_USER_TOKEN
    twenty_messages: frozenset[str] = frozenset({"instagram"})
    app_hourly_calls: int | None = None
    user_hourly_calls: int | None = None
    pages_hourly_calls: int | None = None
    messaging_window: bool = True
    requests: float = 0.0

    def readable(self, platform: str) -> int | None:
        """Of how many newest messages of a thread there are details, None for all."""
        return TWENTY if platform in self.twenty_messages else None


DEFAULT_RULES = GraphRules()
