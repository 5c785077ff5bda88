"""From Graph's answers, in all the shapes they come in, to facts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsync.facts import DeadLetter, Message, Thread, dump
from convsync.graph.catalogue import ErrorClass
from convsync.graph.errors import GraphError
from convsync.graph.reading import (
    LIST_FIELDS,
    ListPage,
    MessagesPage,
    list_fields,
    message_fields,
    read_conversations,
    read_messages,
)
from secrets_hunt import marked

T = TypeVar("T")
PAGE = "700100"
ANNA = "810001"
SEEN = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
TOKEN = marked("EAAtestToken")


def person(person_id: Any, name: Any = "Somebody") -> dict[str, Any]:
    return {"id": person_id, "name": name, "email": f"{person_id}@facebook.com"}


def message(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"m_{number}",
        "created_time": f"2026-11-20T09:00:{number:02}+0000",
        "from": person(ANNA, "Anna"),
        "to": {"data": [person(PAGE, "The Page")]},
        "message": f"text {number}",
        **fields,
    }


def thread(**fields: Any) -> dict[str, Any]:
    return {
        "id": "t_1",
        "updated_time": "2026-11-20T09:00:00+0000",
        "message_count": 2,
        "participants": {"data": [person(ANNA, "Anna"), person(PAGE, "The Page")]},
        "messages": {"data": [message(2), message(1)]},
        **fields,
    }


def paging(after: str | None = "NEXT", *, more: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {"cursors": {"before": "FIRST", "after": after}}
    if more:
        found["next"] = f"https://graph.example/v26.0/1/x?access_token={TOKEN}&limit=25&after={after}"
    return found


def listed(*items: Any, **more: Any) -> ListPage:
    page = read_conversations(PAGE, {"data": list(items), **more}, SEEN)
    assert TOKEN not in dump(page.facts)
    return page


def messages(*items: Any, **more: Any) -> MessagesPage:
    page = read_messages(PAGE, "t_1", ANNA, {"data": list(items), **more}, SEEN)
    assert TOKEN not in dump(page.facts)
    return page


def only(page: ListPage | MessagesPage, kind: type[T]) -> list[T]:
    return [fact for fact in page.facts if isinstance(fact, kind)]


def one_message(**fields: Any) -> Message:
    found = only(messages(message(**fields)), Message)
    assert len(found) == 1
    return found[0]


def test_a_conversation_becomes_a_thread_and_its_messages() -> None:
    page = listed(thread(unread_count=3, snippet="text 2", can_reply=True))
    assert page.facts[0] == Thread(
        PAGE,
        ANNA,
        "t_1",
        SEEN,
        {
            "name": "Anna",
            "unread_count": 3,
            "snippet": "text 2",
            "can_reply": True,
            "reported_count": 2,
            "updated_time": "2026-11-20T09:00:00+00:00",
        },
    )
    assert page.facts[2] == Message(
        page_id=PAGE,
        sender_id=ANNA,
        message_id="m_1",
        direction="in",
        at=datetime(2026, 11, 20, 9, 0, 1, tzinfo=UTC),
        text="text 1",
        metadata={"graph": {}},
        observed_at=SEEN,
        thread_id="t_1",
    )
    assert page.threads == [
        {
            "thread_id": "t_1",
            "sender_id": ANNA,
            "updated_time": "2026-11-20T09:00:00+00:00",
            "message_count": 2,
            "newest_id": "m_2",
            "newest": "2026-11-20T09:00:02+00:00",
            "oldest": "2026-11-20T09:00:01+00:00",
            "next_cursor": None,
            "read": "complete",
            "unreadable": 0,
            "unreadable_ids": [],
            "nameless": 0,
        }
    ]
    assert (page.next_cursor, page.unreadable) == (None, 0)


def test_lists_are_read_with_and_without_their_data_wrapper() -> None:
    wrapped = listed(thread(messages={"data": [message(1, tags={"data": [{"name": "inbox"}]})]}))
    bare = listed(
        thread(
            participants=[person(ANNA, "Anna"), person(PAGE)],
            messages=[message(1, to=[person(PAGE)], tags=[{"name": "inbox"}])],
        )
    )
    assert wrapped.facts == bare.facts


@pytest.mark.parametrize("empty", [None, {"data": None}, {"data": []}, {}, [], "odd", 7])
def test_no_participants_of_any_shape_make_the_thread_its_own_customer(empty: Any) -> None:
    page = listed(thread(participants=empty, messages={"data": []}))
    [found] = only(page, Thread)
    assert found.sender_id == "thread:t_1"
    assert found.fields["name"] is None
    assert page.threads[0]["sender_id"] == "thread:t_1"
    assert only(page, DeadLetter) == []


def test_absent_participants_make_the_thread_its_own_customer_too() -> None:
    item = thread()
    del item["participants"]
    assert listed(item).threads[0]["sender_id"] == "thread:t_1"


def test_of_ten_participants_six_land_and_three_are_dead_letters_and_the_page_is_skipped() -> None:
    valid = [person(str(820000 + number), f"Name {number}") for number in range(6)]
    people = [*valid[:2], None, *valid[2:4], "a text", person(PAGE), {"name": "No Id"}, *valid[4:]]
    assert len(people) == 10
    page = listed(thread(participants={"data": people}))
    assert {fact.sender_id for fact in only(page, Thread)} == {str(820000 + number) for number in range(6)}
    letters = {letter.reason: letter.raw for letter in only(page, DeadLetter)}
    assert letters == {
        "participants[2]: null (t_1)": b"null",
        "participants[5]: not an object (t_1)": b'"a text"',
        "participants[7].id: missing (t_1)": b'{"name":"No Id"}',
    }
    assert page.threads[0]["sender_id"] == "820000"
    assert len(only(page, Message)) == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "null"),
        ("", "empty"),
        ("  ", "empty"),
        (True, "not an id"),
        (1.5, "not an id"),
        ({}, "not an id"),
        ("x" * 600, "longer than 512 characters"),
    ],
)
def test_ids_are_strict(bad: Any, reason: str) -> None:
    page = listed(thread(participants=[{"id": bad}, person(ANNA)]), thread(id=bad))
    assert [letter.reason for letter in only(page, DeadLetter)] == [
        f"participants[0].id: {reason} (t_1)",
        f"conversation.id: {reason}",
    ]
    assert page.unreadable == 1
    assert len(page.threads) == 1


def test_numbers_for_ids_are_the_same_ids() -> None:
    page = listed(
        thread(
            participants=[person(int(ANNA), "Anna"), person(int(PAGE))],
            messages=[message(1, **{"from": person(int(PAGE)), "to": [person(int(ANNA))]})],
        )
    )
    assert only(page, Thread)[0].sender_id == ANNA
    assert (only(page, Message)[0].sender_id, only(page, Message)[0].direction) == (ANNA, "out")


def test_a_customer_without_id_keeps_the_name_on_the_threads_own_key() -> None:
    page = listed(thread(participants=[{"name": "Anna"}, person(PAGE)]))
    [found] = only(page, Thread)
    assert (found.sender_id, found.fields["name"]) == ("thread:t_1", "Anna")
    assert [letter.reason for letter in only(page, DeadLetter)] == ["participants[0].id: missing (t_1)"]


def test_of_several_customers_without_id_none_lends_the_thread_a_name() -> None:
    [found] = only(listed(thread(participants=[{"name": "Anna"}, {"name": "Ben"}, person(PAGE)])), Thread)
    assert found.fields["name"] is None


def test_somebody_listed_twice_is_one_person_with_a_name() -> None:
    [found] = only(listed(thread(participants=[{"id": ANNA}, person(ANNA, "Anna")])), Thread)
    assert found.fields["name"] == "Anna"


def test_an_empty_name_is_no_name() -> None:
    [found] = only(listed(thread(participants=[person(ANNA, " ")])), Thread)
    assert found.fields["name"] is None


def test_what_was_asked_for_and_is_absent_is_none_and_unread_is_zero() -> None:
    [found] = only(listed({"id": "t_1", "participants": [{"id": ANNA}]}), Thread)
    assert found.fields == {
        "name": None,
        "unread_count": 0,
        "snippet": None,
        "can_reply": None,
        "reported_count": None,
        "updated_time": None,
    }


def test_what_was_not_asked_for_is_not_said() -> None:
    body = {"data": [thread()]}
    page = read_conversations(PAGE, body, SEEN, [name for name in LIST_FIELDS if name != "unread_count"])
    assert "unread_count" not in only(page, Thread)[0].fields


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-20T09:00:01+0000", datetime(2026, 11, 20, 9, 0, 1, tzinfo=UTC)),
        ("2026-11-20T10:00:01+01:00", datetime(2026, 11, 20, 9, 0, 1, tzinfo=UTC)),
        ("2026-11-20T09:00:01Z", datetime(2026, 11, 20, 9, 0, 1, tzinfo=UTC)),
        ("2026-11-20T09:00:01", datetime(2026, 11, 20, 9, 0, 1, tzinfo=UTC)),
        (1795165201, datetime(2026, 11, 20, 9, 0, 1, tzinfo=UTC)),
        ("1795165201", datetime(2026, 11, 20, 9, 0, 1, tzinfo=UTC)),
        (1795165201123, datetime(2026, 11, 20, 9, 0, 1, 123000, tzinfo=UTC)),
    ],
)
def test_times_are_read_in_every_form(text: Any, expected: datetime) -> None:
    assert one_message(created_time=text).at == expected


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "null"),
        ("UNIX-TIMESTAMP", "not a time"),
        ("", "not a time"),
        ([], "not a time"),
        (True, "not a time"),
        (10**30, "not a time"),
        ("9" * 5000, "not a time"),
        ("0001-01-01T00:00:00+1400", "not a time"),
    ],
)
def test_a_message_whose_time_cannot_be_read_is_a_dead_letter_and_its_sibling_lands(
    bad: Any, reason: str
) -> None:
    page = messages(message(1, created_time=bad), message(2))
    assert [letter.reason for letter in only(page, DeadLetter)] == [f"message.created_time: {reason} (t_1)"]
    assert [fact.message_id for fact in only(page, Message)] == ["m_2"]
    assert page.unreadable == 1


def test_a_conversation_whose_time_cannot_be_read_is_kept() -> None:
    page = listed(thread(updated_time="UNIX-TIMESTAMP"))
    assert page.threads[0]["updated_time"] is None
    assert page.unreadable == 0


def test_messages_without_id_or_time_are_unreadable_and_named() -> None:
    broken: list[Any] = [None, 7, {"created_time": "2026-11-20T09:00:00+0000"}, {"id": "m_9"}]
    page = listed(thread(messages={"data": [message(1), *broken]}))
    assert [letter.reason for letter in only(page, DeadLetter)] == [
        "message: null (t_1)",
        "message: not an object (t_1)",
        "message.id: missing (t_1)",
        "message.created_time: missing (t_1)",
    ]
    assert page.threads[0]["unreadable"] == 4
    assert page.unreadable == 4


def test_a_conversation_without_id_is_a_dead_letter_without_the_tokens_in_its_links() -> None:
    item = thread(messages={"data": [message(1)], "paging": paging()})
    del item["id"]
    page = listed(item, None, thread(id="t_2"))
    first, second = only(page, DeadLetter)
    assert first.reason == "conversation.id: missing"
    assert second.reason == "conversation: null"
    assert "paging" not in orjson.loads(first.raw)["messages"]
    assert [found["thread_id"] for found in page.threads] == ["t_2"]
    assert page.unreadable == 2


def test_dead_letter_has_no_token_wherever_meta_put_it() -> None:
    link = f"https://cdn.example/a.png?access_token={TOKEN}&oh=1"
    item = message(1, attachments={"data": [{"id": "1", "file_url": link}], "next": paging()["next"]})
    del item["id"]
    [letter] = only(messages(item, paging=paging()), DeadLetter)
    assert TOKEN.encode() not in letter.raw
    assert b"https://cdn.example/a.png?access_token=[redacted]&oh=1" in letter.raw
    [wholly] = only(listed({**thread(), "id": None, "paging": paging()["next"]}), DeadLetter)
    assert TOKEN.encode() not in wholly.raw


def test_nested_messages_that_go_on_give_the_cursor_to_go_on_at() -> None:
    page = listed(thread(messages={"data": [message(2)], "paging": paging("DEEPER")}))
    assert (page.threads[0]["read"], page.threads[0]["next_cursor"]) == ("more", "DEEPER")


def test_cursors_without_next_are_the_end() -> None:
    page = listed(
        thread(messages={"data": [message(2)], "paging": paging(more=False)}), paging=paging(more=False)
    )
    assert page.threads[0]["read"] == "complete"
    assert page.next_cursor is None


def test_messages_that_did_not_come_are_unread_unless_there_are_none() -> None:
    silent, empty, unknown = thread(id="t_1"), thread(id="t_2", message_count=0), thread(id="t_3")
    for item in (silent, empty, unknown):
        del item["messages"]
    del unknown["message_count"]
    page = listed(silent, empty, unknown, thread(id="t_4", messages=None), thread(id="t_5", messages="odd"))
    assert [found["read"] for found in page.threads] == ["unread", "complete", "unread", "unread", "unread"]


def test_nested_messages_that_go_on_without_a_cursor_are_read_from_the_front() -> None:
    old = {"next": "https://graph.example/v2.8/t_1/messages?until=1333000000&__paging_token=x"}
    page = listed(thread(messages={"data": [message(2)], "paging": old}))
    assert (page.threads[0]["read"], page.threads[0]["next_cursor"]) == ("unread", None)
    assert len(only(page, Message)) == 1


def test_an_empty_page_with_next_goes_on() -> None:
    assert listed(paging=paging("GOES_ON")).next_cursor == "GOES_ON"
    assert messages(paging=paging("GOES_ON")).next_cursor == "GOES_ON"


@pytest.mark.parametrize("cursors", [None, {}, {"after": None}, {"after": ""}, "odd"])
def test_without_cursors_the_cursor_is_taken_from_the_next_link(cursors: Any) -> None:
    link = f"https://graph.example/x?access_token={TOKEN}&after=QVFI%3D%3D&limit=25"
    assert messages(message(), paging={"cursors": cursors, "next": link}).next_cursor == "QVFI=="


def test_a_list_that_goes_on_without_any_cursor_is_not_taken_for_its_end() -> None:
    with pytest.raises(GraphError) as caught:
        messages(message(), paging={"next": "https://graph.example/x?until=1"})
    assert caught.value.error_class is ErrorClass.TRANSIENT


@pytest.mark.parametrize("body", [{}, {"data": "odd"}, {"data": {"a": 1}}, {"success": True}])
def test_an_answer_without_a_list_is_not_taken_for_an_empty_one(body: dict[str, Any]) -> None:
    with pytest.raises(GraphError):
        read_messages(PAGE, "t_1", ANNA, body, SEEN)
    with pytest.raises(GraphError):
        read_conversations(PAGE, body, SEEN)


def test_null_for_a_list_is_an_empty_one() -> None:
    assert read_messages(PAGE, "t_1", ANNA, {"data": None}, SEEN).facts == []


def test_a_message_of_the_page_goes_out_to_the_first_receiver_that_is_not_the_page() -> None:
    sent = one_message(**{"from": person(PAGE), "to": {"data": [person(PAGE), person("820001")]}})
    assert (sent.direction, sent.sender_id) == ("out", "820001")


def test_a_message_of_the_page_to_nobody_belongs_to_the_owner() -> None:
    for nobody in (None, {"data": []}, {"data": [None, {}, {"name": "gone"}]}, "odd"):
        sent = one_message(**{"from": person(PAGE), "to": nobody})
        assert (sent.direction, sent.sender_id) == ("out", ANNA)


@pytest.mark.parametrize("author", [None, {}, {"name": "Facebook User"}, "odd", [], {"id": ""}])
def test_a_message_without_an_author_came_in_under_the_owner(author: Any) -> None:
    found = one_message(**{"from": author})
    assert (found.direction, found.sender_id) == ("in", ANNA)


def test_a_message_of_somebody_else_in_the_thread_belongs_to_them() -> None:
    found = one_message(**{"from": person("830001")})
    assert (found.direction, found.sender_id) == ("in", "830001")


def test_no_text_is_none() -> None:
    assert one_message(message="").text is None
    assert one_message(message=None).text is None
    strange = one_message(message={"odd": 1})
    assert strange.text is None
    assert strange.metadata["graph"]["message"] == {"odd": 1}


def test_everything_else_of_a_message_is_kept_plain() -> None:
    found = one_message(
        attachments={
            "data": [
                {
                    "id": "1",
                    "mime_type": "image/png",
                    "size": None,
                    "image_data": {"url": f"https://cdn.example/a.png?access_token={TOKEN}&oh=1", "width": 5},
                }
            ],
            "paging": paging("MAZDZD"),
        },
        shares={
            "data": [{"link": "https://example.org/", "id": None, "elements": {"data": [{"price": "$1"}]}}]
        },
        tags={"data": [{"name": "inbox"}, {"name": "source:web"}, {"odd": 1}]},
        sticker="https://cdn.example/s.png",
        reply_to={"mid": "m_0", "is_self_reply": True},
        is_unsupported="true",
        brand_new_field={"data": [1, 2], "paging": {}},
    )
    assert found.metadata["graph"] == {
        "attachments": [
            {
                "id": "1",
                "mime_type": "image/png",
                "size": None,
                "image_data": {
                    "url": "https://cdn.example/a.png?access_token=[redacted]&oh=1",
                    "width": 5,
                },
            }
        ],
        "shares": [{"link": "https://example.org/", "id": None, "elements": [{"price": "$1"}]}],
        "tags": ["inbox", "source:web", {"odd": 1}],
        "sticker": "https://cdn.example/s.png",
        "reply_to": {"mid": "m_0", "is_self_reply": True},
        "is_unsupported": "true",
        "brand_new_field": [1, 2],
    }


def test_names_of_people_stay_out_of_the_message_and_unknown_fields_stay_in() -> None:
    found = one_message(
        **{"from": {**person(ANNA, "Anna"), "user_id": 5}, "to": [person(PAGE), {**person("840001"), "x": 1}]}
    )
    assert found.metadata["graph"] == {
        "from": {"id": ANNA, "user_id": 5},
        "to": [{"id": PAGE}, {"id": "840001", "x": 1}],
    }


def test_reactions_become_one_entry_per_actor() -> None:
    found = one_message(
        reactions={
            "data": [
                {"reaction": "love", "emoji": "❤", "users": [person(ANNA), {"id": int(PAGE)}]},
                {"reaction": "like", "users": {"data": [{"id": "850001"}]}},
                {"reaction": "sad", "users": [{"name": "gone"}]},
            ]
        }
    )
    assert found.metadata["graph"] == {
        "reactions": [
            {"actor": ANNA, "reaction": "love", "emoji": "❤"},
            {"actor": PAGE, "reaction": "love", "emoji": "❤"},
            {"actor": "850001", "reaction": "like", "emoji": None},
        ],
        "unclear_reactions": [{"reaction": "sad", "users": [{"name": "gone"}]}],
    }


@pytest.mark.parametrize("odd", [None, 7, "love", {}, [None, 7], {"reaction": "love"}])
def test_reactions_of_any_shape_do_not_stop_the_message(odd: Any) -> None:
    assert one_message(reactions=odd).metadata["graph"]["reactions"] == []


def test_a_placeholder_instead_of_an_attachment_is_kept() -> None:
    placeholder = {"id": "1", "name": "Media not available due to new privacy rules in Europe."}
    assert one_message(attachments={"data": [placeholder]}).metadata["graph"]["attachments"] == [placeholder]


def test_text_that_looks_like_a_link_with_a_token_is_left_as_it_was_written() -> None:
    text = "see https://example.org/?access_token=abc"
    page = read_messages(PAGE, "t_1", ANNA, {"data": [message(1, message=text)]}, SEEN)
    assert only(page, Message)[0].text == text


def test_a_lone_surrogate_in_a_bad_item_still_makes_a_dead_letter() -> None:
    page = messages({"message": "half \ud83d", "created_time": "x"})
    [letter] = only(page, DeadLetter)
    assert orjson.loads(letter.raw)["message"] == "half \ufffd"


def test_the_newest_id_goes_by_time_and_then_by_place() -> None:
    items = [message(1), message(5), message(6, created_time="2026-11-20T09:00:05+0000"), message(3)]
    assert listed(thread(messages=items)).threads[0]["newest_id"] == "m_5"
    page = messages(*items)
    assert (page.newest_id, page.newest) == ("m_5", datetime(2026, 11, 20, 9, 0, 5, tzinfo=UTC))


def test_the_oldest_message_is_told_only_if_the_page_came_newest_first() -> None:
    """Else it says nothing of what the next page holds."""
    assert messages(message(5), message(5, id="m_5b"), message(3)).oldest == datetime(
        2026, 11, 20, 9, 0, 3, tzinfo=UTC
    )
    assert messages(message(5), message(1), message(3)).oldest is None
    assert listed(thread(messages=[message(1), message(2)])).threads[0]["oldest"] is None
    assert messages().oldest is None


def test_the_page_knows_its_newest_and_oldest_conversation() -> None:
    page = listed(
        thread(id="t_1", updated_time="2026-11-01T00:00:00+0000"),
        thread(id="t_2", updated_time="2026-11-03T00:00:00+0000"),
        thread(id="t_3", updated_time=None),
    )
    assert page.newest_updated == datetime(2026, 11, 3, tzinfo=UTC)
    assert page.oldest_updated == datetime(2026, 11, 1, tzinfo=UTC)


def test_counts_are_read_from_strings_and_nonsense_is_absent() -> None:
    page = listed(
        thread(id="t_1", message_count="93", unread_count="4"),
        thread(id="t_2", message_count=-1, unread_count=[], snippet=5, can_reply="true"),
    )
    first, second = only(page, Thread)
    assert (first.fields["reported_count"], first.fields["unread_count"]) == (93, 4)
    assert (second.fields["reported_count"], second.fields["unread_count"]) == (None, 0)
    assert (second.fields["snippet"], second.fields["can_reply"]) == (None, True)


def test_the_fields_of_a_request_can_do_without_messages_and_without_a_refused_field() -> None:
    assert list_fields(0) == ",".join(LIST_FIELDS)
    assert ",messages.limit(25){id,created_time,from," in list_fields(25)
    assert "reply_to" not in list_fields(25, {"reply_to"})
    assert "shares{id,link" in message_fields()
    assert "shares" not in message_fields({"shares"})


# -- bodies of the shapes that were recorded from the real Graph API; the people and words are made up


def recorded_message(**attachment: Any) -> dict[str, Any]:
    """As v10.0 tells of an attachment: its list has a `next`, with the token, even when it is complete."""
    message_id = "m_Ab0-cD1_eF2"
    link = f"https://graph.facebook.com/v10.0/{message_id}/attachments?access_token={TOKEN}&pretty=0&limit=25"
    return {
        "created_time": "2021-07-23T09:50:48+0000",
        "from": {"name": "Anna", "email": f"{ANNA}@facebook.com", "id": ANNA},
        "id": message_id,
        "message": "Is it this one?😏",
        "tags": {"data": [{"name": "inbox"}, {"name": "source:mobile"}]},
        "to": {"data": [{"name": "The Page", "email": f"{PAGE}@facebook.com", "id": PAGE}]},
        "attachments": {
            "data": [attachment],
            "paging": {
                "cursors": {"before": "MAZDZD", "after": "MAZDZD"},
                "next": f"{link}&after=MAZDZD",
            },
        },
    }


IMAGE = {
    "id": "651000000000001",
    "mime_type": "image/jpeg",
    "name": "image-651000000000001",
    "size": 54542,
    "image_data": {
        "width": 1920,
        "height": 1213,
        "max_width": 1920,
        "max_height": 1213,
        "url": "https://scontent-x1-1.xx.fbcdn.example/v/t1.15752-9/1_2_3_n.jpg?oh=0a1b&oe=60F0",
        "preview_url": "https://scontent-x1-1.xx.fbcdn.example/v/t1.15752-9/p280x280/1_2_3_n.jpg?oh=0a1b&oe=60F0",
        "image_type": 1,
        "render_as_sticker": False,
    },
}
VIDEO = {
    "id": "832000000000001",
    "mime_type": "video/mp4",
    "name": "video-1627000000.mp4",
    "size": 1994148,
    "video_data": {
        "width": 960,
        "height": 544,
        "length": 11,
        "video_type": 1,
        "url": "https://video-x1-1.xx.fbcdn.example/v/t42.3356-2/1_2_3_n.mp4/video-1627000000.mp4?oh=0a1b&oe=60F0",
        "preview_url": "https://scontent-x1-1.xx.fbcdn.example/v/t15.3394-10/1_2_3_n.jpg?oh=0a1b&oe=60F0",
        "rotation": 0,
    },
}


@pytest.mark.parametrize("attachment", [IMAGE, VIDEO], ids=["image", "video"])
def test_a_recorded_message_keeps_its_attachment_and_not_the_link_with_the_token(
    attachment: dict[str, Any],
) -> None:
    page = messages(recorded_message(**attachment))
    assert page.facts == [
        Message(
            page_id=PAGE,
            sender_id=ANNA,
            message_id="m_Ab0-cD1_eF2",
            direction="in",
            at=datetime(2021, 7, 23, 9, 50, 48, tzinfo=UTC),
            text="Is it this one?😏",
            metadata={"graph": {"tags": ["inbox", "source:mobile"], "attachments": [attachment]}},
            observed_at=SEEN,
            thread_id="t_1",
        )
    ]
    # The attachments' `next` is not the list's.
    assert page.next_cursor is None


@pytest.mark.parametrize(
    "link", ["/700100/inbox/2582000000000001/", "http://www.facebook.com/messages/?action=read&tid=id.1"]
)
def test_a_recorded_conversation_with_everything_graph_tells_of_it(link: str) -> None:
    people = [person(ANNA, "Anna"), person(PAGE, "The Page")]
    page = listed(
        {
            "can_reply": True,
            "former_participants": {"data": []},
            "id": "t_587000000000001",
            "is_subscribed": True,
            "link": link,
            "message_count": 93,
            "participants": {"data": people},
            "scoped_thread_key": "t_587000000000001",
            "snippet": "see you",
            "senders": {"data": people},
            "unread_count": 0,
            "updated_time": "2021-06-08T08:24:57+0000",
        }
    )
    fields = {
        "name": "Anna",
        "unread_count": 0,
        "snippet": "see you",
        "can_reply": True,
        "reported_count": 93,
        "updated_time": "2021-06-08T08:24:57+00:00",
    }
    assert page.facts == [Thread(PAGE, ANNA, "t_587000000000001", SEEN, fields)]
    assert page.threads[0]["read"] == "unread"


def test_a_recorded_list_of_2012_goes_on_by_time_which_is_no_cursor() -> None:
    """Its `next` has `until` and `__paging_token`; whoever is in the thread is also in `to`."""
    people = [person(PAGE, "The Page"), person(ANNA, "Anna")]
    tags = {"data": [{"name": "inbox"}, {"name": "read"}, {"name": "sent"}, {"name": "source:web"}]}
    pdf = {"id": "2a13", "mime_type": "application/pdf", "name": "some.pdf", "size": 28824}
    image = {
        "id": "10e9",
        "mime_type": "image/jpeg",
        "name": "1_2_3_n.jpg",
        "size": None,
        "image_data": {
            "width": 800,
            "height": 600,
            "url": "https://fbcdn.example/1_2_3_n.jpg?oh=9a&__gda__=1_9",
        },
    }
    link = f"https://graph.facebook.com/t_id.1/messages?method=GET&access_token={TOKEN}&limit=25"
    edge = {
        "data": [
            {
                "id": "m_id.2",
                "created_time": "2012-04-10T17:41:10+0000",
                "tags": tags,
                "from": people[0],
                "to": {"data": people[::-1]},
                "message": "Well, well.",
                "attachments": {"data": [pdf, image]},
            },
            {
                "id": "m_id.1",
                "created_time": "2012-04-10T17:38:58+0000",
                "tags": tags,
                "from": people[1],
                "to": {"data": people},
                "message": "This is a conversation.",
            },
        ],
        "paging": {
            "previous": f"{link}&since=1334079670&__paging_token=m_id.2&__previous=1",
            "next": f"{link}&until=1334079538&__paging_token=m_id.1",
        },
    }
    page = listed(
        {
            "id": "t_id.1",
            "snippet": "Well, well.",
            "updated_time": "2012-04-10T17:41:10+0000",
            "message_count": 2,
            "unread_count": 2,
            "tags": tags,
            "participants": {"data": people},
            "senders": {"data": people},
            "can_reply": True,
            "is_subscribed": True,
            "link": "http://www.facebook.com/messages/?action=read&tid=id.1",
            "messages": edge,
        }
    )
    answer, question = only(page, Message)
    assert (answer.direction, answer.sender_id, question.direction, question.sender_id) == (
        "out",
        ANNA,
        "in",
        ANNA,
    )
    assert answer.metadata["graph"]["attachments"] == [pdf, image]
    assert answer.metadata["graph"]["tags"] == ["inbox", "read", "sent", "source:web"]
    assert (page.threads[0]["read"], page.threads[0]["next_cursor"]) == ("unread", None)
    with pytest.raises(GraphError, match="goes on without a cursor"):
        messages(*edge["data"], paging=edge["paging"])


def test_recorded_answers_for_several_ids_are_no_list() -> None:
    node = {
        "id": "t_587000000000001",
        "link": "/700100/inbox/2582000000000001/",
        "message_count": 94,
        "snippet": "hello",
        "unread_count": 1,
        "updated_time": "2021-07-23T09:28:50+0000",
    }
    with pytest.raises(GraphError, match="has no list"):
        read_conversations(PAGE, {node["id"]: node, "t_2": node | {"id": "t_2"}}, SEEN)
    # One of them in a list names nobody: the thread stands for its customer.
    [found] = only(listed(node), Thread)
    assert (found.sender_id, found.fields["reported_count"]) == ("thread:t_587000000000001", 94)


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (
            {"message": "", "shares": {"data": [{"id": None, "link": "https://example.org/1.png", "name": "",
                                                 "description": None, "picture": None}]}},
            {"shares": [{"id": None, "link": "https://example.org/1.png", "name": "", "description": None,
                         "picture": None}]},
        ),
        (
            {"message": "", "sticker": "https://scontent.example/sticker.png"},
            {"sticker": "https://scontent.example/sticker.png"},
        ),
        (
            {"attachments": {"data": [{"id": "1", "generic_template": {
                "title": "A chair", "subtitle": "Of wood", "media_url": "https://example.org/1.png",
                "cta": {"title": "View", "type": "web_url", "url": "https://example.org/1"}}}]}},
            {"attachments": [{"id": "1", "generic_template": {
                "title": "A chair", "subtitle": "Of wood", "media_url": "https://example.org/1.png",
                "cta": {"title": "View", "type": "web_url", "url": "https://example.org/1"}}}]},
        ),
    ],
    ids=["share", "sticker", "template"],
)  # fmt: skip
def test_recorded_messages_without_text(content: dict[str, Any], kept: dict[str, Any]) -> None:
    item = {"id": "m_mid.4:3", "to": {"data": [person(PAGE)]}, "from": person(ANNA), **content}
    [found] = only(messages(item | {"created_time": "2016-01-02T23:40:56+0000"}), Message)
    assert (found.text, found.metadata) == (None, {"graph": kept})
    # Recorded by somebody who did not ask for the time: without it a message has no place.
    page = messages(item)
    assert [letter.reason for letter in only(page, DeadLetter)] == ["message.created_time: missing (t_1)"]
    assert page.unreadable == 1


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["id", "data", "from", "to", "created_time", "message", "messages", "participants", "paging",
                 "next", "cursors", "after", "reactions", "users", "attachments", "tags", "name", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)  # fmt: skip


@given(st.lists(anything, max_size=4))
def test_no_item_whatsoever_stops_its_page(items: list[Any]) -> None:
    page = read_conversations(PAGE, {"data": [*items, thread(id="t_last")]}, SEEN)
    assert page.threads[-1]["thread_id"] == "t_last"
    assert dump(page.facts)
    found = read_messages(PAGE, "t_1", ANNA, {"data": [*items, message(7)]}, SEEN)
    assert found.facts[-1].message_id == "m_7"  # type: ignore[union-attr]
    assert dump(found.facts)
