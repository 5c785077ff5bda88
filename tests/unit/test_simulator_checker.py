"""The verdict: a right mirror is acquitted, every planted fault is convicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from convsync.simulator import Population, Simulator, SimulatorConfig
from convsync.simulator.checker import fetch_truth
from convsync.simulator.config import DEFAULT_NOW
from convsync.simulator.control import truth_conversation
from convsync.simulator.verdict import (
    Comparison,
    MirrorConversation,
    MirrorMessage,
    TruthConversation,
    Verdict,
    truth_from_json,
)


class Mirror:
    """A mirror as plain rows, made right from the truth and then spoiled by the test."""

    def __init__(self, truth: list[TruthConversation]) -> None:
        self.truth = truth
        self.conversations: list[MirrorConversation] = []
        self.messages: list[MirrorMessage] = []
        for number, thread in enumerate(truth, 1):
            shown = [message for message in thread.messages if not message.deleted]
            last = shown[-1].text or None if shown else None
            self.conversations.append(
                MirrorConversation(
                    number, thread.sender_id, thread.name, thread.thread_id, last, thread.message_count
                )
            )
            for message in shown:
                self.messages.append(
                    MirrorMessage(
                        message.message_id,
                        number,
                        message.direction,
                        message.text or None,
                        message.second,
                        from_graph=True,
                        attachment_ids=message.attachment_ids,
                        sticker=message.sticker,
                    )
                )

    def verdict(self) -> Verdict:
        comparison = Comparison()
        for thread in self.truth:
            live = [c for c in self.conversations if c.sender_id == thread.sender_id and not c.deleted]
            homes = {one.conversation_id for one in live}
            ids = {message.message_id for message in thread.messages}
            rows = [m for m in self.messages if m.conversation_id in homes or m.message_id in ids]
            comparison.conversation(thread, live, rows)
        known = {thread.sender_id for thread in self.truth}
        left = [one for one in self.conversations if one.sender_id not in known]
        homes = {one.conversation_id for one in self.conversations} - {one.conversation_id for one in left}
        strays = [m.message_id for m in self.messages if m.conversation_id not in homes and not m.deleted]
        comparison.besides([one.sender_id for one in left if not one.deleted], strays)
        return comparison.finish()


def truth() -> list[TruthConversation]:
    population = Population("100000000000001", 1, 40, 10, DEFAULT_NOW, page_name="Shop")
    busy = max(population.conversations, key=lambda one: one.size)
    population.unsend(population.all_messages(busy)[2].message_id)
    return [truth_from_json(truth_conversation(population, one)) for one in population.conversations]


@pytest.fixture
def mirror() -> Mirror:
    return Mirror(truth())


def place(mirror: Mirror, **wanted: Any) -> int:
    """The place of a message in the middle of a thread."""
    busy = max(mirror.truth, key=lambda one: len(one.messages)).messages
    shown = [message for message in busy if not message.deleted]
    chosen = shown[len(shown) // 2]
    return next(at for at, row in enumerate(mirror.messages) if row.message_id == chosen.message_id)


def counts(verdict: Verdict) -> tuple[int, int, int]:
    return (verdict.missing, verdict.extra, verdict.differing)


def test_a_right_mirror_is_acquitted(mirror: Mirror) -> None:
    verdict = mirror.verdict()
    assert verdict.clean
    assert verdict.examples == []
    assert verdict.conversations == 40
    assert verdict.messages == len(mirror.messages)
    assert any(one.customer_id is None for one in mirror.truth)
    assert any(message.attachment_ids for one in mirror.truth for message in one.messages)


def test_a_missing_message_is_convicted(mirror: Mirror) -> None:
    lost = mirror.messages.pop(place(mirror))
    verdict = mirror.verdict()
    assert counts(verdict) == (1, 0, 0)
    assert verdict.examples[0]["id"] == lost.message_id


def test_a_message_that_is_there_twice_is_convicted(mirror: Mirror) -> None:
    row = mirror.messages[place(mirror)]
    mirror.messages.append(row)
    assert counts(mirror.verdict()) == (0, 1, 0)


def test_a_message_that_is_there_again_under_another_person_is_convicted_once(mirror: Mirror) -> None:
    row = mirror.messages[place(mirror)]
    other = 1 if row.conversation_id != 1 else 2
    mirror.messages.insert(0, replace(row, conversation_id=other))
    assert counts(mirror.verdict()) == (0, 1, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"text": "something else"},
        {"text": None},
        {"direction": "sideways"},
        {"deleted": True},
        {"attachment_ids": ("1",)},
        {"sticker": "https://example.org/s.png"},
    ],
)
def test_a_row_that_says_something_else_is_convicted(mirror: Mirror, change: dict[str, Any]) -> None:
    at = next(n for n, row in enumerate(mirror.messages) if row.text and not row.attachment_ids)
    mirror.messages[at] = replace(mirror.messages[at], **change)
    assert counts(mirror.verdict()) == (0, 0, 1)


@pytest.mark.parametrize("seconds", [-1, 1])
def test_a_message_that_is_one_second_off_is_convicted(mirror: Mirror, seconds: int) -> None:
    at = place(mirror)
    mirror.messages[at] = replace(mirror.messages[at], second=mirror.messages[at].second + seconds)
    assert counts(mirror.verdict()) == (0, 0, 1)


def test_a_message_under_the_wrong_person_is_convicted_once(mirror: Mirror) -> None:
    at = place(mirror)
    other = 1 if mirror.messages[at].conversation_id != 1 else 2
    mirror.messages[at] = replace(mirror.messages[at], conversation_id=other)
    verdict = mirror.verdict()
    assert counts(verdict) == (0, 0, 1)
    assert "filed under" in verdict.examples[0]["detail"]


def test_a_message_under_a_person_who_does_not_exist_is_convicted_once(mirror: Mirror) -> None:
    mirror.conversations.append(MirrorConversation(999, "nobody", None, None, None, 0))
    at = place(mirror)
    mirror.messages[at] = replace(mirror.messages[at], conversation_id=999)
    assert counts(mirror.verdict()) == (0, 1, 1)


def test_an_invented_message_is_convicted(mirror: Mirror) -> None:
    mirror.messages.append(MirrorMessage("m_invented", 1, "in", "hello", 0))
    mirror.messages.append(MirrorMessage("m_invented and deleted", 1, "in", "hello", 0, deleted=True))
    assert counts(mirror.verdict()) == (0, 1, 0)


def test_an_unsent_message_must_not_live_on(mirror: Mirror) -> None:
    thread, unsent = next((c, m) for c in mirror.truth for m in c.messages if m.deleted)
    home = next(c.conversation_id for c in mirror.conversations if c.sender_id == thread.sender_id)
    row = MirrorMessage(unsent.message_id, home, unsent.direction, unsent.text, unsent.second, deleted=True)
    mirror.messages.append(row)
    assert mirror.verdict().clean, "kept as deleted is right, and so is not kept at all"
    mirror.messages[-1] = replace(row, deleted=False)
    assert counts(mirror.verdict()) == (0, 0, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"message_count": 0},
        {"last_message": "something else"},
        {"sender_name": "Somebody Else"},
        {"sender_name": None},
        {"thread_id": "t_1"},
    ],
)
def test_a_conversation_that_says_something_else_is_convicted(mirror: Mirror, change: dict[str, Any]) -> None:
    at = next(n for n, row in enumerate(mirror.conversations) if row.sender_name)
    mirror.conversations[at] = replace(mirror.conversations[at], **change)
    assert counts(mirror.verdict()) == (0, 0, 1)


def test_a_conversation_known_from_webhooks_needs_no_thread_id(mirror: Mirror) -> None:
    mirror.conversations[0] = replace(mirror.conversations[0], thread_id=None)
    assert mirror.verdict().clean


def test_a_missing_conversation_and_its_messages_are_convicted(mirror: Mirror) -> None:
    gone = mirror.conversations.pop(0)
    mirror.messages = [row for row in mirror.messages if row.conversation_id != gone.conversation_id]
    assert counts(mirror.verdict()) == (1 + len(mirror.truth[0].messages), 0, 0)


def test_an_invented_conversation_is_convicted(mirror: Mirror) -> None:
    mirror.conversations.append(MirrorConversation(999, "nobody", None, None, None, 0))
    mirror.conversations.append(MirrorConversation(1000, "nobody at all", None, None, None, 0, deleted=True))
    assert counts(mirror.verdict()) == (0, 1, 0)


def test_a_conversation_that_is_there_twice_is_convicted(mirror: Mirror) -> None:
    mirror.conversations.append(replace(mirror.conversations[0], conversation_id=999))
    assert counts(mirror.verdict()) == (0, 1, 0)


def test_two_people_merged_into_one_are_convicted(mirror: Mirror) -> None:
    swallowed = mirror.conversations.pop(1)
    mirror.messages = [
        replace(row, conversation_id=1) if row.conversation_id == swallowed.conversation_id else row
        for row in mirror.messages
    ]
    verdict = mirror.verdict()
    assert verdict.missing == 1
    assert verdict.differing == len(mirror.truth[1].messages)
    assert verdict.extra == 0


def test_any_text_of_the_newest_second_may_be_the_last_message() -> None:
    thread = truth()[0]
    twin = replace(thread.messages[-1], message_id="m_twin", text="same second", deleted=False)
    mirror = Mirror(
        [replace(thread, messages=(*thread.messages, twin), message_count=thread.message_count + 1)]
    )
    assert mirror.verdict().clean
    mirror.conversations[0] = replace(mirror.conversations[0], last_message=thread.messages[-1].text)
    assert mirror.verdict().clean


def test_attachments_of_rows_from_webhooks_only_are_counted_as_unchecked(mirror: Mirror) -> None:
    at = next(n for n, row in enumerate(mirror.messages) if row.attachment_ids)
    mirror.messages[at] = replace(mirror.messages[at], from_graph=False, attachment_ids=())
    verdict = mirror.verdict()
    assert verdict.clean
    assert verdict.attachments_unchecked == 1
    mirror.messages[at] = replace(mirror.messages[at], from_graph=True)
    assert counts(mirror.verdict()) == (0, 0, 1)


def hide(mirror: Mirror, count: int, **change: Any) -> TruthConversation:
    """Make the `count` oldest messages of the longest thread unreadable, and take them out of the mirror."""
    at = max(range(len(mirror.truth)), key=lambda one: len(mirror.truth[one].messages))
    thread = mirror.truth[at]
    alive = [message for message in thread.messages if not message.deleted]
    hidden = {message.message_id for message in alive[:count]}
    messages = tuple(replace(one, readable=one.message_id not in hidden) for one in thread.messages)
    mirror.truth[at] = replace(thread, messages=messages, **change)
    mirror.messages = [row for row in mirror.messages if row.message_id not in hidden]
    left = alive[count:]
    mirror.conversations[at] = replace(
        mirror.conversations[at],
        message_count=len(left),
        last_message=left[-1].text or None if left else None,
    )
    return mirror.truth[at]


def change(mirror: Mirror, thread: TruthConversation, **to: Any) -> None:
    at = next(n for n, row in enumerate(mirror.conversations) if row.sender_id == thread.sender_id)
    mirror.conversations[at] = replace(mirror.conversations[at], **to)


def test_messages_nobody_can_read_are_no_loss_but_counted(mirror: Mirror) -> None:
    hide(mirror, 3)
    verdict = mirror.verdict()
    assert verdict.clean, verdict.examples
    assert (verdict.unreadable, verdict.hidden) == (3, 0)


def test_a_mirror_that_says_it_has_all_of_what_nobody_can_read_is_convicted(mirror: Mirror) -> None:
    thread = hide(mirror, 3)
    newest = thread.messages[-1].second
    change(mirror, thread, complete_at=newest)
    verdict = mirror.verdict()
    assert counts(verdict) == (0, 0, 1)
    assert "complete, but it lacks 3 messages" in verdict.examples[0]["detail"]
    # It said so before they were written: that is no lie.
    change(mirror, thread, complete_at=thread.messages[0].second - 1)
    assert mirror.verdict().clean


def test_a_mirror_that_says_it_has_all_and_has_it_is_acquitted(mirror: Mirror) -> None:
    for thread in mirror.truth:
        change(mirror, thread, complete_at=thread.messages[-1].second)
    assert mirror.verdict().clean


def test_a_mirror_that_counts_messages_it_lacks_is_convicted(mirror: Mirror) -> None:
    thread = hide(mirror, 3)
    change(mirror, thread, message_count=thread.message_count)
    assert counts(mirror.verdict()) == (0, 0, 1)


def test_what_nobody_can_read_is_compared_where_a_webhook_told_it(mirror: Mirror) -> None:
    told = mirror.messages[:]
    thread = hide(mirror, 3)
    kept = next(row for row in told if row.message_id == thread.messages[0].message_id)
    mirror.messages.append(kept)
    assert counts(mirror.verdict()) == (0, 0, 1), "it counts one more than it has"
    change(mirror, thread, message_count=thread.message_count - 2)
    verdict = mirror.verdict()
    assert verdict.clean, verdict.examples
    assert verdict.unreadable == 2
    mirror.messages[-1] = replace(kept, text="something else")
    assert counts(mirror.verdict()) == (0, 0, 1)


@pytest.mark.parametrize("count", [3, 10_000])
def test_a_thread_that_is_listed_must_be_there_however_little_of_it_can_be_read(
    mirror: Mirror, count: int
) -> None:
    thread = hide(mirror, count)
    assert mirror.verdict().clean
    mirror.conversations = [row for row in mirror.conversations if row.sender_id != thread.sender_id]
    verdict = mirror.verdict()
    readable = sum(message.readable and not message.deleted for message in thread.messages)
    assert verdict.missing == 1
    assert verdict.differing == readable, "its readable messages are filed under nobody"
    assert verdict.hidden == 0


def test_a_thread_that_is_listed_to_nobody_may_lack_and_is_counted(mirror: Mirror) -> None:
    thread = hide(mirror, 10_000, listed=False)
    mirror.conversations = [row for row in mirror.conversations if row.sender_id != thread.sender_id]
    verdict = mirror.verdict()
    assert verdict.clean, verdict.examples
    assert verdict.hidden == 1
    assert verdict.unreadable == sum(not message.deleted for message in thread.messages)


async def test_truth_is_fetched_in_parts() -> None:
    async with Simulator(SimulatorConfig(port=0, conversations=45, messages=3)) as simulator:
        page_id = simulator.page.page_id
        fetched = [one async for one in fetch_truth(simulator.url, page_id, part=20)]
        exact = [one async for one in fetch_truth(simulator.url, page_id, part=45)]
    population = simulator.population
    assert fetched == exact == [truth_conversation(population, one) for one in population.conversations]
