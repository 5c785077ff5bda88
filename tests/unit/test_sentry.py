"""Errors that go to Sentry: with their ids and the place, without a secret or the text of a message.

A process of its own logs to a receiver on this machine, which keeps whatever arrives.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from convsync.observe.sentry import Reports, _only_what_may_leave, reporter
from convsync.settings import Settings, SettingsError
from secrets_hunt import marked
from sentry_receiver import DSN_KEY as KEY
from sentry_receiver import Receiver

TOKEN = marked("EAAtoken")
TEXT = "Hello, do you still have the red bicycle?"
WORD = "Bicycle"

LOGGED = f"""
import atexit, logging, sys
import sentry_sdk
import structlog
from pydantic import SecretStr
from convsync.observe.logging import configure
from convsync.observe.sentry import reporter

configure("json", report=reporter(SecretStr(DSN)))
atexit.register(lambda: sentry_sdk.flush(30))  # before its own end, of two seconds
log = structlog.get_logger("test")
structlog.contextvars.bind_contextvars(request_id="r-7")

class Refused(Exception):
    pass

def inner(body):
    local_copy = body
    raise ValueError(f"cannot store {{body}} with {TOKEN}")

log.info("quiet", page_id="104")
log.warning("only_a_warning", page_id="104")
try:
    try:
        inner({TEXT!r})
    except ValueError as error:
        raise Refused({TEXT!r}) from error
except Refused:
    log.exception("request_broken", page_id="104", run_id=9, path="/api/pages/104", body={WORD!r}, count=3,
                  error={{"class": "transient", "code": 2, "message": {TEXT!r}, "told": {WORD!r}}},
                  reason="refused: {WORD} was {TOKEN}", sqlstate="22P02", token={TOKEN!r},
                  thread_id="access_token={TOKEN}")
log.error("group_commit.failed", error="TryAgain", deliveries=5, texts=[{TEXT!r}])
log.error({TEXT!r}, page_id="104")
logging.getLogger("somebody.else").error("cannot read %s of %s", {TEXT!r}, {TOKEN!r})
for _ in range(50):
    log.error("again", page_id="104")
log.error("again", page_id="105")
log.error("alert", alert="token_invalid", state="firing", summary={TEXT!r},
          details={{"page_id": "106", "refused": {{"full": 2}}}})
