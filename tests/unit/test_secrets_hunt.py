"""The hunter finds what is planted, wherever that is."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest
from psycopg.types.json import Jsonb

import secrets_hunt
from convsync.tokens import TokenBox
from secrets_hunt import MARKER, MARKS, marked, marked_key

SECRET = marked("planted")

# Every test here plants a secret, but those of which the name says that it is none.
PLANTED = """
import asyncio, logging, os, subprocess, time
import aiohttp, click, pytest, structlog
from aiohttp import web
from click.testing import CliRunner
import secrets_hunt

SECRET = secrets_hunt.marked("planted")
SHOUT = ["sh", "-c", 'echo "$SECRET" >&$0']
TOLD = {**os.environ, "SECRET": SECRET}


def test_printed():
    print("the token is", SECRET)

def test_printed_and_read(capsys):
    print("the token is", SECRET)
    assert SECRET in capsys.readouterr().out

def test_logged():
    logging.getLogger("x").warning("the token is %s", SECRET)

def test_logged_by_structlog():
    structlog.get_logger().info("call", token=SECRET)

@pytest.fixture
def talkative():
    yield
    print(SECRET)

def test_printed_at_the_end(talkative):
    pass

@pytest.mark.parametrize("stream", ["1", "2"])
def test_printed_by_a_process(stream):
    subprocess.run([*SHOUT, stream], env=TOLD, capture_output=True, check=True)

def test_printed_by_a_process_on_our_stderr():
    subprocess.run([*SHOUT, "2"], env=TOLD, check=True)

async def test_printed_by_a_process_of_asyncio():
    process = await asyncio.create_subprocess_exec(*SHOUT, "1", env=TOLD, stdout=subprocess.PIPE)
    await process.communicate()

def test_printed_by_a_process_into_a_file(tmp_path):
    with (tmp_path / "stderr-0").open("wb") as file:
        subprocess.run([*SHOUT, "2"], env=TOLD, stderr=file, check=True)

def test_an_argument():
    subprocess.run(["true", SECRET], check=True)

async def test_an_argument_of_asyncio():
    process = await asyncio.create_subprocess_exec("true", "--token=" + SECRET)
    await process.wait()

def test_an_argument_of_a_process_of_a_process():
    command = ["sh", "-c", 'sh -c "read line" x "$SECRET"; true']
    with subprocess.Popen(command, env=TOLD, stdin=subprocess.PIPE) as process:
        end = time.monotonic() + 30
        while not secrets_hunt.findings and time.monotonic() < end:
            time.sleep(0.01)
        process.stdin.close()

@click.command()
def command():
    click.echo(SECRET, err=True)

@click.command()
def failing():
    raise RuntimeError(SECRET)

@pytest.mark.parametrize("which", [command, failing])
def test_printed_by_a_command(which):
    CliRunner().invoke(which, [])


