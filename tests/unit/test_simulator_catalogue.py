"""Every error of the catalogue, as a client gets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from graph_reader import reading

from convsync.simulator.catalogue import CATALOGUE
from convsync.simulator.drift import KINDS, NO_ID
from convsync.simulator.faults import ACTIONS, FaultError, Faults

# Code, subcode, status, is_transient and words of one of the three texts: written down from the sources, not
# from the catalogue.
KNOWN: dict[str, tuple[int | None, int | None, int, bool | None, str]] = {
    "reduce_data": (1, None, 500, None, "reduce the amount of data"),
    "reduce_data_in_user_message": (1, 99, 500, None, "reduce the amount of data"),
    "unknown": (1, 99, 500, None, "An unknown error occurred"),
    "unknown_final": (1, 1965014, 400, False, "An unknown error occurred"),
    "invalid_reply": (1, 1357046, 500, None, "invalid JSON reply"),
    "service": (2, None, 503, True, "(#2) Service temporarily unavailable"),
    "unexpected": (2, None, 500, True, "unexpected error has occurred"),
    "call_not_successful": (None, None, 503, None, "Call was not successful"),
    "batch_timeout": (960, None, 400, None, "timed out"),
    "capability": (3, None, 400, None, "capability"),
    "app_limit": (4, None, 403, None, "(#4) Application request limit reached"),
    "permission_denied": (10, None, 400, None, "permission"),
    "user_limit": (17, None, 400, None, "(#17) User request limit reached"),
    "page_limit": (32, None, 400, None, "(#32) Page request limit reached"),
    "missing_permissions": (100, None, 400, None, "(#100) Missing permissions"),
    "not_loaded": (100, None, 400, None, "(#100) Object does not exist"),
    "unsupported": (100, 33, 400, None, "Unsupported get request. Object with ID"),
    "proof_required": (100, None, 400, None, "require an appsecret_proof argument"),
    "proof_invalid": (100, None, 400, None, "Invalid appsecret_proof provided"),
    "cursor_too_deep": (100, None, 400, None, "The After Cursor specified exceeds the max limit"),
    "cursor_dead": (100, None, 400, None, "cursor"),
    "cursor_invalid": (2642, None, 400, None, "Invalid cursors values"),
    "message_deleted": (100, None, 400, None, "has been deleted"),
    "no_profile": (100, 2018218, 400, None, "No profile available for this user"),
    "profile_permission": (100, 2018247, 400, None, "Insufficient permission to access user profile"),
    "no_such_person": (100, 2018001, 400, None, "No matching user found"),
    "api_session": (102, None, 400, None, "Session"),
    "no_token": (104, None, 400, None, "access token is required"),
    "bad_signature": (104, None, 400, None, "Incorrect signature"),
    "not_granted": (190, None, 400, None, "must be granted before impersonating a user's page"),
    "page_token_required": (190, None, 400, None, "must be called with a Page Access Token"),
    "app_removed": (190, 458, 400, None, "has not authorized application"),
    "checkpoint": (190, 459, 400, None, "Error validating access token"),
    "password_changed": (190, 460, 400, None, "changed their password"),
    "session_expired": (190, 463, 400, None, "Session has expired"),
    "unconfirmed_user": (190, 464, 400, None, "not a confirmed user"),
    "invalid_token": (190, 467, 400, None, "access token is invalid"),
    "no_role": (190, 492, 400, None, "appropriate role on the Page"),
    "permission": (200, None, 403, None, "(#200) Requires"),
    "message_permission": (230, None, 403, None, "(#230)"),
    "application_limit_temporary": (341, None, 400, None, "limit reached"),
    "blocked": (368, None, 400, None, "deemed abusive"),
    "outside_window": (10, 2018278, 400, None, "outside of allowed window"),
    "unavailable_person": (551, None, 400, None, "isn't available right now"),
    "call_rate": (613, None, 400, None, "Calls to this api have exceeded the rate limit"),
    "inconsistent_volume": (613, 1996, 400, None, "rate limit"),
    "alias": (803, None, 400, None, "aliases you requested do not exist"),
    "bad_query": (2500, None, 400, None, "Error parsing graph query"),
    "pages_limit": (80001, None, 400, None, "too many calls to this Page account"),
    "messenger_limit": (80006, None, 400, None, "too many messenger api calls to this Page account"),
}


@pytest.mark.parametrize("name", sorted(CATALOGUE))
async def test_an_error_is_given_by_its_name(name: str) -> None:
    async with reading(conversations=3) as reader:
        reader.simulator.faults.add("/conversations", "error", name=name, times=1)
        status, document, headers = await reader.call(reader.list)
        assert (await reader.call(reader.list))[0] == 200
    if name == "login_shape":
        assert document == {
            "error_type": "OAuthException",
            "code": 400,
            "error_message": "Invalid platform app",
        }
        return
    code, subcode, http, transient, words = KNOWN[name]
    error = document["error"]
    texts = [error.get(key, "") for key in ("message", "error_user_title", "error_user_msg")]
    assert status == http
    assert (error.get("code"), error.get("error_subcode"), error.get("is_transient")) == (
        code,
        subcode,
        transient,
    )
    assert any(words in text for text in texts), texts
    assert headers["Facebook-API-Version"] == "v26.0"
    assert headers["x-fb-trace-id"]
    if code is not None:
        assert error["fbtrace_id"] == headers["x-fb-trace-id"]


def test_the_phrase_of_a_call_that_is_too_big_is_in_the_message_or_only_in_the_text_for_users() -> None:
    plain = CATALOGUE["reduce_data"].make()
    hidden = CATALOGUE["reduce_data_in_user_message"].make()
    assert "reduce" in plain.message
    assert "reduce" not in hidden.message
    assert "reduce" in (hidden.user_message or "")


def test_every_error_has_a_source_and_is_its_own_object_each_time() -> None:
    for name, entry in CATALOGUE.items():
        assert entry.source, name
        assert entry.make() is not entry.make()


def test_the_manual_has_every_action_and_every_error_and_tells_what_is_invented() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in manual.splitlines() if line.startswith("| `")}
    for action in ACTIONS:
        assert f"`{action}`" in rows, action
    for name, entry in CATALOGUE.items():
        assert rows[f"`{name}`"].rstrip("| ").endswith(f"| {entry.source} | {entry.invented}".rstrip("| ")), (
            name
        )
        assert f"| {entry.make().http} |" in rows[f"`{name}`"], name
    for kind in (*KINDS, NO_ID):
        assert f"`{kind}`" in rows["`drift`"], kind


async def test_what_a_fault_says_itself_goes_before_the_catalogue() -> None:
    async with reading(conversations=3) as reader:
        reader.simulator.faults.add("", "error", name="page_limit", http=403, message="slow down", times=1)
        error = await reader.error(reader.list)
        assert (error["http"], error["code"], error["message"]) == (403, 32, "slow down")
        reader.simulator.faults.add("", "error", name="page_limit", times=1)
        assert (await reader.error(reader.list))["http"] == 400


def test_an_error_that_nobody_knows_is_not_planted() -> None:
    with pytest.raises(FaultError, match="unknown error 'nonsense'"):
        Faults().add("", "error", name="nonsense")


async def test_a_token_that_dies_in_mid_walk_stays_dead_until_the_faults_are_cleared() -> None:
    async with reading() as reader:
        reader.simulator.faults.add(r"/conversations\?.*after=", "revoke_token", name="session_expired")
        first = await reader.ok(reader.list, limit=10)
        after = first["paging"]["cursors"]["after"]
        assert (await reader.error(reader.list, limit=10, after=after))["error_subcode"] == 463
        for path in (reader.list, "me", reader.simulator.population.conversations[0].thread_id):
            assert (await reader.error(path))["error_subcode"] == 463
        reader.simulator.faults.clear()
        assert len(await reader.follow(first)) == 60
