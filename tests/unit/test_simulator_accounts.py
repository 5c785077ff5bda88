"""Tokens of the simulated Graph API and what they open."""

from __future__ import annotations

from graph_reader import reading

from convsync.simulator import default_pages


async def test_a_person_lists_their_pages_with_tokens_and_the_list_is_paged() -> None:
    async with reading(pages=default_pages(5), conversations=2) as reader:
        token = reader.simulator.config.graph.user_token
        first = await reader.ok("me/accounts", access_token=token, limit=2)
        assert len(first["data"]) == 2
        accounts = await reader.follow(first)
        assert [(one["id"], one["access_token"]) for one in accounts] == [
            (page.page_id, page.token) for page in reader.simulator.config.pages
        ]
        assert "MESSAGING" in accounts[0]["tasks"]
        assert accounts[0]["category_list"][0]["name"] == accounts[0]["category"]
        chosen = await reader.ok("me/accounts", access_token=token, limit=1, fields="name")
        assert set(chosen["data"][0]) == {"name", "id"}
        assert "fields=name" in chosen["paging"]["next"]


async def test_me_is_whose_token_it_is() -> None:
    async with reading() as reader:
        rules = reader.simulator.config.graph
        me = await reader.ok("me", access_token=rules.user_token)
        assert me == {"id": rules.user_id, "name": rules.user_name}
        assert (await reader.ok("me"))["id"] == reader.page_id
        page = await reader.ok(reader.page_id, access_token=rules.user_token, fields="access_token")
        assert page == {"access_token": reader.simulator.page.token, "id": reader.page_id}


async def test_conversations_want_the_token_of_their_page() -> None:
    async with reading() as reader:
        token = reader.simulator.config.graph.user_token
        error = await reader.error(reader.list, access_token=token)
        assert error["code"] == 190
        assert "must be called with a Page Access Token" in error["message"]
        thread_id = reader.simulator.population.conversations[0].thread_id
        assert (await reader.error(thread_id, access_token=token))["error_subcode"] == 33
        app = reader.simulator.config.app_token
        assert (await reader.error("me", access_token=app))["error_subcode"] == 33


async def test_every_kind_of_token_tells_about_itself_and_a_dead_one_why() -> None:
    async with reading() as reader:
        config = reader.simulator.config

        async def debug(token: str) -> dict[str, object]:
            told = await reader.ok("debug_token", access_token=config.app_token, input_token=token)
            data: dict[str, object] = told["data"]
            return data

        assert (await debug(config.graph.user_token))["type"] == "USER"
        assert (await debug(config.app_token))["type"] == "APP"
        page = await debug(reader.simulator.page.token)
        assert (page["type"], page["is_valid"], page["expires_at"]) == ("PAGE", True, 0)
        reader.simulator.faults.add("/conversations", "revoke_token", name="app_removed")
        assert (await reader.error(reader.list))["error_subcode"] == 458
        dead = await debug(reader.simulator.page.token)
        assert dead["is_valid"] is False
        assert isinstance(dead["error"], dict)
        assert dead["error"]["subcode"] == 458
        assert (await reader.error("debug_token", input_token=""))["code"] in (100, 190)


async def test_a_page_expands_into_its_conversations_and_their_messages() -> None:
    async with reading() as reader:
        fields = "name,conversations.limit(4){id,messages.limit(2){id}}"
        page = await reader.ok("me", fields=fields)
        assert set(page) == {"name", "conversations", "id"}
        assert [len(one["messages"]["data"]) <= 2 for one in page["conversations"]["data"]] == [True] * 4
        threads = await reader.follow(page["conversations"])
        assert {one["id"] for one in threads} == {
            one.thread_id for one in reader.simulator.population.conversations
        }
        assert all("messages" in one for one in threads)
