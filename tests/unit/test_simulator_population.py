"""The generated inbox: the same for a seed, shaped like a real one, and alive."""

from __future__ import annotations

import gc
import time
import unicodedata
from datetime import UTC, datetime, timedelta

import pytest

from convsync.simulator.config import DEFAULT_NOW
from convsync.simulator.population import Conversation, Population

PAGE = "100000000000001"
WALL = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp() * 1000)


def population(
    seed: int = 1, conversations: int = 50, mean: float = 20, now: datetime = DEFAULT_NOW, page: str = PAGE
) -> Population:
    return Population(page, seed, conversations, mean, now, page_name="Shop", clock=lambda: WALL)


def contents(of: Population) -> list[object]:
    return [
        (
            conversation.thread_id,
            conversation.psid,
            conversation.name,
            conversation.kind,
            conversation.updated_ms,
            [
                (
                    m.message_id,
                    m.created_ms,
                    m.outbound,
                    m.text,
                    m.attachments,
                    m.sticker,
                    m.share,
                    m.reply_to,
                )
                for m in of.all_messages(conversation)
            ],
        )
        for conversation in of.conversations
    ]


def test_the_same_seed_gives_the_same_inbox() -> None:
    assert contents(population(seed=7)) == contents(population(seed=7))


def test_the_inbox_does_not_depend_on_what_is_looked_at_first() -> None:
    ahead, back = population(seed=7), population(seed=7)
    for conversation in reversed(back.conversations):
        back.all_messages(conversation)
    assert contents(ahead) == contents(back)


def test_another_seed_or_another_page_gives_other_ids() -> None:
    inboxes = [population(seed=1), population(seed=2), population(seed=1, page="100000000000002")]
    ids = [{c.thread_id for c in inbox.conversations} for inbox in inboxes]
    people = [{c.psid for c in inbox.conversations} for inbox in inboxes]
    assert not ids[0] & ids[1]
    assert not ids[0] & ids[2]
    assert not people[0] & people[2]


def test_a_later_now_moves_the_times_and_nothing_else() -> None:
    early, late = population(), population(now=DEFAULT_NOW + timedelta(days=1))
    for one, other in zip(early.conversations, late.conversations, strict=True):
        assert other.updated_ms - one.updated_ms == 86_400_000
        assert [m.message_id for m in early.all_messages(one)] == [
            m.message_id for m in late.all_messages(other)
        ]


def test_ids_have_the_forms_of_facebook_and_are_unique() -> None:
    inbox = population(conversations=200)
    assert all(c.thread_id.startswith("t_") and c.thread_id[2:].isdecimal() for c in inbox.conversations)
    assert len({c.thread_id for c in inbox.conversations}) == 200
    assert len({c.psid for c in inbox.conversations}) == 200
    mids = [m.message_id for c in inbox.conversations for m in inbox.all_messages(c)]
    assert len(set(mids)) == len(mids)
    assert all(mid.startswith("m_") and len(mid) == 82 for mid in mids)


def test_sizes_are_skewed_with_the_mean_that_was_asked_for() -> None:
    inbox = population(conversations=1000, mean=30)
    sizes = sorted(conversation.size for conversation in inbox.conversations)
    assert sum(sizes) / 1000 == pytest.approx(30, rel=0.05)
    assert sizes[-1] > 500
    assert sizes[500] < 15
    assert sizes[0] >= 1


def test_one_thread_may_be_longer_than_the_mean_would_have_it_and_all_others_stay_as_they_are() -> None:
    usual = population(conversations=100, mean=5)
    giant = Population(PAGE, 1, 100, 5, DEFAULT_NOW, clock=lambda: WALL, longest=20_000)
    sizes = [
        (one.size, other.size) for one, other in zip(usual.conversations, giant.conversations, strict=True)
    ]
    ((usual_longest, longest),) = [(one, other) for one, other in sizes if one != other]
    assert (longest, usual_longest) == (20_000, max(one for one, _ in sizes))
    thread = max(giant.conversations, key=lambda one: one.size)
    shown = giant.all_messages(thread)
    assert len({message.message_id for message in shown}) == 20_000
    assert sorted(message.key for message in shown) == [message.key for message in shown]


def test_a_hundred_thousand_conversations_start_at_once() -> None:
    started = time.process_time()
    inbox = population(conversations=100_000, mean=30)
    assert time.process_time() - started < 5
    assert len(inbox.conversations) == 100_000


def test_a_conversation_is_made_when_it_is_looked_at_and_is_one_object() -> None:
    inbox = population(conversations=3000, mean=3)
    made = [one for one in gc.get_objects() if isinstance(one, Conversation) and one.population is inbox]
    assert made == []
    thread = inbox.conversations[1234]
    assert inbox.conversations[1234] is thread
    assert inbox.conversation(thread.thread_id) is thread
    assert thread in inbox.newest_first(3000)[0]
    assert inbox.conversation_with(inbox.conversations[0].psid) is inbox.conversations[0]
    assert [one.index for one in inbox.conversations[2998:5000]] == [2998, 2999]
    assert inbox.conversations[-1].index == 2999


