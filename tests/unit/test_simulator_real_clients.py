"""Clients nobody here wrote walk the simulator: Meta's SDK `facebook-business`, and `python-facebook-api`.

They know Graph, not us: what they need and the simulator lacks is a flaw of the simulator. Both block, so
they run in threads beside the simulator's event loop. Both offer a place for another address than
https://graph.facebook.com: the SDK's session has it as its attribute `GRAPH`, the other as `base_url`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from facebook_business.adobjects.page import Page
from facebook_business.adobjects.unifiedthread import UnifiedThread
from facebook_business.api import Cursor, FacebookAdsApi, FacebookResponse
from facebook_business.exceptions import FacebookRequestError
from facebook_business.session import FacebookSession
from pyfacebook import FacebookApi, FacebookError, LibraryError

from convsync.simulator import Simulator, SimulatorConfig

# The SDK's own list of a thread's fields holds no edges; it warns of what it does not know, and sends it.
pytestmark = pytest.mark.filterwarnings("ignore:conversations does not allow field messages:UserWarning")

MESSAGE_FIELDS = "id,created_time,message,from,to,attachments,sticker,shares{id,link},reply_to,tags"
SMALL_PAGE = SimulatorConfig(
    port=0, conversations=40, messages=12, calls_per_second=0, require_appsecret_proof=True
)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(SMALL_PAGE) as one:
        yield one


@pytest.fixture
def sdk(simulator: Simulator) -> Iterator[FacebookAdsApi]:
    """Meta's SDK. It signs each call with the plain proof of the app secret by itself."""
    config = simulator.config
    session = FacebookSession(config.app_id, config.app_secret, simulator.page.token, timeout=10)
    session.GRAPH = simulator.url
    yield FacebookAdsApi(session, api_version="v26.0")
    session.requests.close()


@pytest.fixture
def pyfacebook(simulator: Simulator) -> Iterator[FacebookApi]:
    config = simulator.config
    api = FacebookApi(
        app_id=config.app_id,
        app_secret=config.app_secret,
        access_token=simulator.page.token,
        version="v24.0",
        base_url=f"{simulator.url}/",
        timeout=10,
    )
    yield api
    api.session.close()


async def truth(simulator: Simulator) -> dict[str, Any]:
    """The threads of the Page by id, as the simulator holds them."""
    url = f"{simulator.url}/_sim/truth/{simulator.page.page_id}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return {one["thread_id"]: one for one in json.loads(await answer.read())["conversations"]}


Read = tuple[str, str, str, str | None, list[str], str | None, str | None]
Person = tuple[str | None, str] | None
Thread = tuple[int, str, Person, list[Read]]


