"""Who calls what: parsing a call to the simulated Graph API and checking its token and proof."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

import orjson
from aiohttp import web

from convsync.simulator import errors, nodes
from convsync.simulator.calls import Call
from convsync.simulator.config import NEWEST_GRAPH_VERSION, OLDEST_GRAPH_VERSION, SimulatedPage
from convsync.simulator.errors import GraphError
from convsync.simulator.fields import Fields, FieldSyntaxError, parse_fields
from convsync.simulator.paging import Link
from convsync.simulator.population import Population
from convsync.simulator.state import SimulatorState

_VERSION = re.compile(r"v(\d+)\.(\d+)")
_PROOF_SECONDS = 300


@dataclass(slots=True)
class GraphCall:
    """A parsed call: where it goes and who makes it."""

    state: SimulatorState
    method: str
    version: str
    segments: tuple[str, ...]
    parameters: Mapping[str, str]
    token: str
    base: str
    page: SimulatedPage | None = None

    @property
    def population(self) -> Population:
        assert self.page is not None  # noqa: S101 - checked by the caller, told to the type checker
        return self.state.populations[self.page.page_id]

    @property
    def fields(self) -> Fields | None:
        """The `fields` parameter. Raises GraphError 2500."""
        text = self.parameters.get("fields")
        if not text:
            return None
        try:
            return parse_fields(text)
        except FieldSyntaxError as error:
            raise errors.bad_fields(error.message) from error

    @property
    def reader(self) -> nodes.Reader:
        link = Link(f"{self.base}/{self.version}", self.token)
        return nodes.Reader(self.population, link, self.state.config.max_messages_per_call)

    def unsupported(self) -> GraphError:
        return errors.unsupported("/".join(self.segments[:1]), self.method.lower())


async def parse_call(request: web.Request, state: SimulatorState) -> tuple[GraphCall, Call]:
    """The call, and its entry for the log."""
    version, segments = _versioned(tuple(part for part in request.path.split("/") if part))
    parameters = {**request.query, **await _sent(request)}
    token = parameters.pop("access_token", "")
    if not token:
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() in ("bearer", "oauth"):
            token = credentials.strip()
    page = state.tokens.get(token)
    call = GraphCall(
        state,
        request.method,
        version,
        segments,
        parameters,
        token,
        f"{request.scheme}://{request.host}",
        page,
    )
    shown = {
        name: value for name, value in parameters.items() if name not in ("input_token", "appsecret_proof")
    }
    log = Call(time.time(), page.page_id if page else None, request.method, request.path, urlencode(shown))
    return call, log


def check_token(call: GraphCall) -> None:
    """Raises GraphError when the token is missing or unknown, or its proof does not hold."""
    if not call.token:
        raise errors.no_token()
    if call.page is None and call.token != call.state.config.app_token:
        raise errors.bad_token()
    if call.state.config.require_appsecret_proof and call.page is not None:
        _check_proof(call)


def _check_proof(call: GraphCall) -> None:
    """The plain proof, or the one with a time that is good for five minutes."""
    proof = call.parameters.get("appsecret_proof")
    if not proof:
        raise errors.proof_required()
    message = call.token
    moment = call.parameters.get("appsecret_time")
    if moment is not None:
        if not moment.isdecimal() or abs(time.time() - int(moment)) > _PROOF_SECONDS:
            raise errors.proof_invalid()
        message = f"{message}|{moment}"
    expected = hmac.new(call.state.config.app_secret.encode(), message.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected.encode(), proof.encode()):
        raise errors.proof_invalid()


def is_conversations_call(call: GraphCall) -> bool:
    """Whether the limits of the Conversations API hold: list, threads and messages, not the Page's node."""
    if not call.segments:
        return "ids" in call.parameters
    return call.segments[0].startswith(("t_", "m_")) or call.segments[1:] == ("conversations",)


async def _sent(request: web.Request) -> dict[str, str]:
    """The parameters in the body of a POST, as a form or as JSON."""
    if request.method != "POST" or not request.can_read_body:
        return {}
    if request.content_type == "application/json":
        try:
            document = orjson.loads(await request.read())
        except orjson.JSONDecodeError:
            return {}
        if not isinstance(document, dict):
            return {}
        return {
            name: ",".join(value) if isinstance(value, list) else str(value)
            for name, value in document.items()
        }
    return {name: value for name, value in (await request.post()).items() if isinstance(value, str)}


def _versioned(segments: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The version that answers, and the path below it. A version past its life is answered by the oldest
    usable one, without an error; one that does not exist yet is no version but a name.
    """
    match = _VERSION.fullmatch(segments[0]) if segments else None
    if match is None:
        return NEWEST_GRAPH_VERSION, segments
    asked = float(segments[0][1:])
    if asked > float(NEWEST_GRAPH_VERSION[1:]):
        return NEWEST_GRAPH_VERSION, segments
    return (segments[0] if asked >= float(OLDEST_GRAPH_VERSION[1:]) else OLDEST_GRAPH_VERSION), segments[1:]