raise RuntimeError("the end of {TEXT} and {TOKEN}")
"""


def run(dsn: str, *, script: str = LOGGED) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=script.replace("DSN", repr(dsn)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="module")
def reported() -> tuple[Receiver, list[dict[str, Any]]]:
    with Receiver() as receiver:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-"],
            input=LOGGED.replace("DSN", repr(receiver.dsn)).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=60,
        )
        assert done.returncode == 1  # the error at its end
    return receiver, receiver.events()


Reported = tuple[Receiver, list[dict[str, Any]]]


def named(events: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (event,) = [event for event in events if event["tags"]["event"] == name]
    return event


def test_each_error_is_reported_and_nothing_below(reported: Reported) -> None:
    _, events = reported
    assert sorted(event["tags"]["event"] for event in events) == [
        "again",
        "again",
        "alert token_invalid",
        "crash",
        "group_commit.failed",
        "log",
        "log of somebody.else",
        "request_broken",
    ]


def test_a_report_has_the_ids_of_its_log_line(reported: Reported) -> None:
    _, events = reported
    tags = {"event": "request_broken", "request_id": "r-7", "run_id": "9", "page_id": "104"}
    assert named(events, "request_broken")["tags"] == tags
    assert named(events, "alert token_invalid")["tags"]["page_id"] == "106"
    assert {event["level"] for event in events} <= {"error", "fatal"}
    assert all(event["release"].startswith("convsync@") for event in events)


def test_a_report_says_what_was_raised_and_where(reported: Reported) -> None:
    _, events = reported
    raised = named(events, "request_broken")["exception"]["values"]
    assert [one["type"] for one in raised] == ["ValueError", "Refused"]
    assert [frame["function"] for frame in raised[0]["stacktrace"]["frames"]][-1] == "inner"
    assert named(events, "crash")["exception"]["values"][0]["type"] == "RuntimeError"
    extra = named(events, "request_broken")["extra"]
    assert extra["count"] == 3
    assert (extra["path"], extra["sqlstate"]) == ("/api/pages/104", "22P02")
    assert extra["error"] == {"class": "transient", "code": 2}
    assert named(events, "group_commit.failed")["extra"] == {"error": "TryAgain", "deliveries": 5}
    assert named(events, "alert token_invalid")["extra"]["details"]["refused"] == {"full": 2}


def test_no_secret_and_no_text_of_a_message_is_in_what_was_sent(reported: Reported) -> None:
    receiver, events = reported
    assert len(events) > 5
    for envelope in receiver.raw:
        # The DSN's key goes in the envelope's first line and a header, as Sentry asks for it.
        _, _, rest = envelope.partition(b"\n")
        for secret in (KEY, TOKEN, TEXT, WORD, "local_copy", "red bicycle"):
            assert secret.lower().encode() not in rest.lower(), secret
        for gathered in (
            b'"modules"',
            b'"breadcrumbs"',
            b'"request"',
            b'"user"',
            b'"server_name"',
            b'"vars"',
        ):
            assert gathered not in rest


def test_of_one_event_and_page_one_a_minute_is_reported_with_how_many_came() -> None:
    now = 0.0
    reports = Reports(lambda: now)
    assert reports._due("x", "1") == 0
    assert [reports._due("x", "1") for _ in range(7)] == [None] * 7
    assert reports._due("x", "2") == 0
    assert reports._due("y", "1") == 0
    now = 61.0
    assert reports._due("x", "1") == 7
    assert reports._due("x", "2") == 0


def test_what_others_put_into_an_event_does_not_leave() -> None:
    event = {
        "level": "error",
        "message": TEXT,
        "logentry": {"message": TEXT, "params": [TEXT]},
        "request": {"data": TEXT, "headers": {"Authorization": TOKEN}},
        "user": {"ip_address": "10.0.0.1"},
        "breadcrumbs": {"values": [{"message": TEXT}]},
        "contexts": {"x": TEXT},
        "server_name": "host",
        "tags": {"event": "e", "other": TEXT},
        "extra": {"body": TEXT, "count": 1},
        "exception": {
            "values": [{"type": "E", "value": TEXT, "stacktrace": {"frames": [{"vars": {"a": TEXT}}]}}]
        },
    }
    left = _only_what_may_leave(event, {})
    assert TEXT not in str(left)
    assert TOKEN not in str(left)
    assert left["extra"] == {"count": 1}
    assert set(left) == {"level", "tags", "extra", "exception"}


def test_without_a_dsn_nothing_is_reported() -> None:
    assert reporter(None) is None


def test_a_dsn_is_refused_without_showing_it() -> None:
    for wrong in (f"http://{KEY}@sentry.example/1", f"nonsense {KEY}"):
        with pytest.raises(ValidationError) as refused:
            Settings(_env_file=None, sentry_dsn=SecretStr(wrong))
        assert KEY not in str(refused.value)
    with pytest.raises(SettingsError) as wrong_dsn:
        reporter(SecretStr(f"https://sentry.example/{KEY}"))
    assert "CONVSYNC_SENTRY_DSN" in str(wrong_dsn.value)
    assert KEY not in str(wrong_dsn.value)


def test_a_receiver_that_is_away_costs_two_seconds_at_the_end_and_no_word() -> None:
    script = """
import structlog
from pydantic import SecretStr
from convsync.observe.logging import configure
from convsync.observe.sentry import reporter
configure("json", report=reporter(SecretStr(DSN)))
structlog.get_logger("test").error("gone")
"""
    done = run(f"http://{KEY}@127.0.0.1:1/42", script=script)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["gone"]
    assert done.stdout == ""


def test_without_the_sdk_the_dsn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    with pytest.raises(SettingsError, match=r"pip install 'convsync\[sentry\]'"):
        reporter(SecretStr(f"https://{KEY}@sentry.example/1"))
