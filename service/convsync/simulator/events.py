"""The `messaging` objects of webhooks, one builder for each kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convsync.simulator import content
from convsync.simulator.messages import Message
from convsync.simulator.population import Conversation

# The app id that echoes of answers written in the Page inbox carry (since v12).
PAGE_INBOX_APP_ID = 26390203743090


@dataclass(frozen=True, slots=True)
class Event:
    """One event: `field` is the subscription it belongs to, `body` the object in the entry's `channel`
    (`messaging` or `changes`), `mid` its message.
    """

    field: str
    body: dict[str, Any]
    mid: str | None = None
    channel: str = "messaging"


def _frame(conversation: Conversation, timestamp: int | None, *, from_page: bool = False) -> dict[str, Any]:
    person, page = {"id": conversation.psid}, {"id": conversation.population.page_id}
    sender, recipient = (page, person) if from_page else (person, page)
    frame: dict[str, Any] = {"sender": sender, "recipient": recipient}
    if timestamp is not None:
        frame["timestamp"] = timestamp
    return frame


def _webhook_attachments(message: Message) -> list[dict[str, Any]]:
    """Graph's attachments in the other form that webhooks use."""
    payload: dict[str, Any]
    if message.sticker is not None:
        payload = {"url": message.sticker, "sticker_id": message.sticker_id}
        return [{"type": "sticker", "payload": payload}]
    if message.share is not None:
        payload = {"url": message.share["link"], "title": message.share["name"] or ""}
        return [{"type": "fallback", "payload": payload}]
    found: list[dict[str, Any]] = []
    for attachment in message.attachments:
        if "image_data" in attachment:
            kind, url = "image", attachment["image_data"]["url"]
        elif "video_data" in attachment:
            kind, url = "video", attachment["video_data"]["url"]
        elif "file_url" in attachment:
            kind = "audio" if attachment["mime_type"].startswith("audio/") else "file"
            url = attachment["file_url"]
        else:
            found.append({"type": "file", "payload": None})
            continue
        found.append({"type": kind, "payload": {"url": url}})
    return found


def _message_body(conversation: Conversation, message: Message) -> dict[str, Any]:
    body: dict[str, Any] = {"mid": message.message_id}
    if message.text:
        body["text"] = message.text
    attachments = _webhook_attachments(message)
    if attachments:
        body["attachments"] = attachments
    if message.reply_to is not None:
        found = conversation.population.find_message(message.reply_to)
        own = found is not None and found[1].outbound == message.outbound
        body["reply_to"] = {"mid": message.reply_to, "is_self_reply": own}
    if message.unsupported:
        body["is_unsupported"] = True
    return body


def message_event(
    conversation: Conversation,
    message: Message,
    *,
    quick_reply: str | None = None,
    referral: str | None = None,
) -> Event:
    """A message the person wrote."""
    body = _message_body(conversation, message)
    if quick_reply is not None:
        body["quick_reply"] = {"payload": quick_reply}
    if referral is not None:
        body["referral"] = {"ref": referral, "ad_id": "6045246247433", "source": "ADS", "type": "OPEN_THREAD"}
    frame = _frame(conversation, message.created_ms)
    return Event("messages", {**frame, "message": body}, message.message_id)


def echo_event(
    conversation: Conversation,
    message: Message,
    *,
    app_id: int = PAGE_INBOX_APP_ID,
    metadata: str | None = None,
) -> Event:
    """A message the Page wrote: the sender is the Page, the recipient the person."""
    body: dict[str, Any] = {"is_echo": True, "app_id": app_id, **_message_body(conversation, message)}
    if metadata is not None:
        body["metadata"] = metadata
    frame = _frame(conversation, message.created_ms, from_page=True)
    return Event("message_echoes", {**frame, "message": body}, message.message_id)


def postback_event(
    conversation: Conversation,
    title: str,
    payload: str,
    timestamp: int,
    *,
    mid: str | None = None,
    referral: str | None = None,
) -> Event:
    """A pressed button. With a mid it is a message of the thread too, without one only the webhook tells."""
    body: dict[str, Any] = {"title": title, "payload": payload}
    if mid is not None:
        body = {"mid": mid, **body}
    if referral is not None:
        body["referral"] = {"ref": referral, "source": "SHORTLINK", "type": "OPEN_THREAD"}
    return Event("messaging_postbacks", {**_frame(conversation, timestamp), "postback": body}, mid)


def read_event(conversation: Conversation, watermark: int) -> Event:
    """The person has read everything of the Page up to the watermark (ms)."""
    return Event("message_reads", {**_frame(conversation, watermark), "read": {"watermark": watermark}})


def delivery_event(conversation: Conversation, watermark: int, mids: list[str]) -> Event:
    """The person's device has everything before the watermark (ms). No timestamp, as in Meta's sample."""
    body: dict[str, Any] = {"watermark": watermark}
    if mids:
        body["mids"] = mids
    return Event("message_deliveries", {**_frame(conversation, None), "delivery": body})


def reaction_event(conversation: Conversation, mid: str, reaction: str | None, timestamp: int) -> Event:
    """The person reacts to a message; None takes it back, and then there is neither emoji nor reaction."""
    body: dict[str, Any] = {"mid": mid, "action": "unreact"}
    if reaction is not None:
        emoji = dict(content.REACTIONS)[reaction]
        body = {"mid": mid, "action": "react", "reaction": reaction, "emoji": emoji}
    return Event("message_reactions", {**_frame(conversation, timestamp), "reaction": body}, mid)


