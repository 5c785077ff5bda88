"""Runs every ``tests/sql/*.sql`` as one test in its own database, on pgTAP or on the layer in ``tap/``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "tap"))

from runner import install_tap, run_tap  # noqa: E402 - tests/ is not a package

FILES = sorted(HERE.glob("*.sql"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sql(path: Path, database: Any) -> None:
    with psycopg.connect(database.owner_url, autocommit=True) as connection:
        install_tap(connection)
        verdict = run_tap(connection, path.read_text(encoding="utf-8"))
    if not verdict.passed:
        pytest.fail(f"{path.name}\n{verdict}", pytrace=False)
