"""``convsync doctor``: each fault is planted, and found with its remedy and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp.web_response
import psycopg
import pytest
from pydantic import SecretStr

import convsync.doctor.examination as examination
import convsync.simulator.accounts as accounts
from convsync.database import installer
from convsync.database.embedded import EmbeddedPostgres
from convsync.database.probe import Found, Probe, probe
from convsync.doctor import Check, examine
from convsync.doctor.installation import check_clocks, check_database
from convsync.doctor.page import PERMISSIONS, _ending, _missing
from convsync.errors import NotFound
from convsync.facts import DeadLetter
from convsync.graph.account import TokenInfo
from convsync.pages import WEBHOOK_FIELDS
from convsync.settings import Settings
from convsync.store import SealedToken, Store
from convsync.tokens import TokenBox
from faults.processes import Commands, commands
from own_server import LOGIN, install, own_server
from secrets_hunt import marked, marked_key
from sync.world import World, open_world
from unit.webhook_receiver import listening

PAGE = "100000000000001"
ADD = f"convsync page add {PAGE} --token-stdin"


@dataclass(frozen=True)
class Own:
    """A database of a durable server, as the fixture `database` is one of a quick server."""

    server: EmbeddedPostgres
    name: str

    @property
    def owner_url(self) -> str:
        return self.server.url("convsync_owner", self.name)

    @property
    def service_url(self) -> str:
        return self.server.url(LOGIN, self.name)

    def execute(self, *statements: str) -> None:
        """As a superuser."""
        with psycopg.connect(self.server.url("postgres", self.name), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server_of_its_own() -> Iterator[EmbeddedPostgres]:
    """Durable: the quick one of the other tests is a finding."""
    with own_server() as server:
        asyncio.run(install(server))
        yield server


@pytest.fixture
def own(server_of_its_own: EmbeddedPostgres) -> Own:
    own = Own(server_of_its_own, "examined")
    postgres = Own(server_of_its_own, "postgres")
    postgres.execute(
        "drop database if exists examined with (force)",
        "create database examined template convsync owner convsync_owner",
    )
    return own


@dataclass
class Patient:
    """A healthy installation, until somebody plants something."""

    world: World
    own: Own
    patch: pytest.MonkeyPatch
    settings: dict[str, Any]
    now: Callable[[], float] = time.time
    today: date | None = None
    page_id: str | None = None

    async def examine(self, *, test_alert: bool = False) -> list[Check]:
        return await examine(
            Settings(_env_file=None, **self.settings),
            self.page_id,
            test_alert=test_alert,
            now=self.now,
            today=self.today,
        )


@asynccontextmanager
async def healthy(own: Own, patch: pytest.MonkeyPatch) -> AsyncIterator[Patient]:
    async with open_world(own, conversations=3, messages=3.0) as world:
        assert world.page_id == PAGE
        world.simulator.webhooks.subscribe(PAGE, WEBHOOK_FIELDS)
        await world.store.mark_subscribed(page_id=PAGE)
        yield Patient(
            world,
            own,
            patch,
            {
                "database_url": SecretStr(own.service_url),
                "migrate_database_url": SecretStr(own.owner_url),
                "app_secret": SecretStr(world.simulator.config.app_secret),
                "verify_token": SecretStr(marked("verify-token")),
                "api_keys": SecretStr(f"ops:operate:{marked('operate-key')}"),
                "token_key": SecretStr(marked_key()),
                "graph_url": world.simulator.url,
                "calls_per_second": 0.0,
            },
        )


@pytest.fixture
async def patient(own: Own, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Patient]:
    async with healthy(own, monkeypatch) as patient:
        yield patient


def problems(checks: list[Check]) -> dict[str, str | None]:
    return {str(one.problem): one.mend for one in checks if one.state == "problem"}


async def test_a_test_notice_says_whether_anybody_is_told(patient: Patient) -> None:
    mend = "set CONVSYNC_ALERT_WEBHOOK_URL in .env, restart the service, then: convsync doctor --test-alert"
    assert problems(await patient.examine(test_alert=True)) == {"no_alert_webhook": mend}
    token = marked("alert-hook")
    async with listening() as receiver:
        patient.settings["alert_webhook_url"] = SecretStr(f"{receiver.url}?token={token}")
        assert problems(await patient.examine()) == {}
        assert receiver.bodies == [], "nobody asked for it"

        checks = await patient.examine(test_alert=True)
        assert problems(checks) == {}
        assert [one.state for one in checks if one.check == "alerting"] == ["ok"]
        (notice,) = [json.loads(body) for body in receiver.bodies]
        assert (notice["alert"], notice["state"]) == ("test", "firing")
        assert notice["text"].startswith("convsync: test\nThis is a test")

        receiver.status = lambda number: 404
        checks = await patient.examine(test_alert=True)
        assert problems(checks) == {"alert_not_taken": mend}
        assert "status 404" in str(checks)
        assert token not in str(checks)
    checks = await patient.examine(test_alert=True)
    assert "ClientConnectorError" in str(checks)
    assert token not in str(checks)


async def test_nothing_is_wrong_with_a_healthy_installation(patient: Patient) -> None:
    checks = await patient.examine()
    assert problems(checks) == {}
    assert [one for one in checks if one.state == "skipped"] == []
    # Else nothing of it would have been looked at.
    assert {(one.check, one.page_id is None) for one in checks} == {
        *(
            (name, True)
            for name in ("api_keys", "app_secret", "verify_token", "token_key", "graph_version", "graph")
        ),
        *(
            (name, True)
            for name in ("database", "schema", "role", "durability", "clock", "embedded_database")
        ),
        *((name, False) for name in ("token", "permissions", "subscription", "webhooks", "mirror")),
    }
    patient.page_id = PAGE
    assert problems(await patient.examine()) == {}


# --- the faults


def _settings(**changed: Any) -> Callable[[Patient], None]:
    def plant(patient: Patient) -> None:
        patient.settings |= changed

    return plant


def _no_key_behind_a_proxy(patient: Patient) -> None:
    patient.settings |= {
        "api_keys": None,
        "public_url": "https://convsync.example",
        "data_dir": patient.own.server.data_dir,
    }


def _embedded_in_production(patient: Patient) -> None:
    """The embedded server that is found running; it has no Pages, but others can reach the service."""
    patient.settings |= {"database_url": None, "host": "0.0.0.0", "data_dir": patient.own.server.data_dir}  # noqa: S104


def _probed(**changed: Any) -> Callable[[Patient], None]:
    """The database as it is, but for this."""

    def plant(patient: Patient) -> None:
        async def other(url: str, now: Callable[[], float]) -> Probe:
            found = await probe(url, now)
            return dataclasses.replace(found, found=dataclasses.replace(found.found, **changed))

        patient.patch.setattr(examination, "probe", other)

    return plant


def _owner(*statements: str) -> Callable[[Patient], None]:
    def plant(patient: Patient) -> None:
        patient.own.execute(*statements)

    return plant


def _login_without_membership(patient: Patient) -> None:
    patient.own.execute("drop role if exists stranger", "create role stranger login")
    patient.settings["database_url"] = SecretStr(patient.own.server.url("stranger", patient.own.name))


def _login_is_the_owner(patient: Patient) -> None:
    patient.settings["database_url"] = SecretStr(patient.own.owner_url)


def _login_is_a_superuser(patient: Patient) -> None:
    patient.settings["database_url"] = SecretStr(patient.own.server.url("postgres", patient.own.name))


def _nobody_there(patient: Patient) -> None:
    patient.settings["database_url"] = SecretStr(f"postgresql://me:{marked('password')}@127.0.0.1:1/x")


def _machine_is_ahead(patient: Patient) -> None:
    patient.now = lambda: time.time() + 60


def _meta_says(patient: Patient, seconds: float) -> None:
    def shifted() -> str:
        return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%a, %d %b %Y %H:%M:%S GMT")

    patient.patch.setattr(aiohttp.web_response, "rfc822_formatted_time", shifted)


def _database_is_behind(patient: Patient) -> None:
    patient.now = lambda: time.time() + 60
    _meta_says(patient, 60)


def _token(sealed: bytes | None) -> Callable[[Patient], Awaitable[None]]:
    async def plant(patient: Patient) -> None:
        if sealed is None:
            await patient.world.store.remove_page(page_id=PAGE)
            await patient.world.store.add_page(page_id=PAGE)
        else:
            await patient.world.store.add_page(page_id=PAGE, token_sealed=sealed, token_key_id="k")

    return plant


async def _other_token_key(patient: Patient) -> None:
    box = TokenBox(marked_key(100))
    sealed = box.seal(PAGE, patient.world.simulator.page.token)
    await patient.world.store.add_page(page_id=PAGE, token_sealed=sealed, token_key_id=box.key_id)


def _graph(action: str, match: str = "", **more: Any) -> Callable[[Patient], None]:
    def plant(patient: Patient) -> None:
        patient.world.simulator.faults.add(match, action, **more)

    return plant


async def _known_to_be_invalid(patient: Patient) -> None:
    await patient.world.store.mark_token(page_id=PAGE, state="invalid", error="It has ended.")


def _scopes_without(permission: str) -> Callable[[Patient], None]:
    def plant(patient: Patient) -> None:
        left = tuple(scope for scope in accounts._SCOPES if scope != permission)
        patient.patch.setattr(accounts, "_SCOPES", left)

    return plant


def _not_told_of_the_token(patient: Patient) -> None:
    """Meta does not let this token ask about itself, and lists no conversations."""
    patient.world.simulator.faults.add("/debug_token", "error", name="not_granted")
    patient.world.simulator.faults.add("/conversations", "error", code=10, message="(#10) no", http=403)


def _subscriptions_refused(patient: Patient) -> None:
    told = "(#200) Requires pages_manage_metadata permission to manage the object"
    patient.world.simulator.faults.add("/subscribed_apps", "error", code=200, message=told, http=403)


async def _blocked(patient: Patient) -> None:
    await patient.world.rows(
        "select convsync_api.record_call(%(p)s, 400, 80, p_block_scope => 'page', p_block_seconds => 3600)",
        p=PAGE,
    )


def _not_subscribed(patient: Patient) -> None:
    patient.world.simulator.webhooks.unsubscribe(PAGE)


def _fields_missing(patient: Patient) -> None:
    left = set(WEBHOOK_FIELDS) - {"message_edits", "message_reactions"}
    patient.world.simulator.webhooks.subscribe(PAGE, left)


def _version_ends(patient: Patient) -> None:
    patient.settings["graph_version"] = "v21.0"
    patient.today = date(2026, 12, 1)


def _version_is_gone(patient: Patient) -> None:
    patient.settings["graph_version"] = "v19.0"


async def _webhooks_are_silent(patient: Patient) -> None:
    """The last one came long before the newest message, which a sync found."""
    await patient.world.sync()
    await patient.world.rows(
        """update convsync.pages set subscribed_at = now() - interval '9 years',
           last_webhook_at = now() - interval '8 years', first_webhook_at = now() - interval '9 years'
           returning page_id"""
    )


async def _dead_letter(patient: Patient) -> None:
    letter = DeadLetter(page_id=PAGE, reason="odd", raw=b"{}")
    await patient.world.store.ingest([letter], "webhook")


CASES: dict[str, tuple[Callable[[Patient], Any], dict[str, str]]] = {
    "no API key on a public address": (
        _settings(api_keys=None, host="0.0.0.0"),  # noqa: S104
        {"no_api_key": 'echo "CONVSYNC_API_KEYS=ops:operate:$(openssl rand -hex 32)" >> .env'},
    ),
    "no API key behind a proxy": (
        _no_key_behind_a_proxy,
        {"no_api_key": 'echo "CONVSYNC_API_KEYS=ops:operate:$(openssl rand -hex 32)" >> .env'},
    ),
    "no app secret": (
        _settings(app_secret=None),
        {
            "no_app_secret": "put the secret of the app (App Dashboard, App settings, Basic) into .env as"
            " CONVSYNC_APP_SECRET"
        },
    ),
    "no verify token": (
        _settings(verify_token=None),
        {
            "no_verify_token": 'echo "CONVSYNC_VERIFY_TOKEN=$(openssl rand -hex 32)" >> .env; enter the same'
            " in the webhook settings"
        },
    ),
    "no token key": (
        _settings(token_key=None),
        {"no_token_key": 'echo "CONVSYNC_TOKEN_KEY=$(convsync page new-key)" >> .env'},
    ),
    "embedded database in production": (
        _embedded_in_production,
        {
            "embedded_in_production": "set CONVSYNC_MIGRATE_DATABASE_URL and CONVSYNC_DATABASE_URL (README,"
            " Connect a real Page), then: convsync migrate"
        },
    ),
    "database away": (
        _nobody_there,
        {
            "database_unreachable": "see that PostgreSQL runs, and that CONVSYNC_DATABASE_URL says where:"
            " convsync psql -c 'select 1'"
        },
    ),
    "database too old": (
        _probed(server_number=140013, server_version="14.13"),
        {
            "database_too_old": "upgrade the server to PostgreSQL 15 or newer (pg_upgrade, or dump and"
            " restore)"
        },
    ),
    "database is a standby": (
        _probed(in_recovery=True),
        {
            "database_read_only": "set CONVSYNC_DATABASE_URL to the primary, or promote this one: select"
            " pg_promote()"
        },
    ),
    "database behind": (
        _owner("update convsync.installation set functions_hash = repeat('0', 64)"),
        {"schema_behind": "convsync migrate"},
    ),
    "nothing installed": (
        _owner("drop schema convsync, convsync_api, convsync_read, convsync_ops cascade"),
        {"schema_behind": "convsync migrate"},
    ),
    "database newer": (
        _owner(
            "update convsync._yoyo_migration set migration_id = '9999_later' where migration_id like '0016%'"
        ),
        {"schema_newer": "pip install --upgrade convsync"},
    ),
    "login without its role": (
        _login_without_membership,
        {"role_may_not": "convsync psql -c 'grant convsync_service to stranger'"},
    ),
    "one function not granted": (
        _owner("revoke execute on function convsync_api.erase_contact(text, text) from convsync_service"),
        {"role_may_not": "convsync migrate"},
    ),
    "login is the owner": (_login_is_the_owner, {"role_may_too_much": "convsync_login"}),
    "login is a superuser": (_login_is_a_superuser, {"role_may_too_much": "convsync_login"}),
    "synchronous_commit off": (
        _owner("alter database examined set synchronous_commit = off"),
        {
            "not_durable": "convsync psql -c 'alter database examined reset synchronous_commit' -c"
            " 'select pg_reload_conf()'"
        },
    ),
    "fsync off": (
        _probed(off=[["fsync", "configuration file"]]),
        {"not_durable": "convsync psql -c 'alter system set fsync = on' -c 'select pg_reload_conf()'"},
    ),
    "this machine's clock": (_machine_is_ahead, {"clock_skew": "on this machine: timedatectl set-ntp true"}),
    "the database's clock": (
        _database_is_behind,
        {"clock_skew": "on the database's machine: timedatectl set-ntp true"},
    ),
    "Graph away": (
        _settings(graph_url="http://127.0.0.1:1"),
        {
            "graph_unreachable": "see the network, name service and proxy of this machine: curl -sI http://127.0.0.1:1"
        },
    ),
    "version ends": (_version_ends, {"graph_version_ending": 'echo "CONVSYNC_GRAPH_VERSION=v26.0" >> .env'}),
    "version is gone": (
        _version_is_gone,
        {"graph_version_expired": 'echo "CONVSYNC_GRAPH_VERSION=v26.0" >> .env'},
    ),
    "no token": (_token(None), {"token_missing": ADD}),
    "unsealed token": (_token(b"EAAplain0123456789"), {"token_unsealed": ADD}),
    "other token key": (
        _other_token_key,
        {"token_key_differs": f"set the CONVSYNC_TOKEN_KEY that it was stored with; if that is lost: {ADD}"},
    ),
    "token invalid": (_graph("revoke_token"), {"token_invalid": ADD}),
    "token known to be invalid": (_known_to_be_invalid, {"token_invalid": ADD}),
    "app secret of another app": (
        _graph("error", name="proof_invalid"),
        {
            "app_secret_refused": "set CONVSYNC_APP_SECRET to the secret of the app that made the token (App"
            " Dashboard, App settings, Basic)"
        },
    ),
    **{
        f"token without {permission}": (
            _scopes_without(permission),
            {"permissions_missing": f"grant them to the app, make a new long-lived Page token, then: {ADD}"},
        )
        for permission in PERMISSIONS
    },
    "conversations refused": (
        _not_told_of_the_token,
        {"permissions_missing": f"grant them to the app, make a new long-lived Page token, then: {ADD}"},
    ),
    "subscriptions refused": (
        _subscriptions_refused,
        {"permissions_missing": f"grant them to the app, make a new long-lived Page token, then: {ADD}"},
    ),
    "calls blocked": (_blocked, {"calls_blocked": "nothing: it goes on by itself"}),
    "not subscribed": (_not_subscribed, {"not_subscribed": f"convsync page subscribe {PAGE}"}),
    "fields missing": (_fields_missing, {"fields_missing": f"convsync page subscribe {PAGE}"}),
    "webhooks silent": (
        _webhooks_are_silent,
        {
            "webhooks_silent": "curl -i https://YOUR-HOST/api/webhook from outside must answer 403; enter"
            " https://YOUR-HOST/api/webhook as the callback URL in the app's Messenger settings, and switch"
            " the app to Live"
        },
    ),
    "dead letter": (_dead_letter, {"dead_letters": f"convsync dead-letters list {PAGE}"}),
}


@pytest.mark.parametrize("fault", CASES)
async def test_a_fault_is_found_with_its_remedy_and_nothing_else(patient: Patient, fault: str) -> None:
    plant, expected = CASES[fault]
    if (planted := plant(patient)) is not None:
        await planted
    checks = await patient.examine()
    found = problems(checks)
    assert set(found) == set(expected), checks
    for name, mend in expected.items():
        told = found[name] or ""
        assert told == mend if mend != "convsync_login" else mend in told
    for one in checks:
        if one.state == "problem":
            assert one.what
            assert one.why


@pytest.mark.parametrize("fault", ["one function not granted", "database behind", "nothing installed"])
async def test_what_it_says_mends_the_database(patient: Patient, fault: str) -> None:
    plant, told = CASES[fault]
    plant(patient)
    assert set(told.values()) == {"convsync migrate"}
    await installer.migrate(patient.own.owner_url)
    found = problems(await patient.examine())
    # A database that was not there has no Pages either.
    assert found == {}


async def test_several_faults_are_each_found(patient: Patient) -> None:
    _settings(app_secret=None, verify_token=None)(patient)
    _not_subscribed(patient)
    await _dead_letter(patient)
    found = problems(await patient.examine())
    assert set(found) == {"no_app_secret", "no_verify_token", "not_subscribed", "dead_letters"}


async def test_no_call_is_made_with_a_token_that_is_known_to_be_dead(patient: Patient) -> None:
    await _known_to_be_invalid(patient)
    before = patient.world.calls(PAGE)
    await patient.examine()
    assert patient.world.calls(PAGE) == before


async def test_a_token_that_may_not_ask_about_itself_is_not_called_invalid(patient: Patient) -> None:
    """Meta answers such a question to some tokens only, as it does to dead ones."""
    patient.world.simulator.faults.add("/debug_token", "error", name="not_granted")
    checks = await patient.examine()
    assert problems(checks) == {}
    assert (await patient.world.store.get_page(page_id=PAGE))["token"] == "valid"
    (permissions,) = [one for one in checks if one.check == "permissions"]
    assert permissions.what == "the Page's conversations can be read"


async def test_without_graph_what_the_database_knows_of_each_page_is_told(patient: Patient) -> None:
    other = "100000000000002"
    await patient.world.store.add_page(page_id=other)
    await _dead_letter(patient)
    patient.settings["graph_url"] = "http://127.0.0.1:1"
    checks = await patient.examine()
    assert [(one.check, one.page_id, one.problem) for one in checks if one.state == "problem"] == [
        ("graph", None, "graph_unreachable"),
        ("mirror", PAGE, "dead_letters"),
        ("token", other, "token_missing"),
    ]
    skipped = [(one.check, one.what) for one in checks if one.state == "skipped" and one.page_id == PAGE]
    assert skipped == [
        (name, "Graph cannot be asked") for name in ("token", "permissions", "subscription", "webhooks")
    ]


async def test_a_page_that_is_removed_meanwhile_hides_no_other(patient: Patient) -> None:
    other = "100000000000002"
    await patient.world.store.add_page(page_id=other)
    page_token = Store.page_token

    async def removed(self: Store, *, page_id: str) -> SealedToken:
        if page_id == other:
            raise NotFound("there is no Page 100000000000002")
        return await page_token(self, page_id=page_id)

    patient.patch.setattr(Store, "page_token", removed)
    checks = await patient.examine()
    assert problems(checks) == {}
    assert {one.state for one in checks if one.page_id == PAGE} == {"ok"}
    (hidden,) = [one for one in checks if one.page_id == other]
    assert (hidden.state, "there is no Page" in hidden.what) == ("skipped", True)


async def test_each_call_is_in_the_budget_of_the_page(patient: Patient) -> None:
    await patient.examine()
    budget = (await patient.world.store.get_page(page_id=PAGE))["budget"]
    # All but the look at Meta's clock, which is nobody's.
    assert budget["calls"] == sum(call.page_id == PAGE for call in patient.world.simulator.calls.calls) == 3


async def test_a_subscription_made_elsewhere_is_recorded(patient: Patient) -> None:
    await patient.world.rows("update convsync.pages set subscribed_at = null returning page_id")
    assert problems(await patient.examine()) == {}
    assert (await patient.world.store.get_page(page_id=PAGE))["subscribed_at"] is not None


@pytest.fixture
async def cli(own: Own, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Commands]:
    async with (
        healthy(own, monkeypatch) as patient,
        commands(
            patient.world,
            tmp_path,
            CONVSYNC_APP_SECRET=patient.world.simulator.config.app_secret,
            CONVSYNC_VERIFY_TOKEN=marked("verify-token"),
        ) as running,
    ):
        yield running


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
SHOWN = re.compile(r"(?<=<!-- doctor -->\n```text\n).*?(?=```\n)", re.DOTALL)
# What is each installation's own.
OWN = {
    re.compile(r"PostgreSQL \d+(\.\d+)*( \(.*\))?"): "PostgreSQL 18.1",
    re.compile(r"\b\d{4}_\w+\+[0-9a-f]{12}\b"): "0016_proof+0123456789ab",
    re.compile(r"http://127\.0\.0\.1:\d+"): "https://graph.facebook.com",
    re.compile(LOGIN): "convsync_login",
}


async def test_the_command_shows_what_the_document_shows_and_exits_0_when_all_is_well(cli: Commands) -> None:
    code, out, err = await cli.run("doctor")
    assert code == 0, out + err
    for pattern, example in OWN.items():
        out = pattern.sub(example, out)
    document = DOCUMENT.read_text(encoding="utf-8")
    if os.environ.get("CONVSYNC_WRITE_DOCS"):
        DOCUMENT.write_text(SHOWN.sub(lambda _: out, document, count=1), encoding="utf-8")
        pytest.skip("written, not compared")
    assert SHOWN.findall(document) == [out]


async def test_the_command_exits_1_and_tells_how_to_mend_it(cli: Commands) -> None:
    cli.world.simulator.webhooks.unsubscribe(PAGE)
    code, out, err = await cli.run("doctor", PAGE)
    assert code == 1, err
    told = out[out.index("PROBLEM") :].splitlines()
    assert (
        told[0] == f"PROBLEM subscription of Page {PAGE}: The app is not subscribed to the Page's webhooks."
    )
    assert told[1].strip().startswith("why it matters: ")
    assert told[2].strip() == f"to mend it: convsync page subscribe {PAGE}"
    assert out.splitlines()[-1] == "1 problem"

    code, out, err = await cli.run("doctor", PAGE, "--json")
    document = json.loads(out)
    assert (code, document["healthy"]) == (1, False)
    (found,) = [check for check in document["checks"] if check["state"] == "problem"]
    assert set(found) == {"check", "page_id", "state", "problem", "what", "why", "mend"}

    assert (await cli.run("page", "subscribe", PAGE))[0] == 0
    code, out, err = await cli.run("doctor", PAGE, "--json")
    assert (code, json.loads(out)["healthy"]) == (0, True), out + err


async def test_a_page_that_is_not_there_is_said(cli: Commands) -> None:
    code, out, err = await cli.run("doctor", "4711")
    assert (code, out) == (1, "")
    assert "there is no Page 4711" in err


@pytest.mark.parametrize(
    ("database", "graph", "told"),
    [
        ((0.0, 0.1), (0.0, 0.6), None),
        ((4.9, 0.1), (4.9, 0.6), None),
        ((-60.0, 0.1), (-60.0, 0.6), "The clock of this machine is 60 s ahead."),
        ((60.0, 0.1), (0.0, 0.6), "The clock of the database is 60 s ahead."),
        (
            (0.0, 0.1),
            (90.0, 0.6),
            "The clock of this machine is 90 s behind and the clock of the database is 90 s behind.",
        ),
        ((30.0, 0.1), None, "The clocks of the database and of this machine differ by 30 s."),
        ((6.0, 2.0), None, None),
        ((0.0, 0.1), (5.5, 0.6), None),
    ],
)
def test_the_clock_that_is_wrong_is_named(
    database: tuple[float, float], graph: tuple[float, float] | None, told: str | None
) -> None:
    found = check_clocks(database, graph)
    assert (found.what if found.state == "problem" else None) == told


def test_names_of_other_peoples_making_are_quoted_in_what_is_to_be_run() -> None:
    found = Found(
        180000,
        "18.0",
        'odd "name',
        "My DB",
        False,
        False,
        False,
        True,
        ["f()"],
        [["fsync", "database"]],
        False,
    )
    (role, durability) = list(check_database(Probe(found, None, 0.0, 0.0), own_login=True))[2:]
    assert role.mend == 'convsync psql -c \'grant convsync_service to "odd ""name"\''
    assert durability.mend == (
        "convsync psql -c 'alter database \"My DB\" reset fsync' -c 'select pg_reload_conf()'"
    )


def test_a_permission_for_other_pages_only_is_missing() -> None:
    scopes = list(PERMISSIONS)
    granted = TokenInfo.model_validate({"scopes": scopes})
    assert list(_missing(PAGE, granted)) == []
    limited = TokenInfo.model_validate(
        {
            "scopes": scopes,
            "granular_scopes": [
                {"scope": "pages_messaging", "target_ids": ["4711"]},
                {"scope": "pages_manage_metadata", "target_ids": ["4711", PAGE]},
                {"scope": "pages_read_engagement"},
            ],
        }
    )
    assert list(_missing(PAGE, limited)) == ["pages_messaging"]


def test_a_token_that_ends_within_two_weeks_is_told_of() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)

    def ending(**times: int) -> Check | None:
        days = {
            name: int((now + timedelta(days=day)).timestamp()) if day else 0 for name, day in times.items()
        }
        return _ending(PAGE, TokenInfo.model_validate(days), now)

    assert ending(expires_at=0, data_access_expires_at=0) is None
    assert ending(expires_at=15, data_access_expires_at=60) is None
    for times in ({"expires_at": 13}, {"expires_at": 0, "data_access_expires_at": 13}):
        found = ending(**times)
        assert found is not None
        assert found.problem == "token_expires"
        assert "2026-03-14" in found.what
        assert found.mend is not None
        assert found.mend.endswith(ADD)
