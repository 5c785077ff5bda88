"""The simulated Graph API, read over HTTP by a client that knows only what Meta documents."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from convsync.simulator import Simulator, SimulatorConfig, default_pages
from convsync.simulator.checker import fetch_truth

ALL_FIELDS = (
    "id,updated_time,message_count,unread_count,snippet,link,can_reply,participants,senders,"
    "messages.limit(7){id,created_time,message,from,to,attachments,sticker,shares{id,link,name},reactions,"
    "reply_to,tags,is_unsupported}"
)


class Reader:
    """A naive client: follows what it is told to follow."""

    def __init__(self, simulator: Simulator, session: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self.session = session
        self.page_id = simulator.page.page_id

    async def get(self, path: str, **parameters: str) -> tuple[int, Any, Any]:
        query = {"access_token": self.simulator.page.token, **parameters}
        async with self.session.get(f"{self.simulator.url}/v26.0/{path}", params=query) as answer:
            return answer.status, json.loads(await answer.read()), answer.headers

    async def ok(self, path: str, **parameters: str) -> Any:
        status, body, _ = await self.get(path, **parameters)
        assert status == 200, body
        return body

    async def error(self, path: str, **parameters: str) -> dict[str, Any]:
        status, body, headers = await self.get(path, **parameters)
        assert status >= 400
        assert status != 404
        assert set(body) == {"error"}
        assert {"message", "type", "code", "fbtrace_id"} <= set(body["error"])
        assert headers["WWW-Authenticate"].startswith('OAuth "Facebook Platform" "')
        return {"http": status, **body["error"]}

    async def follow(self, first: dict[str, Any]) -> list[Any]:
        """Everything from a page of a list on, by its `next` addresses."""
        found = list(first["data"])
        following = first.get("paging", {}).get("next")
        while following:
            async with self.session.get(following) as answer:
                assert answer.status == 200
                page = json.loads(await answer.read())
            found += page["data"]
            following = page.get("paging", {}).get("next")
        return found


async def started(config: SimulatorConfig) -> AsyncIterator[Reader]:
    async with Simulator(config) as simulator, aiohttp.ClientSession() as session:
        yield Reader(simulator, session)


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    config = SimulatorConfig(
        port=0, conversations=60, messages=12, calls_per_second=0, pages=default_pages(2)
    )
    async for one in started(config):
        yield one


@pytest.fixture
async def proof_reader() -> AsyncIterator[Reader]:
    config = SimulatorConfig(port=0, conversations=3, calls_per_second=0, require_appsecret_proof=True)
    async for one in started(config):
        yield one


@pytest.mark.parametrize("limit", ["1", "7", "25", "200"])
async def test_paging_reads_every_conversation_once_newest_first(reader: Reader, limit: str) -> None:
    first = await reader.ok(f"{reader.page_id}/conversations", platform="messenger", limit=limit)
    found = await reader.follow(first)
    ids = [conversation["id"] for conversation in found]
    assert len(ids) == 60
    assert set(ids) == {one.thread_id for one in reader.simulator.population.conversations}
    times = [conversation["updated_time"] for conversation in found]
    assert times == sorted(times, reverse=True)


async def test_the_end_has_no_next_and_the_beginning_no_previous(reader: Reader) -> None:
    path = f"{reader.page_id}/conversations"
    first = await reader.ok(path, limit="40")
    assert set(first["paging"]) == {"cursors", "next"}
    last = await reader.ok(path, limit="40", after=first["paging"]["cursors"]["after"])
    assert set(last["paging"]) == {"cursors", "previous"}
    assert len(last["data"]) == 20
    beyond = await reader.ok(path, limit="40", after=last["paging"]["cursors"]["after"])
    assert beyond == {"data": []}
    back = await reader.ok(path, limit="40", before=last["paging"]["cursors"]["before"])
    assert [one["id"] for one in back["data"]] == [one["id"] for one in first["data"]]


async def test_next_holds_the_token_as_metas_does(reader: Reader) -> None:
    first = await reader.ok(f"{reader.page_id}/conversations", limit="2", fields="id,messages.limit(1){id}")
    assert f"access_token={reader.simulator.page.token}" in first["paging"]["next"]


async def test_only_default_fields_come_unless_others_are_asked_for(reader: Reader) -> None:
    found = await reader.ok(f"{reader.page_id}/conversations")
    assert {frozenset(one) for one in found["data"]} == {frozenset({"id", "updated_time"})}
    thread_id = found["data"][0]["id"]
    assert set(await reader.ok(thread_id)) == {"id", "updated_time"}
    messages = await reader.ok(f"{thread_id}/messages")
    assert {frozenset(one) for one in messages["data"]} == {frozenset({"id", "created_time"})}
    assert set(await reader.ok(messages["data"][0]["id"])) == {"id", "created_time"}
    assert set(await reader.ok(reader.page_id)) == {"id", "name"}
    assert await reader.ok("me") == await reader.ok(reader.page_id)
    assert set(await reader.ok(thread_id, fields="message_count")) == {"id", "message_count"}


async def test_lists_are_cut_at_the_caps_without_a_word() -> None:
    config = SimulatorConfig(port=0, conversations=210, messages=30, calls_per_second=0)
    async for reader in started(config):
        path = f"{reader.page_id}/conversations"
        assert len((await reader.ok(path))["data"]) == 25
        assert len((await reader.ok(path, limit="5000"))["data"]) == 200
        longest = max(reader.simulator.population.conversations, key=lambda one: one.size)
        assert longest.size > 100
        edge = await reader.ok(f"{longest.thread_id}/messages", limit="5000")
        assert len(edge["data"]) == 100
        nested = await reader.ok(longest.thread_id, fields="messages.limit(5000){id}")
        assert len(nested["messages"]["data"]) == 100
        assert len(await reader.follow(nested["messages"])) == longest.size


async def test_nested_messages_are_followed_to_the_end_on_their_own_address(reader: Reader) -> None:
    fields = "id,messages.limit(3){id,message}"
    found = await reader.follow(await reader.ok(f"{reader.page_id}/conversations", fields=fields))
    for conversation in found:
        messages = await reader.follow(conversation["messages"])
        known = reader.simulator.population.conversation(conversation["id"])
        assert known is not None
        expected = [one.message_id for one in reader.simulator.population.visible_messages(known)][::-1]
        assert [one["id"] for one in messages] == expected
        assert all(set(one) == {"id", "message"} for one in messages)
        following = conversation["messages"]["paging"].get("next")
        assert following is None or f"/v26.0/{conversation['id']}/messages?" in following


async def test_a_full_walk_reads_what_the_truth_says(reader: Reader) -> None:
    url = f"{reader.simulator.url}/_sim/truth/{reader.page_id}"
    async with reader.session.get(url) as answer:
        truth = json.loads(await answer.read())
    first = await reader.ok(f"{reader.page_id}/conversations", fields=ALL_FIELDS, limit="9")
    walked = {one["id"]: one for one in await reader.follow(first)}
    assert len(walked) == len(truth["conversations"]) == 60
    for known in truth["conversations"]:
        read = walked[known["thread_id"]]
        everybody = read.get("participants", {"data": []})["data"]
        people = [one for one in everybody if one.get("id") != reader.page_id]
        assert known["message_count"] == read["message_count"] == len(known["messages"])
        assert known["unread_count"] == read.get("unread_count", 0)
        assert known["customer_id"] == (people[0].get("id") if people else None)
        assert known["name"] == (people[0].get("name") or None if people else None)
        messages = (await reader.follow(read["messages"]))[::-1]
        assert [one["id"] for one in messages] == [one["id"] for one in known["messages"]]
        for seen, right in zip(messages, known["messages"], strict=True):
            assert seen["message"] == right["text"]
            assert seen.get("from", {}).get("id") == right["from_id"]
            assert (seen.get("from", {}).get("id") == reader.page_id) == (right["direction"] == "out")
            assert [one["id"] for one in seen.get("attachments", {"data": []})["data"]] == right[
                "attachment_ids"
            ]
            assert seen.get("sticker") == right["sticker"]
            moment = time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(right["created_time"] // 1000))
            assert seen["created_time"] == moment


async def test_the_truth_in_parts_is_the_truth(reader: Reader) -> None:
    url = f"{reader.simulator.url}/_sim/truth/{reader.page_id}"
    async with reader.session.get(url) as answer:
        whole = json.loads(await answer.read())["conversations"]
    parts: list[Any] = []
    after: str | None = "-1"
    while after is not None:
        async with reader.session.get(url, params={"after": after, "limit": "20"}) as answer:
            part = json.loads(await answer.read())
        parts += part["conversations"]
        after = part["next"]
    assert parts == whole


async def test_a_thread_that_jumps_to_the_front_is_missed_by_the_walk_that_is_past_it(reader: Reader) -> None:
    population = reader.simulator.population
    path = f"{reader.page_id}/conversations"
    first = await reader.ok(path, limit="20")
    oldest = population.newest_first(60)[0][-1]
    population.new_message(oldest, "in", "me again")
    rest = await reader.follow(await reader.ok(path, limit="20", after=first["paging"]["cursors"]["after"]))
    seen = {one["id"] for one in [*first["data"], *rest]}
    assert seen == {one.thread_id for one in population.conversations} - {oldest.thread_id}
    again = await reader.ok(path, limit="1")
    assert again["data"][0]["id"] == oldest.thread_id


async def test_wrappers_links_and_mail_addresses_have_graphs_shapes(reader: Reader) -> None:
    ordinary = next(one for one in reader.simulator.population.conversations if one.kind == "normal")
    read = await reader.ok(ordinary.thread_id, fields=ALL_FIELDS)
    assert read["link"].startswith(f"/{reader.page_id}/inbox/")
    people = {one["id"]: one for one in read["participants"]["data"]}
    assert people[ordinary.psid]["email"] == f"{ordinary.psid}@facebook.com"
    assert people[reader.page_id]["name"] == "Harbour Bicycles"
    message = read["messages"]["data"][0]
    assert set(message["to"]) == {"data"}
    assert {"name": "inbox"} in message["tags"]["data"]
    with_something = await reader.follow(
        await reader.ok(
            f"{reader.page_id}/conversations", fields=ALL_FIELDS.replace("limit(7)", "limit(100)")
        )
    )
    messages = [one for thread in with_something for one in thread["messages"]["data"]]
    attachments = [one["attachments"] for one in messages if "attachments" in one]
    assert attachments
    for list_of in attachments:
        # A next that leads to an empty page was recorded here; a client must not trip over it.
        assert await reader.follow(list_of) == list_of["data"]
    assert any("data" in one["shares"] for one in messages if "shares" in one)
    assert not [one for one in messages if None in one.values()]


async def test_people_who_are_gone_leave_no_trace_in_participants() -> None:
    shapes = set()
    config = SimulatorConfig(port=0, conversations=600, messages=3, calls_per_second=0)
    async for reader in started(config):
        population = reader.simulator.population
        for gone in [one for one in population.conversations if one.kind == "gone"]:
            read = await reader.ok(gone.thread_id, fields="participants,messages.limit(100){from,to}")
            people = read.get("participants")
            shapes.add(None if people is None else tuple(one["id"] for one in people["data"]))
            known = population.visible_messages(gone)
            inbound = {message.message_id for message in known if not message.outbound}
            for message in read["messages"]["data"]:
                assert ("from" not in message) == (message["id"] in inbound)
        # Where the person is missing, the whole list may be.
        assert shapes == {None, (reader.page_id,)}


async def test_the_thread_of_one_person_is_found_by_their_id(reader: Reader) -> None:
    ordinary = next(one for one in reader.simulator.population.conversations if one.kind == "normal")
    path = f"{reader.page_id}/conversations"
    found = await reader.ok(path, platform="messenger", user_id=ordinary.psid)
    assert [one["id"] for one in found["data"]] == [ordinary.thread_id]
    assert await reader.ok(path, user_id="99") == {"data": []}
    assert await reader.ok(path, platform="INSTAGRAM") == {"data": []}
    assert len((await reader.ok(path, platform="MESSENGER"))["data"]) == 25
    assert await reader.ok(path, folder="spam") == {"data": []}


async def test_several_objects_are_read_by_their_ids(reader: Reader) -> None:
    ids = [one.thread_id for one in reader.simulator.population.conversations[:3]]
    assert list(await reader.ok("", ids=",".join(ids))) == ids


async def test_a_person_without_profile_gives_its_own_error(reader: Reader) -> None:
    conversations = reader.simulator.population.conversations
    named = next(one for one in conversations if one.kind == "normal")
    nameless = next(one for one in conversations if one.kind == "no_name")
    profile = await reader.ok(named.psid, fields="first_name,last_name,profile_pic")
    assert set(profile) == {"first_name", "last_name", "profile_pic", "id"}
    assert (await reader.error(nameless.psid))["error_subcode"] == 2018218


async def test_what_is_not_there_is_100_33_and_never_404(reader: Reader) -> None:
    for path in (
        "t_1",
        "m_abc",
        "123456",
        "t_1/messages",
        f"{reader.page_id}/feed",
        "a/b/c",
        "",
        "favicon.ico",
    ):
        error = await reader.error(path)
        assert (error["code"], error["error_subcode"], error["http"]) == (100, 33, 400), path
        assert error["type"] == "GraphMethodException"
        assert error["message"].startswith("Unsupported get request. Object with ID")


async def test_an_unsent_message_is_not_there(reader: Reader) -> None:
    population = reader.simulator.population
    conversation = max(population.conversations, key=lambda one: one.size)
    mid = population.all_messages(conversation)[0].message_id
    await reader.ok(mid)
    population.unsend(mid)
    assert (await reader.error(mid))["error_subcode"] == 33
    found = await reader.follow(await reader.ok(f"{conversation.thread_id}/messages"))
    assert len(found) == conversation.message_count == conversation.size - 1
    url = f"{reader.simulator.url}/_sim/truth/{reader.page_id}"
    async with reader.session.get(url) as answer:
        truth = json.loads(await answer.read())["conversations"]
    flags = {m["id"]: m["deleted"] for thread in truth for m in thread["messages"]}
    assert [one for one, deleted in flags.items() if deleted] == [mid]


async def test_a_removed_thread_is_not_there(reader: Reader) -> None:
    population = reader.simulator.population
    removed = population.conversations[3]
    mid = population.all_messages(removed)[0].message_id
    control = f"{reader.simulator.url}/_sim"
    where = {"page_id": reader.page_id, "thread_id": removed.thread_id}
    async with reader.session.post(f"{control}/remove", json=where) as answer:
        assert answer.status == 200
    async with reader.session.post(f"{control}/remove", json=where) as answer:
        assert answer.status == 404
    for path in (removed.thread_id, f"{removed.thread_id}/messages", mid):
        error = await reader.error(path)
        assert (error["code"], error["error_subcode"]) == (100, 33)
    listed = await reader.follow(await reader.ok(f"{reader.page_id}/conversations"))
    there = {one.thread_id for one in population.conversations} - {removed.thread_id}
    assert {thread["id"] for thread in listed} == there
    async with reader.session.get(f"{control}/truth/{reader.page_id}") as answer:
        truth = json.loads(await answer.read())["conversations"]
    in_parts = [thread async for thread in fetch_truth(reader.simulator.url, reader.page_id, part=2)]
    assert {thread["thread_id"] for thread in truth} == there
    assert in_parts == truth


@pytest.mark.parametrize("cursor", ["nonsense", "MAZDZD", "ä", "ZD", "bm90OmE6Y3Vyc29y"])
async def test_a_cursor_that_was_never_given_out_is_code_100(reader: Reader, cursor: str) -> None:
    assert (await reader.error(f"{reader.page_id}/conversations", after=cursor))["code"] == 100
    assert (await reader.error(f"{reader.page_id}/conversations", before=cursor))["code"] == 100


async def test_a_cursor_of_another_list_is_refused(reader: Reader) -> None:
    first = await reader.ok(f"{reader.page_id}/conversations", limit="2")
    thread_id = first["data"][0]["id"]
    error = await reader.error(f"{thread_id}/messages", after=first["paging"]["cursors"]["after"])
    assert error["code"] == 100


async def test_bad_parameters_are_told(reader: Reader) -> None:
    path = f"{reader.page_id}/conversations"
    assert (await reader.error(path, limit="many"))["code"] == 100
    assert (await reader.error(path, platform="myspace"))["code"] == 100
    assert (await reader.error(path, fields="id,messages{"))["code"] == 2500
    for fields in ("id,nothing", "messages{nothing}"):
        error = await reader.error(path, fields=fields)
        assert error["code"] == 100
        assert "nonexisting field (nothing)" in error["message"]


async def test_tokens_open_their_own_page_only(reader: Reader) -> None:
    first, second = reader.simulator.config.pages
    assert (await reader.error(reader.page_id, access_token="wrong"))["code"] == 190
    assert (await reader.error(reader.page_id, access_token=""))["code"] == 104
    mismatch = await reader.error(f"{first.page_id}/conversations", access_token=second.token)
    assert (mismatch["code"], mismatch["http"]) == (200, 403)
    thread_id = reader.simulator.population.conversations[0].thread_id
    foreign = await reader.error(thread_id, access_token=second.token)
    assert (foreign["code"], foreign["error_subcode"]) == (100, 33)


@pytest.mark.parametrize("scheme", ["Bearer", "OAuth", "bearer"])
async def test_a_token_may_come_in_the_header_and_the_version_may_be_left_out(
    reader: Reader, scheme: str
) -> None:
    headers = {"Authorization": f"{scheme} {reader.simulator.page.token}"}
    async with reader.session.get(f"{reader.simulator.url}/me", headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["Facebook-API-Version"] == "v26.0"
        assert answer.headers["x-fb-trace-id"]
    async with reader.session.get(f"{reader.simulator.url}/v23.0/me", headers=headers) as answer:
        assert answer.headers["Facebook-API-Version"] == "v23.0"
    async with reader.session.get(f"{reader.simulator.url}/v12.0/me", headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["Facebook-API-Version"] == "v21.0"
    async with reader.session.get(f"{reader.simulator.url}/v99.0/me", headers=headers) as answer:
        assert answer.status == 400


async def test_a_token_tells_about_itself(reader: Reader) -> None:
    page = reader.simulator.page
    told = await reader.ok(
        "debug_token", input_token=page.token, access_token=reader.simulator.config.app_token
    )
    assert told["data"]["is_valid"] is True
    assert told["data"]["profile_id"] == page.page_id
    assert "pages_messaging" in told["data"]["scopes"]
    unknown = await reader.ok("debug_token", input_token="nothing")
    assert unknown["data"]["is_valid"] is False


async def test_the_app_is_subscribed_and_unsubscribed(reader: Reader) -> None:
    address = f"{reader.simulator.url}/v26.0/{reader.page_id}/subscribed_apps"
    query = {"access_token": reader.simulator.page.token}
    assert await reader.ok(f"{reader.page_id}/subscribed_apps") == {"data": []}
    wanted = {**query, "subscribed_fields": "messages,message_echoes"}
    async with reader.session.post(address, params=wanted) as answer:
        assert (await answer.json()) == {"success": True}
    in_body = {
        "access_token": reader.simulator.page.token,
        "subscribed_fields": ["messages", "message_echoes"],
    }
    async with reader.session.post(address, json=in_body) as answer:
        assert (await answer.json()) == {"success": True}
    async with reader.session.post(address, data=wanted) as answer:
        assert (await answer.json()) == {"success": True}
    found = await reader.ok(f"{reader.page_id}/subscribed_apps")
    assert found["data"][0]["subscribed_fields"] == ["message_echoes", "messages"]
    async with reader.session.post(
        address, params={**query, "subscribed_fields": "message_deletions"}
    ) as answer:
        assert answer.status == 400
    async with reader.session.delete(address, params=query) as answer:
        assert (await answer.json()) == {"success": True}
    assert await reader.ok(f"{reader.page_id}/subscribed_apps") == {"data": []}


def proof(token: str, moment: int | None = None) -> dict[str, str]:
    message = token if moment is None else f"{token}|{moment}"
    digest = hmac.new(b"sim-app-secret", message.encode(), hashlib.sha256).hexdigest()
    return {"appsecret_proof": digest} | ({} if moment is None else {"appsecret_time": str(moment)})


async def test_the_proof_of_the_app_secret_is_checked_when_required(proof_reader: Reader) -> None:
    token = proof_reader.simulator.page.token
    required = await proof_reader.error("me")
    assert "require an appsecret_proof" in required["message"]
    await proof_reader.ok("me", **proof(token))
    await proof_reader.ok("me", **proof(token, int(time.time())))
    for bad in ({"appsecret_proof": "0" * 64}, proof(token, int(time.time()) - 301), proof("other")):
        assert "Invalid appsecret_proof" in (await proof_reader.error("me", **bad))["message"]


async def test_calls_are_logged_without_the_token(reader: Reader) -> None:
    await reader.ok(f"{reader.page_id}/conversations", limit="3")
    await reader.error("t_1")
    async with reader.session.get(f"{reader.simulator.url}/_sim/calls") as answer:
        text = await answer.text()
    log = json.loads(text)
    assert reader.simulator.page.token not in text
    assert [(one["status"], one["code"], one["counted"]) for one in log["calls"]] == [
        (200, None, True),
        (400, 100, True),
    ]
    assert log["calls"][0]["query"] == "limit=3"
    assert log["totals"][reader.page_id] == {
        "calls": 2,
        "counted": 2,
        "refused": 0,
        "blocked": 0,
        "errors": 1,
        "faults": 0,
    }
    async with reader.session.delete(f"{reader.simulator.url}/_sim/calls") as answer:
        assert answer.status == 200
    assert not reader.simulator.calls.calls
