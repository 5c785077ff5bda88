"""Lists of the simulated Graph API, and what Meta's do to those who walk them."""

from __future__ import annotations

import aiohttp
import pytest
from graph_reader import GraphReader, reading

from convsync.simulator.lists import is_listed
from convsync.simulator.rules import GraphRules


def everyone(reader: GraphReader) -> set[str]:
    return {one.thread_id for one in reader.simulator.population.conversations}


@pytest.mark.parametrize(("name", "code"), [("cursor_dead", 100), ("cursor_invalid", 2642)])
async def test_a_dead_cursor_is_refused_and_the_front_of_the_list_is_not(name: str, code: int) -> None:
    async with reading() as reader:
        reader.simulator.faults.add("/conversations", "dead_cursor", name=name)
        first = await reader.ok(reader.list, limit=10)
        after = first["paging"]["cursors"]["after"]
        assert (await reader.error(reader.list, limit=10, after=after))["code"] == code
        assert await reader.ok(reader.list, limit=10) == first


async def test_all_cursors_given_out_may_die_at_once_and_new_ones_live() -> None:
    async with reading() as reader:
        first = await reader.ok(reader.list, limit=10, fields="id,messages.limit(1){id}")
        cursor = first["paging"]["cursors"]["after"]
        nested = next(one for one in first["data"] if "next" in one["messages"]["paging"])
        inside = nested["messages"]["paging"]["cursors"]["after"]
        reader.simulator.faults.add("/conversations", "expire_cursors", times=1)
        assert (await reader.error(reader.list, after=cursor))["code"] == 100
        assert (await reader.error(reader.list, after=cursor))["code"] == 100
        assert (await reader.error(f"{nested['id']}/messages", after=inside))["code"] == 100
        again = await reader.ok(reader.list, limit=10)
        assert {one["id"] for one in await reader.follow(again)} == everyone(reader)


async def test_nobody_gets_deeper_than_the_endpoint_allows() -> None:
    async with reading() as reader:
        reader.simulator.faults.add("/conversations", "too_deep", items=30)
        page = await reader.ok(reader.list, limit=10)
        for _ in range(2):
            page = await reader.ok(reader.list, limit=10, after=page["paging"]["cursors"]["after"])
        error = await reader.error(reader.list, limit=10, after=page["paging"]["cursors"]["after"])
        assert error["code"] == 100
        assert "exceeds the max limit supported by this endpoint" in error["message"]
        # It is the depth that counts, not the number of calls.
        whole = await reader.ok(reader.list, limit=29)
        await reader.ok(reader.list, limit=29, after=whole["paging"]["cursors"]["after"])


@pytest.mark.parametrize("limit", [1, 7, 25, 200])
async def test_a_list_that_is_not_in_order_still_holds_everyone_once(limit: int) -> None:
    async with reading() as reader:
        reader.simulator.faults.add("/conversations", "unordered")
        found = await reader.follow(await reader.ok(reader.list, limit=limit))
        ids = [one["id"] for one in found]
        assert len(ids) == 60
        assert set(ids) == everyone(reader)
        times = [one["updated_time"] for one in found]
        assert times != sorted(times, reverse=True)


async def test_the_listing_of_a_busy_page_is_refused_and_single_threads_are_not() -> None:
    async with reading() as reader:
        reader.simulator.faults.add("", "refuse_listing")
        known = next(one for one in reader.simulator.population.conversations if one.kind == "normal")
        assert (await reader.error(reader.list))["http"] == 500
        assert (await reader.error(reader.list, limit=1))["http"] == 500
        found = await reader.ok(reader.list, user_id=known.psid)
        assert [one["id"] for one in found["data"]] == [known.thread_id]
        await reader.ok(known.thread_id)
        await reader.ok(f"{known.thread_id}/messages")


async def test_conversations_are_filtered_by_when_they_changed() -> None:
    async with reading() as reader:
        threads = reader.simulator.population.newest_first(60)[0]
        since, before = threads[40].updated_ms, threads[10].updated_ms
        newer = await reader.follow(await reader.ok(reader.list, limit=7, updated_after_ms=since))
        assert [one["id"] for one in newer] == [one.thread_id for one in threads[:40]]
        older = await reader.follow(await reader.ok(reader.list, limit=7, updated_before_ms=before))
        assert [one["id"] for one in older] == [one.thread_id for one in threads[11:]]
        both = {"updated_after_ms": since, "updated_before_ms": before}
        between = await reader.follow(await reader.ok(reader.list, limit=7, **both))
        assert [one["id"] for one in between] == [one.thread_id for one in threads[11:40]]
        assert (await reader.error(reader.list, updated_after_ms="yesterday"))["code"] == 100


async def test_old_requests_are_in_no_list_but_can_be_read_and_the_truth_says_so() -> None:
    rules = GraphRules(requests=0.3)
    async with reading(graph=rules, conversations=200) as reader:
        threads = reader.simulator.population.conversations
        listed = {one.thread_id for one in threads if is_listed(one, rules.requests)}
        walked = await reader.follow(await reader.ok(reader.list, limit=50, fields="folder"))
        assert {one["id"] for one in walked} == listed
        assert 0 < len(threads) - len(listed) < 80
        requests = await reader.follow(await reader.ok(reader.list, folder="pending"))
        assert (
            {one["id"] for one in requests}
            == {one["id"] for one in walked if one["folder"] == "pending"}
            != set()
        )
        inbox = await reader.follow(await reader.ok(reader.list, folder="inbox"))
        assert len(inbox) + len(requests) == len(walked)
        hidden = next(one for one in threads if one.thread_id not in listed)
        await reader.ok(hidden.thread_id)
        url = f"{reader.simulator.url}/_sim/truth/{reader.page_id}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            truth = (await answer.json())["conversations"]
        shown = {one["thread_id"] for one in truth if all(message["readable"] for message in one["messages"])}
        assert shown == listed


async def test_short_and_empty_pages_also_come_on_threads() -> None:
    async with reading() as reader:
        longest = max(reader.simulator.population.conversations, key=lambda one: one.size)
        reader.simulator.faults.add("/messages", "empty_page", times=1)
        reader.simulator.faults.add("/messages", "short_page", after=1, times=2, limit=2)
        first = await reader.ok(f"{longest.thread_id}/messages", limit=10)
        assert first["data"] == []
        assert f"access_token={reader.simulator.page.token}" in first["paging"]["next"]
        assert len(await reader.follow(first)) == longest.message_count