def moment(ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")


def known(thread: dict[str, Any]) -> Thread:
    """What the truth says of a thread: length, time, person, and its messages, newest first."""
    person = None if thread["kind"] == "gone" else (thread["customer_id"], thread["name"] or "")
    messages = [
        (
            message["id"],
            moment(message["created_time"]),
            message["text"],
            message["from_id"],
            message["attachment_ids"],
            message["sticker"],
            None if message["from_id"] is None else f"{message['from_id']}@facebook.com",
        )
        for message in reversed(thread["messages"])
    ]
    return (thread["message_count"], moment(thread["updated_time"]), person, messages)


def seen(message: Any) -> Read:
    author = message.get("from", {})
    attachments = message.get("attachments", {"data": []})["data"]
    return (
        message["id"],
        message["created_time"],
        message["message"],
        author.get("id"),
        [one["id"] for one in attachments],
        message.get("sticker"),
        author.get("email"),
    )


def customer(people: list[dict[str, Any]], page_id: str) -> Person:
    """Whoever takes part beside the Page."""
    others = [one for one in people if one.get("id") != page_id]
    assert len(others) <= 1
    return (others[0].get("id"), others[0].get("name", "")) if others else None


# -- Meta's SDK


def all_messages(thread: UnifiedThread, api: FacebookAdsApi) -> list[Read]:
    """The nested messages, then the rest by the SDK's cursor from where they end."""
    nested = thread["messages"]
    found = [seen(message) for message in nested["data"]]
    paging = nested["paging"]
    if "next" in paging:
        cursor = UnifiedThread(thread["id"], api=api).get_messages(
            params={"fields": MESSAGE_FIELDS, "limit": 4, "after": paging["cursors"]["after"]}
        )
        found += [seen(message) for message in cursor]
    return found


async def test_metas_sdk_reads_the_whole_population_and_it_is_the_truth(
    simulator: Simulator, sdk: FacebookAdsApi
) -> None:
    page_id = simulator.page.page_id

    def read(thread: UnifiedThread) -> Thread:
        people = thread["participants"]["data"] if "participants" in thread else []
        messages = all_messages(thread, sdk)
        return (thread["message_count"], thread["updated_time"], customer(people, page_id), messages)

    def walk() -> dict[str, Thread]:
        threads: Cursor = Page(page_id, api=sdk).get_conversations(
            fields=[
                "id",
                "updated_time",
                "message_count",
                "participants",
                f"messages.limit(5){{{MESSAGE_FIELDS}}}",
            ],
            params={"platform": "MESSENGER", "limit": 7},
        )
        return {one["id"]: read(one) for one in threads}

    found = await asyncio.to_thread(walk)
    right = await truth(simulator)
    assert found == {thread_id: known(thread) for thread_id, thread in right.items()}
    assert sum(len(thread[-1]) for thread in found.values()) == simulator.population.message_total()
    assert sdk.get_num_requests_succeeded() == sdk.get_num_requests_attempted() > 6


async def test_metas_sdk_understands_the_errors(simulator: Simulator, sdk: FacebookAdsApi) -> None:
    page = Page(simulator.page.page_id, api=sdk)

    def refused(act: Callable[[], object]) -> FacebookRequestError:
        with pytest.raises(FacebookRequestError) as told:
            act()
        error: FacebookRequestError = told.value
        return error

    gone = await asyncio.to_thread(refused, UnifiedThread("t_1", api=sdk).api_get)
    assert (gone.http_status(), gone.api_error_code(), gone.api_error_subcode()) == (400, 100, 33)
    assert gone.api_error_type() == "GraphMethodException"

    nonsense = await asyncio.to_thread(
        refused, lambda: page.get_conversations(params={"fields": "id,messages{"})
    )
    assert nonsense.api_error_code() == 2500

    simulator.faults.add("/conversations", "error", times=1, code=2, message="(#2) down", is_transient=True)
    passing = await asyncio.to_thread(refused, page.get_conversations)
    assert (passing.http_status(), passing.api_error_code()) == (503, 2)
    assert passing.api_transient_error() is True

    simulator.faults.add("/conversations", "error", times=1, code=190, subcode=460)
    dead = await asyncio.to_thread(refused, page.get_conversations)
    assert (dead.api_error_code(), dead.api_error_subcode()) == (190, 460)
    assert dead.http_headers()["WWW-Authenticate"].startswith('OAuth "Facebook Platform" "invalid_token"')

    # The SDK takes any text without these two words for a success.
    simulator.faults.add("/conversations", "html", times=1, body="<h1>Service Unavailable</h1>")
    garbage = await asyncio.to_thread(refused, page.get_conversations)
    assert (garbage.http_status(), garbage.api_error_code()) == (502, None)


async def test_metas_sdk_is_told_of_a_block_and_of_a_cursor_that_died_in_mid_walk(
    simulator: Simulator, sdk: FacebookAdsApi
) -> None:
    page = Page(simulator.page.page_id, api=sdk)

    def walk(read: list[str]) -> FacebookRequestError:
        with pytest.raises(FacebookRequestError) as told:
            read += (one["id"] for one in page.get_conversations(params={"limit": 10}))
        error: FacebookRequestError = told.value
        return error

    read: list[str] = []
    simulator.faults.add("/conversations.*after=", "dead_cursor", after=1, times=1)
    died = await asyncio.to_thread(walk, read)
    assert (died.api_error_code(), died.http_status()) == (100, 400)
    simulator.faults.add("/conversations", "block", times=1, seconds=600)
    for calls in (100, 101):
        blocked = await asyncio.to_thread(walk, read)
        assert blocked.api_error_code() == 80006
        assert "Wait a bit and try again" in blocked.api_error_message()
        (usage,) = json.loads(blocked.http_headers()["X-Business-Use-Case-Usage"])[simulator.page.page_id]
        assert usage["call_count"] == calls
        assert usage["estimated_time_to_regain_access"] >= 10


async def test_metas_sdk_makes_batch_calls_and_each_item_answers_for_itself(
    simulator: Simulator, sdk: FacebookAdsApi
) -> None:
    ids = [one.thread_id for one in simulator.population.newest_first(3)[0]]

    def run() -> tuple[list[FacebookResponse], list[FacebookResponse], object]:
        answered: list[FacebookResponse] = []
        failed: list[FacebookResponse] = []
        batch = sdk.new_batch()
        for thread_id in (*ids, "t_1"):
            thread = UnifiedThread(thread_id, api=sdk)
            thread.api_get(
                fields=["id", "message_count"], batch=batch, success=answered.append, failure=failed.append
            )
        Page(simulator.page.page_id, api=sdk).get_conversations(
            params={"limit": 2, "fields": "id,messages.limit(1){id}"},
            batch=batch,
            success=answered.append,
            failure=failed.append,
        )
        return answered, failed, batch.execute()

    answered, failed, to_repeat = await asyncio.to_thread(run)
    assert to_repeat is None
    assert [one.json()["id"] for one in answered[:3]] == ids
    counts = {one.thread_id: one.message_count for one in simulator.population.conversations}
    assert [one.json()["message_count"] for one in answered[:3]] == [counts[one] for one in ids]
    assert [one["id"] for one in answered[3].json()["data"]] == ids[:2]
    assert [one.error().api_error_subcode() for one in failed] == [33]
    headers = {one["name"]: one["value"] for one in answered[0].headers()}
    assert headers["Facebook-API-Version"] == "v26.0"


async def test_metas_sdk_subscribes_an_app_to_every_field_it_knows(
    simulator: Simulator, sdk: FacebookAdsApi
) -> None:
    page = Page(simulator.page.page_id, api=sdk)
    fields = [value for name, value in vars(Page.SubscribedFields).items() if not name.startswith("_")]
    assert len(fields) > 90

    def subscribe() -> list[str]:
        page.create_subscribed_app(params={"subscribed_fields": fields})
        (app,) = page.get_subscribed_apps()
        return list(app["subscribed_fields"])

    assert await asyncio.to_thread(subscribe) == sorted(fields)


# -- python-facebook-api


async def test_python_facebook_reads_the_whole_population_and_it_is_the_truth(
    simulator: Simulator, pyfacebook: FacebookApi
) -> None:
    page_id = simulator.page.page_id

    def walk() -> dict[str, Thread]:
        threads = pyfacebook.get_full_connections(
            object_id=page_id, connection="conversations", count=None, limit=9
        )["data"]
        found = {}
        for thread in threads:
            conversation = pyfacebook.conversation.get_info(
                thread["id"], fields="id,message_count,updated_time,participants"
            )
            messages = pyfacebook.get_full_connections(
                object_id=thread["id"], connection="messages", count=None, limit=30, fields=MESSAGE_FIELDS
            )["data"]
            # Its own types: what is not in the answer is None there.
            people = conversation.participants.data if conversation.participants else []
            shown = [{n: v for n, v in one.to_dict().items() if v is not None} for one in people]
            found[conversation.id] = (
                conversation.message_count,
                conversation.updated_time,
                customer(shown, page_id),
                [seen(message) for message in messages],
            )
        return found

    read = await asyncio.to_thread(walk)
    right = await truth(simulator)
    assert read == {thread_id: known(thread) for thread_id, thread in right.items()}


async def test_python_facebook_reads_several_messages_by_id_into_its_own_types(
    simulator: Simulator, pyfacebook: FacebookApi
) -> None:
    population = simulator.population
    thread = max(population.conversations, key=lambda one: one.size if one.kind == "normal" else 0)
    messages = {one.message_id: one for one in population.visible_messages(thread)[:20]}
    read = await asyncio.to_thread(
        pyfacebook.message.get_batch, list(messages), "id,created_time,from,to,message,attachments,tags"
    )
    assert set(read) == set(messages)
    for message_id, typed in read.items():
        right = messages[message_id]
        assert typed.message == right.text
        assert (typed.to.data[0].id == thread.psid) == right.outbound
        attached = typed.attachments.data if typed.attachments else []
        assert [one.id for one in attached] == [one["id"] for one in right.attachments]


async def test_python_facebook_understands_the_errors_and_the_usage_header(
    simulator: Simulator, pyfacebook: FacebookApi
) -> None:
    page_id = simulator.page.page_id

    def refused(act: Callable[[], object]) -> LibraryError:
        with pytest.raises(LibraryError) as told:
            act()
        return told.value

    def walk() -> object:
        return pyfacebook.get_full_connections(
            object_id=page_id, connection="conversations", count=None, limit=9
        )

    gone = await asyncio.to_thread(refused, lambda: pyfacebook.conversation.get_info("t_1"))
    assert isinstance(gone, FacebookError)
    assert (gone.code, gone.error_subcode) == (100, 33)
    told = await asyncio.to_thread(pyfacebook.debug_token, simulator.page.token, simulator.config.app_token)
    assert told["data"]["profile_id"] == page_id

    simulator.faults.add("after=", "error", times=1, name="password_changed")
    dead = await asyncio.to_thread(refused, walk)
    assert isinstance(dead, FacebookError)
    assert (dead.code, dead.error_subcode) == (190, 460)
    assert dead.fbtrace_id

    simulator.faults.add("/conversations", "html", times=1)
    garbage = await asyncio.to_thread(refused, walk)
    assert not isinstance(garbage, FacebookError)

    simulator.faults.add("/conversations", "block", times=1, seconds=600)
    blocked = await asyncio.to_thread(refused, walk)
    assert isinstance(blocked, FacebookError)
    assert blocked.code == 80006
    limits = pyfacebook.rate_limit.get_limit(page_id, "messenger")
    assert (limits.max_percent(), limits.estimated_time_to_regain_access) == (100, 10)
