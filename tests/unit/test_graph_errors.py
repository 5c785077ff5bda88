"""The error catalogue, the redaction and the usage headers."""

from __future__ import annotations

import pytest

from convsync.graph.errors import (
    NO_CONNECTION,
    TIMEOUT,
    TOO_LARGE,
    UNREADABLE,
    ErrorClass,
    GraphError,
    read_error,
)
from convsync.graph.redact import redact
from convsync.graph.usage import Usage, read_usage

C = ErrorClass

# What Meta was seen, or is documented, to answer: HTTP status, `error` object, class, block scope.
ANSWERS = [
    (500, {"code": 1, "message": "Please reduce the amount of data you're asking for"}, C.SHRINK, None),
    (400, {"code": 1, "message": "Please reduce the amount of data you're asking for"}, C.SHRINK, None),
    (
        500,
        {"code": 1, "error_subcode": 99, "message": "An unknown error occurred",
         "error_user_msg": "Please Reduce the amount of data you're asking for"},
        C.SHRINK,
        None,
    ),
    (
        500,
        {"code": 1, "message": "An unknown error occurred",
         "error_user_title": "Please reduce the amount of data"},
        C.SHRINK,
        None,
    ),
    (500, {"code": 1, "error_subcode": 99, "message": "An unknown error occurred"}, C.TRANSIENT, None),
    (400, {"code": 1, "error_subcode": 99, "message": "An unknown error occurred"}, C.TRANSIENT, None),
    (500, {"code": 1, "message": "An unknown error occurred"}, C.TRANSIENT, None),
    (400, {"code": 1, "error_subcode": 1357046, "message": "Received invalid JSON"}, C.TRANSIENT, None),
    (400, {"code": 1, "error_subcode": 2853001, "message": "An unknown error occurred"}, C.UNKNOWN, None),
    (503, {"code": 2, "message": "(#2) Service temporarily unavailable"}, C.TRANSIENT, None),
    (400, {"code": 2, "message": "An unexpected error has occurred."}, C.TRANSIENT, None),
    (400, {"code": 987654, "message": "odd", "is_transient": True}, C.TRANSIENT, None),
    (400, {"code": 987654, "message": "odd", "is_transient": "true"}, C.TRANSIENT, None),
    (503, {"message": "Call was not successful"}, C.TRANSIENT, None),
    (400, {"code": 960, "message": "Request timed out"}, C.TRANSIENT, None),
    (403, {"code": 4, "message": "(#4) Application request limit reached"}, C.THROTTLED, "app"),
    (400, {"code": "4", "message": "(#4) Application request limit reached"}, C.THROTTLED, "app"),
    (400, {"code": 341, "message": "Application limit reached"}, C.THROTTLED, "app"),
    (400, {"code": 17, "message": "(#17) User request limit reached"}, C.THROTTLED, "page"),
    (400, {"code": 32, "message": "(#32) Page request limit reached"}, C.THROTTLED, "page"),
    (400, {"code": 613, "message": "(#613) Calls to this api have exceeded"}, C.THROTTLED, "page"),
    (400, {"code": 613, "error_subcode": 1996, "message": "inconsistent volume"}, C.THROTTLED, "page"),
    (403, {"code": 80001, "message": "too many calls to this Page account"}, C.THROTTLED, "page"),
    (400, {"code": 80006, "message": "too many messenger api calls"}, C.THROTTLED, "page"),
    (400, {"code": 80006, "message": "too many", "is_transient": True}, C.THROTTLED, "page"),
    (400, {"code": 368, "message": "deemed abusive"}, C.THROTTLED, "page"),
    (429, {"message": "slow down"}, C.THROTTLED, "page"),
    (400, {"code": 190, "error_subcode": 463, "message": "Session has expired"}, C.TOKEN, None),
    (401, {"code": 190, "error_subcode": 460, "message": "changed their password"}, C.TOKEN, None),
    (400, {"code": 190, "message": "must be granted before impersonating"}, C.TOKEN, None),
    (400, {"code": 102, "message": "Session key invalid"}, C.TOKEN, None),
    (403, {"code": 200, "message": "(#200) Requires pages_messaging"}, C.PERMISSION, None),
    (403, {"code": 299, "message": "something of the range"}, C.PERMISSION, None),
    (400, {"code": 10, "message": "denied"}, C.PERMISSION, None),
    (400, {"code": 100, "message": "(#100) Missing permissions"}, C.PERMISSION, None),
    (400, {"code": 100, "message": "API calls from the server require an appsecret_proof argument"},
     C.PERMISSION, None),
    (400, {"code": 1, "message": "API calls from the server require an appsecret_proof argument"},
     C.PERMISSION, None),
    (
        400,
        {"code": 100, "error_subcode": 33,
         "message": "Unsupported get request. Object with ID 't_1' does not exist, cannot be loaded due to"
         " missing permissions, or does not support this operation."},
        C.GONE,
        None,
    ),
    (400, {"code": 100, "message": "Unsupported get request. ID '2' does not exist"}, C.GONE, None),
    (400, {"code": 100, "message": "(#100) The After Cursor specified exceeds the max limit"},
     C.BAD_CURSOR, None),
    (400, {"code": 100, "message": "(#100) The cursor specified is not valid"}, C.BAD_CURSOR, None),
    (400, {"code": 2642, "message": "Invalid cursors values"}, C.BAD_CURSOR, None),
    (400, {"code": 100, "message": "(#100) Param limit must be an integer"}, C.BAD_REQUEST, None),
    (400, {"code": 100, "error_subcode": 2018218, "message": "No profile available"}, C.BAD_REQUEST, None),
    (400, {"code": 2500, "message": "Error parsing graph query"}, C.BAD_REQUEST, None),
    (400, {"code": 104, "message": "Incorrect signature"}, C.BAD_REQUEST, None),
    (400, {"code": 31337, "message": "never seen"}, C.UNKNOWN, None),
    (400, {}, C.UNKNOWN, None),
]  # fmt: skip


