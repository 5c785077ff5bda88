"""The commands as people and scripts meet them: exit codes, one JSON document, errors that help."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import click
import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from convsync.cli import main
from convsync.facts import DeadLetter
from convsync.pages import WEBHOOK_FIELDS
from faults.processes import Commands, commands, until
from secrets_hunt import marked
from sync.world import World, open_world


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    async with open_world(
        database, conversations=20, messages=8.0, max_conversations_per_call=2, max_messages_per_call=10
    ) as world:
        yield world


@pytest.fixture
async def cli(world: World, tmp_path: Path) -> AsyncIterator[Commands]:
    async with commands(world, tmp_path) as running:
        yield running


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


COMMANDS = sorted(every_command(main))


@pytest.mark.parametrize("path", [path for path in COMMANDS if path != ("psql",)], ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself(path: tuple[str, ...], flag: str) -> None:
    result = CliRunner().invoke(main, [*path, flag])
    assert result.exit_code == 0
    assert f"Usage: main {' '.join(path)}" in result.output
    assert len(result.output.splitlines()) > 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["sync"],
        ["sync", "1", "--mode", "sideways"],
        ["sync", "1", "--deadline", "0"],
        ["sync", "1", "--deadline", "soon"],
        ["sync", "1", "--retry", "0"],
        ["sync", "1", "--retry", "1", "--restart"],
        ["deletions", "allow", "1"],
        ["deletions", "allow", "1", "0"],
        ["verify"],
        ["explain", "1"],
        ["page"],
        ["page", "add"],
        ["page", "subscribe"],
        ["serve", "--port", "70000"],
        ["demo", "--conversations", "0"],
        ["demo", "--calls-per-second", "-1"],
        ["simulate", "--seed", "many"],
        ["migrate", "--nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Usage" in result.output


def test_version_is_told() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("convsync, version ")


def test_new_key_is_32_bytes_and_never_the_same() -> None:
    keys = {CliRunner().invoke(main, ["page", "new-key"]).output.strip() for _ in range(3)}
    assert {len(key) for key in keys} == {44}
    assert len(keys) == 3


SECRET = marked("secret")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", f"{SECRET}"),
        ("GRAPH_URL", f"http://{SECRET}.example.org"),
        ("GRAPH_VERSION", SECRET),
        ("CALLS_PER_SECOND", "-1"),
        ("LEASE_SECONDS", "0"),
        ("LOG_FORMAT", SECRET),
        ("API_KEYS", f"me:emperor:{SECRET}"),
        ("API_KEYS", SECRET),
        ("TOKEN_KEY", SECRET),
        ("POOL_MAX", "0"),
    ],
)
def test_broken_setting_is_named_and_its_value_never_shown(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(f"CONVSYNC_{name}", value)
    for arguments in (["status"], ["sync", "1"], ["page", "list", "--json"], ["psql"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert f"CONVSYNC_{name}" in result.output
        assert SECRET not in result.output


async def test_missing_token_key_is_asked_for_by_name(cli: Commands) -> None:
    for arguments in (("sync", "1"), ("page", "add", "1"), ("serve",)):
        code, out, err = await cli.run(*arguments, CONVSYNC_TOKEN_KEY=None)
        assert (code, out) == (2, "")
        assert "CONVSYNC_TOKEN_KEY is needed" in err
        assert "Traceback" not in err


async def test_listening_beyond_this_machine_needs_keys(cli: Commands) -> None:
    code, out, err = await cli.run("serve", "--host", "0.0.0.0", "--port", "0", CONVSYNC_API_KEYS=None)  # noqa: S104
    assert (code, out) == (2, "")
    assert "CONVSYNC_API_KEYS is needed" in err


async def test_database_that_is_away_is_one_line_without_its_password(cli: Commands) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://someone:{SECRET}@127.0.0.1:{nobody.getsockname()[1]}/nowhere"
        environment = {"CONVSYNC_DATABASE_URL": url, "CONVSYNC_MIGRATE_DATABASE_URL": url}
        for arguments in (("status", "--json"), ("migrate",), ("migrate", "--check"), ("sync", "1")):
            code, out, err = await cli.run(*arguments, **environment)
            assert (code, out) == (1, ""), err
            assert "the database cannot be reached: nobody listens at that address" in err
            assert SECRET not in err


async def test_database_url_that_is_none_is_an_error_without_its_text(cli: Commands) -> None:
    url = f"nonsense {SECRET}"
    environment = {"CONVSYNC_DATABASE_URL": url, "CONVSYNC_MIGRATE_DATABASE_URL": url}
    for arguments in (("status",), ("migrate",), ("psql", "-c", "select 1")):
        code, _, err = await cli.run(*arguments, **environment)
        assert code == 2
        assert "CONVSYNC_DATABASE_URL: " in err
        assert "Traceback" not in err, err
        assert SECRET not in err


async def test_migrate_check_tells_behind_from_current(cli: Commands, raw_database: Any, server: Any) -> None:
    environment = {
        "CONVSYNC_DATABASE_URL": raw_database.owner_url,
        "CONVSYNC_MIGRATE_DATABASE_URL": raw_database.owner_url,
    }
    code, out, _ = await cli.run("migrate", "--check", "--json", **environment)
    assert code == 1
    behind = json.loads(out)
    assert behind["current"] is False
    assert behind["todo"]
    with psycopg.connect(raw_database.owner_url) as connection:
        assert connection.execute("select to_regnamespace('convsync')").fetchone() == (None,)

    code, out, err = await cli.run("migrate", "--json", **environment)
    assert code == 0, err
    done = json.loads(out)
    assert done["changed"] is True
    assert done["functions"] is True

    code, out, _ = await cli.run("migrate", "--check", "--json", **environment)
    assert (code, json.loads(out)) == (0, {"current": True, "todo": []})
    code, out, _ = await cli.run("migrate", "--json", **environment)
    assert (code, json.loads(out)["changed"]) == (0, False)
    code, out, _ = await cli.run("migrate", **environment)
    assert code == 0
    assert "nothing to do" in out


BEHIND = "the database is behind this release: run convsync migrate"
NEEDS_THE_OWNER = "CONVSYNC_MIGRATE_DATABASE_URL must be its owner's"


async def test_the_service_login_is_all_that_a_current_database_needs(cli: Commands) -> None:
    alone = {"CONVSYNC_MIGRATE_DATABASE_URL": None}
    for arguments in (("status", "--json"), ("page", "list", "--json"), ("migrate", "--check", "--json")):
        code, out, err = await cli.run(*arguments, **alone)
        assert code == 0, err
        assert json.loads(out)
    code, out, err = await cli.run("migrate", **alone)
    assert code == 0, err
    assert "nothing to do" in out
    service = await cli.start("serve", "--port", "0", **alone)
    await service.line("convsync ")
    service.signal(15)
    assert await service.wait() == 0, service.errors()


async def test_only_serve_and_migrate_upgrade_a_configured_database(cli: Commands, world: World) -> None:
    alone = {"CONVSYNC_MIGRATE_DATABASE_URL": None}
    await world.rows(
        "update convsync.installation set functions_hash = repeat('0', 64) returning functions_hash"
    )
    page_id = world.page_id
    for arguments in (
        ("status",),
        ("page", "list"),
        ("verify", page_id),
        ("sync", page_id),
        ("status", page_id),
    ):
        code, out, err = await cli.run(*arguments)
        assert (code, out) == (1, ""), arguments
        assert BEHIND in err
    for arguments in (("migrate",), ("serve", "--port", "0")):
        code, out, err = await cli.run(*arguments, **alone)
        assert (code, out) == (1, ""), arguments
        assert NEEDS_THE_OWNER in err
        assert "Traceback" not in err
    code, out, _ = await cli.run("migrate", "--check", "--json", **alone)
    assert (code, json.loads(out)["current"]) == (1, False)
    assert await world.value("select functions_hash from convsync.installation") == "0" * 64

    service = await cli.start("serve", "--port", "0")
    await service.line("convsync ")
    service.signal(15)
    assert await service.wait() == 0, service.errors()
    code, _, err = await cli.run("status", **alone)
    assert code == 0, err


async def test_a_database_with_nothing_in_it_is_behind(
    cli: Commands, raw_database: Any, database: Any
) -> None:
    nothing = {
        "CONVSYNC_DATABASE_URL": raw_database.service_url,
        "CONVSYNC_MIGRATE_DATABASE_URL": None,
    }
    code, _, err = await cli.run("status", **nothing)
    assert code == 1
    assert BEHIND in err
    code, _, err = await cli.run("migrate", **nothing)
    assert code == 1
    assert NEEDS_THE_OWNER in err


async def test_interrupted_sync_is_left_alone_by_services_for_a_while(cli: Commands, world: World) -> None:
    world.simulator.faults.add("", "delay", seconds=0.2)
    syncing = await cli.sync()

    async def under_way() -> bool:
        assert syncing.returncode is None, syncing.errors()
        return world.calls() > 2

    await until(under_way, "a few calls")
    syncing.signal(2)
    code, out = await syncing.output()
    assert code == 3, syncing.errors()
    run = json.loads(out)
    assert (run["status"], run["reason"]) == ("paused", "interrupted")
    assert await world.store.resumable_syncs() == []


async def test_page_is_added_listed_subscribed_and_removed(cli: Commands, world: World) -> None:
    page_id, token = world.page_id, world.simulator.page.token
    code, out, err = await cli.run(
        "page", "add", page_id, "--owner", "customer 7", "--token-stdin", "--json", told=f"{token}\n".encode()
    )
    assert code == 0, err
    added = json.loads(out)
    assert (added["page_id"], added["owner_ref"], added["token"]) == (page_id, "customer 7", "valid")
    # Nobody gave a name: Graph knew it.
    assert added["name"] == world.simulator.page.name
    assert token not in out + err

    code, out, _ = await cli.run("page", "list", "--json")
    assert code == 0
    assert [page["page_id"] for page in json.loads(out)] == [page_id]

    code, out, _ = await cli.run("page", "subscribe", page_id, "--json")
    assert code == 0
    subscribed = json.loads(out)
    assert subscribed["missing"] == []
    assert set(subscribed["subscribed_fields"]) == set(WEBHOOK_FIELDS)
    assert world.simulator.webhooks.subscriptions[page_id] == set(WEBHOOK_FIELDS)

    code, out, _ = await cli.run("page", "remove", page_id, "--json")
    assert code == 0
    assert json.loads(out)["token"] == "none"
    code, out, _ = await cli.run("page", "list", "--json")
    assert (code, json.loads(out)) == (0, [])
    code, out, err = await cli.run("page", "remove", page_id)
    assert (code, out) == (1, "")
    assert f"there is no Page {page_id}" in err


async def test_token_that_graph_refuses_is_said_and_exits_1(cli: Commands, world: World) -> None:
    code, out, err = await cli.run(
        "page", "add", world.page_id, "--token-stdin", "--json", told=f"{marked('EAAmarker')}\n".encode()
    )
    assert code == 1
    assert json.loads(out)["token"] == "invalid"
    assert "not accepted" in err
    assert "EAAmarker" not in out + err


async def test_token_of_an_app_whose_proof_is_refused_is_not_called_invalid(
    cli: Commands, world: World
) -> None:
    """The secret of another app: the token may be as good as ever, and another one would not help."""
    world.simulator.faults.add("", "error", name="proof_invalid")
    code, out, err = await cli.run(
        "page",
        *("add", world.page_id, "--token-stdin", "--json"),
        told=world.simulator.page.token.encode(),
        CONVSYNC_APP_SECRET="the secret of another app",
    )
    assert (code, json.loads(out)["token"]) == (1, "unchecked")
    said = " ".join(err.split())
    assert "CONVSYNC_APP_SECRET must be the secret of the app" in said
    assert "not accepted" not in said
    assert "the secret of another app" not in said

    world.simulator.faults.clear()
    code, out, err = await cli.run(
        "page",
        *("add", world.page_id, "--token-stdin", "--json"),
        told=world.simulator.page.token.encode(),
    )
    assert (code, json.loads(out)["token"], err) == (0, "valid", "")


async def test_token_that_could_not_be_checked_is_stored_all_the_same(cli: Commands, world: World) -> None:
    world.simulator.faults.add("", "error", name="service")
    code, out, err = await cli.run(
        "page",
        *("add", world.page_id, "--token-stdin", "--json"),
        told=world.simulator.page.token.encode(),
    )
    assert (code, json.loads(out)["token"]) == (0, "unchecked")
    assert "could not be checked" in err


@pytest.mark.parametrize("command", ["verify", "page subscribe", "sync"])
async def test_dead_token_is_used_once_and_then_never_again(
    cli: Commands, world: World, command: str
) -> None:
    """The first call learns that it is dead; whoever comes next makes none, and is told what to do."""
    world.simulator.faults.add(
        "", "error", code=190, subcode=460, message="the user changed their password", http=400
    )
    code, out, err = await cli.run(*command.split(), world.page_id)
    assert code == 1
    assert "the user changed their password" in " ".join((out + err).split())
    assert world.calls() == 1
    assert (await world.store.get_page(page_id=world.page_id))["token"] == "invalid"
    for again in (("verify",), ("page", "subscribe"), ("sync",)):
        code, out, err = await cli.run(*again, world.page_id)
        said = " ".join((out + err).split())
        assert code == 1
        assert "convsync page add PAGE_ID --token-stdin" in said, again
        assert "the user changed their password" in said
    assert world.calls() == 1


async def test_no_token_on_stdin_is_wrong_usage(cli: Commands, world: World) -> None:
    code, out, err = await cli.run("page", "add", world.page_id, "--token-stdin", told=b"")
    assert (code, out) == (2, "")
    assert "no token on standard input" in err


async def test_sync_exits_0_when_whole_and_prints_the_run(cli: Commands, world: World) -> None:
    code, out, err = await cli.run("sync", world.page_id, "--json")
    assert code == 0, err
    run = json.loads(out)
    assert (run["status"], run["success"], run["conversations_seen"]) == ("succeeded", True, 20)
    assert run["calls"] == world.calls()
    assert {"run_id", "page_id", "mode", "reason", "partial", "failed_batches", "conversations_changed"} <= (
        run.keys()
    )
    assert (await world.verdict()).clean

    code, out, _ = await cli.run("sync", world.page_id)
    assert code == 0
    assert "succeeded; 20 conversations read, 0 messages added" in out

    code, out, _ = await cli.run("status", world.page_id, "--json")
    assert code == 0
    page = json.loads(out)
    assert (page["page_id"], page["conversations"], page["last_run"]["status"]) == (
        world.page_id,
        20,
        "succeeded",
    )
    code, out, _ = await cli.run("status", "--json")
    assert code == 0
    document = json.loads(out)
    assert [page["page_id"] for page in document["pages"]] == [world.page_id]
    assert document["schema_version"]


async def test_status_tells_who_holds_the_feed_back_and_who_is_behind(cli: Commands, world: World) -> None:
    code, out, _ = await cli.run("status")
    assert (code, "change feed" in out) == (0, False), "nothing to say of it"
    with psycopg.connect(world.database.owner_url, application_name="a slow report") as slow:
        slow.execute("select pg_current_xact_id()")
        with psycopg.connect(world.database.owner_url) as other:
            for consumer in ("crm", "limited/crm"):
                other.execute("select convsync_api.set_feed_position(%s, '1-1-1')", [consumer])
        assert (await cli.run("sync", world.page_id))[0] == 0
        for arguments in (("status", "--json"), ("status", world.page_id, "--json")):
            code, out, _ = await cli.run(*arguments)
            feed = json.loads(out)["feed"]
            assert (code, feed["blocking_pid"], feed["blocking_application"]) == (
                0,
                slow.info.backend_pid,
                "a slow report",
            )
            assert feed["held_back"] >= 20
            assert feed["held_since"].endswith("+00:00")
            assert feed["blocking_since"].endswith("+00:00")
        code, out, _ = await cli.run("status")
        assert f"{feed['held_back']} changes are held back" in " ".join(out.split())
        assert f"a slow report (process {slow.info.backend_pid}" in " ".join(out.split())

    async def behind(**environment: str) -> dict[str, bool]:
        _, out, _ = await cli.run("status", "--json", **environment)
        return {one["consumer"]: one["behind"] >= 20 for one in json.loads(out)["feed"]["consumers"]}

    async def both() -> bool:
        return await behind() == {"crm": True, "limited/crm": True}

    await until(both, "the consumers to be behind")
    # one of a key that is limited to Pages never gets the changes of others
    keys = f"limited:read:{SECRET}:{world.page_id}"
    assert await behind(CONVSYNC_API_KEYS=keys) == {"crm": True}
    _, out, _ = await cli.run("status", CONVSYNC_API_KEYS=keys)
    assert "crm" in out.partition("have something to read:")[2]
    assert "limited" not in out


async def test_sync_exits_1_when_it_is_partial(cli: Commands, world: World) -> None:
    longest = max(world.simulator.population.conversations, key=lambda one: one.message_count)
    world.simulator.faults.add(f"/{longest.thread_id}/messages", "error", code=10)
    code, out, err = await cli.run("sync", world.page_id, "--json")
    assert code == 1, err
    run = json.loads(out)
    assert (run["status"], run["partial"], run["success"]) == ("partial", True, False)
    assert [batch["thread_id"] for batch in run["failed_batches"]] == [longest.thread_id]
    code, out, _ = await cli.run("sync", world.page_id)
    assert code == 1
    assert "partial (failed_batches)" in out


async def test_retry_reads_what_a_partial_sync_could_not(cli: Commands, world: World) -> None:
    longest = max(world.simulator.population.conversations, key=lambda one: one.message_count)
    world.simulator.faults.add(f"/{longest.thread_id}/messages", "error", code=10)
    code, out, err = await cli.run("sync", world.page_id, "--json")
    assert code == 1, err
    partial = json.loads(out)
    world.simulator.faults.clear()
    made = world.calls()
    code, out, err = await cli.run("sync", world.page_id, "--retry", partial["run_id"], "--json")
    assert code == 0, err
    run = json.loads(out)
    assert (run["run_id"], run["status"], run["failed_batches"]) == (partial["run_id"], "succeeded", [])
    assert run["calls"] == partial["calls"] + world.calls() - made == world.calls()
    assert (await world.verdict()).clean

    for run_id, said in ((partial["run_id"], "nothing in it is left to be retried"), ("999", "no run 999")):
        code, out, err = await cli.run("sync", world.page_id, "--retry", run_id, "--json")
        assert (code, out) == (1, "")
        assert said in err


async def test_deletions_that_were_held_back_are_allowed_and_retried(database: Any, tmp_path: Path) -> None:
    async with (
        open_world(database, conversations=40, messages=2.0) as world,
        commands(world, tmp_path) as cli,
    ):
        assert (await cli.run("sync", world.page_id))[0] == 0
        for conversation in list(world.simulator.population.conversations)[:30]:
            world.simulator.population.remove(conversation)
        code, out, _ = await cli.run("sync", world.page_id, "--json")
        held_back = json.loads(out)
        assert (code, held_back["reason"]) == (1, "deletion_breaker")
        code, _, err = await cli.run("sync", world.page_id, "--retry", held_back["run_id"])
        assert (code, "holds back the deletion of 30 conversations" in err) == (1, True)

        code, out, err = await cli.run("deletions", "allow", world.page_id, held_back["run_id"], "--json")
        assert code == 0, err
        assert json.loads(out) == {
            "page_id": world.page_id,
            "run_id": held_back["run_id"],
            "conversations": 30,
        }
        code, out, err = await cli.run("sync", world.page_id, "--retry", held_back["run_id"], "--json")
        assert code == 0, err
        assert json.loads(out)["deletions_confirmed"] == 30
        code, _, err = await cli.run("deletions", "allow", world.page_id, held_back["run_id"])
        assert (code, "it holds no deletions back" in err) == (1, True)


async def test_sync_exits_3_at_its_deadline_and_goes_on_when_called(cli: Commands, world: World) -> None:
    world.simulator.faults.add("", "delay", seconds=0.2)
    code, out, err = await cli.run("sync", world.page_id, "--deadline", "0.5", "--json")
    assert code == 3, err
    paused = json.loads(out)
    assert (paused["status"], paused["reason"]) == ("paused", "deadline")
    world.simulator.faults.clear()
    code, out, _ = await cli.run("sync", world.page_id, "--json")
    assert code == 0
    assert json.loads(out)["run_id"] == paused["run_id"]
    assert (await world.verdict()).clean


async def test_sync_that_is_never_given_enough_time_gets_there_all_the_same(
    database: Any, tmp_path: Path
) -> None:
    """Each call goes on where the last one ended, and none reads again what one before it has read."""
    async with (
        open_world(
            database,
            conversations=40,
            messages=20.0,
            max_conversations_per_call=2,
            max_messages_per_call=10,
        ) as world,
        commands(world, tmp_path, CONVSYNC_CALLS_PER_SECOND="20") as cli,
    ):
        codes, runs, made = [], [], [0]
        while not codes or codes[-1] == 3:
            code, out, err = await cli.run("sync", world.page_id, "--deadline", "1", "--json")
            codes.append(code)
            runs.append(json.loads(out))
            made.append(world.calls())
            assert made[-1] > made[-2], (runs, err)
        # The budget grants no more than 20 in the second of a call, with a few under way at its end.
        assert codes == [3] * (len(codes) - 1) + [0]
        assert len(codes) >= 3
        assert {run["run_id"] for run in runs} == {runs[0]["run_id"]}
        assert {(run["status"], run["reason"]) for run in runs[:-1]} == {("paused", "deadline")}
        assert runs[-1]["status"] == "succeeded"
        assert runs[-1]["calls"] == made[-1]
        read = Counter(
            (call.path, tuple(parse_qs(call.query).get("after", ()))) for call in world.simulator.calls.calls
        )
        again = {place for place, times in read.items() if times > 1}
        assert {path for path, _ in again} == {f"/{world.graph.version}/{world.page_id}/conversations"}
        assert max(read.values()) == 2, "the list, whose front is read once more when its end was reached"
        assert (await world.verdict()).clean


async def test_sync_that_waits_watches_the_one_that_runs(cli: Commands, world: World) -> None:
    begun = await world.store.begin_sync(page_id=world.page_id, mode="full", owner="test", lease_seconds=300)
    waiting = await cli.sync("--wait")

    async def watched() -> bool:
        assert waiting.returncode is None, waiting.errors()
        return bool(
            await world.value(
                """
                select count(*) from pg_stat_activity
                where datname = current_database() and query ~ 'get_sync_run' and pid <> pg_backend_pid()
                """
            )
        )

    await until(watched, "the other to be watched")
    await world.store.pause_sync(
        page_id=world.page_id, run_id=begun.run_id, fence=begun.fence, reason="deadline"
    )
    code, out = await waiting.output()
    assert code == 3, waiting.errors()
    assert json.loads(out)["run_id"] == str(begun.run_id)
    assert world.calls() == 0


@pytest.mark.parametrize("command", ["sync", "verify", "status"])
async def test_page_that_is_not_there_is_an_error_of_one_line(cli: Commands, command: str) -> None:
    code, out, err = await cli.run(command, "999", "--json")
    assert (code, out) == (1, "")
    assert "there is no Page 999" in err
    assert "Traceback" not in err


async def test_verify_exits_0_on_a_right_mirror_and_1_on_a_planted_difference(
    cli: Commands, world: World
) -> None:
    code, _, err = await cli.run("sync", world.page_id)
    assert code == 0, err
    code, out, err = await cli.run("verify", world.page_id, "--deep", "--json")
    assert code == 0, (out, err)
    report = json.loads(out)
    assert (report["missing"], report["extra"], report["differing"]) == (0, 0, 0)
    assert (report["conversations"], report["messages"]) == (
        20,
        world.simulator.population.message_total(),
    )

    (planted,) = await world.rows(
        """
        update convsync.contact_interaction_events set text_graph = 'not what was written'
        where message_id = (select last_message_id from convsync.messenger_conversations
          where last_message is not null order by sender_id limit 1)
        returning message_id
        """
    )
    code, out, _ = await cli.run("verify", world.page_id, "--deep")
    assert code == 1
    assert planted["message_id"] in out.replace("\n", "")


async def test_psql_runs_on_the_configured_database(cli: Commands, server: Any, world: World) -> None:
    path = {"PATH": f"{server.psql_path.parent}{os.pathsep}{os.environ['PATH']}"}
    code, out, err = await cli.run("psql", "-XAtc", "select current_database()", **path)
    assert (code, out.strip()) == (0, world.database.name), err
    code, out, _ = await cli.run("psql", "-X", "-c", "select nonsense", **path)
    assert (code, out) == (1, "")
    code, out, _ = await cli.run("psql", "--help", **path)
    assert code == 0
    assert "psql" in out


async def test_the_recipes_that_status_names_are_found_wherever_the_command_is_run(
    cli: Commands, server: Any
) -> None:
    path = {"PATH": f"{server.psql_path.parent}{os.pathsep}{os.environ['PATH']}"}
    for arguments in (
        ("-X", "-f", "sql/ops/problems.sql"),
        ("-Xqf", "sql/ops/stuck_syncs.sql"),
        ("-X", "-v", "minutes=30", "--file=sql/ops/stuck_syncs.sql"),
    ):
        code, out, err = await cli.run("psql", *arguments, **path)
        assert (code, err, "page_id" in out) == (0, "", True), arguments
    code, _, err = await cli.run("psql", "-X", "-f", "sql/ops/no_such.sql", **path)
    assert code != 0
    assert "sql/ops/no_such.sql: No such file" in err


async def test_psql_that_is_not_installed_is_said(cli: Commands, tmp_path: Path) -> None:
    code, _, err = await cli.run("psql", "-c", "select 1", PATH=str(tmp_path))
    assert code == 1
    assert "psql is not installed here" in err


@pytest.fixture
def login(server: Any, database: Any) -> Iterator[str]:
    """The owner's URL for a role that has a password of its own."""
    name = f"cli_{os.getpid()}"
    role = sql.Identifier(name)
    server.connection.execute(
        sql.SQL("create role {} login superuser password {}").format(role, sql.Literal(SECRET))
    )
    try:
        yield server.url(database.name, name, SECRET)
    finally:
        server.connection.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s", [name]
        )
        server.connection.execute(sql.SQL("drop role {}").format(role))


