"""Connections for the tests of the SQL functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sessions import Connect, Connection


@pytest.fixture
def connect(database: Any) -> Iterator[Connect]:
    """Makes connections of the service's own role."""
    with ExitStack() as stack:

        def make(name: str = "test") -> Connection:
            return stack.enter_context(
                psycopg.connect(
                    database.service_url, autocommit=True, row_factory=dict_row, application_name=name
                )
            )

        yield make


@pytest.fixture
def service(connect: Connect) -> Connection:
    return connect()


@pytest.fixture
def owner(database: Any) -> Iterator[Connection]:
    with psycopg.connect(database.owner_url, autocommit=True, row_factory=dict_row) as connection:
        yield connection
