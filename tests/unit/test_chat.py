"""A thread as a chat: receipts where they belong, and something to show whatever the platform said."""

from __future__ import annotations

from typing import Any

import pytest

from convsync.web.chat import Attachment, Entry, read_thread
from convsync.web.views import duration, local_path, size, web_address

PAGE = "100"
CONVERSATION: dict[str, Any] = {"page_id": PAGE, "read_watermark": None, "delivered_watermark": None}


def event(minute: int, direction: str = "in", **more: Any) -> dict[str, Any]:
    at = f"2026-03-01T12:{minute:02}:00+00:00"
    return {
        "message_id": f"m_{minute}",
        "event_type": "message",
        "direction": direction,
        "in_thread": True,
        "event_timestamp": at,
        "body": "text",
        "metadata": {},
        "edited_at": None,
        "deleted_at": None,
        **more,
    }


def entries(*newest_first: dict[str, Any], newest: bool = True, **marks: Any) -> list[Entry]:
    days = read_thread(CONVERSATION | marks, newest_first, newest=newest)
    return [entry for _, found in days for entry in found]


def test_a_thread_is_read_from_the_oldest_by_day() -> None:
    late = event(1, event_timestamp="2026-03-02T00:00:00+00:00", message_id="next day")
    days = read_thread(CONVERSATION, [late, event(59), event(5)])
    assert [(first[:10], [entry.message_id for entry in found]) for first, found in days] == [
        ("2026-03-01", ["m_5", "m_59"]),
        ("2026-03-02", ["next day"]),
    ]


@pytest.mark.parametrize(
    ("read", "delivered", "receipts"),
    [
        (None, None, [None, None, None]),
        (None, "12:02", [None, "Delivered", None]),
        ("12:02", "12:04", [None, "Read", "Delivered"]),
        ("12:04", "12:04", [None, None, "Read"]),
        ("12:04", None, [None, None, "Read"]),
        ("11:59", "12:01", ["Delivered", None, None]),
    ],
)
def test_receipts_stand_at_the_newest_message_of_the_page_that_they_reach(
    read: str | None, delivered: str | None, receipts: list[str | None]
) -> None:
    marks = {
        name: f"2026-03-01T{at}:30+00:00" if at else None
        for name, at in (("read_watermark", read), ("delivered_watermark", delivered))
    }
    thread = [event(5), event(4, "out"), event(3, "out", in_thread=False), event(2, "out"), event(1, "out")]
    ours = [entry for entry in entries(*thread, **marks) if entry.by_page and entry.in_thread]
    assert [entry.receipt for entry in ours] == receipts
    assert not any(entry.receipt for entry in entries(*thread, newest=False, **marks))


def test_what_was_taken_back_shows_nothing_of_itself() -> None:
    told = {
        "webhook": {"attachments": [{"type": "image", "payload": {"url": "https://x.example/p"}}]},
        "reactions": [{"actor": "7", "reaction": "love"}],
    }
    gone = event(1, deleted_at="2026-03-01T12:30:00+00:00", metadata=told, body="secret")
    answer = event(2, metadata={"webhook": {"reply_to": {"mid": "m_1"}}})
    taken_back, after = entries(answer, gone)
    assert (taken_back.text, taken_back.attachments, taken_back.reactions) == (None, [], [])
    assert after.answers == "a message"


def test_attachments_are_what_graph_says_of_them_or_else_the_webhook() -> None:
    webhook = {"attachments": [{"type": "audio", "payload": {"url": "https://x.example/a"}}]}
    graph = {
        "attachments": [
            {"mime_type": "image/jpeg", "name": "i", "size": 5, "image_data": {"url": "https://x.example/i"}},
            {"mime_type": "video/mp4", "name": "v", "video_data": {"url": "https://x.example/v"}},
            {"mime_type": "application/pdf", "name": "f", "file_url": "https://x.example/f"},
            {"id": "1", "name": "not available"},
        ],
        "shares": [{"name": "", "description": None, "link": "https://x.example/l"}],
        "sticker": "https://x.example/s",
    }
    (heard,) = entries(event(1, metadata={"webhook": webhook}))
    assert heard.attachments == [Attachment("audio", "audio", None, "https://x.example/a")]
    (read,) = entries(event(1, metadata={"webhook": webhook, "graph": graph}))
    assert read.attachments == [
        Attachment("image", "i", 5, "https://x.example/i"),
        Attachment("video", "v", None, "https://x.example/v"),
        Attachment("application", "f", None, "https://x.example/f"),
        Attachment("file", "not available"),
        Attachment("link", "https://x.example/l", None, "https://x.example/l"),
        Attachment("sticker", "sticker", None, "https://x.example/s"),
    ]


@pytest.mark.parametrize("odd", [None, 7, "x", [], [None, 7, "x", []], {}, {"a": []}, True])
def test_whatever_shape_it_has_something_can_be_shown(odd: Any) -> None:
    for metadata in (
        {"webhook": odd, "graph": odd, "reactions": odd},
        {
            name: {"attachments": odd, "shares": odd, "sticker": odd, "reply_to": odd}
            for name in ("webhook", "graph")
        },
        {
            "graph": {
                "attachments": [
                    {"image_data": odd, "video_data": odd, "name": odd, "size": odd, "file_url": odd}
                ]
            }
        },
        {"webhook": {"attachments": [{"type": odd, "payload": odd, "title": odd, "url": odd}]}},
        {"webhook": {"reply_to": {"mid": odd}}, "reactions": [{"actor": odd, "reaction": odd, "emoji": odd}]},
    ):
        (entry,) = entries(event(1, metadata=metadata))
        assert all(isinstance(one.name, str) and isinstance(one.kind, str) for one in entry.attachments)
        assert all(isinstance(one.emoji, str) and isinstance(one.name, str) for one in entry.reactions)


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ("https://x.example/p?a=1", True),
        ("http://x.example", True),
        ("javascript:alert(1)", False),
        ("JavaScript://x.example/%0aalert(1)", False),
        ("data:text/html,x", False),
        ("//x.example", False),
        ("https:x.example", False),
        ("http://[", False),
        ("", False),
        (None, False),
    ],
)
def test_only_an_address_of_the_web_becomes_a_link(value: object, is_one: bool) -> None:
    assert (web_address(value) == value) is (is_one or value is None)
    assert (web_address(value) is not None) is is_one


def test_a_way_out_of_the_console_is_no_place_to_go_on_to() -> None:
    for path in ("/", "/?a=1", "/console/changes?after=1-1-1"):
        assert local_path(path) == path
    for path in (
        None,
        7,
        "",
        "//x.example",
        "/\\x.example",
        "/console/\\x",
        "https://x.example",
        "/api/pages",
        "/console/ä",
    ):
        assert local_path(path) == "/"


def test_numbers_are_told_in_words() -> None:
    assert [duration(one) for one in (0, 59.6, 61, 3600, 90_000, None)] == [
        "0 s",
        "1 min 0 s",
        "1 min 1 s",
        "1 h 0 min",
        "1 d 1 h",
        "unknown",
    ]
    assert [size(one) for one in (0, 999, 1500, 2_500_000)] == ["0 bytes", "999 bytes", "2 kB", "2.5 MB"]