@pytest.mark.parametrize(("status", "error", "expected", "scope"), ANSWERS)
def test_each_known_answer_has_its_class(
    status: int, error: dict[str, object], expected: ErrorClass, scope: str | None
) -> None:
    read = read_error({"error": error}, status=status)
    assert read.error_class is expected
    assert read.block_scope == scope
    assert (read.block_seconds > 0) == (expected is C.THROTTLED)
    retried = {C.TRANSIENT, C.SHRINK, C.THROTTLED, C.BAD_CURSOR, C.UNKNOWN}
    assert read.retry == (expected in retried)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (NO_CONNECTION, C.TRANSIENT),
        (TIMEOUT, C.TRANSIENT),
        (UNREADABLE, C.TRANSIENT),
        (TOO_LARGE, C.SHRINK),
    ],
)
def test_what_never_reached_meta_or_cannot_be_read_has_a_class_too(kind: str, expected: ErrorClass) -> None:
    assert GraphError("no code at all", type=kind).error_class is expected


@pytest.mark.parametrize(
    "body",
    [
        {"error": "just a text"},
        {"error": None},
        {"error": ["odd"]},
        {"error": {"code": True, "message": 7, "error_subcode": "many", "fbtrace_id": 5}},
        {"error_type": "OAuthException", "code": 400, "error_message": "of the login endpoints"},
        [],
        None,
    ],
)
def test_an_error_of_any_shape_is_read_without_raising(body: object) -> None:
    error = read_error(body, status=400)
    assert error.http_status == 400
    assert error.message


def test_the_text_of_the_login_endpoints_is_kept() -> None:
    assert read_error({"error_type": "X", "error_message": "login text"}, status=400).message == "login text"


def test_the_time_to_regain_access_overrides_the_guess_of_the_catalogue() -> None:
    usage = Usage(percent=100, regain_seconds=1140)
    told = read_error({"error": {"code": 80006, "message": "too many"}}, status=400, usage=usage)
    guessed = read_error({"error": {"code": 80006, "message": "too many"}}, status=400)
    assert (told.block_seconds, told.block_told) == (1140, True)
    assert (guessed.block_seconds, guessed.block_told) == (60, False)


