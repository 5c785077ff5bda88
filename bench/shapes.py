"""The data: deliveries as Meta sends them, histories as Graph tells them. The same seed, the same data."""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from convsync.facts import Fact, Message, Thread

PAGES = tuple(str(1_000_000_000_000 + number) for number in range(5))
PEOPLE = 500
START = datetime(2026, 1, 1, tzinfo=UTC)
HISTORY_CONVERSATIONS = 100
MESSAGES_EACH = 25

_WORDS = (
    *(
        "hello",
        "thanks",
        "please",
        "order",
        "delivery",
        "size",
        "colour",
        "blue",
        "green",
        "tomorrow",
        "today",
    ),
    *("when", "where", "price", "shop", "open", "closed", "question", "answer", "photo", "address", "phone"),
    *("ready", "waiting", "received", "sent", "again", "sorry", "great", "perfect"),
)


def message_id(seed: str, number: int) -> str:
    """As long as Messenger's own (90 characters), and as unordered."""
    digest = hashlib.sha512(f"{seed}:{number}".encode()).digest()
    return "m_" + base64.urlsafe_b64encode(digest).decode().rstrip("=") + "0Q"


def text(rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(3, 16)))


class Delivery(NamedTuple):
    """One message as Meta delivers it: a signed HTTP request."""

    message_id: str
    page_id: str
    sender_id: str
    request: bytes


def deliveries(secret: str, seed: str, host: str, people: int = PEOPLE) -> Iterator[Delivery]:
    """Deliveries without end: one new message each, of so many people on 5 Pages."""
    rng = random.Random(seed)  # noqa: S311 - data, no secret
    texts = [text(rng) for _ in range(200)]
    key = secret.encode()
    at = int(START.timestamp() * 1000)
    number = 0
    while True:
        number += 1
        person = rng.randrange(people)
        page = PAGES[person % len(PAGES)]
        sender = str(7_000_000_000_000_000 + person)
        mid = message_id(seed, number)
        body = (
            f'{{"object":"page","entry":[{{"id":"{page}","time":{at + number},"messaging":[{{"sender":{{"id":'
            f'"{sender}"}},"recipient":{{"id":"{page}"}},"timestamp":{at + number},'
            f'"message":{{"mid":"{mid}","text":"{rng.choice(texts)}"}}}}]}}]}}'
        ).encode()
        signature = hmac.digest(key, body, "sha256").hex()
        request = (
            f"POST /api/webhook HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"X-Hub-Signature-256: sha256={signature}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        yield Delivery(mid, page, sender, request)


def history(page_id: str, seed: str, batch: int) -> list[Fact]:
    """What a page of a first sync brings: 100 conversations with 25 messages each, and their threads."""
    rng = random.Random(f"{seed}:{batch}")  # noqa: S311 - data, no secret
    observed = START + timedelta(days=100)
    facts: list[Fact] = []
    for place in range(HISTORY_CONVERSATIONS):
        number = batch * HISTORY_CONVERSATIONS + place
        person = str(8_000_000_000_000_000 + number)
        newest = START + timedelta(days=90) - timedelta(minutes=number)
        fields = {
            "name": f"Person {number}",
            "unread_count": rng.randrange(3),
            "snippet": text(rng),
            "can_reply": True,
            "reported_count": MESSAGES_EACH,
            "updated_time": newest.isoformat(),
        }
        facts.append(Thread(page_id, person, f"t_{number}", observed, fields))
        for back in range(MESSAGES_EACH):
            graph: dict[str, object] = {"tags": ["inbox", "source:mobile"]}
            words: str | None = text(rng)
            if rng.random() < 0.1:
                words = None
                image = f"https://scontent.example/v/{hashlib.sha256(f'{number}:{back}'.encode()).hexdigest()}.jpg"
                graph["attachments"] = [
                    {"id": str(number), "mime_type": "image/jpeg", "image_data": {"width": 960, "url": image}}
                ]
            facts.append(
                Message(
                    page_id=page_id,
                    sender_id=person,
                    message_id=message_id(f"{seed}:{page_id}", number * MESSAGES_EACH + back),
                    direction="out" if back % 2 else "in",
                    at=newest - timedelta(seconds=97 * back),
                    text=words,
                    metadata={"graph": graph},
                    observed_at=observed,
                )
            )
    return facts


def live(
    seed: str, number: int, count: int, people: Sequence[tuple[str, str]], after: datetime
) -> list[Fact]:
    """What a group commit brings: `count` new messages of known people, each later than all before."""
    rng = random.Random(f"{seed}:{number}")  # noqa: S311 - data, no secret
    facts: list[Fact] = []
    for place in range(count):
        page_id, person = rng.choice(people)
        facts.append(
            Message(
                page_id=page_id,
                sender_id=person,
                message_id=message_id(seed, number * count + place),
                direction="in",
                at=after + timedelta(milliseconds=number * count + place),
                text=text(rng),
                metadata={"webhook": {}},
            )
        )
    return facts
