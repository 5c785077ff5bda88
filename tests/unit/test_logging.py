"""The log: one line per event, and no secret in any of them, however deep it lies.

Each test logs in a process of its own: to configure logging changes the whole process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Literal

import pytest

TOKEN = "EAAtestPageToken0123456789"
APP_TOKEN = "200000000000001|abcdefghijklmnopqrst"

LOGGED = f"""
import logging, traceback
import structlog
from convsync.observe.logging import configure

configure(STYLE)
log = structlog.get_logger("test")
structlog.contextvars.bind_contextvars(request_id="r-7")
log.debug("not_shown")
log.info("plain", page_id="104", count=3, nothing=None, share=0.5, yes=True)
url = "https://graph.example/x?access_token=abcdefgh&limit=1"
log.info("told {TOKEN}", url=url, said="Bearer abcdefghijklmnop")
deep = ["access_token=abcdefgh", ("{APP_TOKEN}",)]
log.warning("nested", error={{"message": "token {TOKEN}", "next": deep}})
log.warning("object", error=ValueError("access_token=abcdefgh was refused"))
try:
    raise RuntimeError("input_token=abcdefgh is broken")
except RuntimeError:
    log.exception("raised")
foreign = logging.getLogger("somebody.else")
foreign.info("not shown")
foreign.warning("foreign %s", "appsecret_proof=abcdefgh")
try:
    raise RuntimeError("client_secret=abcdefgh is broken")
except RuntimeError:
    foreign.error("foreign raised {TOKEN}", exc_info=True)
"""


def written(style: Literal["console", "json"], script: str = LOGGED) -> str:
    script = script.replace("STYLE", repr(style))
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("style", ["console", "json"])
def test_no_line_holds_a_secret(style: Literal["console", "json"]) -> None:
    text = written(style)
    for secret in (TOKEN, APP_TOKEN, "abcdefgh", "abcdefghijklmnop"):
        assert secret not in text
    assert text.count("[redacted]") >= 9
    for told in ("plain", "nested", "object", "raised", "foreign"):
        assert told in text
    for hidden in ("not_shown", "not shown"):
        assert hidden not in text


def test_json_is_one_document_per_line() -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in written("json").splitlines()]
    assert [line["level"] for line in lines] == [
        "info",
        "info",
        "warning",
        "warning",
        "error",
        "warning",
        "error",
    ]
    assert {line["request_id"] for line in lines} == {"r-7"}
    assert all(line["timestamp"].endswith("Z") for line in lines)
    plain = lines[0]
    assert (plain["event"], plain["page_id"], plain["count"]) == ("plain", "104", 3)
    assert (plain["nothing"], plain["share"], plain["yes"]) == (None, 0.5, True)
    assert lines[1]["url"] == "https://graph.example/x?access_token=[redacted]&limit=1"
    assert lines[2]["error"]["next"] == ["access_token=[redacted]", ["[redacted]"]]
    assert "Traceback" in lines[4]["exception"]
    assert "RuntimeError" in lines[6]["exception"]


def test_each_line_of_json_tells_whose_it_is_or_that_it_is_nobodys() -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in written("json").splitlines()]
    assert all({"request_id", "run_id", "page_id"} <= line.keys() for line in lines)
    assert [line["page_id"] for line in lines] == ["104", *[None] * 6]
    assert {line["run_id"] for line in lines} == {None}
    assert "None" not in written("console").splitlines()[0].partition("plain")[2].replace("nothing=None", "")


@pytest.mark.parametrize("style", ["console", "json"])
def test_an_id_is_text_and_one_in_an_alerts_details_stands_at_the_top_too(
    style: Literal["console", "json"],
) -> None:
    script = """
import structlog
from convsync.observe.logging import configure
configure(STYLE)
structlog.get_logger("test").error("alert", details={"page_id": "104", "run_id": "9"})
structlog.get_logger("test").error("run", run_id=9, page_id=104)
"""
    for line in written(style, script).splitlines():
        if style == "json":
            document = json.loads(line)
            assert (document["page_id"], document["run_id"], document["request_id"]) == ("104", "9", None)
        else:
            assert "page_id=104" in line
            assert "run_id=9" in line
