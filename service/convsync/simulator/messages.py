"""One message, and the generated past of one conversation."""

from __future__ import annotations

import base64
import hashlib
from binascii import b2a_base64
from collections.abc import Sequence
from random import Random
from typing import Any

from convsync.simulator import content

_ID_BYTES = 60
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class Message:
    """A message as Facebook holds it. `created_ms` is Unix milliseconds; Graph shows whole seconds of it.

    `number` counts the messages of the conversation from 0 in the order they were made. `outbound` is written
    by the Page. An unsent (`deleted`) message is kept for the truth but never shown by Graph.
    """

    # Most messages have none of these, and millions are made: what is not set costs nothing.
    attachments: tuple[dict[str, Any], ...] = ()
    sticker: str | None = None
    sticker_id: int | None = None
    share: dict[str, Any] | None = None
    reply_to: str | None = None
    reactions: Sequence[tuple[str, str]] = ()
    """(who, reaction): who is `page` or `person`."""
    source: str = "source:chat"
    postback_payload: str | None = None
    unsupported: bool = False
    edits: int = 0
    deleted: bool = False
    _id: str | None = None

    def __init__(
        self, ids: MessageIds, conversation: int, number: int, created_ms: int, outbound: bool, text: str = ""
    ) -> None:
        self.number = number
        self.created_ms = created_ms
        self.outbound = outbound
        self.text = text
        self._ids = ids
        self._conversation = conversation

    @property
    def message_id(self) -> str:
        # Made when somebody asks: of a long thread mostly the end is looked at.
        if self._id is None:
            self._id = self._ids.make(self._conversation, self.number)
        return self._id

    @property
    def key(self) -> tuple[int, int]:
        """Its place in the conversation; ascending is oldest first."""
        return (self.created_ms, self.number)


class MessageIds:
    """Message ids that look like Facebook's (`m_` and base64url) and can be traced back without a table.

    A million messages are never all in memory, so the id itself holds conversation and number, scrambled.
    """

    __slots__ = ("_keyed", "_mask")

    def __init__(self, secret: str) -> None:
        key = hashlib.blake2b(secret.encode(), digest_size=32).digest()
        self._keyed = hashlib.blake2b(key=key, digest_size=_ID_BYTES - 8)
        self._mask = int.from_bytes(key[:8], "big")

    def make(self, conversation: int, number: int) -> str:
        place = (conversation << 32) | number
        keyed = self._keyed.copy()
        keyed.update(place.to_bytes(8, "big"))
        digest = keyed.digest()
        hidden = place ^ self._mask ^ int.from_bytes(digest[:8], "big")
        raw = b"%b%b%b" % (digest[:8], hidden.to_bytes(8, "big"), digest[8:])
        return "m_" + b2a_base64(raw, newline=False).translate(_URL_SAFE).decode("ascii")

    def find(self, message_id: str) -> tuple[int, int] | None:
        """(conversation, number) an id was made from, None for any other string."""
        if not message_id.startswith("m_") or len(message_id) != 2 + _ID_BYTES * 4 // 3:
            return None
        try:
            raw = base64.urlsafe_b64decode(message_id[2:])
        except ValueError:
            return None
        place = int.from_bytes(raw[8:16], "big") ^ self._mask ^ int.from_bytes(raw[:8], "big")
        found = (place >> 32, place & 0xFFFFFFFF)
        return found if self.make(*found) == message_id else None


def attach(message: Message, kind: str, rng: Random) -> None:
    """Put something of a kind on a message: sticker, share, unsupported, or an attachment kind."""
    if kind == "sticker":
        message.sticker_id = content.STICKERS[int(rng.random() * len(content.STICKERS))]
        message.sticker = content.sticker_url(message.sticker_id, rng)
        picture = content.attachment(rng, "image")
        picture["image_data"]["render_as_sticker"] = True
        picture["image_data"]["url"] = message.sticker
        message.attachments = (picture,)
    elif kind == "share":
        message.share = content.share(rng)
    elif kind == "unsupported":
        message.unsupported = True
    elif kind == "album":
        message.attachments = tuple(
            content.attachment(rng, "image") for _ in range(2 + int(rng.random() * 4))
        )
    else:
        message.attachments = (content.attachment(rng, kind),)


# What a message without text carries, by weight of repetition.
_WITHOUT_TEXT = (
    *("image",) * 8,
    *("sticker",) * 6,
    *("video",) * 2,
    *("audio",) * 2,
    *("file",) * 2,
    "gif",
    "album",
    "share",
    "eu",
    "unsupported",
)
_SOURCES = ("source:chat", "source:mobile", "source:web", "source:chat:web")


def past(ids: MessageIds, conversation: int, count: int, last_ms: int, rng: Random) -> list[Message]:
    """The `count` messages of a conversation that end at `last_ms`, oldest first.

    The same arguments and a generator in the same state give the same messages. People write in bursts: some
    messages share a second, most follow within minutes, now and then a thread sleeps for days.
    """
    random = rng.random
    times = [last_ms]
    moment = last_ms
    for _ in range(count - 1):
        draw = random()
        if draw < 0.05:
            gap = draw * 10_000
        elif draw < 0.8:
            gap = 1_000 + random() ** 2 * 600_000
        else:
            gap = 600_000 + random() ** 4 * 2 * 86_400_000
        moment -= 1 + int(gap)
        times.append(moment)
    times.reverse()

    messages: list[Message] = []
    text = content.text
    outbound = random() < 0.15
    for number, created_ms in enumerate(times):
        message = Message(ids, conversation, number, created_ms, outbound)
        draw = random()
        if draw < 0.88:
            message.text = text(rng)
        else:
            attach(message, _WITHOUT_TEXT[int(random() * len(_WITHOUT_TEXT))], rng)
            if draw < 0.91 and not message.unsupported and message.sticker is None:
                message.text = text(rng)
        draw = random()
        if draw < 0.03:
            author = "page" if draw < 0.015 else "person"
            message.reactions = ((author, content.REACTIONS[int(draw * 1e6) % len(content.REACTIONS)][0]),)
        elif draw < 0.06 and number:
            message.reply_to = messages[int(random() * number)].message_id
        elif draw < 0.2:
            message.source = _SOURCES[int(draw * 1e6) % len(_SOURCES)]
        messages.append(message)
        if random() < 0.55:
            outbound = not outbound
    return messages
