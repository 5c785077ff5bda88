"""Errors to Sentry, if there is a DSN: what was logged as one, with its ids, and where it happened.

What leaves is an allow-list, made in two places. Of a log line go its event's name, the ids, numbers, and
codes under names that are known here; never any other text. Of an exception go the types and the stack
(files, functions, lines); never its text, which may quote a message, nor what variables held. The log line
with the same `request_id` has the rest.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

from pydantic import SecretStr

from convsync import __version__
from convsync.graph.redact import redact
from convsync.observe.logging import IDS, Processor
from convsync.settings import SettingsError

_LEVELS: Final = {"error": "error", "exception": "error", "critical": "fatal", "fatal": "fatal"}
_CODE: Final = re.compile(r"[\w.:/+=-]{1,200}", re.ASCII)
_CODES: Final = frozenset(
    (
        *("alert", "class", "code", "entry", "error", "kind", "last_error", "mode", "path", "reason"),
        *("sqlstate", "state", "status", "thread_id", "trace_id", *IDS),
    )
)
_FRAME: Final = ("filename", "function", "module", "lineno", "in_app")
_KEPT: Final = ("event_id", "timestamp", "level", "platform", "release", "environment", "fingerprint", "sdk")
_AGAIN_SECONDS: Final = 60.0
_REMEMBERED: Final = 1_000


def reporter(dsn: SecretStr | None) -> Processor | None:
    """A processor for structlog that reports errors; None without a DSN. What waits is sent at exit.

    Raises SettingsError if the SDK is not installed, or the DSN is none.
    """
    if dsn is None:
        return None
    try:
        import sentry_sdk
        from sentry_sdk.integrations.atexit import AtexitIntegration
        from sentry_sdk.integrations.excepthook import ExcepthookIntegration
        from sentry_sdk.utils import BadDsn
    except ImportError:
        raise SettingsError(
            "CONVSYNC_SENTRY_DSN is set, and the SDK is not installed: pip install 'convsync[sentry]'"
        ) from None
    try:
        sentry_sdk.init(
            dsn=dsn.get_secret_value(),
            release=f"convsync@{__version__}",
            before_send=_only_what_may_leave,
            # Nothing is gathered that nobody here has asked for: requests, breadcrumbs, variables, packages.
            default_integrations=False,
            auto_enabling_integrations=False,
            integrations=[
                ExcepthookIntegration(),
                AtexitIntegration(callback=lambda _pending, _seconds: None),
            ],
            include_local_variables=False,
            include_source_context=False,
            max_breadcrumbs=0,
            auto_session_tracking=False,
            send_client_reports=False,
            shutdown_timeout=2,
        )
    except BadDsn:  # its text may quote the DSN
        raise SettingsError("CONVSYNC_SENTRY_DSN is not the DSN of a Sentry project") from None
    # A line for each try to reach a receiver that is away would be about nothing of ours.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    return Reports()


class Reports:
    """Captures each line of level error; of one event and Page at most one a minute, with how many came."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._told: dict[tuple[str, str], tuple[float, int]] = {}

    def __call__(
        self, _logger: object, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        level = _LEVELS.get(event.get("level", method))
        if level is not None:
            name = _name(event)
            held_back = self._due(name, str(event.get("page_id") or ""))
            if held_back is not None:
                _capture(name, level, event, held_back)
        return event

    def _due(self, name: str, page_id: str) -> int | None:
        """How many were held back since the last; None: this one is held back too."""
        now = self._now()
        at, held_back = self._told.get((name, page_id), (None, 0))
        if at is not None and now - at < _AGAIN_SECONDS:
            self._told[name, page_id] = (at, held_back + 1)
            return None
        if len(self._told) >= _REMEMBERED:
            self._told.clear()
        self._told[name, page_id] = (now, 0)
        return held_back


def _name(event: Mapping[str, Any]) -> str:
    """The event's name. What others log is a text, and may quote anything: then it is the logger's."""
    record = event.get("_record")
    if record is not None:
        return f"log of {record.name}"
    name = str(event.get("event", ""))
    if not _CODE.fullmatch(name):
        return "log"
    return f"{name} {event['alert']}" if name == "alert" and "alert" in event else name


def _capture(name: str, level: Any, event: Mapping[str, Any], held_back: int) -> None:
    import sentry_sdk

    with sentry_sdk.new_scope() as scope:
        scope.set_level(level)
        scope.set_tag("event", name)
        for key in IDS:
            if event.get(key) is not None:
                scope.set_tag(key, str(event[key])[:200])
        extras = {key: value for key, value in event.items() if not key.startswith("_") and key not in IDS}
        for key, value in _safe(extras).items():
            scope.set_extra(key, value)
        if held_back:
            scope.set_extra("held_back", held_back)
        raised = event.get("exc_info")
        if raised is True:
            raised = sys.exc_info()
        error = (
            raised if isinstance(raised, BaseException) else raised[1] if isinstance(raised, tuple) else None
        )
        if error is not None:
            scope.capture_exception(error)
        else:
            scope.capture_message(name)


def _safe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, and codes under names that are known; at any depth."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            continue
        if value is None or isinstance(value, (bool, int, float)):
            kept[key] = value
        elif isinstance(value, Mapping):
            if inside := _safe(value):
                kept[key] = inside
        elif key in _CODES and isinstance(value, str) and _CODE.fullmatch(value) and redact(value) == value:
            kept[key] = value
    return kept


def _only_what_may_leave(event: Any, _hint: Any) -> Any:
    """The second place, for whatever was put into an event on the way."""
    tags = {key: value for key, value in (event.get("tags") or {}).items() if key in ("event", *IDS)}
    name = tags.setdefault("event", "crash")
    kept = {key: event[key] for key in _KEPT if key in event}
    kept |= {"tags": tags, "extra": _safe(event.get("extra") or {})}
    raised = (event.get("exception") or {}).get("values")
    if raised:
        kept["exception"] = {"values": [_exception(one, name) for one in raised]}
    else:
        kept["logentry"] = {"message": name}
    return kept


def _exception(raised: Mapping[str, Any], name: str) -> dict[str, Any]:
    frames = (raised.get("stacktrace") or {}).get("frames") or []
    return {
        "type": raised.get("type"),
        "module": raised.get("module"),
        "value": name,
        "stacktrace": {"frames": [{key: one[key] for key in _FRAME if key in one} for one in frames]},
    }
