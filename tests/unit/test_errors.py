"""The one table: SQLSTATE, exception, HTTP status; by real errors of PostgreSQL, and by psycopg's own."""

from __future__ import annotations

from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import sql

from convsync import errors

TABLE = [
    ("ZC001", errors.NotFound, 404, "not_found"),
    ("ZC002", errors.VersionConflict, 412, "version_conflict"),
    ("ZC003", errors.InvalidArgument, 422, "invalid_argument"),
    ("ZC004", errors.LeaseLost, 409, "lease_lost"),
    ("ZC005", errors.AlreadyRunning, 409, "sync_running"),
    ("ZC006", errors.Erased, 410, "gone"),
    ("40001", errors.TryAgain, 503, "try_again"),
    ("40P01", errors.TryAgain, 503, "try_again"),
    ("55P03", errors.TryAgain, 503, "try_again"),
    ("57014", errors.TryAgain, 503, "try_again"),
    ("08006", errors.DatabaseUnavailable, 503, "database_unavailable"),
    ("53300", errors.DatabaseUnavailable, 503, "database_unavailable"),
    ("57P01", errors.DatabaseUnavailable, 503, "database_unavailable"),
    ("57P03", errors.DatabaseUnavailable, 503, "database_unavailable"),
    ("22003", errors.BadData, 422, "bad_data"),
    ("23505", errors.BadData, 422, "bad_data"),
    ("23503", errors.BadData, 422, "bad_data"),
    ("42P01", errors.DatabaseError, 500, "database_error"),
    ("42501", errors.DatabaseError, 500, "database_error"),
    ("XX000", errors.DatabaseError, 500, "database_error"),
    ("54000", errors.DatabaseError, 500, "database_error"),
    ("ZC999", errors.DatabaseError, 500, "database_error"),
]


@pytest.fixture(scope="module")
def connection(server: Any) -> Any:
    return server.connection


def raised(connection: Any, sqlstate: str, detail: str = "", hint: str = "") -> psycopg.Error:
    """The error psycopg makes of what PostgreSQL raises."""
    statement = sql.SQL(
        "do $x$ begin raise exception 'told to people' using errcode = {}, detail = {}, hint = {}; end $x$"
    ).format(sql.Literal(sqlstate), sql.Literal(detail), sql.Literal(hint))
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(statement)
    return caught.value


@pytest.mark.parametrize(("sqlstate", "kind", "status", "code"), TABLE)
def test_each_sqlstate_is_one_exception_one_status_and_one_code(
    connection: Any, sqlstate: str, kind: type[errors.ConvsyncError], status: int, code: str
) -> None:
    error = errors.from_database(raised(connection, sqlstate))
    assert type(error) is kind
    assert (error.status, error.code, error.sqlstate) == (status, code, sqlstate)
    assert error.message == "told to people"
    assert error.title
    assert errors.is_poison(error) == (status == 422)
    assert errors.is_transient(error) == (status == 503)


def test_the_detail_of_a_private_state_is_read_and_that_of_others_is_not(connection: Any) -> None:
    conflict = errors.from_database(raised(connection, "ZC002", '{"expected": 3, "actual": 5}'))
    assert isinstance(conflict, errors.VersionConflict)
    assert conflict.detail == {"expected": 3, "actual": 5}
    assert conflict.actual == 5
    running = errors.from_database(raised(connection, "ZC005", '{"run_id": "7"}'))
    assert isinstance(running, errors.AlreadyRunning)
    assert running.run_id == 7
    assert errors.from_database(raised(connection, "ZC003", hint="facts[2].at")).detail == {
        "field": "facts[2].at"
    }
    assert errors.from_database(raised(connection, "ZC001", "not JSON")).detail == {}
    assert errors.from_database(raised(connection, "ZC001", "[1]")).detail == {}
    secret = errors.from_database(raised(connection, "23505", '{"row": "a customer\'s text"}'))
    assert secret.detail == {}


