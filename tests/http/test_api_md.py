"""`docs/api.md` speaks of addresses, settings, commands and fields that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from convsync.cli import main
from convsync.outgoing import ATTEMPTS, body_of
from convsync.settings import Settings
from convsync.store import Batch
from convsync.web import app
from convsync.web.routing import ROUTES

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
# What follows is the reader's own: their function, and the system before this one.
OWN = ("/api/convsync",)
WEBHOOK = re.compile(r"\n(webhook-id: .*?)\n\n(\{.*?\}\})\n```", re.DOTALL)
SETTINGS_OF_THE_READER = {"CONVSYNC_WEBHOOK_SECRET", "CONVSYNC_URL", "CONVSYNC_KEY"}


def test_each_address_in_it_is_a_route() -> None:
    assert app.ROUTES is ROUTES
    known = {re.sub(r"\{\w+\}", "_", route.path) for route in ROUTES}
    found = set(re.findall(r"/api/[\w${}/.-]+", TEXT))
    assert len(found) > 5
    for address in found:
        plain = re.sub(r"\$?\{\w+\}", "_", address).rstrip("./")
        assert plain in known or address.startswith(OWN), address


def test_each_setting_in_it_is_one() -> None:
    known = {f"CONVSYNC_{name.upper()}" for name in Settings.model_fields}
    found = set(re.findall(r"CONVSYNC_[A-Z_]+", TEXT)) - SETTINGS_OF_THE_READER
    assert {"CONVSYNC_CORS_ORIGINS", "CONVSYNC_REQUESTS_PER_MINUTE"} <= found <= known
    assert f"({Settings.model_fields['requests_per_minute'].default})" in TEXT


def test_each_command_in_it_is_one() -> None:
    outgoing = main.commands["outgoing"]
    found = set(re.findall(r"convsync outgoing ([a-z-]+)", TEXT))
    assert found == {"new-secret", "add", "list", "resume"}
    assert found <= set(outgoing.commands)  # type: ignore[attr-defined]
    assert f"{ATTEMPTS} times" in TEXT


def test_the_webhook_it_shows_is_one_that_is_sent() -> None:
    shown = WEBHOOK.search(TEXT)
    assert shown is not None
    message = json.loads(shown[2])
    changes = message["data"]["changes"]
    batch = Batch("crm", "https://app.example.com", b"", "k", 1, "chg_1", 1, changes)
    assert json.loads(body_of(batch)) == message
    names = [line.partition(":")[0] for line in shown[1].splitlines()]
    assert names == ["webhook-id", "webhook-timestamp", "webhook-signature"]


@pytest.mark.parametrize("word", ["pageId", "deadlineSeconds", "failed_batches", "sync_running"])
def test_it_tells_the_old_names_and_the_new(word: str) -> None:
    assert word in TEXT