async def answered(answer, **sent):
    async def handler(request):
        await request.read()
        response = web.StreamResponse(headers=answer.headers)
        response.content_length = len(answer.body)
        await response.prepare(request)
        await response.write(answer.body[:-20])
        await asyncio.sleep(0.05)
        await response.write(answer.body[-20:])
        return response

    app = web.Application()
    app.router.add_post("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as client:
            async with client.post(f"http://127.0.0.1:{runner.addresses[0][1]}/", **sent) as got:
                await got.read()
    finally:
        await runner.cleanup()

OF_THE_SERVICE = {"X-Request-ID": "r-1"}

async def test_an_answer():
    await answered(web.Response(text="x" * 200 + SECRET + "tail", headers=OF_THE_SERVICE))

async def test_a_header_of_an_answer():
    await answered(web.Response(text="x" * 200, headers={**OF_THE_SERVICE, "X-Told": SECRET}))

async def test_none_what_a_test_sends():
    told = web.Response(text="x" * 200, headers=OF_THE_SERVICE)
    await answered(told, headers={"Authorization": SECRET}, data=SECRET)

async def test_none_what_the_simulator_answers():
    await answered(web.Response(text=SECRET + "x" * 200))

def test_none_a_process_that_is_told(tmp_path):
    (tmp_path / ".env").write_text(SECRET)
    subprocess.run(["sh", "-c", "cat >/dev/null"], env=TOLD, input=SECRET, text=True, check=True)
"""


@pytest.fixture
def findings() -> Iterator[list[str]]:
    """What is found in this test is no finding."""
    yield secrets_hunt.findings
    secrets_hunt.findings.clear()


@pytest.mark.usefixtures("findings")
def test_a_secret_that_comes_out_fails_the_test_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "test_planted.py").write_text(PLANTED)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    arguments = ("-p", "secrets_hunt", "-p", "no:cacheprovider", "-p", "no:xdist", "--junitxml=told.xml")
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-m", "pytest", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(secrets_hunt.__file__).parent)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    told: dict[str, str] = {}
    for case in ElementTree.parse(tmp_path / "told.xml").iter("testcase"):  # noqa: S314 - our own
        name = case.attrib["name"].removeprefix("test_")
        told[name] = "".join(
            f"{one.attrib['message']}{one.text}" for one in case if one.tag in ("error", "failure")
        )
    assert len(told) > 15
    missed = [name for name, why in told.items() if not name.startswith("none_") and MARKER not in why]
    assert missed == []
    assert [why for name, why in told.items() if name.startswith("none_") and why] == []
    where = {
        "printed": "captured stdout call: ",
        "printed_and_read": "stdout: ",
        "logged": "captured log call: ",
        "printed_at_the_end": "captured stdout teardown: ",
        "printed_by_a_process_of_asyncio": "printed by sh -c echo ",
        "printed_by_a_process_into_a_file": "the file stderr-0: ",
        "an_argument": "the arguments of a process: ",
        "an_argument_of_a_process_of_a_process": "the process list: ",
        "an_answer": "an answer of the service: ",
        "a_header_of_an_answer": "an answer of the service: ",
    }
    assert [name for name, place in where.items() if f"\n{place}" not in told[name]] == []


def test_a_row_is_found_in_every_type_of_column(raw_database: Any, findings: list[str]) -> None:
    with psycopg.connect(raw_database.owner_url, autocommit=True) as connection:
        connection.execute("create schema other")
        planted = (
            ("text", SECRET),
            ("varchar(99)[]", [SECRET]),
            ("jsonb", Jsonb({"deep": [{"er": SECRET}]})),
            ("bytea", b"\0" + SECRET.encode()),
        )
        for kind, value in planted:
            connection.execute("drop table if exists other.told")
            connection.execute(f"create table other.told (id int, said {kind})")  # type: ignore[arg-type]
            connection.execute("insert into other.told values (1), (2)")
            secrets_hunt.look_into(connection)
            assert findings == []
            connection.execute("update other.told set said = %s where id = 2", [value])
            secrets_hunt.look_into(connection)
            assert [found.partition(": ")[0] for found in findings] == ["a row of other.told"]
            findings.clear()
        connection.execute("drop table other.told")


@pytest.mark.parametrize("mark", MARKS)
def test_a_secret_is_recognised_in_other_clothes(mark: str, findings: list[str]) -> None:
    raw = f"name:{mark}-1".encode()
    told = [raw, raw.hex().encode()]
    told += [
        base64.b64encode(b"x" * before + raw + b"y" * after) for before in range(3) for after in range(3)
    ]
    for one in told:
        secrets_hunt.look("here", b"before " + one + b" after")
        assert len(findings) == 1, one
        findings.clear()


def test_a_key_and_a_sealed_token_are_as_the_service_wants_them(findings: list[str]) -> None:
    box = TokenBox(marked_key())
    sealed = box.seal("1", SECRET)
    assert box.open("1", sealed) == SECRET
    secrets_hunt.look("here", sealed)
    assert findings == []
    secrets_hunt.look("here", marked_key())
    assert findings != []
