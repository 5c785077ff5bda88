"""The error catalogue, the redaction and the usage headers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from convsync.graph.catalogue import (
    CATALOGUE,
    EMPTY,
    HTML,
    LISTING_REFUSED,
    MAY_BE_REFUSED_LISTING,
    NO_CONNECTION,
    REDIRECT,
    TIMEOUT,
    TOO_LARGE,
    TRUNCATED,
    UNLISTED,
    UNREADABLE,
    ErrorClass,
    Retry,
    Rule,
)
from convsync.graph.errors import GraphError, read_error
from convsync.graph.redact import redact
from convsync.graph.usage import Usage, read_usage
from graph_answers import EXAMPLES, Example

C = ErrorClass

RETRY = {
    C.TRANSIENT: Retry.LATER,
    C.UNKNOWN: Retry.LATER,
    C.SHRINK: Retry.SMALLER,
    C.THROTTLED: Retry.AFTER_THE_BLOCK,
    C.BAD_CURSOR: Retry.FROM_THE_FRONT,
    C.TOKEN: Retry.NEVER,
    C.PERMISSION: Retry.NEVER,
    C.GONE: Retry.NEVER,
    C.LISTING: Retry.NEVER,
    C.BAD_REQUEST: Retry.NEVER,
}
# What has no code of Meta's, by the name that stands for its type.
WITHOUT_CODE = {
    NO_CONNECTION: ("no_connection", C.TRANSIENT),
    TIMEOUT: ("timeout", C.TRANSIENT),
    TRUNCATED: ("truncated_answer", C.TRANSIENT),
    HTML: ("html_answer", C.TRANSIENT),
    EMPTY: ("empty_answer", C.TRANSIENT),
    UNREADABLE: ("unreadable_answer", C.TRANSIENT),
    TOO_LARGE: ("answer_too_large", C.SHRINK),
    REDIRECT: ("redirect", C.BAD_REQUEST),
    LISTING_REFUSED: ("listing_refused", C.LISTING),
}
REDUCE = "Please Reduce the amount of data you're asking for"
NEVER = {
    C.TOKEN: "stops the Page's sync",
    C.LISTING: "ends the run `partial`, reason `listing_refused`",
}
# Other forms of the same: HTTP status, `error` object, entry.
VARIANTS = [
    (400, {"code": 1, "message": REDUCE}, "too_much_data"),
    (500, {"code": 1, "error_subcode": 99, "message": "An unknown error occurred", "error_user_msg": REDUCE},
     "too_much_data"),
    (500, {"code": 1, "message": "An unknown error occurred", "error_user_title": REDUCE}, "too_much_data"),
    (400, {"code": 1, "message": "API calls from the server require an appsecret_proof argument"},
     "proof_required"),
    (400, {"code": 1, "error_subcode": 99, "message": "An unknown error occurred"}, "unknown_error"),
    (500, {"code": 1, "message": "An unknown error occurred"}, "unknown_api_error"),
    (500, {"code": 1, "error_subcode": 2853001, "message": "An unknown error occurred"}, "unknown_api_error"),
    (400, {"code": 1, "error_subcode": 2853001, "message": "An unknown error occurred"}, "refused"),
    (400, {"code": 2, "message": "An unexpected error has occurred."}, "service_unavailable"),
    (503, {"code": 2, "message": "(#2) Service temporarily unavailable", "is_transient": True}, "passing"),
    (400, {"code": 987654, "message": "odd", "is_transient": "true"}, "passing"),
    (400, {"code": "4", "message": "(#4) Application request limit reached"}, "app_limit"),
    (403, {"code": 80001, "message": "(#80001) There have been too many calls to this Page account."},
     "page_limit"),
    (400, {"code": 80006, "message": "too many", "is_transient": True}, "messenger_limit"),
    (400, {"code": 102, "message": "Session key invalid"}, "token_refused"),
    (400, {"code": 102, "error_subcode": 463, "message": "Session key invalid"}, "token_expired"),
    (400, {"code": 190, "error_subcode": 464, "message": "unconfirmed"}, "token_checkpoint"),
    (403, {"code": 299, "message": "something of the range"}, "permission_required"),
    (400, {"code": 230, "message": "(#230) Requires a permission"}, "permission_required"),
    (400, {"code": 100, "message": "(#100) Missing permissions"}, "missing_permission"),
    (400, {"code": 100, "message": "(#100) The cursor specified is not valid"}, "cursor_refused"),
    (400, {"code": 190, "error_subcode": 460, "message": "Message", "error_user_title": "A title",
           "error_user_msg": "A message", "type": "OAuthException"}, "token_password_changed"),
    (400, {}, "unlisted"),
]  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.entry)
def test_each_answer_of_the_catalogue_has_its_row(example: Example) -> None:
    read = read_error({"error": example.error}, status=example.http)
    assert (read.rule.name, read.error_class) == (example.entry, example.error_class)
    assert (read.block_scope, read.block_seconds) == (example.scope, example.block)
    assert read.retry is RETRY[example.error_class]
    assert read.as_json()["told"] == read.told


@pytest.mark.parametrize(("status", "error", "entry"), VARIANTS)
def test_other_forms_of_an_answer_have_the_same_row(
    status: int, error: dict[str, object], entry: str
) -> None:
    assert read_error({"error": error}, status=status).rule.name == entry


@pytest.mark.parametrize("kind", WITHOUT_CODE)
def test_what_has_no_code_has_its_row_too(kind: str) -> None:
    entry, expected = WITHOUT_CODE[kind]
    error = GraphError("text", type=kind, http_status=502)
    assert (error.rule.name, error.error_class) == (entry, expected)


def test_every_row_of_the_catalogue_is_reached_by_an_answer() -> None:
    """A row that another one hides would never act."""
    reached = {example.entry for example in EXAMPLES} | {entry for entry, _ in WITHOUT_CODE.values()}
    assert {rule.name for rule in CATALOGUE} | {UNLISTED.name} == reached
    assert len({rule.name for rule in CATALOGUE}) == len(CATALOGUE)


@pytest.mark.parametrize("rule", [*CATALOGUE, UNLISTED], ids=lambda rule: rule.name)
def test_the_operator_is_told_what_to_do_in_plain_sentences(rule: Rule) -> None:
    assert rule.told.endswith(".")
    assert not set("{}[]") & set(rule.told)
    assert rule.told[0].isupper() or rule.told.startswith("convsync")
    if rule.error_class is C.TOKEN:
        assert "convsync page add" in rule.told
    if rule.error_class is C.THROTTLED:
        assert "convsync waits" in rule.told or "convsync asks again" in rule.told


def test_the_catalogue_in_the_documentation_is_the_one_that_acts() -> None:
    text = (Path(__file__).parents[2] / "docs" / "graph-errors.md").read_text()
    assert "\n".join(rows_of_the_documentation()) in text


def test_entries_that_may_be_a_refused_listing_are_in_the_catalogue() -> None:
    assert {rule.name for rule in (*CATALOGUE, UNLISTED)} >= MAY_BE_REFUSED_LISTING


def test_error_found_to_be_another_one_keeps_all_that_meta_said() -> None:
    error = read_error(
        {
            "error": {
                "code": 1,
                "error_subcode": 99,
                "message": "An unknown error occurred",
                "fbtrace_id": "T",
            }
        },
        status=500,
        request_id="R",
    ).inferred(LISTING_REFUSED)
    assert (error.rule.name, error.error_class, error.retry) == ("listing_refused", C.LISTING, Retry.NEVER)
    assert (
        error.code,
        error.subcode,
        error.http_status,
        error.trace_id,
        error.request_id,
        error.message,
    ) == (
        *(1, 99, 500),
        *("T", "R", "An unknown error occurred"),
    )


def rows_of_the_documentation() -> Iterator[str]:
    yield "| entry | Meta's answer | what convsync does | what the operator is told |"
    yield "|---|---|---|---|"
    for rule in (*CATALOGUE, UNLISTED):
        does = {
            Retry.LATER: "calls again later, a few times",
            Retry.SMALLER: "asks for less, never for the same again",
            Retry.AFTER_THE_BLOCK: f"no call for the {'Page' if rule.scope == 'page' else 'whole app'} until "
            f"Meta's time is over, else {rule.block_seconds} s, longer each time",
            Retry.FROM_THE_FRONT: "reads that list again from its front, three times at most",
            Retry.NEVER: NEVER.get(rule.error_class, "does not call again"),
        }[rule.retry]
        yield f"| `{rule.name}` | {_answer(rule)} | {does} | {rule.told} |"


def _answer(rule: Rule) -> str:
    parts = []
    if rule.codes is not None:
        parts.append(f"code {_numbers(rule.codes)}")
    if rule.subcodes is not None:
        parts.append("any subcode" if len(rule.subcodes) > 1000 else f"subcode {_numbers(rule.subcodes)}")
    if rule.statuses is not None:
        parts.append(f"HTTP {_numbers(rule.statuses)}")
    if rule.phrase is not None:
        parts.append(f'"{rule.phrase}"')
    if rule.transient is not None:
        parts.append("`is_transient`")
    if rule.type is not None:
        parts.append(rule.type)
    return ", ".join(parts) or "anything else"


def _numbers(numbers: Collection[int]) -> str:
    if isinstance(numbers, range):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(str(number) for number in sorted(numbers))


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
    # A Page that has to wait keeps nobody else waiting.
    app = read_error({"error": {"code": 4, "message": "too many"}}, status=403, usage=usage)
    assert (app.block_scope, app.block_seconds, app.block_told) == ("app", 60, False)


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
        "https://graph.example/debug_token?access_token=123456789012%7CaVerySecretAppSecret00&fields=id",
        "next%3Daccess_token%3D123456789012%257CaVerySecretAppSecret00%26limit%3D1",
        f"next%253Daccess_token%253D{TOKEN}%2526limit%253D1",
        f"next\\u003d1\\u0026access_token\\u003d{TOKEN}\\u0026limit\\u003d1",
        f"{{'access_token': '{TOKEN[3:]}', 'limit': 1}}",
    ],
)
def test_no_secret_survives_redaction(text: str) -> None:
    redacted = redact(text)
    assert TOKEN[3:] not in redacted
    assert "aVerySecretAppSecret00" not in redacted
    assert "[redacted]" in redacted


@pytest.mark.parametrize("ends", ["&", "%26", "%2526", '"', "%22", " ", "\\u0026"])
def test_redaction_ends_where_the_secret_does(ends: str) -> None:
    assert redact(f"access_token=123%7Cabc{ends}limit") == f"access_token=[redacted]{ends}limit"


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


def test_several_businesses_in_one_header_count_by_the_worst_of_them() -> None:
    header = (
        '{"900100":[{"type":"messenger","call_count":100,"total_cputime":25,"total_time":25,'
        '"estimated_time_to_regain_access":19}],'
        '"900200":[{"type":"pages","call_count":97,"total_cputime":23,"total_time":23,'
        '"estimated_time_to_regain_access":0}]}'
    )
    usage = read_usage({"X-Business-Use-Case-Usage": header})
    assert usage is not None
    assert (usage.percent, usage.app_percent, usage.regain_seconds) == (100, None, 19 * 60)


def test_what_the_app_has_used_up_is_not_held_against_the_page() -> None:
    usage = read_usage({"X-App-Usage": '{"call_count":100,"total_time":25,"total_cputime":31}'})
    assert usage is not None
    assert (usage.percent, usage.app_percent, usage.used_up_seconds) == (None, 100, 0)


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


def test_what_the_database_could_not_keep_is_in_no_error() -> None:
    """An error is written down: U+0000, and a number that is no code, would cost the whole run."""
    error = read_error(
        {"error": {"code": 99999999999, "error_subcode": "-99999999999", "message": "a\x00b\ud800"}},
        status=400,
    )
    assert (error.code, error.subcode, error.message) == (None, None, "a\ufffdb\ufffd")
