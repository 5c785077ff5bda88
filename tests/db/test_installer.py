"""Installing and upgrading: once whoever asks, again without effect, and under the feet of clients."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from convsync.database import installer
from convsync.database.installer import Installed, behind, migrate
from convsync.facts import Message, dump, instant

TABLES: LiteralString = """
select relname from pg_class
where relnamespace = 'convsync'::regnamespace and relkind = 'r' and relname !~ 'yoyo' order by 1
"""
# Whatever an installer could change, with the transaction that wrote it.
CATALOG: tuple[LiteralString, ...] = (
    "select oid, xmin, * from pg_proc where pronamespace::regnamespace::text like 'convsync%' order by oid",
    "select oid, xmin, * from pg_class where relnamespace::regnamespace::text like 'convsync%' order by oid",
    "select xmin, * from pg_constraint where connamespace::regnamespace::text like 'convsync%' order by oid",
    "select oid, xmin, * from pg_namespace where nspname like 'convsync%' order by oid",
    "select xmin, * from pg_description where classoid = 'pg_proc'::regclass order by objoid, objsubid",
    "select xmin, * from convsync.installation",
    "select xmin, * from convsync._yoyo_migration order by migration_id",
)


def run_migrate(url: str) -> Installed:
    return asyncio.run(migrate(url))


def in_thread(url: str) -> Installed:
    """From a thread of its own: asyncio.run would take the event loop of pytest-asyncio away."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run_migrate, url).result()


def what_is_behind(url: str) -> list[str]:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(behind(url))).result()


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def catalog(connection: psycopg.Connection[Any]) -> list[Sequence[Any]]:
    return [row for query in CATALOG for row in connection.execute(query).fetchall()]


def pretend_older_functions(connection: psycopg.Connection[Any]) -> None:
    connection.execute("update convsync.installation set functions_hash = 'of an older release'")


def test_ten_installers_at_once_are_one_install_and_nine_no_ops(raw_database: Any) -> None:
    with ThreadPoolExecutor(10) as threads:
        done = list(threads.map(run_migrate, [raw_database.owner_url] * 10))
    [first] = [each for each in done if each.changed]
    assert (first.migrations, first.functions) == (installer.migration_ids(), True)
    assert {each.schema_version for each in done} == {installer.schema_version()}
    with connected(raw_database.owner_url) as connection:
        assert connection.execute("select convsync_api.schema_version()").fetchone() == (
            installer.schema_version(),
        )
        assert connection.execute("select count(*) from convsync._yoyo_migration").fetchone() == (
            len(installer.migration_ids()),
        )


def test_a_second_run_changes_nothing(database: Any) -> None:
    with connected(database.owner_url) as connection:
        before = catalog(connection)
        assert len(before) > 100
        assert not in_thread(database.owner_url).changed
        assert catalog(connection) == before


def test_behind_says_what_migrate_would_do(raw_database: Any) -> None:
    url = raw_database.owner_url
    everything = [*(f"migration {name}" for name in installer.migration_ids()), "functions"]
    assert what_is_behind(url) == everything
    with connected(url) as connection:
        assert connection.execute("select to_regnamespace('convsync')").fetchone() == (None,)
        in_thread(url)
        assert what_is_behind(url) == []
        pretend_older_functions(connection)
        assert what_is_behind(url) == ["functions"]
        assert in_thread(url) == Installed([], True, installer.schema_version())
        assert what_is_behind(url) == []


def test_the_lock_row_of_a_killed_installer_holds_nobody_up(raw_database: Any) -> None:
    with connected(raw_database.owner_url) as connection:
        in_thread(raw_database.owner_url)
        # as a process leaves it that was killed between the first migration and the last
        connection.execute("insert into convsync.yoyo_lock (locked, ctime, pid) values (1, now(), 99999999)")
        # one that can be applied twice: what it did is still there
        again = "0007_page_statistics"
        connection.execute("delete from convsync._yoyo_migration where migration_id = %s", [again])
        connection.execute("drop schema convsync_api cascade; create schema convsync_api")
        pretend_older_functions(connection)
        assert in_thread(raw_database.owner_url).migrations == [again]
        assert connection.execute("select count(*) from convsync.yoyo_lock").fetchone() == (0,)
        assert what_is_behind(raw_database.owner_url) == []


