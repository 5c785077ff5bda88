"""Settings: where they come from, what is refused, and that no refusal shows a secret."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from convsync.settings import ApiKey, Settings, SettingsError, find_key, parse_api_keys
from convsync.tokens import TokenBox, TokenKeyError, new_key
from secrets_hunt import marked

SECRET = marked("a-key-of-sixteen-or-more")
OTHER = marked("another-key-of-sixteen-or-more")
DATABASE_URLS = ("DATABASE_URL", "MIGRATE_DATABASE_URL", "DIRECT_DATABASE_URL")
NO_URLS = (
    SECRET,
    f"mysql://me:{SECRET}@db.example/x",
    f"postgresql://me:{SECRET}%zz@db.example/x",
    f"postgresql://me:{SECRET}@db.example/x?{SECRET}=1",
    f"host=db.example {SECRET}",
)
NO_ALERT_URLS = (
    SECRET,
    f"http://hooks.example/{SECRET}",
    f"http://localhost.example.org/{SECRET}",
    f"http://localhost@{SECRET}.example",
    f"ftp://localhost/{SECRET}",
    f"https:///{SECRET}",
    f"https://[{SECRET}/x",
    f"https://hooks.example:{SECRET}/x",
    f"https://{SECRET}\u2100.example/x",  # the standard library's complaint quotes it
)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor a file of whoever runs the tests has a part in them."""
    for name in os.environ:
        if name.upper().startswith("CONVSYNC_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def keys(text: str) -> list[ApiKey]:
    return parse_api_keys(SecretStr(text))


# API keys


def test_api_keys_have_a_name_a_role_and_perhaps_pages() -> None:
    assert keys(f" crm:read:{SECRET} , ops:operate:{OTHER}:104+105,") == [
        ApiKey("crm", "read", SecretStr(SECRET), frozenset()),
        ApiKey("ops", "operate", SecretStr(OTHER), frozenset({"104", "105"})),
    ]
    assert keys("") == []


@pytest.mark.parametrize(
    "entry",
    [
        SECRET,
        f"crm:{SECRET}",
        f":read:{SECRET}",
        f"crm:admin:{SECRET}",
        f"crm:READ:{SECRET}",
        "crm:read:short",
        "crm:read:",
        f"crm:read:{SECRET}:",
        f"crm:read:{SECRET}:+",
    ],
)
def test_a_bad_entry_is_named_by_its_number_and_never_by_its_key(
    entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="entry 2 must be name:role:key") as refused:
        keys(f"ok:read:{OTHER},{entry}")
    assert SECRET not in str(refused.value)
    monkeypatch.setenv("CONVSYNC_API_KEYS", f"ok:read:{OTHER},{entry}")
    with pytest.raises(ValidationError) as invalid:
        Settings()
    for shown in told(invalid.value):
        assert SECRET not in shown
        assert OTHER not in shown
    assert "entry 2" in str(invalid.value)


def test_an_empty_list_of_pages_does_not_open_all_pages() -> None:
    with pytest.raises(ValueError, match="entry 1"):
        keys(f"crm:operate:{SECRET}:")


def test_two_keys_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="same name"):
        keys(f"crm:read:{SECRET},crm:operate:{OTHER}")


@pytest.mark.parametrize(
    "presented", ["", "x", SECRET[:-1], SECRET + "x", SECRET.upper(), "schlüssel", "\udcff\ud83d"]
)
def test_only_the_very_key_is_found(presented: str) -> None:
    listed = keys(f"crm:read:{SECRET},ops:operate:{OTHER}")
    assert find_key(listed, presented) is None
    assert find_key(listed, SECRET) is listed[0]
    assert find_key(listed, OTHER) is listed[1]
    assert find_key([], SECRET) is None


def test_a_key_that_is_not_ascii_is_found() -> None:
    listed = keys("crm:read:ein-schlüssel-für-alles")
    assert find_key(listed, "ein-schlüssel-für-alles") is listed[0]


# Where settings come from


def test_the_defaults_are_those_that_are_documented() -> None:
    settings = Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert (settings.graph_url, settings.graph_version) == ("https://graph.facebook.com", "v26.0")
    assert (settings.calls_per_second, settings.log_format) == (2.0, "console")
    assert (settings.reconcile_depth, settings.loss_grace) == (7 * 86400, 900)
    assert (settings.dead_letter_days, settings.changes_days, settings.sync_run_days) == (30, 30, 90)
    assert settings.embedded
    assert settings.on_loopback
    assert settings.app_secret is settings.verify_token is settings.api_keys is settings.token_key is None


