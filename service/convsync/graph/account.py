"""Models of what Graph answers about Pages, tokens and people, and to messages that are sent.

As tolerant as those of conversations: what cannot be read is absent, what nobody here knows is preserved
(`model_extra`), and only an id without which there is nothing to act on is insisted on.
Sources: developers.facebook.com/docs/facebook-login, /docs/graph-api/reference/page/subscribed_apps,
/documentation/business-messaging/messenger-platform (User Profile API, Send API).
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, SecretStr, ValidationError

from convsync.facts import Json, drift_name
from convsync.graph.catalogue import UNREADABLE
from convsync.graph.errors import GraphError
from convsync.graph.models import (
    Edge,
    GraphId,
    Node,
    OptionalFlag,
    OptionalId,
    OptionalText,
    OptionalTime,
    unwrap,
)
from convsync.graph.redact import redact


def _read_texts(value: Any) -> list[str]:
    return [item for item in unwrap(value) if isinstance(item, str)]


def _read_objects(value: Any) -> list[Any]:
    return [item for item in unwrap(value) if isinstance(item, dict)]


def _read_end(value: Any) -> Any:
    """When something ends: 0 is Meta's word for never."""
    return None if value in (0, "0") and not isinstance(value, bool) else value


def _read_secret(value: Any) -> Any:
    return value if isinstance(value, str) and value else None


def _read_problem(value: Any) -> str | None:
    text = value.get("message") if isinstance(value, dict) else value
    return redact(text) if isinstance(text, str) and text else None


def _read_hours(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


Texts = Annotated[list[str], BeforeValidator(_read_texts)]
# Validators run from the last to the first: 0 is gone before it could be read as 1970.
End = Annotated[OptionalTime, BeforeValidator(_read_end)]


class PageNode(Node):
    """A Page, as it tells of itself."""

    id: GraphId
    name: OptionalText = None


class Account(PageNode):
    """A Page that a person has (`/me/accounts`): its token, and what they may do there (`MESSAGING`, ..)."""

    access_token: Annotated[SecretStr | None, BeforeValidator(_read_secret)] = None
    category: OptionalText = None
    tasks: Texts = Field(default_factory=list)


class SubscribedApp(Node):
    """An app that gets a Page's webhooks, and which of them."""

    id: OptionalId = None
    name: OptionalText = None
    subscribed_fields: Texts = Field(default_factory=list)


class GranularScope(Node):
    """A permission; where `target_ids` has any, for these Pages only."""

    scope: OptionalText = None
    target_ids: Texts = Field(default_factory=list)


class TokenInfo(Node):
    """What `/debug_token` says of a token.

    `expires_at` and `data_access_expires_at` are `None` for never. `profile_id` is the Page of a Page's
    token. `problem` is why it is not valid, without secrets.
    """

    is_valid: OptionalFlag = None
    type: OptionalText = None
    app_id: OptionalId = None
    application: OptionalText = None
    user_id: OptionalId = None
    profile_id: OptionalId = None
    issued_at: OptionalTime = None
    expires_at: End = None
    data_access_expires_at: End = None
    scopes: Texts = Field(default_factory=list)
    granular_scopes: Annotated[list[GranularScope], BeforeValidator(_read_objects)] = Field(
        default_factory=list
    )
    problem: Annotated[str | None, BeforeValidator(_read_problem)] = Field(default=None, alias="error")


class Profile(Node):
    """A person; of one that Meta does not show everything is `None` (the answer is `{}`)."""

    id: OptionalId = None
    name: OptionalText = None
    first_name: OptionalText = None
    last_name: OptionalText = None
    profile_pic: OptionalText = None
    locale: OptionalText = None
    timezone: Annotated[float | None, BeforeValidator(_read_hours)] = None
    gender: OptionalText = None


class SentMessage(Node):
    """The answer to a message that was sent: its id is the one of the echo that comes by webhook."""

    message_id: GraphId
    recipient_id: OptionalId = None


_N = TypeVar("_N", bound=Node)


def read_node(body: Json, model: type[_N]) -> _N:
    """Read one object, in its `{"data": ..}` envelope or without; `GraphError` if it has not what it must."""
    inner = body.get("data")
    try:
        return model.model_validate(inner if isinstance(inner, dict) else body)
    except ValidationError as error:
        raise GraphError(
            f"the answer is no {model.__name__}: {_where(error)}", type=UNREADABLE, http_status=200
        ) from None


def read_list(body: Json, model: type[_N], drift: Counter[str] | None = None) -> list[_N]:
    """Read a list; an item that does not fit costs none of its siblings and is counted in `drift`."""
    edge = Edge.of(body)
    if edge is None:
        raise GraphError(f"the answer has no list of {model.__name__}", type=UNREADABLE, http_status=200)
    found: list[_N] = []
    for item in edge.items:
        try:
            found.append(model.model_validate(item))
        except ValidationError as error:
            if drift is not None:
                drift[drift_name(model.__name__.lower(), _where(error))] += 1
    return found


def _where(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    what = "missing" if first["type"] == "missing" else first["msg"]
    return f"{field}: {what}" if field else "not an object"
