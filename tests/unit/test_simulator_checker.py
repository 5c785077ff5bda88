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


def test_a_message_nobody_can_read_is_no_loss(mirror: Mirror) -> None:
    thread = mirror.truth[0]
    hidden = replace(thread.messages[0], readable=False)
    mirror.truth[0] = replace(thread, messages=(hidden, *thread.messages[1:]))
    mirror.messages = [row for row in mirror.messages if row.message_id != hidden.message_id]
    verdict = mirror.verdict()
    assert (verdict.missing, verdict.unreadable) == (0, 1)


async def test_truth_is_fetched_in_parts() -> None:
    async with Simulator(SimulatorConfig(port=0, conversations=45, messages=3)) as simulator:
        page_id = simulator.page.page_id
        fetched = [one async for one in fetch_truth(simulator.url, page_id, part=20)]
        exact = [one async for one in fetch_truth(simulator.url, page_id, part=45)]
    population = simulator.population
    assert fetched == exact == [truth_conversation(population, one) for one in population.conversations]