def test_every_conversation_is_found_by_its_ids_and_by_no_others() -> None:
    inbox = population(conversations=500, mean=1)
    for one in inbox.conversations:
        assert inbox.conversation(one.thread_id) is one
        assert inbox.conversation_with(one.psid) is (one if one.customer_id else None)
    thread = inbox.conversations[7]
    beyond = inbox.scramble(500, 7)
    for text in (
        f"t_{beyond}",
        f"t_{inbox.scramble(7, 7) + 1}",
        f"t_0{thread.thread_id[2:]}",
        f"t_{thread.psid}",
        f"t_+{thread.thread_id[2:]}",
        thread.thread_id[2:],
        f"{thread.thread_id}\n",
        "t_",
        "t_٧",
        "t_" + "9" * 5000,
    ):
        assert inbox.conversation(text) is None, text
    for text in (thread.thread_id, thread.thread_id[2:], "", "3", str(inbox.scramble(500, 3)), "²"):
        assert inbox.conversation_with(text) is None, text


def test_what_happened_to_a_conversation_is_not_forgotten_when_nobody_looks() -> None:
    inbox = population(conversations=60, mean=4)
    names = [one.name for one in inbox.conversations]
    total = inbox.message_total()
    inbox.rename(inbox.conversations[3], "Somebody Else")
    unread = next(one for one in inbox.conversations if inbox.unread_count(one))
    inbox.read(unread, by="page")
    read = unread.index
    inbox.new_message(inbox.conversations[9], "in", "hello")
    inbox.unsend(inbox.all_messages(inbox.conversations[20])[0].message_id)
    inbox.new_message(None, "in", "first")
    del unread
    gc.collect()
    assert [one.name for one in inbox.conversations][:60] == [*names[:3], "Somebody Else", *names[4:]]
    assert inbox.unread_count(inbox.conversations[read]) == 0
    assert inbox.newest_first(2)[0] == [inbox.conversations[60], inbox.conversations[9]]
    assert inbox.all_messages(inbox.conversations[9])[-1].text == "hello"
    assert inbox.message_total() == total + 1 == sum(one.message_count for one in inbox.conversations)
    keys = [one.key for one in inbox.newest_first(100)[0]]
    assert keys == sorted(keys, reverse=True)
    assert len(set(keys)) == 61


def test_an_empty_inbox_is_an_inbox() -> None:
    inbox = population(conversations=0)
    assert inbox.newest_first(25) == ([], False, False)
    assert inbox.new_message(None, "in", "first")[0].message_count == 1