async def test_psql_does_not_show_the_password_to_the_machine(
    cli: Commands, world: World, login: str, server: Any
) -> None:
    path = f"{server.psql_path.parent}{os.pathsep}{os.environ['PATH']}"
    process = await cli.start(
        "psql", "-Xc", "select pg_sleep(60)", CONVSYNC_MIGRATE_DATABASE_URL=login, PATH=path
    )

    async def asleep() -> bool:
        assert process.returncode is None, process.errors()
        return bool(
            await world.value(
                "select count(*) from pg_stat_activity where usename = %(name)s and query ~ 'pg_sleep'",
                name=f"cli_{os.getpid()}",
            )
        )

    await until(asleep, "psql to sleep")
    lines = {pid: command_line(pid) for pid in [process.pid, *children(process.pid)]}
    assert len(lines) > 1
    assert any(b"pg_sleep" in line and pid != process.pid for pid, line in lines.items())
    assert not any(SECRET.encode() in line for line in lines.values())
    await world.rows(
        "select pg_cancel_backend(pid) from pg_stat_activity where usename = %(name)s",
        name=f"cli_{os.getpid()}",
    )
    code, _ = await process.output()
    assert code == 1
    assert SECRET not in process.errors()


async def test_psql_refuses_what_it_would_show_to_the_machine(cli: Commands) -> None:
    owner = cli.environment["CONVSYNC_MIGRATE_DATABASE_URL"]
    url = f"{owner}{'&' if '?' in owner else '?'}sslpassword={SECRET}"
    code, out, err = await cli.run("psql", "-c", "select 1", CONVSYNC_MIGRATE_DATABASE_URL=url)
    assert (code, out) == (1, "")
    assert "sslpassword" in err
    assert SECRET not in err


