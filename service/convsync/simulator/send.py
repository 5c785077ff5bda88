"""The Send API, as far as a reader needs it: what the Page sends is in the thread, its echo comes by webhook.

Source: developers.facebook.com, Messenger Platform, Send API. Not simulated: templates' looks, personas,
hand-over.
"""

from __future__ import annotations

from typing import Any

import orjson

from convsync.simulator import errors, events
from convsync.simulator.calling import GraphCall
from convsync.simulator.errors import GraphError
from convsync.simulator.messages import Message
from convsync.simulator.population import Conversation

_MOST_TEXT = 2000
_STANDARD_MS = 24 * 3_600_000
_HUMAN_AGENT_MS = 7 * 24 * 3_600_000
_ACTIONS = frozenset({"typing_on", "typing_off", "mark_seen"})
_KINDS = {"image": "image", "video": "video", "audio": "audio", "file": "file", "template": "share"}


async def send_message(call: GraphCall) -> dict[str, Any]:
    """`POST /{page}/messages`: `{"recipient_id", "message_id"}`. The echo is sent to the callback
    before the answer, as has been seen, or after it (`echo_before_answer`).
    """
    recipient = _object(call, "recipient")
    if recipient is None:
        raise errors.required("recipient")
    conversation = call.population.conversation_with(str(recipient.get("id", "")))
    if conversation is None:
        raise errors.no_such_person()
    action = call.parameters.get("sender_action")
    if action is not None:
        if action not in _ACTIONS:
            raise errors.bad_parameter("sender_action", f"one of {{{', '.join(sorted(_ACTIONS))}}}")
        if action == "mark_seen":
            call.population.read(conversation, by="page")
        return {"recipient_id": conversation.psid}
    message = _object(call, "message")
    if message is None:
        raise errors.required("message")
    if call.state.config.graph.messaging_window:
        _check_window(call, conversation)
    conversation, sent = _write(call, conversation, message)
    metadata = message.get("metadata")
    echo = events.echo_event(
        conversation,
        sent,
        app_id=int(call.state.config.app_id),
        metadata=metadata if isinstance(metadata, str) else None,
    )
    await call.state.webhooks.send_echo(call.population.page_id, echo)
    return {"recipient_id": conversation.psid, "message_id": sent.message_id}


def _check_window(call: GraphCall, conversation: Conversation) -> None:
    """The Page answers within 24 hours, an agent of flesh and blood within seven days. The other tags were
    retired on 27 April 2026 and are an invalid parameter since (seen in public issues).
    """
    tag = call.parameters.get("tag")
    if tag not in (None, "HUMAN_AGENT"):
        raise GraphError(100, "(#100) Invalid parameter")
    allowed = _STANDARD_MS if tag is None else _HUMAN_AGENT_MS
    messages = reversed(call.population.all_messages(conversation))
    last = next((message.created_ms for message in messages if not message.outbound), None)
    if last is None or call.population.now() - last > allowed:
        raise errors.outside_window()


def _write(
    call: GraphCall, conversation: Conversation, message: dict[str, Any]
) -> tuple[Conversation, Message]:
    text, attachment = message.get("text"), message.get("attachment")
    kind: str | None = None
    if isinstance(attachment, dict):
        kind = _KINDS.get(str(attachment.get("type")))
        if kind is None:
            raise errors.bad_parameter("message[attachment][type]", f"one of {{{', '.join(sorted(_KINDS))}}}")
    elif not isinstance(text, str) or not text:
        raise errors.bad_parameter("message", "an object with a text or an attachment")
    elif len(text) > _MOST_TEXT:
        raise errors.bad_parameter("message[text]", f"at most {_MOST_TEXT} characters long")
    reply = _object(call, "reply_to")
    return call.population.new_message(
        conversation,
        "out",
        text if isinstance(text, str) else "",
        kind=kind,
        reply_to=str(reply["mid"]) if reply is not None and "mid" in reply else None,
    )


def _object(call: GraphCall, name: str) -> dict[str, Any] | None:
    """A parameter that is a JSON object, None when it is not given."""
    text = call.parameters.get(name)
    if text is None:
        return None
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise errors.bad_parameter(name, "an object")
    return document
