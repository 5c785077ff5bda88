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
_UNLOGGED = frozenset({"input_token", "appsecret_proof", "access_token", "client_secret"})


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
    log: Call
    page: SimulatedPage | None = None
    """The Page whose token it is; None for a person's or the app's."""
    unordered: bool = False
    """A fault wants the list out of order."""

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
    def link(self) -> Link:
        """How the addresses in its `paging` are built."""
        return Link(f"{self.base}/{self.version}", self.token)

    @property
    def reader(self) -> nodes.Reader:
        config = self.state.config
        return nodes.Reader(
            self.population,
            self.link,
            config.max_messages_per_call,
            cursor_generation=self.state.faults.cursor_generation,
            readable=config.graph.readable("messenger"),
            requests=config.graph.requests,
        )

    @property
    def is_persons(self) -> bool:
        """Whether it is made with the token of the person who has the Pages."""
        return self.token == self.state.config.graph.user_token

    @property
    def is_batch(self) -> bool:
        """Whether it carries other calls."""
        return not self.segments and self.method == "POST" and "batch" in self.parameters

    def unsupported(self) -> GraphError:
        return errors.unsupported("/".join(self.segments[:1]), self.method.lower())


async def parse_call(request: web.Request, state: SimulatorState) -> GraphCall:
    """The call a request makes."""
    parameters = {**request.query, **await _sent(request)}
    token = parameters.pop("access_token", "")
    if not token:
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() in ("bearer", "oauth"):
            token = credentials.strip()
    base = f"{request.scheme}://{request.host}"
    return make_call(state, request.method, request.path, parameters, token, base)


def make_call(
    state: SimulatorState, method: str, path: str, parameters: Mapping[str, str], token: str, base: str
) -> GraphCall:
    """A call, with its entry for the log. Of a batch only the items are written there, each on its own."""
    version, segments = _versioned(tuple(part for part in path.split("/") if part))
    page = state.tokens.get(token)
    batch = not segments and method == "POST" and "batch" in parameters
    hidden = _UNLOGGED | parameters.keys() if batch else _UNLOGGED
    shown = {name: value for name, value in parameters.items() if name not in hidden}
    query = "batch" if batch else urlencode(shown)
    log = Call(time.time(), page.page_id if page else None, method, path, query)
    return GraphCall(state, method, version, segments, parameters, token, base, log, page)


def check_token(call: GraphCall) -> None:
    """Raises GraphError when the token is missing, unknown or dead, or its proof does not hold."""
    if not call.token:
        raise errors.no_token()
    is_apps = call.token == call.state.config.app_token
    if call.page is None and not is_apps and not call.is_persons:
        raise errors.bad_token()
    dead = call.state.faults.revoked.get(call.token)
    if dead is not None:
        raise dead.with_traceback(None)
    # An app token holds the secret itself.
    if call.state.config.require_appsecret_proof and not is_apps:
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
        return {name: _parameter(value) for name, value in document.items()}
    return {name: value for name, value in (await request.post()).items() if isinstance(value, str)}


def _parameter(value: object) -> str:
    """A value of a JSON document as the parameter it would be in a form."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ",".join(value)
    return orjson.dumps(value).decode()


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