def command_line(pid: int) -> bytes:
    """What anybody on the machine can read of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def children(pid: int) -> list[int]:
    """The processes that this one has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in found.split()]


async def test_serve_says_where_it_listens_and_ends_at_once_on_sigterm(cli: Commands) -> None:
    service = await cli.serve()
    said = await service.line("convsync ")
    assert "listens on http://127.0.0.1:" in said
    started = children(service.pid)
    service.signal(15)
    assert await service.wait() == 0, service.errors()
    assert started == []
    assert "Traceback" not in service.errors()


async def test_serve_on_a_taken_port_is_an_error_of_one_line(cli: Commands) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = await cli.run("serve", "--port", str(port), "--no-migrate")
    assert (code, out) == (1, "")
    assert f"cannot listen on 127.0.0.1:{port}" in err
    assert "Traceback" not in err


async def test_secrets_of_a_running_service_are_not_on_its_command_line(cli: Commands, world: World) -> None:
    marked = {
        "CONVSYNC_APP_SECRET": SECRET,
        "CONVSYNC_VERIFY_TOKEN": SECRET,
        "CONVSYNC_API_KEYS": f"me:operate:{SECRET}",
    }
    service = await cli.start("serve", "--port", "0", "--no-migrate", **marked)
    await service.line("convsync ")
    line = command_line(service.pid)
    code, out, _ = await cli.run("status", **marked)
    assert code == 0
    service.signal(15)
    assert await service.wait() == 0
    told = [line.decode(), out, service.errors()]
    for secret in (SECRET, world.simulator.page.token, cli.environment["CONVSYNC_TOKEN_KEY"]):
        assert not any(secret in text for text in told)