def test_a_function_that_no_file_defines_any_more_is_dropped(database: Any) -> None:
    with connected(database.owner_url) as connection:
        connection.execute(
            """
            create function convsync_api.of_an_older_release() returns integer language sql return 1;
            create function convsync_api.begin_sync(p_page_id text) returns integer language sql return 1;
            create procedure convsync_api.old_procedure() language sql as 'select 1';
            create function public.of_somebody_else() returns integer language sql return 1;
            """
        )
        pretend_older_functions(connection)
        kept: LiteralString = """
            select p.oid::regprocedure::text from pg_proc as p
            where p.pronamespace = any (array['convsync_api', 'public']::regnamespace[]) order by 1
        """
        before = {row[0] for row in connection.execute(kept)}
        assert in_thread(database.owner_url).functions
        after = {row[0] for row in connection.execute(kept)}
        assert before - after == {
            "convsync_api.of_an_older_release()",
            "convsync_api.begin_sync(text)",
            "convsync_api.old_procedure()",
        }
        assert after <= before


def test_a_file_that_fails_leaves_the_functions_as_they_were(
    database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "500_broken.sql"
    broken.write_text("create function convsync_api.half() returns integer language sql return 1; selec;")
    files = [*installer.function_files(), broken]
    with connected(database.owner_url) as connection:
        before = catalog(connection)
        monkeypatch.setattr(installer, "function_files", lambda: files)
        with pytest.raises(installer.InstallError, match=r"500_broken\.sql: syntax error"):
            in_thread(database.owner_url)
        assert catalog(connection) == before


def test_clients_notice_nothing_of_a_new_install(database: Any) -> None:
    """Six clients call without a pause while everything is installed anew ten times over."""
    stop = threading.Event()
    numbers = itertools.count()

    def client(number: int) -> int:
        calls = 0
        with connected(database.service_url) as connection:
            while not stop.is_set():
                facts = [
                    Message(
                        "1001", f"200{number}", f"m_{next(numbers)}", "in", instant(1_740_000_000_000 + calls)
                    )
                ]
                connection.execute("select * from convsync_api.ingest(%s, 'webhook')", [dump(facts)])
                connection.execute("select convsync_api.schema_version(), convsync_api.list_pages()")
                connection.execute("select * from convsync_api.acquire_call('1001', 'live')")
                calls += 3
        return calls

    with connected(database.owner_url) as connection, ThreadPoolExecutor(6) as clients:
        working = [clients.submit(client, number) for number in range(6)]
        try:
            for _ in range(10):
                pretend_older_functions(connection)
                assert in_thread(database.owner_url).functions
        finally:
            stop.set()
        calls = [each.result() for each in working]  # raises what a client met
        assert all(calls)
        stored = connection.execute("select count(*) from convsync.contact_interaction_events").fetchone()
        assert stored == (sum(calls) // 3,)


def test_what_is_released_is_frozen() -> None:
    """``migrations/frozen.txt``, as sha256sum writes it: what it lists is unchanged and comes first."""
    folder = installer.source("migrations")
    frozen = folder / "frozen.txt"
    lines = frozen.read_text(encoding="ascii").splitlines() if frozen.exists() else []
    listed = {Path(name).name: digest for digest, name in (line.split() for line in lines)}
    files = sorted(path.name for path in folder.glob("*.sql"))
    assert files[: len(listed)] == sorted(listed), "a new migration comes after all that are released"
    changed = [
        name
        for name, digest in listed.items()
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
    ]
    assert changed == [], "a released migration is never edited: write a new one"


def test_every_migration_says_what_it_depends_on() -> None:
    paths = sorted(installer.source("migrations").glob("*.sql"))
    for before, path in itertools.pairwise(paths):
        comments = itertools.takewhile(
            lambda line: not line or line.startswith("--"), path.read_text(encoding="utf-8").splitlines()
        )
        assert f"-- depends: {before.stem}" in list(comments), path.name


def test_the_service_calls_functions_and_touches_no_table(database: Any) -> None:
    with connected(database.owner_url) as owner:
        tables = [row[0] for row in owner.execute(TABLES)]
    assert "messenger_conversations" in tables
    with connected(database.service_url) as service:
        assert service.execute("select count(*) from convsync_api.list_pages()").fetchone() == (0,)
        for name in tables:
            table = sql.Identifier("convsync", name)
            for query in ("select from {}", "delete from {}", "insert into {} default values", "truncate {}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    service.execute(sql.SQL(query).format(table))  # type: ignore[arg-type]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute("select convsync_api._now()")
