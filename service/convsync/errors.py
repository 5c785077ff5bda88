"""One table: SQLSTATE <-> exception <-> HTTP status.

PostgreSQL speaks in SQLSTATEs, the service in exceptions, callers in problem documents; this module
is the only place that knows all three. A private SQLSTATE (`ZC...`) arrives from psycopg as a plain
`DatabaseError`, so the mapping goes by `.sqlstate`, never by psycopg's class.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

import orjson
import psycopg
import psycopg_pool

Json = dict[str, Any]


class ConvsyncError(Exception):
    """Something the caller is told about. `message` and `detail` never hold a secret."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, message: str, *, detail: Json | None = None, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail: Json = detail or {}
        self.sqlstate = sqlstate


class NotFound(ConvsyncError):
    """ZC001: there is no such Page, conversation or run."""

    code, status, title = "not_found", 404, "Not found"


class VersionConflict(ConvsyncError):
    """ZC002: the conversation has changed since the caller read it. `detail`: expected, actual."""

    code, status, title = "version_conflict", 412, "Version conflict"

    @property
    def actual(self) -> int:
        return int(self.detail["actual"])


class InvalidArgument(ConvsyncError):
    """ZC003: the input is wrong; the message names the field."""

    code, status, title = "invalid_argument", 422, "Invalid argument"


class LeaseLost(ConvsyncError):
    """ZC004: another process carries this run now (or it has ended); nothing was changed."""

    code, status, title = "lease_lost", 409, "Lease lost"


class AlreadyRunning(ConvsyncError):
    """ZC005: a sync of this kind runs on this Page. `detail`: run_id."""

    code, status, title = "sync_running", 409, "A sync is already running"

    @property
    def run_id(self) -> int:
        return int(self.detail["run_id"])


class Erased(ConvsyncError):
    """ZC006: the person was erased, or what was asked for is gone.

    For a position of the change feed `detail` has the `position` to go on from, once the mirror was read.
    """

    code, status, title = "gone", 410, "Gone"


class TryAgain(ConvsyncError):
    """A serialization failure, deadlock, lock timeout or cancelled statement: the same call may pass now."""

    code, status, title = "try_again", 503, "Try again"


class DatabaseUnavailable(ConvsyncError):
    """PostgreSQL cannot be reached, is starting, stopping or out of resources."""

    code, status, title = "database_unavailable", 503, "Database unavailable"


class BadData(ConvsyncError):
    """SQLSTATE classes 22 and 23: PostgreSQL refused the values. The same call never passes."""

    code, status, title = "bad_data", 422, "Refused by the database"


class DatabaseError(ConvsyncError):
    """Any other error of PostgreSQL: a defect of ours."""

    code, status, title = "database_error", 500, "Database error"


_BY_STATE: dict[str, type[ConvsyncError]] = {
    "ZC001": NotFound,
    "ZC002": VersionConflict,
    "ZC003": InvalidArgument,
    "ZC004": LeaseLost,
    "ZC005": AlreadyRunning,
    "ZC006": Erased,
    "40001": TryAgain,
    "40P01": TryAgain,
    "55P03": TryAgain,
    "57014": TryAgain,
}
_BY_CLASS: dict[str, type[ConvsyncError]] = {
    "08": DatabaseUnavailable,
    "22": BadData,
    "23": BadData,
    "53": DatabaseUnavailable,
    "57": DatabaseUnavailable,
}


def from_database(error: psycopg.Error | psycopg_pool.PoolTimeout | psycopg_pool.PoolClosed) -> ConvsyncError:
    """The exception the service raises for what psycopg or its pool raised."""
    state = getattr(error, "sqlstate", None)
    if state is None:
        # No SQLSTATE: the connection broke, could not be made, or none was free in time; or psycopg itself
        # refused a value (text with U+0000).
        kind: type[ConvsyncError] = DatabaseError
        if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
            kind = DatabaseUnavailable
        elif isinstance(error, psycopg.DataError):
            kind = BadData
        return kind(kind.title)
    kind = _BY_STATE.get(state) or _BY_CLASS.get(state[:2], DatabaseError)
    diag = error.diag if isinstance(error, psycopg.Error) else None
    message = (diag.message_primary if diag else None) or kind.title
    detail: Json = {}
    if diag and diag.message_detail and state.startswith("ZC"):
        try:
            parsed = orjson.loads(diag.message_detail)
        except orjson.JSONDecodeError:
            parsed = None
        if isinstance(parsed, dict):
            detail = parsed
    if diag and diag.message_hint and state == "ZC003":
        detail["field"] = diag.message_hint
    if kind is BadData and diag and diag.constraint_name:
        detail["constraint"] = diag.constraint_name
    return kind(message, detail=detail, sqlstate=state)


# What libpq says where no connection comes about, as a person is told of it: without host, login and file.
_WHY: Final = tuple(
    (re.compile(said), told)
    for said, told in (
        ("certificate verify failed", "its certificate was not issued by the one in sslrootcert"),
        ("root certificate file .* does not exist", "the file of sslrootcert is not there"),
        ("does not match host name", "its certificate is for another host name"),
        ("server does not support SSL", "it speaks no TLS, which sslmode wants"),
        ("password authentication failed", "it refuses the login or its password"),
        ("no password supplied", "it asks for a password, and none is given"),
        ('role ".*" does not exist', "there is no such login"),
        ('database ".*" does not exist', "there is no such database on that server"),
        (
            "no pg_hba.conf entry",
            "it lets nobody in that way: pg_hba.conf forbids it, or wants TLS (sslmode)",
        ),
        ("too many clients|too many connections|connection slots", "all of its connections are taken"),
        ("the database system is ", "it is starting or stopping"),
        ("failed to resolve host|could not translate host name", "the name of its host is not known here"),
        ("Connection refused", "nobody listens at that address"),
        ("No such file or directory", "there is no socket in that directory"),
        ("timeout expired|timed out", "it does not answer in time"),
        ("No route to host|Network is unreachable", "no way leads to that address"),
    )
)


def why_unreachable(error: psycopg.Error) -> str | None:
    """Why no connection came about, for the person who has set the address; None if that is not known."""
    if not isinstance(error, psycopg.OperationalError) or error.sqlstate is not None:
        return None
    said = str(error)
    return next((told for pattern, told in _WHY if pattern.search(said)), None)


def is_poison(error: BaseException) -> bool:
    """Whether the same facts would be refused for ever (SQLSTATE classes 22 and 23, and ZC003)."""
    return isinstance(error, (BadData, InvalidArgument))


def is_transient(error: BaseException) -> bool:
    """Whether the same call may pass a moment later."""
    return isinstance(error, (TryAgain, DatabaseUnavailable))