async def test_simulate_announces_itself_and_ends_on_sigterm(cli: Commands) -> None:
    simulator = await cli.start("simulate", "--port", "0", "--conversations", "3", "--calls-per-second", "0")
    announced = json.loads("{" + await simulator.line("{"))
    assert announced["url"].startswith("http://127.0.0.1:")
    code, out, err = await cli.run(
        "page",
        *("add", announced["page_id"], "--token-stdin", "--json"),
        told=announced["pages"][0]["token"].encode(),
        CONVSYNC_GRAPH_URL=announced["url"],
    )
    assert (code, json.loads(out)["token"]) == (0, "valid"), err
    simulator.signal(15)
    assert await simulator.wait() == 0, simulator.errors()


async def test_status_and_sync_say_that_the_graph_version_has_ended(cli: Commands, world: World) -> None:
    """A version of long ago, so that the test does not end with one."""
    old = {"CONVSYNC_GRAPH_VERSION": "v12.0"}
    code, out, _ = await cli.run("status", **old)
    assert code == 0
    assert "Graph API v12.0 has expired" in out
    code, out, _ = await cli.run("status", "--json", **old)
    version = json.loads(out)["graph_version"]
    assert (version["version"], version["state"]) == ("v12.0", "expired")
    code, _, err = await cli.run("sync", world.page_id, **old)
    assert code == 0
    assert "Graph API v12.0 has expired" in err
    # The simulator answers with the oldest version it has, as Meta does.
    assert "graph_version_differs" in err
    assert "v21.0" in err