def test_content_has_what_breaks_mirrors() -> None:
    inbox = population(conversations=300, mean=30)
    messages = [m for c in inbox.conversations for m in inbox.all_messages(c)]
    texts = [m.text for m in messages]
    everything = "".join(texts)
    assert "\u200d" in everything
    assert max(map(ord, everything)) > 0xFFFF
    assert any(unicodedata.bidirectional(character) in ("R", "AL") for character in everything)
    assert any("CJK" in unicodedata.name(character, "") for character in everything)
    assert any(unicodedata.combining(character) for character in everything)
    assert any(1900 <= len(text) <= 2100 for text in texts)
    assert any(text == "" and message.attachments for text, message in zip(texts, messages, strict=True))
    assert any(message.sticker and message.attachments for message in messages)
    assert any(message.share for message in messages)
    assert any(message.reactions for message in messages)
    assert any(message.reply_to for message in messages)
    assert any(message.unsupported for message in messages)
    kinds = {key for m in messages for a in m.attachments for key in a}
    assert {"image_data", "video_data", "file_url"} <= kinds
    urls = [a["file_url"] for m in messages for a in m.attachments if "file_url" in a]
    assert all("oh=" in url and "oe=" in url for url in urls)
    assert {m.outbound for m in messages} == {True, False}
    seconds = [(c.index, m.created_ms // 1000) for c in inbox.conversations for m in inbox.all_messages(c)]
    assert len(set(seconds)) < len(seconds), "some messages share a second"


def test_the_people_of_an_inbox_are_not_all_ordinary() -> None:
    inbox = population(conversations=8)
    kinds = {conversation.kind for conversation in inbox.conversations}
    assert {"normal", "no_name", "facebook_user", "gone", "no_id"} == kinds
    by_kind: dict[str, Conversation] = {c.kind: c for c in inbox.conversations}
    assert by_kind["no_name"].name is None
    assert by_kind["facebook_user"].name == "Facebook User"
    assert by_kind["gone"].customer_id is None
    assert by_kind["no_id"].customer_id is None
    assert by_kind["no_id"].name


def test_messages_go_up_in_time_and_end_at_the_updated_time() -> None:
    inbox = population()
    for conversation in inbox.conversations:
        times = [message.created_ms for message in inbox.all_messages(conversation)]
        assert times == sorted(times)
        assert times[-1] == conversation.updated_ms


def test_a_message_is_found_by_its_id_and_a_made_up_id_is_not() -> None:
    inbox = population()
    conversation = inbox.conversations[3]
    message = inbox.all_messages(conversation)[0]
    assert inbox.find_message(message.message_id) == (conversation, message)
    altered = (
        message.message_id[:10] + ("A" if message.message_id[10] != "A" else "B") + message.message_id[11:]
    )
    assert inbox.find_message(altered) is None
    assert inbox.find_message("m_nothing") is None
    assert inbox.find_message("m_" + "é" * 80) is None


def test_a_new_message_moves_its_thread_to_the_front() -> None:
    inbox = population()
    last = inbox.newest_first(50)[0][-1]
    count, unread = last.message_count, inbox.unread_count(last)
    _, message = inbox.new_message(last, "in", "Hello again")
    assert inbox.newest_first(1)[0] == [last]
    assert last.updated_ms == message.created_ms == WALL
    assert last.message_count == count + 1
    assert inbox.unread_count(last) == unread + 1
    inbox.new_message(last, "out", "Hello!")
    assert inbox.unread_count(last) == 0
    assert last.updated_ms == WALL + 1, "two messages never share a moment, or their order would be lost"


def test_a_new_person_starts_a_new_thread() -> None:
    inbox = population()
    conversation, message = inbox.new_message(None, "in", "Hi")
    assert inbox.conversation(conversation.thread_id) is conversation
    assert inbox.conversation_with(conversation.psid) is conversation
    assert inbox.find_message(message.message_id) == (conversation, message)
    assert len(inbox.conversations) == 51


def test_edit_reaction_and_unsend_change_the_message_and_move_nothing() -> None:
    inbox = population()
    conversation = max(inbox.conversations, key=lambda one: one.size)
    first = inbox.all_messages(conversation)[0]
    updated, count = conversation.updated_ms, conversation.message_count
    inbox.edit(first.message_id, "changed")
    inbox.react(first.message_id, "love")
    inbox.react(first.message_id, "wow")
    found = inbox.find_message(first.message_id)
    assert found is not None
    assert (found[1].text, found[1].edits) == ("changed", 1)
    assert [given for given in found[1].reactions if given[0] == "person"] == [("person", "wow")]
    inbox.react(first.message_id, None)
    assert not [given for given in found[1].reactions if given[0] == "person"]
    inbox.unsend(first.message_id)
    inbox.unsend(first.message_id)
    assert conversation.message_count == count - 1
    assert first.message_id not in [m.message_id for m in inbox.visible_messages(conversation)]
    assert first.message_id in [m.message_id for m in inbox.all_messages(conversation)]
    assert conversation.updated_ms == updated


def test_a_removed_thread_is_not_there_until_somebody_writes_in_it() -> None:
    inbox = population()
    gone = inbox.newest_first(50)[0][7]
    old = [message.message_id for message in inbox.visible_messages(gone)]
    total = inbox.message_total()
    inbox.remove(gone)
    assert gone not in inbox.newest_first(50)[0]
    assert (inbox.conversation(gone.thread_id), inbox.conversation_with(gone.psid)) == (None, None)
    assert inbox.message_total() == total - len(old)
    _, message = inbox.new_message(gone, "in", "Are you there?")
    assert inbox.newest_first(1)[0] == [gone]
    assert inbox.conversation(gone.thread_id) is gone
    assert inbox.visible_messages(gone) == [message]
    assert [one.message_id for one in inbox.all_messages(gone)] == [*old, message.message_id]


def test_changes_are_kept_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsync.simulator.population._CACHED_MESSAGES", 50)
    inbox = population()
    changed = inbox.conversations[0]
    inbox.new_message(changed, "in", "remember me")
    before = contents(inbox)
    assert contents(inbox) == before
    assert inbox.all_messages(changed)[-1].text == "remember me"
    assert inbox._cached == sum(len(messages) for messages in inbox._cache.values())
    assert inbox._cached <= 50 or len(inbox._cache) == 1


def test_the_page_reads_and_the_person_gets_messages() -> None:
    inbox = population()
    conversation, _ = inbox.new_message(None, "in", "one")
    inbox.new_message(conversation, "in", "two")
    assert inbox.unread_count(conversation) == 2
    inbox.read(conversation, by="person")
    assert inbox.unread_count(conversation) == 2
    inbox.read(conversation, by="page")
    assert inbox.unread_count(conversation) == 0
    _, answer = inbox.new_message(conversation, "out", "three")
    watermark, mids = inbox.deliver(conversation)
    assert mids == [answer.message_id]
    assert watermark > answer.created_ms
