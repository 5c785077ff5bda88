"""``docs/functions.md``: every public function is in it with its signature, and every example is true.

An example is a block of SQL followed by a block of text. They run in order in one fresh database, each by a
psql of its own. ``CONVSYNC_WRITE_DOCS=1`` writes what they give into the document instead of comparing.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from sessions import PAGE, Connection, eventually, ingest, rows, told

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "functions.md"
EXAMPLE = re.compile(r"```sql\n(?P<sql>.*?)```\n```text\n(?P<text>.*?)```\n", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```\n", re.DOTALL)
DO = re.compile(r"^do \$\$\n.*?^\$\$;$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^### (\w+)$", re.MULTILINE)
KINDS = {
    "message",
    "edit",
    "reaction",
    "unsend",
    "absence",
    "watermark",
    "thread",
    "gone",
    "page_event",
    "dead_letter",
}

# What differs from release to release, and from server to server.
VOLATILE = {
    re.compile(r"\b\d{4}_\w+\+[0-9a-f]{12}\b"): "0003_sync+0123456789ab",
    re.compile(r'"position": "\d+-\d+-\d+"'): '"position": "1-1234-9"',
}

SESSION = {"convsync.now": "2026-03-01T12:00:00Z", "timezone": "UTC", "datestyle": "ISO"}
# psql says SQLSTATE only in its verbose form, which also has line numbers of functions.
AFTER = "\n\\if :ERROR\n\\warn SQLSTATE: :SQLSTATE\n\\endif\n"


def run(server: Any, url: str, sql: str) -> str:
    """What psql prints, then what it complains of."""
    done = subprocess.run(  # noqa: S603 - our own arguments
        [server.psql_path, "-X", "-q", "-v", "SHOW_CONTEXT=never", "-d", url],
        input=sql + AFTER,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in SESSION.items())},
    )
    lines = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def masked(text: str) -> str:
    """The text without what is volatile, and without the widths that depend on it."""
    for pattern, example in VOLATILE.items():
        text = pattern.sub(example, text)
    return re.sub(r" {2,}", " ", re.sub(r"-{2,}", "--", text))


def test_every_example_gives_what_the_document_shows(server: Any, database: Any) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert document.count("```sql") == document.count("```text") == len(EXAMPLE.findall(document)) > 0
    outputs = [run(server, database.owner_url, example["sql"]) for example in EXAMPLE.finditer(document)]

    if os.environ.get("CONVSYNC_WRITE_DOCS"):
        given = iter(outputs)
        DOCUMENT.write_text(
            EXAMPLE.sub(lambda e: f"```sql\n{e['sql']}```\n```text\n{next(given)}```\n", document),
            encoding="utf-8",
        )
        pytest.skip("written, not compared")

    for example, output in zip(EXAMPLE.finditer(document), outputs, strict=True):
        line = document.count("\n", 0, example.start()) + 1
        assert masked(output) == masked(example["text"]), f"the example in line {line}"


def test_every_public_function_is_described_with_its_signature_and_an_example(database: Any) -> None:
    with psycopg.connect(database.owner_url) as connection:
        functions = connection.execute(
            r"""
            select proname, pg_get_function_arguments(oid), pg_get_function_result(oid)
            from pg_proc where pronamespace = 'convsync_api'::regnamespace and proname not like '\_%'
            """
        ).fetchall()
    document = DOCUMENT.read_text(encoding="utf-8")
    headings = HEADING.split(document)
    sections = dict(zip(headings[1::2], headings[2::2], strict=True))

    assert set(sections) - KINDS == {name for name, _, _ in functions}
    for name, typed, result in functions:
        arguments = re.sub(r"::[a-z ]+(\[\])?", "", typed)
        signature = f"{name}({arguments}) returns {result}".lower()
        assert f"`{signature}`" in sections[name].lower()
        assert EXAMPLE.search(sections[name]), f"no example of {name}"
        assert f"[{name}](#{name})" in document, f"{name} is not in the contents"


def test_every_kind_of_fact_is_described(database: Any) -> None:
    with psycopg.connect(database.owner_url) as connection:
        row = connection.execute(
            "select prosrc from pg_proc where oid = 'convsync_api._parse_facts(jsonb)'::regprocedure"
        ).fetchone()
    assert row is not None
    listed = re.search(r"f\.kind not in \(([^)]*)\)", row[0])
    assert listed is not None
    assert set(re.findall(r"'(\w+)'", listed[1])) == KINDS
    assert set(HEADING.findall(DOCUMENT.read_text(encoding="utf-8"))) >= KINDS


# --- the examples that repeat


@pytest.fixture
def taught() -> dict[str, Any]:
    """What the Python examples define, as somebody has it who copied them into one file."""
    names: dict[str, Any] = {}
    exec("\n".join(PYTHON.findall(DOCUMENT.read_text(encoding="utf-8"))), names)  # noqa: S102 - our own
    return names


class Meddled:
    """A connection; after each statement that has `word` in it, `meddle` is called."""

    def __init__(self, connection: psycopg.Connection[Any], word: str, meddle: Callable[[], object]) -> None:
        self._connection, self._word, self._meddle = connection, word, meddle

    def execute(self, query: Any, values: Any) -> Any:
        done = self._connection.execute(query, values)
        if self._word in query:
            self._meddle()
        return done


def test_who_follows_the_example_loses_nobodys_edit(
    database: Any, taught: dict[str, Any], service: Connection
) -> None:
    [row] = ingest(service, told("m_1"))
    others = iter(["carol's", "dave's"])

    def meddle() -> None:
        """Somebody else edits between the reading and the writing; twice, then the conversation is quiet."""
        if (tag := next(others, None)) is None:
            return
        tags, version = state()
        service.execute(
            "select convsync_api.update_conversation(%s, %s, %s, %s)",
            [PAGE, row["conversation_id"], version, Jsonb({"tags": [*tags, tag]})],
        )

    def state() -> tuple[list[str], int]:
        [found] = rows(
            service,
            "select convsync_api.get_conversation(%(page)s, %(id)s) d",
            page=PAGE,
            id=row["conversation_id"],
        )
        return found["d"]["tags"], found["d"]["version"]

    with psycopg.connect(database.service_url, autocommit=True) as connection:
        meddled = Meddled(connection, "get_conversation", meddle)
        assert taught["add_tag"](meddled, PAGE, row["conversation_id"], "mine") == 4
        assert state() == (["carol's", "dave's", "mine"], 4)
        others = (f"tag {number}" for number in range(100))
        with pytest.raises(psycopg.DatabaseError) as caught:
            taught["add_tag"](meddled, PAGE, row["conversation_id"], "in vain")
    assert caught.value.sqlstate == "ZC002"
    assert len(state()[0]) == 3 + 5, "it tries five times, and no more"


@pytest.mark.parametrize("language", ["python", "sql"])
def test_who_follows_the_example_gets_past_a_locked_conversation(
    database: Any, taught: dict[str, Any], service: Connection, owner: Connection, language: str
) -> None:
    ingest(service, told("m_1", sender="2001", page="1000"))
    fact = {
        **{"kind": "watermark", "page_id": "1000", "sender_id": "2001", "what": "delivered"},
        "at": "2026-03-01T10:05:00Z",
    }
    [example] = DO.findall(DOCUMENT.read_text(encoding="utf-8"))

    def work(connection: psycopg.Connection[Any]) -> None:
        if language == "python":
            taught["ingest"](connection, [fact], "sql")
        else:
            connection.execute(example.encode())

    waits = set()

    def waits_again() -> bool:
        """Whether it has been seen waiting for a lock more than once: it was refused in between."""
        waits.update(
            row["waitstart"]
            for row in rows(
                service,
                """select l.waitstart from pg_locks l join pg_stat_activity a on a.pid = l.pid
                   where a.application_name = 'example' and l.waitstart is not null""",
            )
        )
        return len(waits) > 1

    owner.execute("begin")
    owner.execute("select from convsync.messenger_conversations for update")
    with (
        psycopg.connect(database.service_url, autocommit=True, application_name="example") as connection,
        ThreadPoolExecutor(1) as thread,
    ):
        working = thread.submit(work, connection)
        eventually(waits_again)
        owner.execute("commit")
        working.result(timeout=30)
    [row] = rows(service, "select convsync_api.get_conversation('1000', 1) d")
    assert row["d"]["delivered_watermark"] == "2026-03-01T10:05:00+00:00"