async def test_sync_with_a_dead_token_says_why_and_what_to_do(cli: Commands, world: World) -> None:
    world.simulator.faults.add(
        "/conversations", "error", code=190, subcode=460, message="the user changed their password", http=401
    )
    code, out, _ = await cli.run("sync", world.page_id)
    assert code == 1
    for arguments in (("sync", world.page_id), ("status",)):
        code, out, _ = await cli.run(*arguments)
        said = " ".join(out.split())
        assert "convsync page add PAGE_ID --token-stdin" in said, arguments
        assert "the user changed their password" in said


async def test_failed_batch_is_shown_with_what_to_do_and_the_trace(cli: Commands, world: World) -> None:
    world.simulator.faults.add("/conversations", "error", code=10, message="(#10) denied")
    code, out, _ = await cli.run("sync", world.page_id)
    assert code == 1
    said = " ".join(out.split())
    assert "(permission_denied)" in said
    assert "(#10) denied (trace A" in said
    assert "Grant pages_messaging, pages_manage_metadata and pages_read_engagement" in said


async def test_status_says_what_is_proved_and_explain_tells_a_messages_life(
    cli: Commands, world: World
) -> None:
    assert (await cli.run("status", "--checksum"))[0] == 2
    code, out, _ = await cli.run("status", world.page_id)
    assert code == 0
    assert "0 of 0 conversations complete; not known whether these are all; no webhooks yet" in out

    assert (await cli.run("sync", world.page_id, "--mode", "full", "--json"))[0] == 0
    code, out, _ = await cli.run("status", world.page_id, "--checksum")
    assert code == 0
    assert "20 of 20 conversations complete as of 2" in out
    code, out, _ = await cli.run("status", world.page_id, "--checksum", "--json")
    document = json.loads(out)
    assert document["certificate"]["whole"] is True
    assert document["checksum"]["messages"] == await world.event_count()

    [told, *_] = await world.rows(
        "select message_id, body from convsync.contact_interaction_events where body is not null limit 1"
    )
    code, out, _ = await cli.run("explain", world.page_id, told["message_id"])
    assert code == 0
    assert f"{told['message_id']} of Page {world.page_id}: live" in out
    assert "told by: graph" in out
    assert "complete as of" in out
    assert "first learnt" in out
    code, out, _ = await cli.run("explain", world.page_id, told["message_id"], "--json")
    assert (code, json.loads(out)["stored"]["body"]) == (0, told["body"])

    for arguments in (("m_never",), ("m_never", "--json")):
        code, out, err = await cli.run("explain", world.page_id, *arguments)
        assert (code, out) == (1, "")
        assert f"of message m_never of Page {world.page_id} nothing was ever heard" in err