def test_the_environment_comes_before_the_file_and_an_empty_value_counts_as_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(
        "CONVSYNC_PORT=9001\nCONVSYNC_APP_SECRET=from-the-file\nCONVSYNC_GRAPH_VERSION=v25.0\nSOMETHING_ELSE=1\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("CONVSYNC_PORT", "9002")
    monkeypatch.setenv("CONVSYNC_GRAPH_VERSION", "")
    settings = Settings()
    assert (settings.port, settings.graph_version) == (9002, "v25.0")
    assert settings.app_secret == SecretStr("from-the-file")


@pytest.mark.parametrize("name", ["dead_letter_days", "changes_days", "sync_run_days"])
@pytest.mark.parametrize("days", ["0", "-1", "3651", "soon"])
def test_a_retention_is_a_day_or_more(name: str, days: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"CONVSYNC_{name.upper()}", days)
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_settings_show_asterisks_for_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APP_SECRET", "VERIFY_TOKEN", "TOKEN_KEY"):
        monkeypatch.setenv(f"CONVSYNC_{name}", SECRET)
    for name in DATABASE_URLS:
        monkeypatch.setenv(f"CONVSYNC_{name}", f"postgresql://me:{SECRET}@db.example/x")
    monkeypatch.setenv("CONVSYNC_API_KEYS", f"crm:read:{SECRET}")
    monkeypatch.setenv("CONVSYNC_ALERT_WEBHOOK_URL", f"https://hooks.example/{SECRET}")
    settings = Settings()
    for shown in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.keys())):
        assert SECRET not in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("PORT", SECRET),
        ("GRAPH_VERSION", SECRET),
        ("CALLS_PER_SECOND", "-1"),
        ("POOL_MAX", "1"),
        ("LOG_FORMAT", SECRET),
        ("LEASE_SECONDS", "0"),
        *((name, value) for name in DATABASE_URLS for value in NO_URLS),
        *(("ALERT_WEBHOOK_URL", value) for value in NO_ALERT_URLS),
    ],
)
def test_a_wrong_setting_is_named_and_its_value_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"CONVSYNC_{name}", value)
    monkeypatch.setenv("CONVSYNC_APP_SECRET", OTHER)
    with pytest.raises(ValidationError) as invalid:
        Settings()
    assert [error["loc"] for error in invalid.value.errors()] == [(name.lower(),)]
    for shown in told(invalid.value):
        assert SECRET not in shown
        assert OTHER not in shown


def told(error: ValidationError) -> list[str]:
    """Whatever a person or a log could see of the error."""
    return [str(error), repr(error), "".join(traceback.format_exception(error))]


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@db.example:5432/x?sslmode=verify-full",
        f"postgres://me:{SECRET}@[2001:db8::1]/x",
        "postgresql://me@/x?host=/run/postgresql",
        f"host=db.example dbname=x user=me password={SECRET}",
    ],
)
def test_a_database_is_named_in_any_way_libpq_understands(url: str) -> None:
    settings = Settings(database_url=SecretStr(url))
    assert settings.database_url == SecretStr(url)


# The Graph API's address


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://graph.facebook.com", "https://graph.facebook.com"),
        ("https://graph.facebook.com/", "https://graph.facebook.com"),
        ("https://proxy.example:8443/graph", "https://proxy.example:8443/graph"),
        ("http://127.0.0.1:8765", "http://127.0.0.1:8765"),
        ("http://localhost:8765/", "http://localhost:8765"),
        ("http://[::1]:8765", "http://[::1]:8765"),
    ],
)
def test_tokens_travel_encrypted_or_not_at_all(given: str, kept: str) -> None:
    assert Settings(graph_url=given).graph_url == kept


@pytest.mark.parametrize(
    "given",
    [
        "http://graph.facebook.com",
        "http://127.0.0.1.example.org",
        "http://localhost.example.org",
        "http://localhost@example.org",
        "http://127.0.0.1:80@example.org",
        "ftp://localhost",
        "graph.facebook.com",
        "https://",
        "//localhost",
    ],
)
def test_an_address_that_would_send_tokens_in_the_clear_is_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="must be https, or http on this machine"):
        Settings(graph_url=given)


# Where alerts go


@pytest.mark.parametrize(
    "url",
    [
        f"https://hooks.example/services/{SECRET}?x=1",
        f"https://me:{SECRET}@hooks.example:8443/x",
        f"http://127.0.0.1:9093/{SECRET}",
        "http://[::1]:9093",
    ],
)
def test_alerts_go_where_nobody_on_the_way_reads_them(url: str) -> None:
    settings = Settings(alert_webhook_url=SecretStr(url))
    assert settings.alert_webhook_url == SecretStr(url)


# What must be there


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "convsync.example"])  # noqa: S104
def test_without_keys_nobody_outside_this_machine_is_served(host: str) -> None:
    with pytest.raises(SettingsError, match="CONVSYNC_API_KEYS"):
        Settings(host=host).keys()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_on_this_machine_a_key_is_made_and_kept(host: str, tmp_path: Path) -> None:
    settings = Settings(host=host, data_dir=tmp_path / "data")
    (first,) = settings.keys()
    assert (first.name, first.role, first.pages) == ("local", "operate", frozenset())
    assert settings.keys() == [first]
    assert settings.generated_key_path.stat().st_mode & 0o777 == 0o600
    assert settings.generated_key_path.read_text(encoding="ascii").strip() == first.secret.get_secret_value()


def test_a_database_of_ones_own_needs_a_token_key() -> None:
    with pytest.raises(SettingsError, match="CONVSYNC_TOKEN_KEY"):
        Settings(database_url=SecretStr("postgresql://db.example/x")).token_box()
    key = new_key()
    box = Settings(database_url=SecretStr("postgresql://db.example/x"), token_key=SecretStr(key)).token_box()
    assert box.key_id == TokenBox(key).key_id


def test_the_embedded_database_has_its_token_key_in_its_directory(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    assert settings.token_box().key_id == settings.token_box().key_id
    assert (tmp_path / "data" / "token_key").stat().st_mode & 0o777 == 0o600


def test_a_token_key_that_is_none_says_so_without_showing_it() -> None:
    with pytest.raises(TokenKeyError) as refused:
        Settings(token_key=SecretStr(SECRET)).token_box()
    assert SECRET not in str(refused.value)


def test_settings_do_not_change() -> None:
    settings: Any = Settings()
    with pytest.raises(ValidationError):
        settings.port = 1
