"""What the simulated Graph API does not show, and of whom."""

from __future__ import annotations

import aiohttp
import pytest
from graph_reader import GraphReader, reading

from convsync.simulator.population import Conversation
from convsync.simulator.rules import GraphRules
from convsync.simulator.verdict import Comparison, truth_from_json

TWENTY = GraphRules(twenty_messages=frozenset({"messenger", "instagram"}))


def longest(reader: GraphReader) -> Conversation:
    return max(reader.simulator.population.conversations, key=lambda one: one.size)


async def test_of_all_but_the_twenty_newest_messages_only_the_ids_are_shown() -> None:
    async with reading(graph=TWENTY) as reader:
        thread = longest(reader)
        assert thread.size > 40
        fields = "created_time,message,from"
        first = await reader.ok(f"{thread.thread_id}/messages", limit=30, fields=fields)
        messages = await reader.follow(first)
        known = reader.simulator.population.visible_messages(thread)[::-1]
        assert [one["id"] for one in messages] == [one.message_id for one in known]
        assert all("created_time" in one and "message" in one for one in messages[:20])
        assert {tuple(one) for one in messages[20:]} == {("id",)}
        nested = await reader.ok(thread.thread_id, fields=f"messages.limit(25){{{fields}}}")
        assert [len(one) for one in nested["messages"]["data"][20:]] == [1] * 5
        # Without a field list a thread lists all its messages, as the guide prints.
        plain = await reader.ok(f"{thread.thread_id}/messages", limit=30)
        assert all(set(one) == {"id", "created_time"} for one in plain["data"])


async def test_an_older_message_is_said_to_be_deleted_and_one_more_comes_in_at_the_front() -> None:
    async with reading(graph=TWENTY) as reader:
        thread = longest(reader)
        messages = reader.simulator.population.visible_messages(thread)[::-1]
        await reader.ok(messages[19].message_id)
        error = await reader.error(messages[20].message_id)
        assert error["code"] == 100
        assert "deleted" in error["message"]
        reader.simulator.population.new_message(thread, "in", "one more")
        assert "deleted" in (await reader.error(messages[19].message_id))["message"]


@pytest.mark.parametrize("platforms", [frozenset(), frozenset({"instagram"})])
async def test_the_rule_of_twenty_messages_holds_for_its_platforms_only(platforms: frozenset[str]) -> None:
    async with reading(graph=GraphRules(twenty_messages=platforms)) as reader:
        thread = longest(reader)
        oldest = reader.simulator.population.visible_messages(thread)[0]
        assert (await reader.ok(oldest.message_id, fields="message"))["message"] == oldest.text


async def test_a_mirror_without_what_nobody_can_read_is_right() -> None:
    async with reading(graph=TWENTY) as reader:
        url = f"{reader.simulator.url}/_sim/truth/{reader.page_id}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            documents = (await answer.json())["conversations"]
        truth = truth_from_json(max(documents, key=lambda one: len(one["messages"])))
        assert [message.readable for message in truth.messages][-21:] == [False, *[True] * 20]
        # Nothing at all in the mirror: the thread and its readable messages are missing, the others are not.
        comparison = Comparison()
        comparison.conversation(truth, [], [])
        verdict = comparison.finish()
        assert verdict.missing == 1 + 20
        assert verdict.unreadable == len(truth.messages) - 20


async def test_people_without_name_id_or_profile_look_like_it() -> None:
    async with reading(conversations=600, messages=2) as reader:
        threads = reader.simulator.population.conversations

        async def people(kind: str) -> list[dict[str, str]]:
            found = []
            for one in threads:
                if one.kind == kind:
                    read = await reader.ok(one.thread_id, fields="participants")
                    everybody = read.get("participants", {"data": []})["data"]
                    found += [person for person in everybody if person.get("id") != reader.page_id]
            return found

        nameless = await people("no_name")
        assert {one.get("name", "missing") for one in nameless} == {"", "missing"}
        assert all(one["email"] == f"{one['id']}@facebook.com" for one in nameless)
        assert {one["name"] for one in await people("facebook_user")} == {"Facebook User"}
        assert {frozenset(one) for one in await people("no_id")} == {frozenset({"name"})}
        assert await people("gone") == []

        by_kind = {one.kind: one for one in threads}
        assert (await reader.error(by_kind["no_name"].psid))["error_subcode"] == 2018218
        assert await reader.ok(by_kind["facebook_user"].psid, fields="first_name") == {}
        for kind in ("no_id", "gone"):
            assert (await reader.error(by_kind[kind].psid))["error_subcode"] == 33


async def test_attachments_of_europe_have_no_address_and_unsupported_messages_say_so() -> None:
    async with reading(conversations=120, messages=40) as reader:
        first = await reader.ok(
            reader.list, limit=60, fields="messages.limit(100){message,attachments,is_unsupported}"
        )
        messages = [one for thread in await reader.follow(first) for one in thread["messages"]["data"]]
        attached = [one for message in messages for one in message.get("attachments", {"data": []})["data"]]
        european = [one for one in attached if "mime_type" not in one]
        assert european
        assert all(set(one) == {"id", "name"} for one in european)
        assert all("privacy rules in Europe" in one["name"] for one in european)
        # A boolean in the documentation, a string in a recorded answer, and never when false.
        said = [one["is_unsupported"] for one in messages if "is_unsupported" in one]
        assert True in said
        assert "true" in said
        assert len(said) < len(messages) / 20
        assert all(not one["message"] for one in messages if "is_unsupported" in one)