@pytest.mark.parametrize("word", ["nonexisting", "nonexistent"])
def test_the_field_that_graph_does_not_have_is_named(word: str) -> None:
    message = f"(#100) Tried accessing {word} field (reply_to) on node type (UnifiedMessage)"
    assert read_error({"error": {"code": 100, "message": message}}, status=400).unknown_field == "reply_to"


TOKEN = "EAAGm0PX4ZCpsBAKZCZAexample0123456789"


@pytest.mark.parametrize(
    "text",
    [
        f"https://graph.example/v26.0/1/conversations?access_token={TOKEN}&pretty=0&limit=25",
        f"https://graph.example/?a=1&appsecret_proof={TOKEN}",
        f"next%3Daccess_token%3D{TOKEN}%26limit%3D1",
        f'{{"access_token": "{TOKEN}"}}',
        f'{{\\"access_token\\":\\"{TOKEN}\\"}}',
        f"Authorization: Bearer {TOKEN}",
        f"Malformed access token {TOKEN}",
        "the app token 123456789012|aVerySecretAppSecret00",
    ],
)
def test_no_secret_survives_redaction(text: str) -> None:
    redacted = redact(text)
    assert TOKEN not in redacted
    assert "aVerySecretAppSecret00" not in redacted
    assert "[redacted]" in redacted


def test_redaction_leaves_ordinary_text_alone() -> None:
    text = "(#100) Object with ID 't_123' does not exist; see https://example.org/docs?limit=25&after=QVFI"
    assert redact(text) == text


def test_no_text_of_an_error_holds_a_token() -> None:
    error = read_error(
        {
            "error": {
                "code": 190,
                "message": f"Malformed access token {TOKEN}",
                "error_user_title": f"access_token={TOKEN}",
                "error_user_msg": f"Bearer {TOKEN}",
            }
        },
        status=400,
    )
    assert TOKEN not in str(error)
    assert TOKEN not in repr(error)
    assert TOKEN not in str(error.as_json())


def test_usage_is_the_highest_percentage_of_all_headers_that_concern_us() -> None:
    usage = read_usage(
        {
            "X-App-Usage": '{"call_count":28,"total_time":25,"total_cputime":31}',
            "X-Page-Usage": '{"call_count":5,"total_time":1,"total_cputime":1}',
            "X-Business-Use-Case-Usage": (
                '{"900100":[{"type":"messenger","call_count":"64","total_cputime":25,"total_time":25,'
                '"estimated_time_to_regain_access":0},'
                '{"type":"ads_insights","call_count":100,"total_cputime":0,"total_time":0,'
                '"estimated_time_to_regain_access":60}]}'
            ),
        }
    )
    assert usage is not None
    assert (usage.percent, usage.app_percent, usage.regain_seconds) == (64.0, 31.0, 0)
    assert set(usage.raw) == {"app", "page", "business"}


def test_the_minutes_to_regain_access_become_seconds() -> None:
    header = '{"900100":[{"type":"pages","call_count":100,"estimated_time_to_regain_access":19}]}'
    usage = read_usage({"X-Business-Use-Case-Usage": header})
    assert usage is not None
    assert usage.regain_seconds == 19 * 60


@pytest.mark.parametrize(
    "header",
    ["", "not json", "[]", "7", "null", '{"a":[{"call_count":"NaN"}]', "{" + " " * 20_000 + "}"],
)
def test_a_usage_header_that_cannot_be_read_is_no_usage(header: str) -> None:
    assert read_usage({"X-App-Usage": header}) is None


@pytest.mark.parametrize(
    "header",
    [
        '{"call_count":null,"total_time":true,"total_cputime":"lots"}',
        '{"a":null,"b":[null,3,"x"],"c":{"type":5,"call_count":-4}}',
        '{"a":[{"call_count":"Infinity","estimated_time_to_regain_access":"NaN"}]}',
    ],
)
def test_odd_values_in_a_usage_header_count_as_nothing(header: str) -> None:
    usage = read_usage({"X-Business-Use-Case-Usage": header})
    assert usage is not None
    assert (usage.percent, usage.regain_seconds) == (0.0, 0)
