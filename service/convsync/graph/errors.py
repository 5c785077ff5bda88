"""An answer of the Graph API that is no answer: read, redacted, and found in the catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from convsync.facts import clean
from convsync.graph.catalogue import Retry, classify
from convsync.graph.redact import MARK, redact
from convsync.graph.usage import Usage

_ID: Final = re.compile(r"[\w./+=:-]{1,128}", re.ASCII)
_NO_SUCH_FIELD: Final = re.compile(r"nonexist(?:ing|ent) field \((\w+)\)", re.IGNORECASE)


class GraphError(Exception):
    """A call of the Graph API that gave no usable answer, classified.

    `http_status` is `None` if there was no answer at all. `rule` is its row of the catalogue:
    `error_class` says what to do, `retry` when the call can be made again, `told` what the operator
    is told. `trace_id` and `request_id` are what Meta's support asks for. For a throttled call
    `block_scope` and `block_seconds` say who must not call and how long; `block_told` is whether
    the duration came from Meta rather than from the catalogue. Every text is redacted, of `secrets`
    too, whatever they look like.
    """

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        subcode: int | None = None,
        http_status: int | None = None,
        trace_id: str | None = None,
        request_id: str | None = None,
        type: str | None = None,  # noqa: A002 - Meta's word
        user_title: str | None = None,
        user_message: str | None = None,
        is_transient: bool | None = None,
        usage: Usage | None = None,
        ms: int = 0,
        secrets: Iterable[str] = (),
    ) -> None:
        texts = " ".join(text for text in (message, user_title, user_message) if text)
        rule = classify(code, subcode, texts, http_status, is_transient, type)
        self.rule = rule
        self.message = _shown(message, secrets)
        self.code = code
        self.subcode = subcode
        self.http_status = http_status
        self.trace_id = trace_id
        self.request_id = request_id
        self.type = type
        self.user_title = None if user_title is None else _shown(user_title, secrets)
        self.user_message = None if user_message is None else _shown(user_message, secrets)
        self.is_transient = is_transient
        self.granted_at: datetime | None = None  # when the budget granted the call, where that is known
        self.usage = usage
        self.ms = ms
        self.error_class = rule.error_class
        self.block_scope = rule.scope
        self.block_seconds = rule.block_seconds
        self.block_told = False
        # What Meta tells is told of the Page: how long the app has to wait it never says.
        if rule.scope == "page" and usage is not None and usage.regain_seconds > 0:
            self.block_seconds = usage.regain_seconds
            self.block_told = True
        found = _NO_SUCH_FIELD.search(texts) if code == 100 else None
        self.unknown_field = found.group(1) if found else None
        super().__init__(self.message)

    def __str__(self) -> str:
        numbers = "/".join(str(number) for number in (self.code, self.subcode) if number is not None)
        where = [f"HTTP {self.http_status}" if self.http_status is not None else "no answer"]
        where += [f"code {numbers}"] if numbers else []
        where += [f"trace {self.trace_id}"] if self.trace_id else []
        return f"{self.error_class.value} ({', '.join(where)}): {self.message}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"

    @property
    def retry(self) -> Retry:
        return self.rule.retry

    @property
    def told(self) -> str:
        """What has happened and what to do about it, in a sentence for the operator."""
        return self.rule.told

    def inferred(self, kind: str) -> GraphError:
        """This error under another row of the catalogue, found by more than this one answer."""
        return GraphError(
            self.message,
            code=self.code,
            subcode=self.subcode,
            http_status=self.http_status,
            trace_id=self.trace_id,
            request_id=self.request_id,
            type=kind,
            user_title=self.user_title,
            user_message=self.user_message,
            is_transient=self.is_transient,
            usage=self.usage,
            ms=self.ms,
        )

    def explained(self) -> str:
        """The error for a person: what to do, and what Meta said."""
        return f"{self.told} [{self}]"

    def as_json(self) -> dict[str, Any]:
        """What is worth keeping of the error, for `sync_batches.error` and the logs."""
        return {
            "class": self.error_class.value,
            "entry": self.rule.name,
            "told": self.told,
            "code": self.code,
            "subcode": self.subcode,
            "http_status": self.http_status,
            "type": self.type,
            "message": self.message,
            "user_title": self.user_title,
            "user_message": self.user_message,
            "trace_id": self.trace_id,
            "request_id": self.request_id,
        }


def read_error(
    body: object,
    *,
    status: int,
    ms: int = 0,
    trace_id: str | None = None,
    request_id: str | None = None,
    usage: Usage | None = None,
    secrets: Iterable[str] = (),
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
        trace_id=readable_id(error.get("fbtrace_id")) or trace_id,
        request_id=request_id,
        type=_text(error.get("type")),
        user_title=_text(error.get("error_user_title")),
        user_message=_text(error.get("error_user_msg")),
        is_transient=transient if isinstance(transient, bool) else None,
        usage=usage,
        ms=ms,
        secrets=secrets,
    )


def readable_id(value: object) -> str | None:
    """A trace or request id as it may be logged: Meta's are a few letters and digits."""
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def _shown(text: str, secrets: Iterable[str]) -> str:
    """A text of Meta's as it may be logged and kept: without secrets, and nothing PostgreSQL cannot hold."""
    for secret in secrets:
        text = text.replace(secret, MARK)
    return clean(redact(text))  # type: ignore[no-any-return]


def _text(value: object) -> str | None:
    return value[:2000] if isinstance(value, str) and value else None


def _integer(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,12}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    # Of a number that is no code of Meta's the database must not stumble: its column is an integer.
    return value if -(2**31) <= value < 2**31 else None
