"""Graph's errors: one exception, and the functions that make those the simulated API gives by itself.

Texts and statuses are Meta's where public recordings or documentation show them; the ones that no public
source shows are marked as invented. `catalogue.py` names every error a fault can give.
"""

from __future__ import annotations

import secrets
from typing import Any

LIMITS_HELP = "https://developers.facebook.com/docs/graph-api/overview/rate-limiting"
UNSUPPORTED = (
    "Unsupported {method} request. Object with ID '{target}' does not exist, cannot be loaded due to missing "
    "permissions, or does not support this operation. Please read the Graph API documentation at "
    "https://developers.facebook.com/docs/graph-api"
)


class GraphError(Exception):
    """An answer in Graph's error shape."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        http: int = 400,
        subcode: int | None = None,
        kind: str = "OAuthException",
        user_title: str | None = None,
        user_message: str | None = None,
        is_transient: bool | None = None,
        document: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.http = http
        self.subcode = subcode
        self.kind = kind
        self.user_title = user_title
        self.user_message = user_message
        self.is_transient = is_transient
        self.document = document
        """The whole answer, where it is not of the usual shape."""

    def body(self, trace_id: str) -> dict[str, Any]:
        """The JSON document; keys without a value are left out, as there."""
        if self.document is not None:
            return self.document
        error: dict[str, Any] = {"message": self.message, "type": self.kind, "code": self.code}
        if self.subcode is not None:
            error["error_subcode"] = self.subcode
        if self.is_transient is not None:
            error["is_transient"] = self.is_transient
        if self.user_title is not None:
            error["error_user_title"] = self.user_title
        if self.user_message is not None:
            error["error_user_msg"] = self.user_message
        error["fbtrace_id"] = trace_id
        return {"error": error}


def trace_id() -> str:
    """What Facebook calls `fbtrace_id`."""
    return "A" + secrets.token_urlsafe(16)


def unsupported(target: str, method: str = "get") -> GraphError:
    """100/33: the object is not there, or not for this token, or cannot do that. HTTP 400, never 404."""
    message = UNSUPPORTED.format(method=method, target=target)
    return GraphError(100, message, subcode=33, kind="GraphMethodException")


def unknown_field(name: str, node: str) -> GraphError:
    """A field the node does not have."""
    return GraphError(100, f"(#100) Tried accessing nonexisting field ({name}) on node type ({node})")


def bad_cursor() -> GraphError:
    """A cursor this edge did not give out (text invented; the code is the documented one for cursors)."""
    return GraphError(100, "(#100) The cursor specified is not valid for this endpoint")


def bad_parameter(name: str, wanted: str) -> GraphError:
    """A parameter of the wrong type."""
    return GraphError(100, f"(#100) Param {name} must be {wanted}")


def bad_fields(message: str) -> GraphError:
    """2500: the field list cannot be parsed."""
    return GraphError(2500, message)


def no_token() -> GraphError:
    return GraphError(104, "An access token is required to request this resource.")


def bad_token() -> GraphError:
    return GraphError(190, "Invalid OAuth access token - Cannot parse access token")


def page_token_required() -> GraphError:
    """A user or app token where only a Page's token will do."""
    return GraphError(190, "(#190) This method must be called with a Page Access Token")


def proof_required() -> GraphError:
    message = "API calls from the server require an appsecret_proof argument"
    return GraphError(100, message, kind="GraphMethodException")


def proof_invalid() -> GraphError:
    message = "Invalid appsecret_proof provided in the API argument"
    return GraphError(100, message, kind="GraphMethodException")


def no_permission() -> GraphError:
    return GraphError(200, "(#200) Requires pages_messaging permission to manage the object", http=403)


def message_deleted() -> GraphError:
    """The answer for a message that is not among the 20 newest: "an error that the message has been deleted".
    Code and text are invented.
    """
    return GraphError(100, "(#100) The message has been deleted.")


def no_such_person() -> GraphError:
    """A send to somebody this Page does not know."""
    return GraphError(100, "(#100) No matching user found", subcode=2018001)


def required(name: str) -> GraphError:
    """A parameter that is not there."""
    return GraphError(100, f"(#100) The parameter {name} is required")


def no_profile() -> GraphError:
    return GraphError(100, "(#100) No profile available for this user.", subcode=2018218)


def too_fast() -> GraphError:
    """The limit of calls per second. That it is 613 is an inference from the edge's error table."""
    return GraphError(613, "(#613) Calls to this api have exceeded the rate limit.")


def application_limit() -> GraphError:
    """The calls of the whole app are used up (the status is not known for sure)."""
    return GraphError(4, "(#4) Application request limit reached", http=403)


def user_limit() -> GraphError:
    """The calls of a person are used up (text and status are not known for sure)."""
    return GraphError(17, "(#17) User request limit reached")


def page_limit() -> GraphError:
    """The calls about a Page with a person's token are used up."""
    return GraphError(32, "(#32) Page request limit reached")


def too_many_page_calls() -> GraphError:
    """The calls about a Page with its own token are used up."""
    message = (
        "(#80001) There have been too many calls to this Page account. Wait a bit and try again. For more "
        f"info, please refer to {LIMITS_HELP}."
    )
    return GraphError(80001, message)


def outside_window() -> GraphError:
    """A send to somebody who has not written for too long (recorded in public issues)."""
    message = (
        "(#10) This message is sent outside of allowed window. Learn more about the new policy here: "
        "https://developers.facebook.com/docs/messenger-platform/policy-overview"
    )
    return GraphError(10, message, subcode=2018278)


def too_many_messenger_calls() -> GraphError:
    """The Page's Messenger allowance is used up."""
    message = (
        "(#80006) There have been too many messenger api calls to this Page account. Wait a bit and try "
        f"again. For more info, please refer to {LIMITS_HELP}."
    )
    return GraphError(80006, message)


def batch_too_long(most: int) -> GraphError:
    """More items than a batch may have (the number is documented, the text is from memory)."""
    message = f"Too many requests in batch message. Maximum batch size is {most}"
    return GraphError(1, message, kind="GraphBatchException")
