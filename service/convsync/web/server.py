"""The server below the application: what it refuses before any handler sees it, it refuses as we do."""

from __future__ import annotations

import logging

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from convsync.web import middlewares

_log = structlog.get_logger(__name__)


class _NotOurs(logging.Filter):
    """What came is no HTTP, or not of the encoding it names: aiohttp answers 400, and calls it an error of
    ours, with its traceback. Any scanner does it; one line says so.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
            return True
        _log.info("request_unreadable", error=type(error).__name__)
        return False


NOT_OURS = _NotOurs()


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What came is no HTTP, or something broke outside of the middlewares: a problem document too."""
        assert isinstance(request, web.Request)  # noqa: S101 - an application's server makes no others
        identity = middlewares.identify(request)
        # It logs, and raises if an answer has begun. Its own answer quotes what was sent.
        super().handle_error(request, status, exc, message)
        if status >= 500:
            answer = middlewares.broken(request)
        else:
            long = isinstance(exc, LineTooLong)
            detail = "the address or a header is too long" if long else "this cannot be read as HTTP"
            answer = middlewares.problem(request, status, "bad_request", "Bad request", detail)
        answer.headers["X-Request-ID"] = identity
        answer.force_close()
        return answer


class _Server(web.Server):
    def __init__(self, of: web.Server) -> None:
        super().__init__(self._answer, request_factory=of.request_factory, **of._kwargs)
        self._handle = of.request_handler

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """An `Expect` that nobody knows is refused before the middlewares."""
        try:
            return await self._handle(request)
        except web.HTTPExpectationFailed as error:
            assert isinstance(request, web.Request)  # noqa: S101 - as above
            identity = middlewares.identify(request)
            answer = middlewares.refusal(request, error)
            answer.headers["X-Request-ID"] = identity
            return answer


class Runner(web.AppRunner):
    """Runs an application whose every error is a problem document, those of the HTTP parser among them."""

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server())
