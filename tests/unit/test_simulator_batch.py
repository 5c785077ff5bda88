"""Batch requests of the simulated Graph API."""

from __future__ import annotations

import hashlib
import hmac
import json
import time

from graph_reader import reading


async def test_a_batch_answers_in_order_with_a_string_for_each_body() -> None:
    async with reading() as reader:
        ids = [one.thread_id for one in reader.simulator.population.conversations[:2]]
        answers = await reader.batch(
            {"method": "GET", "relative_url": f"{ids[0]}?fields=message_count"},
            {"method": "GET", "relative_url": "t_1"},
            {"method": "GET", "relative_url": f"/v23.0/{ids[1]}/?fields=link"},
            {"method": "POST", "relative_url": "me/subscribed_apps", "body": "subscribed_fields=messages"},
        )
    assert [one["code"] for one in answers] == [200, 400, 200, 200]
    assert json.loads(answers[0]["body"])["id"] == ids[0]
    assert json.loads(answers[1]["body"])["error"]["error_subcode"] == 33
    assert json.loads(answers[3]["body"]) == {"success": True}
    # Slashes are escaped in these bodies, as recorded.
    assert '"link":"\\/' in answers[2]["body"]
    named = {one["name"]: one["value"] for one in answers[2]["headers"]}
    assert named["Facebook-API-Version"] == "v23.0"
    assert named["Content-Type"] == "text/javascript; charset=UTF-8"


async def test_headers_are_left_out_on_request() -> None:
    async with reading() as reader:
        answers = await reader.batch({"method": "GET", "relative_url": "me"}, include_headers="false")
    assert set(answers[0]) == {"code", "body"}


async def test_each_item_counts_as_one_call_and_is_refused_for_itself() -> None:
    async with reading(calls_per_second=2.0) as reader:
        thread_id = reader.simulator.population.conversations[0].thread_id
        answers = await reader.batch(*[{"method": "GET", "relative_url": thread_id}] * 5)
        log = list(reader.simulator.calls.calls)
    codes = [json.loads(one["body"]).get("error", {}).get("code") for one in answers]
    assert codes == [None, None, 613, 613, 613]
    assert [(one.batch, one.counted) for one in log] == [(False, False), *[(True, True)] * 5]
    assert log[0].query == "batch"


async def test_more_than_fifty_items_are_refused_together() -> None:
    async with reading() as reader:
        item = {"method": "GET", "relative_url": "me"}
        assert len(await reader.batch(*[item] * 50)) == 50
        error = await reader.error("", "POST", batch=json.dumps([item] * 51))
        assert (error["code"], error["type"]) == (1, "GraphBatchException")
        for nonsense in ("{", '{"method": "GET"}', "[1]"):
            assert (await reader.error("", "POST", batch=nonsense))["code"] == 100


async def test_an_item_that_never_gets_an_answer_is_null() -> None:
    async with reading() as reader:
        reader.simulator.faults.add("GET .*/t_", "hang", times=1)
        reader.simulator.faults.add("GET .*/t_", "reset", times=1)
        reader.simulator.faults.add("GET .*/t_", "truncate", times=1)
        thread_id = reader.simulator.population.conversations[0].thread_id
        answers = await reader.batch(*[{"method": "GET", "relative_url": thread_id}] * 4)
    assert [one and one["code"] for one in answers] == [None, None, None, 200]


async def test_an_item_may_use_what_an_earlier_one_found() -> None:
    async with reading() as reader:
        answers = await reader.batch(
            {"method": "GET", "relative_url": f"{reader.list}?limit=3", "name": "threads"},
            {"method": "GET", "relative_url": "?ids={result=threads:$.data.*.id}&fields=id"},
            {"method": "GET", "relative_url": "{result=threads:$.data[1].id}/messages?limit=1"},
            {
                "method": "GET",
                "relative_url": "me",
                "name": "page",
                "omit_response_on_success": False,
                "depends_on": "threads",
            },
            {"method": "GET", "relative_url": "me", "depends_on": "nobody"},
        )
        newest = [one.thread_id for one in reader.simulator.population.newest_first(3)[0]]
    # The answer that others wait for is not shown unless asked for.
    assert answers[0] is None
    assert list(json.loads(answers[1]["body"])) == newest
    assert len(json.loads(answers[2]["body"])["data"]) == 1
    assert json.loads(answers[3]["body"])["id"] == reader.page_id
    assert answers[4] is None


async def test_an_item_with_a_token_of_its_own_needs_a_proof_of_its_own() -> None:
    async with reading(require_appsecret_proof=True) as reader:
        moment = str(int(time.time()))
        signed = f"{reader.simulator.page.token}|{moment}".encode()
        proof = hmac.new(reader.simulator.config.app_secret.encode(), signed, hashlib.sha256).hexdigest()
        own = f"me?access_token={reader.simulator.page.token}"
        answers = await reader.batch(
            {"method": "GET", "relative_url": "me"},
            {"method": "GET", "relative_url": own},
            {"method": "GET", "relative_url": f"{own}&appsecret_proof={proof}&appsecret_time={moment}"},
            appsecret_proof=proof,
            appsecret_time=moment,
        )
        assert [one["code"] for one in answers] == [200, 400, 200]
        assert (await reader.error("", "POST", batch="[]"))["code"] == 100
        text = json.dumps([one.query for one in reader.simulator.calls.calls])
        assert reader.simulator.page.token not in text
        assert proof not in text