def test_a_broken_constraint_is_named_and_the_row_is_not(connection: Any) -> None:
    connection.execute("create temporary table narrow (t text constraint short_enough check (length(t) < 5))")
    with pytest.raises(psycopg.Error) as caught:
        connection.execute("insert into narrow values ('a secret text')")
    error = errors.from_database(caught.value)
    assert type(error) is errors.BadData
    assert error.detail == {"constraint": "short_enough"}
    assert "secret" not in error.message
    connection.execute("drop table narrow")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (psycopg_pool.PoolTimeout("no connection after 4 s"), errors.DatabaseUnavailable),
        (psycopg_pool.PoolClosed("closed"), errors.DatabaseUnavailable),
        (psycopg.OperationalError("password=secret refused"), errors.DatabaseUnavailable),
        (psycopg.InterfaceError("closed"), errors.DatabaseUnavailable),
        (psycopg.ProgrammingError("a placeholder too many"), errors.DatabaseError),
    ],
)
def test_without_a_sqlstate_the_class_decides_and_the_text_is_not_passed_on(
    error: Any, kind: type[errors.ConvsyncError]
) -> None:
    found = errors.from_database(error)
    assert type(found) is kind
    assert found.sqlstate is None
    assert found.message == kind.title


def test_a_value_psycopg_itself_refuses_is_bad_data(connection: Any) -> None:
    with pytest.raises(psycopg.DataError) as caught:
        connection.execute("select %s::text", ["a\x00b"])
    assert caught.value.sqlstate is None
    error = errors.from_database(caught.value)
    assert type(error) is errors.BadData
    assert errors.is_poison(error)


def test_what_is_not_ours_is_neither_poison_nor_transient() -> None:
    for error in (ValueError("x"), TimeoutError(), errors.NotFound("x"), errors.DatabaseError("x")):
        assert not errors.is_poison(error)
        assert not errors.is_transient(error)


LIBPQ = 'connection failed: connection to server at "db.example", port 5432 failed: '


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Connection refused\n\tIs the server running on that host?", "nobody listens at that address"),
        ("timeout expired", "it does not answer in time"),
        ("No route to host", "no way leads to that address"),
        (
            'FATAL:  password authentication failed for user "secret_login"\n'
            'connection to server at "db.example", port 5432 failed: FATAL:  no pg_hba.conf entry for "x"',
            "it refuses the login or its password",
        ),
        ("fe_sendauth: no password supplied", "it asks for a password, and none is given"),
        ('FATAL:  role "secret_login" does not exist', "there is no such login"),
        ('FATAL:  database "secret_db" does not exist', "there is no such database on that server"),
        (
            'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "secret_login", no encryption',
            "it lets nobody in that way: pg_hba.conf forbids it, or wants TLS (sslmode)",
        ),
        ("SSL error: certificate verify failed", "its certificate was not issued by the one in sslrootcert"),
        (
            'root certificate file "/secret/none.pem" does not exist\nEither provide the file, use ..',
            "the file of sslrootcert is not there",
        ),
        (
            'server certificate for "db.example" does not match host name "10.0.0.1"',
            "its certificate is for another host name",
        ),
        ("server does not support SSL, but SSL was required", "it speaks no TLS, which sslmode wants"),
        ("FATAL:  sorry, too many clients already", "all of its connections are taken"),
        ("FATAL:  the database system is starting up", "it is starting or stopping"),
    ],
)
def test_why_a_database_cannot_be_reached_is_told_without_naming_host_login_or_file(
    said: str, told: str
) -> None:
    assert errors.why_unreachable(psycopg.OperationalError(LIBPQ + said)) == told


def test_what_nobody_knows_is_not_explained() -> None:
    assert errors.why_unreachable(psycopg.OperationalError(f"{LIBPQ}something of secret_login")) is None
    assert errors.why_unreachable(psycopg.ProgrammingError("timeout expired")) is None


def test_real_ones_are_recognised() -> None:
    for url, told in (
        ("postgresql://u:p@127.0.0.1:1/x", "nobody listens at that address"),
        ("postgresql://u:p@no.such.host.invalid/x", "the name of its host is not known here"),
        ("postgresql://u:p@/x?host=/no/such/directory", "there is no socket in that directory"),
    ):
        with pytest.raises(psycopg.OperationalError) as failed:
            psycopg.connect(url)
        assert errors.why_unreachable(failed.value) == told
