"""The error catalogue: what an error of the Graph API means for the one who called.

One table, first match wins. It looks at the code, the subcode and all three texts of an error,
because Meta has been seen to put the telling phrase ("reduce the amount of data") into any of them,
and at the HTTP status, because throttling arrives as 400 or 403 and an outage without any code.
Sources: developers.facebook.com/docs/graph-api/guides/error-handling, the error table of
/docs/graph-api/reference/page/conversations, and recorded answers.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

from convsync.graph.redact import redact
from convsync.graph.usage import Usage

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
    BAD_REQUEST = "bad_request"  # our mistake, or Meta's schema moved
    UNKNOWN = "unknown"  # not in the catalogue


# Connection failures and unreadable answers have no code of Meta's; these stand in for `type`.
NO_CONNECTION: Final = "ConnectionError"
TIMEOUT: Final = "Timeout"
UNREADABLE: Final = "UnreadableAnswer"
TOO_LARGE: Final = "AnswerTooLarge"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the catalogue; what is `None` matches anything."""

    error_class: ErrorClass
    codes: Container[int] | None = None
    subcodes: Container[int] | None = None
    phrase: str | None = None
    statuses: Container[int] | None = None
    transient: bool | None = None
    types: Container[str] | None = None
    scope: BlockScope | None = None
    block_seconds: int = 0

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
            and (self.types is None or (error_type is not None and error_type in self.types))
        )


_C = ErrorClass

CATALOGUE: Final[tuple[Rule, ...]] = (
    # Asked for too much. Before everything else of code 1, whatever the subcode or the status.
    Rule(_C.SHRINK, codes={1, 2}, phrase="reduce the amount"),
    Rule(_C.SHRINK, types={TOO_LARGE}),
    # The proof of the app secret is missing or wrong: configuration, though the code says otherwise.
    Rule(_C.PERMISSION, codes={1, 100}, phrase="appsecret_proof"),
    Rule(_C.PERMISSION, codes={100}, phrase="app secret proof"),
    # The token: 458 app removed, 459/464 checkpoint, 460 password, 463 expired, 467 invalid, 492 no role.
    Rule(_C.TOKEN, codes={102, 190}),
    # Throttled. The seconds are a first guess for an answer that does not say how long.
    Rule(_C.THROTTLED, codes={4}, scope="app", block_seconds=60),
    Rule(_C.THROTTLED, codes={341}, scope="app", block_seconds=300),
    Rule(_C.THROTTLED, codes={613}, scope="page", block_seconds=10),
    Rule(_C.THROTTLED, codes={17, 32}, scope="page", block_seconds=60),
    Rule(_C.THROTTLED, codes=range(80000, 80015), scope="page", block_seconds=60),
    Rule(_C.THROTTLED, codes={368}, scope="page", block_seconds=3600),
    Rule(_C.THROTTLED, statuses={429}, scope="page", block_seconds=60),
    # What Meta itself calls passing.
    Rule(_C.TRANSIENT, transient=True),
    # Cursors die at any time.
    Rule(_C.BAD_CURSOR, codes={2642}),
    Rule(_C.BAD_CURSOR, codes={100}, phrase="cursor"),
    # There is no such thing, or not for this token; Meta does not tell the two apart.
    Rule(_C.GONE, codes={100}, subcodes={33}),
    Rule(_C.GONE, codes={100}, phrase="unsupported get request"),
    Rule(_C.GONE, codes={100}, phrase="has been deleted"),
    Rule(_C.GONE, codes={803}),
    # Not allowed.
    Rule(_C.PERMISSION, codes={100}, subcodes={2018247}),
    Rule(_C.PERMISSION, codes={100}, phrase="missing permission"),
    Rule(_C.PERMISSION, codes={3, 10}),
    Rule(_C.PERMISSION, codes=range(200, 300)),
    # Our mistake: 104 incorrect signature, 551 this person is not available, 2500 unparsable query.
    Rule(_C.BAD_REQUEST, codes={100, 104, 551, 2500}),
    # Meta's bad days. 1357046: "Received invalid JSON reply", 960: a batch timed out.
    Rule(_C.TRANSIENT, codes={2, 960}),
    Rule(_C.TRANSIENT, codes={1}, subcodes={99, 1357046}),
    Rule(_C.TRANSIENT, statuses=range(500, 600)),
    Rule(_C.TRANSIENT, statuses={408, 425}),
    Rule(_C.TRANSIENT, types={NO_CONNECTION, TIMEOUT, UNREADABLE}),
)
_UNLISTED: Final = Rule(_C.UNKNOWN)

