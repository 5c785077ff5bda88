"""The error catalogue: each way the platform fails, and what follows from it.

One table, first match wins; `docs/graph-errors.md` shows it. It looks at the code, the subcode and all
three texts of an error, because Meta has been seen to put the telling phrase ("reduce the amount of
data") into any of them, and at the HTTP status, because throttling arrives as 400 or 403 and an outage
without any code.
Sources: developers.facebook.com/docs/graph-api/guides/error-handling, the error table of
/docs/graph-api/reference/page/conversations, and recorded answers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

BlockScope = Literal["page", "app"]


class ErrorClass(StrEnum):
    """What to do about an error."""

    TRANSIENT = "transient"  # the same request may succeed later
    SHRINK = "shrink"  # the same request never succeeds: ask for less
    THROTTLED = "throttled"  # nobody may call until the block ends
    TOKEN = "token"  # noqa: S105 - the token is dead: never retried, stops the Page
    PERMISSION = "permission"  # a person has to grant or configure something
    GONE = "gone"  # the object does not exist, or not for us
    BAD_CURSOR = "bad_cursor"  # start that list again from its front
    LISTING = "listing"  # the list is refused, single conversations are not
    BAD_REQUEST = "bad_request"  # our mistake, or Meta's schema moved
    UNKNOWN = "unknown"  # not in the catalogue


class Retry(StrEnum):
    """When the call can be made again."""

    LATER = "later"  # as it is, a few times, longer apart each time
    SMALLER = "smaller"  # never as it is
    AFTER_THE_BLOCK = "after the block"  # as it is, and nobody calls before
    FROM_THE_FRONT = "from the front"  # without its cursor
    NEVER = "never"


_RETRY: Final = {
    ErrorClass.TRANSIENT: Retry.LATER,
    ErrorClass.UNKNOWN: Retry.LATER,
    ErrorClass.SHRINK: Retry.SMALLER,
    ErrorClass.THROTTLED: Retry.AFTER_THE_BLOCK,
    ErrorClass.BAD_CURSOR: Retry.FROM_THE_FRONT,
}

# Failures that have no code of Meta's; these stand in for its `type`.
NO_CONNECTION: Final = "ConnectionError"
TIMEOUT: Final = "Timeout"
TRUNCATED: Final = "TruncatedAnswer"
HTML: Final = "HtmlAnswer"
EMPTY: Final = "EmptyAnswer"
UNREADABLE: Final = "UnreadableAnswer"
TOO_LARGE: Final = "AnswerTooLarge"
REDIRECT: Final = "Redirect"

# Inferred: not one conversation is listed, and the Page answers otherwise.
LISTING_REFUSED: Final = "ListingRefused"

NO_WHOLE_ANSWER: Final = frozenset({TIMEOUT, TRUNCATED, EMPTY, UNREADABLE})
"""Failures that a smaller request may spare: Meta also runs out of time over pages that are too large."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the catalogue; what is `None` matches anything.

    `told` is what the operator is told: what has happened, and what there is to do about it.
    """

    name: str
    error_class: ErrorClass
    told: str
    codes: Collection[int] | None = None
    subcodes: Collection[int] | None = None
    phrase: str | None = None
    statuses: Collection[int] | None = None
    transient: bool | None = None
    type: str | None = None
    scope: BlockScope | None = None
    block_seconds: int = 0

    @property
    def retry(self) -> Retry:
        return _RETRY.get(self.error_class, Retry.NEVER)

    def matches(
        self,
        code: int | None,
        subcode: int | None,
        texts: str,
        status: int | None,
        is_transient: bool | None,
        error_type: str | None,
    ) -> bool:
        return (
            (self.codes is None or (code is not None and code in self.codes))
            and (self.subcodes is None or (subcode is not None and subcode in self.subcodes))
            and (self.phrase is None or self.phrase in texts)
            and (self.statuses is None or (status is not None and status in self.statuses))
            and (self.transient is None or self.transient is is_transient)
            and (self.type is None or self.type == error_type)
        )


_C = ErrorClass
_ANY: Final = range(2**31)
_TOKEN: Final = frozenset({102, 190})
_RENEWED: Final = (
    "make a new long-lived Page token and store it with `convsync page add PAGE_ID --token-stdin`"
)
_WAITS: Final = "convsync waits as long as Meta says and goes on by itself"
_ALONE: Final = "convsync tries again by itself"

CATALOGUE: Final[tuple[Rule, ...]] = (
    # "API calls to get all conversations fail. You can still call a single conversation"
    # (Messenger Platform, rate limiting). With which error is told nowhere, so it is inferred.
    Rule(
        "listing_refused",
        _C.LISTING,
        "Meta does not list this Page's conversations, not even one at a time, and answers for the Page "
        "otherwise: so it does with very busy Pages. A sync then reads whoever is mirrored one by one, and "
        "webhooks go on; whom they never told of is not found. Try again when there is less traffic.",
        type=LISTING_REFUSED,
    ),
    # Asked for too much. Before everything else of code 1, whatever the subcode or the status.
    Rule(
        "too_much_data",
        _C.SHRINK,
        "Meta could not put so large an answer together. convsync asks for less at once by itself; a "
        "thread that is refused at any size is a failed batch, which a later sync reads again.",
        codes={1, 2},
        phrase="reduce the amount",
    ),
    Rule(
        "answer_too_large",
        _C.SHRINK,
        "The answer was larger than convsync takes. It asks for less at once by itself.",
        type=TOO_LARGE,
    ),
    # The proof of the app secret is missing or wrong: configuration, though the code says otherwise.
    Rule(
        "proof_invalid",
        _C.PERMISSION,
        "Meta refused the proof of the app secret. CONVSYNC_APP_SECRET must be the secret of the app "
        "that the token was made with, and this machine's clock right: the proof expires after five "
        "minutes.",
        codes={1, 100},
        phrase="invalid appsecret_proof",
    ),
    Rule(
        "proof_required",
        _C.PERMISSION,
        "The app takes calls only with a proof of its secret. Set CONVSYNC_APP_SECRET.",
        codes={1, 100},
        phrase="appsecret_proof",
    ),
    Rule(
        "proof_or_app_token_required",
        _C.PERMISSION,
        "The app takes calls only with a proof of its secret. Set CONVSYNC_APP_SECRET.",
        codes={100},
        phrase="app secret proof",
    ),
    # The token is dead. No call with it can ever succeed again.
    Rule(
        "token_app_removed",
        _C.TOKEN,
        "The person who made the token has removed the app. Let them log in to the app again, then "
        f"{_RENEWED}.",
        codes=_TOKEN,
        subcodes={458},
    ),
    Rule(
        "token_checkpoint",
        _C.TOKEN,
        "Facebook wants the person who made the token to log in at www.facebook.com and do what it asks "
        f"there. Then {_RENEWED}.",
        codes=_TOKEN,
        subcodes={459, 464},
    ),
    Rule(
        "token_password_changed",
        _C.TOKEN,
        "The token ended when the person who made it changed their password, or Facebook ended their "
        f"session: {_RENEWED}.",
        codes=_TOKEN,
        subcodes={460},
    ),
    Rule("token_expired", _C.TOKEN, f"The token has expired: {_RENEWED}.", codes=_TOKEN, subcodes={463}),
    Rule(
        "token_invalid",
        _C.TOKEN,
        f"The token is not valid any more: {_RENEWED}.",
        codes=_TOKEN,
        subcodes={467},
    ),
    Rule(
        "token_without_role",
        _C.TOKEN,
        "The person who made the token has no role on the Page that may read its messages. Give them "
        "the Messages task in the Page's settings, or let somebody who has it make the token: "
        f"{_RENEWED}.",
        codes=_TOKEN,
        subcodes={492},
    ),
    Rule(
        "token_without_permissions",
        _C.TOKEN,
        "The token lacks permissions. Grant the app pages_messaging, pages_manage_metadata and "
        f"pages_read_engagement, then {_RENEWED}.",
        codes={190},
        phrase="must be granted",
    ),
    Rule("token_refused", _C.TOKEN, f"Meta does not accept the token: {_RENEWED}.", codes=_TOKEN),
    # Throttled. The seconds are a first guess for an answer that does not say how long.
    Rule(
        "app_limit",
        _C.THROTTLED,
        "The whole app has used up its calls, for all its Pages; other programs of the same app count "
        f"too. {_WAITS}.",
        codes={4},
        scope="app",
        block_seconds=60,
    ),
    Rule(
        "app_limit_temporary",
        _C.THROTTLED,
        f"Meta limits the app for a while. {_WAITS}.",
        codes={341},
        scope="app",
        block_seconds=300,
    ),
    Rule(
        "uneven_calls",
        _C.THROTTLED,
        "Meta finds the Page's calls too uneven. If other programs read the same Page, slow them down "
        f"or lower CONVSYNC_CALLS_PER_SECOND; {_WAITS}.",
        codes={613},
        subcodes={1996},
        scope="page",
        block_seconds=60,
    ),
    Rule(
        "calls_per_second",
        _C.THROTTLED,
        "More calls came for the Page than Meta takes per second. If other programs read the same Page, "
        f"lower CONVSYNC_CALLS_PER_SECOND; {_WAITS}.",
        codes={613},
        scope="page",
        block_seconds=10,
    ),
    Rule(
        "user_limit",
        _C.THROTTLED,
        "The person who made the token has used up their calls; other programs that act for them count "
        f"too. {_WAITS}.",
        codes={17},
        scope="page",
        block_seconds=60,
    ),
    Rule(
        "page_limit",
        _C.THROTTLED,
        f"The Page has used up its calls; other programs that read it count too. {_WAITS}.",
        codes={32, 80001},
        scope="page",
        block_seconds=60,
    ),
    Rule(
        "messenger_limit",
        _C.THROTTLED,
        "The Page has used up its Messenger calls of the day, which Meta grants by the number of people "
        f"who write to it. {_WAITS}.",
        codes={80006},
        scope="page",
        block_seconds=60,
    ),
    Rule(
        "business_limit",
        _C.THROTTLED,
        f"An allowance of the business is used up. {_WAITS}.",
        codes=range(80000, 80015),
        scope="page",
        block_seconds=60,
    ),
    Rule(
        "policy_block",
        _C.THROTTLED,
        "Meta has blocked what the app does for now, because of its policies: see the alerts in the App "
        "Dashboard and the Page's support inbox. convsync asks again once an hour.",
        codes={368},
        scope="page",
        block_seconds=3600,
    ),
    Rule(
        "too_many_requests",
        _C.THROTTLED,
        f"Too many calls (HTTP 429). {_WAITS}.",
        statuses={429},
        scope="page",
        block_seconds=60,
    ),
    # What Meta itself calls passing.
    Rule("passing", _C.TRANSIENT, f"Meta has trouble that it calls passing; {_ALONE}.", transient=True),
    # Cursors die at any time.
    Rule(
        "cursor_invalid",
        _C.BAD_CURSOR,
        "The place in a list where reading was to go on does not exist any more. convsync reads that "
        "list again from its front.",
        codes={2642},
    ),
    Rule(
        "cursor_refused",
        _C.BAD_CURSOR,
        "Meta lets nobody read on at this place of a list. convsync reads that list again from its "
        "front; what lies too deep for Meta is a failed batch.",
        codes={100},
        phrase="cursor",
    ),
    # There is no such thing, or not for this token; Meta does not tell the two apart.
    Rule(
        "no_profile",
        _C.GONE,
        "This person has no profile that Meta shows. Nothing is to be done; their messages are read all "
        "the same.",
        codes={100},
        subcodes={2018218},
    ),
    Rule(
        "no_such_person",
        _C.GONE,
        "This person's id belongs to another Page or app. Check that the token is the one of this Page.",
        codes={100},
        subcodes={2018001},
    ),
    Rule(
        "no_such_object",
        _C.GONE,
        "Meta listed this and does not return it: it was deleted, or the token may not see it. If it "
        "concerns every thread of a Page, check that the token is the one of this Page and has "
        "pages_messaging.",
        codes={100},
        subcodes={33},
    ),
    Rule(
        "unsupported_get",
        _C.GONE,
        "Meta does not know this object, or the token may not see it. If it concerns every thread of a "
        "Page, check that the token is the one of this Page and has pages_messaging.",
        codes={100},
        phrase="unsupported get request",
    ),
    Rule(
        "deleted",
        _C.GONE,
        "Meta says that this was deleted; of old messages it says so too when it will not return them. "
        "Nothing is to be done.",
        codes={100},
        phrase="has been deleted",
    ),
    Rule("no_such_alias", _C.GONE, "Meta does not know this id. Check the Page's id.", codes={803}),
    # Not allowed.
    Rule(
        "profile_permission",
        _C.PERMISSION,
        "The app may not read people's profiles. Names come with the conversations all the same; "
        "nothing has to be done.",
        codes={100},
        subcodes={2018247},
    ),
    Rule(
        "missing_permission",
        _C.PERMISSION,
        "The app or the token lacks a permission or a feature, which Meta's text names. Request it in "
        f"App Review (Advanced Access for people without a role in the app), then {_RENEWED}.",
        codes={100},
        phrase="missing permission",
    ),
    Rule(
        "missing_capability",
        _C.PERMISSION,
        "The app has not got the capability that this call needs. Add the Messenger product to the app, "
        "and see its status in the App Dashboard.",
        codes={3},
    ),
    Rule(
        "page_restricted",
        _C.PERMISSION,
        "Meta has restricted the Page for a while. See the Page's support inbox, and sync again afterwards.",
        codes={10},
        subcodes={1893063},
    ),
    Rule(
        "permission_denied",
        _C.PERMISSION,
        "The app or the token may not do this. Grant pages_messaging, pages_manage_metadata and "
        f"pages_read_engagement, then {_RENEWED}.",
        codes={10},
    ),
    Rule(
        "permission_required",
        _C.PERMISSION,
        "The token lacks a permission, which Meta's text names. Grant it to the app, and see that its "
        f"owner has the Messages task on the Page; then {_RENEWED}.",
        codes=range(200, 300),
    ),
    # Our mistake, or Meta's schema moved.
    Rule(
        "no_such_field",
        _C.BAD_REQUEST,
        "This version of the Graph API does not have a field that convsync asks for. It asks without "
        "the field from now on; if it cannot do without, upgrade convsync.",
        codes={100},
        phrase="tried accessing nonexist",
    ),
    Rule(
        "invalid_parameter",
        _C.BAD_REQUEST,
        "Meta does not understand this call. Upgrade convsync, or report it with Meta's text and the "
        "trace id.",
        codes={100},
    ),
    Rule(
        "incorrect_signature",
        _C.BAD_REQUEST,
        "The call came without a token, or its signature was refused. Check CONVSYNC_APP_SECRET, and "
        "that no proxy takes the Authorization header away.",
        codes={104},
    ),
    Rule(
        "person_unavailable",
        _C.BAD_REQUEST,
        "This person cannot be reached now. Nothing is to be done.",
        codes={551},
    ),
    Rule(
        "unparsable_query",
        _C.BAD_REQUEST,
        "Meta cannot parse what was asked for. Upgrade convsync, or report it with Meta's text and the "
        "trace id.",
        codes={2500},
    ),
    # Meta's bad days.
    Rule("service_unavailable", _C.TRANSIENT, f"Meta's service is down for a moment; {_ALONE}.", codes={2}),
    Rule("batch_timeout", _C.TRANSIENT, f"Meta ran out of time; {_ALONE}.", codes={960}),
    Rule(
        "unknown_error",
        _C.TRANSIENT,
        f"Meta failed without saying why; {_ALONE}. If it stays so, see that the token has all its "
        "permissions: Meta says this of a missing one too.",
        codes={1},
        subcodes={99},
    ),
    Rule(
        "invalid_json_reply", _C.TRANSIENT, f"A part of Meta failed; {_ALONE}.", codes={1}, subcodes={1357046}
    ),
    Rule(
        "refused",
        _C.BAD_REQUEST,
        "Meta refuses this call for a reason of its own, which its text may name. Report it with the "
        "trace id if it stays so.",
        codes={1},
        subcodes=_ANY,
        statuses=range(400, 500),
    ),
    Rule("unknown_api_error", _C.TRANSIENT, f"Meta failed without saying why; {_ALONE}.", codes={1}),
    # No answer, or none that could be read.
    Rule(
        "no_connection",
        _C.TRANSIENT,
        "Meta could not be reached. Check this machine's network, name service and proxy, and "
        f"CONVSYNC_GRAPH_URL; {_ALONE}, and a sync pauses where it is.",
        type=NO_CONNECTION,
    ),
    Rule(
        "timeout", _C.TRANSIENT, f"Meta took too long to answer; {_ALONE}, with less at once.", type=TIMEOUT
    ),
    Rule(
        "truncated_answer",
        _C.TRANSIENT,
        f"The answer broke off; {_ALONE}, with less at once. If it stays so, look at the proxy between.",
        type=TRUNCATED,
    ),
    Rule(
        "redirect",
        _C.BAD_REQUEST,
        "The answer leads elsewhere, and a token is not carried to strangers. Check CONVSYNC_GRAPH_URL, "
        "and whether a proxy or login page stands between.",
        type=REDIRECT,
    ),
    Rule(
        "html_answer",
        _C.TRANSIENT,
        "Instead of Graph's answer came a web page: of Meta's error page, or a proxy. "
        f"{_ALONE}; if it stays so, look at the proxy and CONVSYNC_GRAPH_URL.",
        type=HTML,
    ),
    Rule(
        "empty_answer",
        _C.TRANSIENT,
        f"Meta answered nothing at all; {_ALONE}, with less at once.",
        type=EMPTY,
    ),
    Rule(
        "unreadable_answer",
        _C.TRANSIENT,
        f"Meta's answer could not be read; {_ALONE}, with less at once. If it stays so, upgrade convsync.",
        type=UNREADABLE,
    ),
    Rule("server_error", _C.TRANSIENT, f"Meta has trouble; {_ALONE}.", statuses=range(500, 600)),
    Rule("server_busy", _C.TRANSIENT, f"Meta ran out of time; {_ALONE}.", statuses={408, 425}),
)
UNLISTED: Final = Rule(
    "unlisted",
    _C.UNKNOWN,
    "Meta answered with an error that this release does not know. It is tried a few times; if it stays "
    "so, report it with Meta's text and the trace id.",
)

MAY_BE_REFUSED_LISTING: Final = frozenset(
    {
        "too_much_data",
        "unknown_error",
        "unknown_api_error",
        "refused",
        "timeout",
        "truncated_answer",
        "empty_answer",
        "unreadable_answer",
        "server_error",
        "unlisted",
    }
)
"""Entries that say nothing of their cause. When the list fails with one of them, it may be refused."""


def classify(
    code: int | None,
    subcode: int | None = None,
    texts: str = "",
    status: int | None = None,
    is_transient: bool | None = None,
    error_type: str | None = None,
) -> Rule:
    """Find the row of the catalogue for an error; `texts` is all its texts together."""
    texts = texts.lower()
    for rule in CATALOGUE:
        if rule.matches(code, subcode, texts, status, is_transient, error_type):
            return rule
    return UNLISTED
