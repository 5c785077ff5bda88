"""Settings: from the environment (prefix `CONVSYNC_`), also from `.env`. `.env.example` explains each."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from yarl import URL

from convsync.database.embedded import default_data_dir, prepare_data_dir
from convsync.tokens import TokenBox, key_from_file

Role = Literal["read", "operate"]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who may call the HTTP API: `pages` limits the key to these Pages, empty means all."""

    name: str
    role: Role
    secret: SecretStr
    pages: frozenset[str]

    @property
    def consumer_prefix(self) -> str:
        """How the names of its consumers of the change feed begin: a limited key has its own."""
        return f"{self.name}/" if self.pages else ""


def limited_consumers(keys: list[ApiKey]) -> tuple[str, ...]:
    """How consumers begin that get the changes of some Pages only: those of others are no lag."""
    return tuple(key.consumer_prefix for key in keys if key.pages)


class Settings(BaseSettings):
    """What an operator sets. Secrets are `SecretStr`: any log or error shows asterisks for them."""

    model_config = SettingsConfigDict(
        env_prefix="CONVSYNC_",
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        env_ignore_empty=True,
    )

    database_url: SecretStr | None = None
    migrate_database_url: SecretStr | None = None
    direct_database_url: SecretStr | None = None
    adopt_url: SecretStr | None = None
    data_dir: Path = Field(default_factory=default_data_dir)
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    processes: int | None = Field(default=None, ge=1, le=64)
    public_url: str | None = None
    dead_letter_days: int = Field(default=30, ge=1, le=3650)
    changes_days: int = Field(default=30, ge=1, le=3650)
    sync_run_days: int = Field(default=90, ge=1, le=3650)
    app_secret: SecretStr | None = None
    verify_token: SecretStr | None = None
    api_keys: SecretStr | None = None
    cors_origins: str = ""
    requests_per_minute: int = Field(default=6000, ge=0, le=1_000_000)  # of each key, to each process
    streams_max: int = Field(default=200, ge=1, le=100_000)  # of each process
    alert_webhook_url: SecretStr | None = None
    graph_url: str = "https://graph.facebook.com"
    graph_version: str = Field(default="v26.0", pattern=r"^v\d+\.\d+$")
    token_key: SecretStr | None = None
    calls_per_second: float = Field(default=2.0, ge=0, le=1000)
    lease_seconds: float = Field(default=15.0, ge=1, le=300)
    sync_interval: float = Field(default=900, ge=0, le=30 * 86400)
    reconcile_interval: float = Field(default=86400, ge=0, le=366 * 86400)
    reconcile_depth: float = Field(default=7 * 86400.0, ge=0, le=3650 * 86400.0)  # seconds
    loss_grace: float = Field(default=900.0, ge=0, le=366 * 86400.0)  # seconds
    log_format: Literal["console", "json"] = "console"
    sentry_dsn: SecretStr | None = None
    pool_max: int = Field(default=10, ge=2, le=200)

    @field_validator("graph_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        value = value.rstrip("/")
        if not keeps_secrets(value):
            raise ValueError("must be https, or http on this machine: tokens travel there")
        return value

    @field_validator("alert_webhook_url", "sentry_dsn")
    @classmethod
    def _secret_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not keeps_secrets(value.get_secret_value()):
            raise ValueError("must be https, or http on this machine")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, value: str) -> str:
        for origin in _listed(value):
            parts = urlsplit(origin)
            # As a browser writes it, or it would never be the same.
            if f"{parts.scheme}://{parts.netloc}" != origin or not parts.hostname or origin != origin.lower():
                raise ValueError("must be origins like https://app.example.com, separated by commas")
            if parts.scheme not in ("http", "https") or "*" in origin or "@" in origin:
                raise ValueError("must be exact origins, with https or http and without a wildcard")
        return value

    @field_validator("database_url", "migrate_database_url", "direct_database_url", "adopt_url")
    @classmethod
    def _readable_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                conninfo_to_dict(value.get_secret_value())
            except psycopg.Error:  # its text quotes the value
                raise ValueError("must be like postgresql://user:password@host:5432/database") from None
        return value

    @field_validator("api_keys")
    @classmethod
    def _readable_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_api_keys(value)
        return value

    @property
    def allowed_origins(self) -> frozenset[str]:
        """The origins whose web pages may call the API."""
        return frozenset(_listed(self.cors_origins))

    @property
    def embedded(self) -> bool:
        """Whether the service runs its own PostgreSQL."""
        return self.database_url is None

    @property
    def on_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def token_box(self) -> TokenBox:
        """The key that seals Page tokens: TOKEN_KEY, or for the embedded database the one in DATA_DIR."""
        if self.token_key is not None:
            return TokenBox(self.token_key.get_secret_value())
        if not self.embedded:
            raise SettingsError(
                "CONVSYNC_TOKEN_KEY is needed: it seals Page tokens (`convsync page new-key` makes one)"
            )
        return TokenBox(key_from_file(self.prepared_data_dir() / "token_key"))

    def keys(self) -> list[ApiKey]:
        """The API keys; with none set, on loopback only, one that is kept in DATA_DIR."""
        if self.api_keys is not None:
            return parse_api_keys(self.api_keys)
        if not self.on_loopback:
            raise SettingsError(f"CONVSYNC_API_KEYS is needed to listen on {self.host}")
        secret = key_from_file(self.generated_key_path)
        return [ApiKey("local", "operate", SecretStr(secret), frozenset())]

    @property
    def generated_key_path(self) -> Path:
        return self.prepared_data_dir() / "api_key"

    def prepared_data_dir(self) -> Path:
        """DATA_DIR, made if missing."""
        prepare_data_dir(self.data_dir)
        return self.data_dir


def _listed(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def keeps_secrets(url: str) -> bool:
    """Whether nobody on the way can read what is sent there: https, or http on this machine."""
    try:
        # By its parts: http://localhost.example.org and http://localhost@example.org begin like this machine.
        parts, _ = urlsplit(url), URL(url)
    except ValueError:  # its text quotes the address
        return False
    here = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    return bool(parts.hostname) and (parts.scheme == "https" or here)


class SettingsError(Exception):
    """A setting is missing or wrong; the text names it and never its value."""


def parse_api_keys(value: SecretStr) -> list[ApiKey]:
    """`name:role:key[:page_id+page_id],..`; an error names the entry, never its key."""
    keys = []
    for number, entry in enumerate(part.strip() for part in value.get_secret_value().split(",")):
        if not entry:
            continue
        name, _, rest = entry.partition(":")
        role, _, rest = rest.partition(":")
        secret, limited, pages = rest.partition(":")
        page_ids = frozenset(page for page in pages.split("+") if page)
        # A list of Pages that came out empty must not open all of them.
        if not name or role not in ("read", "operate") or len(secret) < 16 or (limited and not page_ids):
            raise ValueError(
                f"entry {number + 1} must be name:role:key[:page_id+page_id] with role read or operate "
                "and a key of at least 16 characters"
            )
        keys.append(
            ApiKey(
                name,
                "operate" if role == "operate" else "read",
                SecretStr(secret),
                page_ids,
            )
        )
    if len({key.name for key in keys}) != len(keys):
        raise ValueError("two entries have the same name")
    return keys


def find_key(keys: list[ApiKey], presented: str) -> ApiKey | None:
    """The key that was presented; every one is compared, each in constant time."""
    found = None
    # Header bytes that are not UTF-8 arrive as lone surrogates.
    shown = presented.encode("utf-8", "surrogatepass")
    for key in keys:
        if secrets.compare_digest(key.secret.get_secret_value().encode(), shown):
            found = key
    return found