def edit_event(conversation: Conversation, message: Message, timestamp: int) -> Event:
    """The person changed the text of their message."""
    body = {"mid": message.message_id, "text": message.text, "num_edit": message.edits}
    return Event(
        "message_edits", {**_frame(conversation, timestamp), "message_edit": body}, message.message_id
    )


def referral_event(conversation: Conversation, ref: str, timestamp: int) -> Event:
    """The person came back through an m.me link."""
    body = {"ref": ref, "source": "SHORTLINK", "type": "OPEN_THREAD"}
    return Event("messaging_referrals", {**_frame(conversation, timestamp), "referral": body})


def unsend_event(conversation: Conversation, message: Message, timestamp: int) -> Event:
    """A message was taken back. Documented for Instagram only; sent for a Page when a test asks for it."""
    body = {"mid": message.message_id, "is_deleted": True}
    frame = _frame(conversation, timestamp, from_page=message.outbound)
    return Event("messages", {**frame, "message": body}, message.message_id)


# -- what else comes


def optin_event(conversation: Conversation, timestamp: int) -> Event:
    """The person agreed to be written to."""
    body = {
        "type": "notification_messages",
        "payload": "NEWS",
        "notification_messages_token": f"4{conversation.psid}",
        "notification_messages_timezone": "Europe/Zurich",
        "notification_messages_status": "RESUME_NOTIFICATIONS",
        "title": "Neuigkeiten",
    }
    return Event("messaging_optins", {**_frame(conversation, timestamp), "optin": body})


def handover_event(conversation: Conversation, kind: str, timestamp: int) -> Event:
    """`pass`, `take` or `request`: another app gets the thread. App ids are strings in one sample, numbers in
    another, and the previous owner may be null.
    """
    body: dict[str, Any] = {"metadata": "please take over"}
    if kind == "request":
        body["requested_owner_app_id"] = PAGE_INBOX_APP_ID
    else:
        body["new_owner_app_id"] = str(PAGE_INBOX_APP_ID)
        body["previous_owner_app_id"] = None if kind == "pass" else 200000000000001
    return Event("messaging_handovers", {**_frame(conversation, timestamp), f"{kind}_thread_control": body})


def app_roles_event(conversation: Conversation, timestamp: int) -> Event:
    """Which app is the primary receiver; nobody is the sender of that."""
    body = {"200000000000001": ["primary_receiver"]}
    return Event("messaging_handovers", _without_sender(conversation, timestamp, "app_roles", body))


def policy_event(conversation: Conversation, action: str, timestamp: int) -> Event:
    """Meta warns, blocks or unblocks the Page. No sender, and no reason once it is over."""
    body = {"action": action}
    if action != "unblock":
        body["reason"] = "The bot violated our Platform Policies"
    event = _without_sender(conversation, timestamp, "policy_enforcement", body)
    return Event("messaging_policy_enforcement", event)


def account_linking_event(conversation: Conversation, code: str | None, timestamp: int) -> Event:
    """The person linked their account, or (no code) took that back."""
    body = {"status": "unlinked"} if code is None else {"status": "linked", "authorization_code": code}
    return Event("messaging_account_linking", {**_frame(conversation, timestamp), "account_linking": body})


def feedback_event(conversation: Conversation, mid: str, timestamp: int) -> Event:
    """The person says whether an answer was good."""
    body = {"feedback": "Good response", "mid": mid}
    return Event("response_feedback", {**_frame(conversation, timestamp), "response_feedback": body})


def order_event(conversation: Conversation, timestamp: int) -> Event:
    """The person sends a cart."""
    product = {
        "id": 123,
        "retailer_id": "bell-7",
        "name": "Fahrradglocke",
        "unit_price": 11,
        "currency": "CHF",
        "quantity": 1,
    }
    order = {"products": [product], "note": "please wrap it"}
    return Event("send_cart", {**_frame(conversation, timestamp), "order": order})


def unknown_event(conversation: Conversation, timestamp: int) -> Event:
    """A kind that no documentation knows yet (invented, as new ones come several times a year)."""
    body = {"mid": None, "mood": "curious", "levels": [1, 2, {"deep": True}]}
    return Event("messages", {**_frame(conversation, timestamp), "message_mood": body})


def thread_change_event(conversation: Conversation) -> Event:
    """Says that a thread changed and not how: go and read it."""
    value = {"thread_id": conversation.thread_id, "page_id": conversation.population.page_id}
    return Event("conversations", {"field": "conversations", "value": value}, channel="changes")


def label_event(conversation: Conversation, name: str) -> Event:
    """An agent put a label on the person in the Page's inbox."""
    value = {
        "user": {"id": conversation.psid},
        "action": "add",
        "label": {"id": "1100200300400", "page_label_name": name},
    }
    return Event("inbox_labels", {"field": "inbox_labels", "value": value}, channel="changes")


def _without_sender(
    conversation: Conversation, timestamp: int, kind: str, body: dict[str, Any]
) -> dict[str, Any]:
    return {"recipient": {"id": conversation.population.page_id}, "timestamp": timestamp, kind: body}
