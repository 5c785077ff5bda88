"""One answer per row of the error catalogue, as Meta was seen, or is documented, to give it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convsync.graph.catalogue import ErrorClass

C = ErrorClass


@dataclass(frozen=True)
class Example:
    """`error` is the `error` object of the answer with HTTP status `http`; `scope` who is blocked by it, and
    `block` for how many seconds when Meta does not say.
    """

    entry: str
    http: int
    error: dict[str, Any]
    error_class: ErrorClass
    scope: str | None = None
    block: int = 0


HELP = "https://developers.facebook.com/docs/graph-api/overview/rate-limiting"
ENDED = "Error validating access token: The session has been invalidated"

EXAMPLES = [
    Example(
        "too_much_data",
        500,
        {"code": 1, "message": "Please reduce the amount of data you're asking for, then retry your request"},
        C.SHRINK,
    ),
    Example(
        "proof_invalid",
        400,
        {
            "code": 100,
            "type": "GraphMethodException",
            "message": "Invalid appsecret_proof provided in the API argument",
        },
        C.PERMISSION,
    ),
    Example(
        "proof_required",
        400,
        {
            "code": 100,
            "type": "GraphMethodException",
            "message": "API calls from the server require an appsecret_proof argument",
        },
        C.PERMISSION,
    ),
    Example(
        "proof_or_app_token_required",
        400,
        {
            "code": 100,
            "message": "(#100) Pages Public Content Access requires either app secret proof or an app token",
        },
        C.PERMISSION,
    ),
    Example(
        "token_app_removed",
        400,
        {
            "code": 190,
            "error_subcode": 458,
            "message": "Error validating access token: The user has not authorized application 4711.",
        },
        C.TOKEN,
    ),
    Example("token_checkpoint", 400, {"code": 190, "error_subcode": 459, "message": f"{ENDED}."}, C.TOKEN),
    Example(
        "token_password_changed",
        401,
        {
            "code": 190,
            "error_subcode": 460,
            "message": f"{ENDED} because the user changed their password or Facebook has changed the session",
        },
        C.TOKEN,
    ),
    Example(
        "token_expired",
        400,
        {
            "code": 190,
            "error_subcode": 463,
            "message": "Error validating access token: Session has expired on Friday, 20-Nov",
        },
        C.TOKEN,
    ),
    Example("token_invalid", 400, {"code": 190, "error_subcode": 467, "message": f"{ENDED}."}, C.TOKEN),
    Example(
        "token_without_role",
        400,
        {"code": 190, "error_subcode": 492, "message": "Error validating access token: no appropriate role"},
        C.TOKEN,
    ),
    Example(
        "token_without_permissions",
        400,
        {
            "code": 190,
            "message": "Any of the pages_read_engagement or pages_messaging permission(s) must be granted"
            " before impersonating a\n        user's page.",
        },
        C.TOKEN,
    ),
    Example(
        "token_refused",
        400,
        {"code": 190, "message": "Invalid OAuth access token - Cannot parse access token"},
        C.TOKEN,
    ),
    Example(
        "app_limit",
        403,
        {"code": 4, "message": "(#4) Application request limit reached"},
        C.THROTTLED,
        "app",
        60,
    ),
    Example(
        "app_limit_temporary",
        400,
        {"code": 341, "message": "Application limit reached"},
        C.THROTTLED,
        "app",
        300,
    ),
    Example(
        "uneven_calls",
        400,
        {"code": 613, "error_subcode": 1996, "message": "(#613) Inconsistent request volume"},
        C.THROTTLED,
        "page",
        60,
    ),
    Example(
        "calls_per_second",
        400,
        {"code": 613, "message": "(#613) Calls to this api have exceeded the rate limit."},
        C.THROTTLED,
        "page",
        10,
    ),
    Example(
        "user_limit",
        400,
        {"code": 17, "message": "(#17) User request limit reached"},
        C.THROTTLED,
        "page",
        60,
    ),
    Example(
        "page_limit",
        400,
        {"code": 32, "message": "(#32) Page request limit reached"},
        C.THROTTLED,
        "page",
        60,
    ),
    Example(
        "messenger_limit",
        403,
        {
            "code": 80006,
            "message": "(#80006) There have been too many messenger api calls to this Page account. Wait"
            f" a bit and try again. For more info, please refer to {HELP}.",
        },
        C.THROTTLED,
        "page",
        60,
    ),
    Example(
        "business_limit",
        400,
        {"code": 80000, "message": f"(#80000) There have been too many calls. {HELP}"},
        C.THROTTLED,
        "page",
        60,
    ),
    Example(
        "policy_block",
        400,
        {"code": 368, "message": "The action attempted has been deemed abusive or is otherwise disallowed"},
        C.THROTTLED,
        "page",
        3600,
    ),
    Example("too_many_requests", 429, {"message": "Too many requests"}, C.THROTTLED, "page", 60),
    Example("passing", 400, {"code": 987654, "message": "odd", "is_transient": True}, C.TRANSIENT),
    Example("cursor_invalid", 400, {"code": 2642, "message": "Invalid cursors values"}, C.BAD_CURSOR),
    Example(
        "cursor_refused",
        400,
        {
            "code": 100,
            "message": "(#100) The After Cursor specified exceeds the max limit supported by this endpoint",
        },
        C.BAD_CURSOR,
    ),
    Example(
        "no_profile",
        400,
        {"code": 100, "error_subcode": 2018218, "message": "(#100) No profile available for this user."},
        C.GONE,
    ),
    Example(
        "no_such_person",
        400,
        {"code": 100, "error_subcode": 2018001, "message": "(#100) No matching user found"},
        C.GONE,
    ),
    Example(
        "no_such_object",
        400,
        {
            "code": 100,
            "error_subcode": 33,
            "type": "GraphMethodException",
            "message": "Unsupported get request. Object with ID 't_1' does not exist, cannot be loaded due to"
            " missing permissions, or does not support this operation.",
        },
        C.GONE,
    ),
    Example(
        "unsupported_get",
        400,
        {
            "code": 100,
            "type": "GraphMethodException",
            "message": "Unsupported get request. ID '2' does not exist",
        },
        C.GONE,
    ),
    Example("deleted", 400, {"code": 100, "message": "(#100) This message has been deleted"}, C.GONE),
    Example(
        "no_such_alias",
        404,
        {"code": 803, "message": "(#803) Some of the aliases you requested do not exist"},
        C.GONE,
    ),
    Example(
        "profile_permission",
        400,
        {
            "code": 100,
            "error_subcode": 2018247,
            "message": "(#100) Insufficient permission to access user profile.",
        },
        C.PERMISSION,
    ),
    Example(
        "missing_permission",
        400,
        {
            "code": 100,
            "message": "(#100) Object does not exist, cannot be loaded due to missing permission or"
            " reviewable feature, or does not support this operation.",
        },
        C.PERMISSION,
    ),
    Example("missing_capability", 400, {"code": 3, "message": "(#3) Unknown method"}, C.PERMISSION),
    Example(
        "page_restricted",
        400,
        {"code": 10, "error_subcode": 1893063, "message": "(#10) Page temporarily restricted"},
        C.PERMISSION,
    ),
    Example("permission_denied", 403, {"code": 10, "message": "(#10) Permission denied"}, C.PERMISSION),
    Example(
        "permission_required",
        403,
        {"code": 200, "message": "(#200) Requires pages_messaging permission to manage the object"},
        C.PERMISSION,
    ),
    Example(
        "no_such_field",
        400,
        {
            "code": 100,
            "message": "(#100) Tried accessing nonexisting field (reply_to) on node type (UnifiedMessage)",
        },
        C.BAD_REQUEST,
    ),
    Example(
        "invalid_parameter",
        400,
        {"code": 100, "message": "(#100) Param limit must be an integer"},
        C.BAD_REQUEST,
    ),
    Example("incorrect_signature", 400, {"code": 104, "message": "Incorrect signature"}, C.BAD_REQUEST),
    Example(
        "person_unavailable",
        400,
        {"code": 551, "message": "(#551) This person isn't available right now."},
        C.BAD_REQUEST,
    ),
    Example("unparsable_query", 400, {"code": 2500, "message": "Error parsing graph query"}, C.BAD_REQUEST),
    Example(
        "service_unavailable",
        503,
        {"code": 2, "message": "(#2) Service temporarily unavailable"},
        C.TRANSIENT,
    ),
    Example("batch_timeout", 400, {"code": 960, "message": "Request timed out"}, C.TRANSIENT),
    Example(
        "unknown_error",
        500,
        {"code": 1, "error_subcode": 99, "message": "An unknown error occurred"},
        C.TRANSIENT,
    ),
    Example(
        "invalid_json_reply",
        400,
        {"code": 1, "error_subcode": 1357046, "message": "Received invalid JSON reply."},
        C.TRANSIENT,
    ),
    Example(
        "refused",
        400,
        {
            "code": 1,
            "error_subcode": 1965014,
            "message": "An unknown error occurred",
            "is_transient": False,
            "error_user_title": "A limit of 90 days",
            "error_user_msg": "Please choose another date.",
        },
        C.BAD_REQUEST,
    ),
    Example("unknown_api_error", 400, {"code": 1, "message": "An unknown error occurred"}, C.TRANSIENT),
    Example("server_error", 503, {"message": "Call was not successful"}, C.TRANSIENT),
    Example("server_busy", 408, {"message": "Request timed out"}, C.TRANSIENT),
    Example("unlisted", 400, {"code": 31337, "message": "never seen"}, C.UNKNOWN),
]