_RETRIED: Final = frozenset({_C.TRANSIENT, _C.SHRINK, _C.THROTTLED, _C.BAD_CURSOR, _C.UNKNOWN})
_NO_SUCH_FIELD: Final = re.compile(r"nonexist(?:ing|ent) field \((\w+)\)", re.IGNORECASE)


class GraphError(Exception):
    """A call of the Graph API that gave no usable answer, classified.

    `http_status` is `None` if there was no answer at all. `error_class` says what to do; `retry`
    whether the call, as it is or made smaller or later, can still succeed. For a throttled call
    `block_scope` and `block_seconds` say who must not call and how long; `block_told` is whether
    the duration came from Meta rather than from the catalogue. Every text is redacted.
    """

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        subcode: int | None = None,
        http_status: int | None = None,
        trace_id: str | None = None,
        type: str | None = None,  # noqa: A002 - Meta's word
        user_title: str | None = None,
        user_message: str | None = None,
        is_transient: bool | None = None,
        usage: Usage | None = None,
        ms: int = 0,
    ) -> None:
        texts = " ".join(text for text in (message, user_title, user_message) if text)
        rule = classify(code, subcode, texts, http_status, is_transient, type)
        self.message = redact(message)
        self.code = code
        self.subcode = subcode
        self.http_status = http_status
        self.trace_id = trace_id
        self.type = type
        self.user_title = None if user_title is None else redact(user_title)
        self.user_message = None if user_message is None else redact(user_message)
        self.is_transient = is_transient
        self.usage = usage
        self.ms = ms
        self.error_class = rule.error_class
        self.block_scope = rule.scope
        self.block_seconds = rule.block_seconds
        self.block_told = False
        if rule.error_class is ErrorClass.THROTTLED and usage is not None and usage.regain_seconds > 0:
            self.block_seconds = usage.regain_seconds
            self.block_told = True
        found = _NO_SUCH_FIELD.search(texts) if code == 100 else None
        self.unknown_field = found.group(1) if found else None
        super().__init__(self._summary())

    @property
    def retry(self) -> bool:
        return self.error_class in _RETRIED

    def as_json(self) -> dict[str, Any]:
        """What is worth keeping of the error, for `sync_batches.error` and the logs."""
        return {
            "class": self.error_class.value,
            "code": self.code,
            "subcode": self.subcode,
            "http_status": self.http_status,
            "type": self.type,
            "message": self.message,
            "user_title": self.user_title,
            "user_message": self.user_message,
            "trace_id": self.trace_id,
        }

    def _summary(self) -> str:
        numbers = "/".join(str(number) for number in (self.code, self.subcode) if number is not None)
        where = f"HTTP {self.http_status}" if self.http_status is not None else "no answer"
        return f"{self.error_class.value} ({where}{', code ' + numbers if numbers else ''}): {self.message}"


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
    return _UNLISTED


def read_error(
    body: object, *, status: int, ms: int = 0, trace_id: str | None = None, usage: Usage | None = None
) -> GraphError:
    """Make a `GraphError` of the decoded body of an answer that is an error.

    Tolerates every field missing, numbers as strings, `error` as a bare string, and the shape of
    the login endpoints (`error_type`, `error_message`).
    """
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        error = {}
        if isinstance(body, dict) and "error_message" in body:
            error = {"message": body["error_message"], "type": body.get("error_type")}
    transient = error.get("is_transient")
    if isinstance(transient, str):
        transient = transient.lower() == "true"
    return GraphError(
        _text(error.get("message")) or f"HTTP {status} without a message",
        code=_integer(error.get("code")),
        subcode=_integer(error.get("error_subcode")),
        http_status=status,
        trace_id=_text(error.get("fbtrace_id")) or trace_id,
        type=_text(error.get("type")),
        user_title=_text(error.get("error_user_title")),
        user_message=_text(error.get("error_user_msg")),
        is_transient=transient if isinstance(transient, bool) else None,
        usage=usage,
        ms=ms,
    )


def _text(value: object) -> str | None:
    return value[:2000] if isinstance(value, str) and value else None


def _integer(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,12}", value):
        return int(value)
    return None