async def test_status_names_each_problem_with_the_command_that_mends_it(cli: Commands, world: World) -> None:
    page_id = world.page_id
    code, out, _ = await cli.run("status", page_id, "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])
    out = (await cli.run("status"))[1]
    assert "to mend it" not in out
    assert "\nno problem is known; convsync doctor " in out

    await world.store.mark_token(page_id=page_id, state="invalid", error="The token has expired.")
    await world.store.ingest([DeadLetter("", "no Page at all", b"{}")], "webhook")
    code, out, _ = await cli.run("status", "--json")
    assert code == 0
    assert [
        (one["page_id"], one["problem"], one["mend"], bool(one["what"] and one["why"]))
        for one in json.loads(out)["problems"]
    ] == [
        (page_id, "token_invalid", f"convsync page add {page_id} --token-stdin", True),
        (None, "dead_letters", "convsync dead-letters list", True),
    ]
    # Of one Page, what concerns no Page is left out.
    code, out, _ = await cli.run("status", page_id, "--json")
    assert [one["problem"] for one in json.loads(out)["problems"]] == ["token_invalid"]

    code, out, _ = await cli.run("status")
    told = out[out.index(f"Page {page_id}: The token has expired.") :].splitlines()
    assert told[1].startswith("  why it matters: ")
    assert told[2] == f"  to mend it: convsync page add {page_id} --token-stdin"
    assert out.count("The token has expired.") == 1
    assert "no problem is known" not in out
    assert "\nDead letters wait for a person: 1.\n" in out
