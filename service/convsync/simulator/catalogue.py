"""The errors of Graph that a fault can give, by name: `{"action": "error", "name": "page_limit"}`.

Sources, in short: *handling* is developers.facebook.com/docs/graph-api/guides/error-handling, *limits*
/docs/graph-api/overview/rate-limiting, *conversations* the error table of
/docs/graph-api/reference/page/conversations, *profile* the User Profile API of the Messenger Platform,
*recorded* means that answers in public tests and issues have it. What no source gives is `invented`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from convsync.simulator import errors
from convsync.simulator.errors import GraphError

_REDUCE = "Please reduce the amount of data you're asking for, then retry your request"
_UNKNOWN = "An unknown error occurred"
_SESSION = "Error validating access token: "


@dataclass(frozen=True, slots=True)
class Entry:
    """One error. `invented` says what of it no source gives, empty when everything is known."""

    make: Callable[[], GraphError]
    source: str
    invented: str = ""


def _entry(
    source: str, code: int, message: str, *, http: int = 400, invented: str = "", **more: Any
) -> Entry:
    return Entry(lambda: GraphError(code, message, http=http, **more), source, invented)


CATALOGUE: Mapping[str, Entry] = {
    # Too much asked for. The same call never passes, a smaller one does.
    "reduce_data": _entry("recorded", 1, _REDUCE, http=500),
    "reduce_data_in_user_message": _entry(
        "recorded",
        1,
        _UNKNOWN,
        http=500,
        subcode=99,
        user_title="Please reduce the amount of data",
        user_message=_REDUCE,
        invented="status",
    ),
    # Passing.
    "unknown": _entry("recorded", 1, _UNKNOWN, http=500, subcode=99),
    "service": _entry("recorded", 2, "(#2) Service temporarily unavailable", http=503, is_transient=True),
    "unexpected": _entry(
        "Messenger error codes",
        2,
        "An unexpected error has occurred. Please retry your request later.",
        http=500,
        is_transient=True,
        invented="status",
    ),
    "invalid_reply": _entry(
        "Messenger error codes",
        1,
        "Received invalid JSON reply.",
        subcode=1357046,
        http=500,
        invented="status",
    ),
    "batch_timeout": _entry(
        "recorded",
        960,
        "Request aborted. This could happen if a dependent request failed or the entire request timed out.",
        invented="text",
    ),
    "call_not_successful": _entry(
        "recorded",
        -1,
        "Call was not successful",
        http=503,
        document={"error": {"message": "Call was not successful"}},
    ),
    # Not passing, though the code is the same.
    "unknown_final": _entry(
        "recorded",
        1,
        _UNKNOWN,
        subcode=1965014,
        is_transient=False,
        user_title="This Cannot Be Done",
        user_message="Please choose something else.",
        invented="texts for users",
    ),
    # Throttled.
    "app_limit": Entry(errors.application_limit, "limits", "status"),
    "user_limit": Entry(errors.user_limit, "limits", "text and status"),
    "page_limit": Entry(errors.page_limit, "limits"),
    "call_rate": Entry(errors.too_fast, "conversations", "status"),
    "inconsistent_volume": _entry(
        "limits",
        613,
        "(#613) Calls to this api have exceeded the rate limit.",
        subcode=1996,
        invented="text and status",
    ),
    "pages_limit": Entry(errors.too_many_page_calls, "limits", "status"),
    "messenger_limit": Entry(
        errors.too_many_messenger_calls, "conversations", "status, and the code at the head of the text"
    ),
    "application_limit_temporary": _entry(
        "handling", 341, "Application limit reached", invented="text and status"
    ),
    "blocked": _entry(
        "conversations",
        368,
        "The action attempted has been deemed abusive or is otherwise disallowed",
        invented="status",
    ),
    # The token is dead.
    "session_expired": _entry(
        "recorded",
        190,
        f"{_SESSION}Session has expired on Friday, 20-Nov-26 03:00:00 PST. The current time is "
        "Friday, 20-Nov-26 04:00:00 PST.",
        subcode=463,
    ),
    "password_changed": _entry(
        "recorded",
        190,
        f"{_SESSION}The session has been invalidated because the user changed their password or Facebook has "
        "changed the session for security reasons.",
        subcode=460,
    ),
    "app_removed": _entry(
        "recorded",
        190,
        f"{_SESSION}The user has not authorized application 200000000000001.",
        subcode=458,
    ),
    "checkpoint": _entry(
        "handling",
        190,
        f"{_SESSION}You cannot access the app till you log in to www.facebook.com and follow the "
        "instructions given.",
        subcode=459,
        invented="text and status",
    ),
    "unconfirmed_user": _entry(
        "handling",
        190,
        f"{_SESSION}Sessions for the user are not allowed because the user is not a confirmed user.",
        subcode=464,
        invented="text and status",
    ),
    "invalid_token": _entry(
        "handling", 190, f"{_SESSION}The access token is invalid.", subcode=467, invented="text and status"
    ),
    "no_role": _entry(
        "handling",
        190,
        f"{_SESSION}User associated with the Page access token does not have an appropriate role on the "
        "Page.",
        subcode=492,
        invented="status",
    ),
    "not_granted": _entry(
        "recorded",
        190,
        "Any of the pages_read_engagement, pages_manage_metadata, pages_read_user_content, pages_manage_ads, "
        "pages_show_list or pages_messaging permission(s) must be granted before impersonating a user's "
        "page.",
    ),
    "api_session": _entry(
        "handling", 102, "Session key invalid or no longer valid", invented="text and status"
    ),
    "page_token_required": Entry(errors.page_token_required, "recorded", "status"),
    # Not allowed, or not configured.
    "permission": Entry(errors.no_permission, "recorded"),
    "permission_denied": _entry(
        "handling",
        10,
        "(#10) Application does not have permission for this action",
        invented="text and status",
    ),
    "capability": _entry(
        "handling",
        3,
        "(#3) Application does not have the capability to make this API call.",
        invented="text and status",
    ),
    "message_permission": _entry(
        "conversations",
        230,
        "(#230) Requires pages_messaging permission to manage the object",
        http=403,
        invented="text and status",
    ),
    "missing_permissions": _entry("recorded", 100, "(#100) Missing permissions"),
    "not_loaded": _entry(
        "recorded",
        100,
        "(#100) Object does not exist, cannot be loaded due to missing permission or reviewable feature, or "
        "does not support this operation.",
    ),
    "proof_required": Entry(errors.proof_required, "recorded"),
    "proof_invalid": Entry(errors.proof_invalid, "recorded", "code and status"),
    # Gone, or never there.
    "unsupported": Entry(lambda: errors.unsupported("0"), "recorded"),
    "alias": _entry(
        "from memory", 803, "(#803) Some of the aliases you requested do not exist: 0", invented="all of it"
    ),
    "message_deleted": Entry(errors.message_deleted, "conversations guide", "code, text and status"),
    # Cursors.
    "cursor_too_deep": _entry(
        "/docs/graph-api/results",
        100,
        "(#100) The After Cursor specified exceeds the max limit supported by this endpoint",
        invented="status",
    ),
    "cursor_dead": Entry(errors.bad_cursor, "/docs/graph-api/results", "text and status"),
    "cursor_invalid": _entry(
        "Meta's error tables of other edges",
        2642,
        "(#2642) Invalid cursors values",
        invented="that conversations give it, and the status",
    ),
    # The caller's mistake.
    "no_token": Entry(errors.no_token, "recorded", "status"),
    "bad_signature": _entry("conversations", 104, "Incorrect signature", invented="status"),
    "bad_query": _entry("conversations", 2500, "Error parsing graph query", invented="status"),
    # People.
    "no_profile": Entry(errors.no_profile, "profile", "status"),
    "profile_permission": _entry(
        "recorded",
        100,
        "(#100) Insufficient permission to access user profile.",
        subcode=2018247,
        invented="status",
    ),
    "no_such_person": Entry(errors.no_such_person, "recorded", "status"),
    "outside_window": Entry(errors.outside_window, "recorded"),
    "unavailable_person": _entry(
        "recorded", 551, "(#551) This person isn't available right now.", invented="status"
    ),
    # The other shape, of the login endpoints.
    "login_shape": _entry(
        "recorded",
        400,
        "Invalid platform app",
        document={"error_type": "OAuthException", "code": 400, "error_message": "Invalid platform app"},
    ),
}


def named(name: str) -> GraphError:
    """A new error of a name. Raises KeyError."""
    return CATALOGUE[name].make()
