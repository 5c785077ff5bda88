"""One line per event, structured; secrets taken out of every one before it is written.

A line tells whose it is: `request_id` (of the HTTP request, or of whom a sync was begun for), `run_id`,
`page_id`. In JSON each line has all three, null where it belongs to none or to many (one commit takes the
deliveries of any number of requests).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, Literal, TypeAlias

import orjson
import structlog

from convsync.graph.redact import redact

IDS: Final = ("request_id", "run_id", "page_id")

Processor: TypeAlias = Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]


def configure(
    style: Literal["console", "json"], *, level: int = logging.INFO, report: Processor | None = None
) -> None:
    """Send structlog and the standard library's warnings to stderr, in `style`; `report` sees each too."""
    renderer: Any = (
        structlog.processors.JSONRenderer(serializer=_json)
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _with_ids(everywhere=style == "json"),
        *([report] if report is not None else []),  # while an exception is still one
        structlog.processors.format_exc_info,
        _without_secrets,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        # A cached logger would keep the stream it was first used with, whatever is configured after that.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))


def _with_ids(*, everywhere: bool) -> Processor:
    """Ids are text, as in every answer, and stand at the top also where an alert has one in its details."""

    def process(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        details = event.get("details")
        for key in IDS:
            value = event.get(key)
            if value is None and isinstance(details, Mapping):
                value = details.get(key)
            if value is not None:
                event[key] = str(value)
            elif everywhere:
                event[key] = None
        return event

    return process


def _without_secrets(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if not key.startswith("_"):  # structlog's own
            event[key] = _redacted(value)
    return event


def _redacted(value: Any) -> Any:
    """At any depth; what is neither text nor a container is shown by its own text later."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redacted(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return redact(str(value))


def _json(value: object, **_: object) -> str:
    return orjson.dumps(value, default=str).decode()
