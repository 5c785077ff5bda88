"""The SQL suite can fail: files with a planted fault are run, and each must be convicted."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

TAP = Path(__file__).parents[1] / "sql" / "tap"
sys.path.insert(0, str(TAP))

from runner import TAP_LAYER, Verdict, install_tap, run_tap  # noqa: E402 - tests/ is not a package

FINISH = "select * from finish(); rollback;"


@pytest.fixture
def layer(raw_database: Any) -> Iterator[psycopg.Connection[Any]]:
    """A connection with the layer, on servers that have the real pgTAP too."""
    with psycopg.connect(raw_database.owner_url, autocommit=True) as connection:
        connection.execute(TAP_LAYER.read_bytes())
        yield connection


def said(verdict: Verdict) -> dict[str, bool]:
    """Description -> passed, of every test that ran."""
    tests = [re.match(r"(not )?ok \d+ - (.*)", line) for line in verdict.lines]
    return {test[2]: not test[1] for test in tests if test}


def test_a_good_file_passes(layer: psycopg.Connection[Any]) -> None:
    verdict = run_tap(layer, f"begin; select plan(2); select pass('a'); select is(1, 1, 'b'); {FINISH}")
    assert verdict.passed, verdict
    assert (verdict.planned, verdict.ran) == (2, 2)


def test_no_plan_counts_what_ran(layer: psycopg.Connection[Any]) -> None:
    verdict = run_tap(layer, f"begin; select no_plan(); select pass('a'); {FINISH}")
    assert verdict.passed, verdict
    assert verdict.planned == 1


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        (f"begin; select plan(3); select pass('a'); {FINISH}", "planned 3 tests, ran 1"),
        (f"begin; select plan(1); select pass('a'); select pass('b'); {FINISH}", "planned 1 tests, ran 2"),
        (f"begin; select pass('a'); {FINISH}", "without a plan"),
        (f"begin; select plan(1); select plan(1); select pass('a'); {FINISH}", "plan twice"),
        (f"begin; select no_plan(); {FINISH}", "no test ran"),
        ("begin; select 1; rollback;", "no plan"),
        ("", "no plan"),
        (f"begin; select plan(1); select is(1, 2, 'one is two'); {FINISH}", "not ok 1 - one is two"),
        (
            f"begin; select plan(1); select throws_ok('select 1/0', '22013', null, 'wrong code'); {FINISH}",
            "not ok 1 - wrong code",
        ),
        (
            f"begin; select plan(1); select throws_ok('select 1', '22012', null, 'nothing'); {FINISH}",
            "not ok 1 - nothing",
        ),
        (f"begin; select plan(1); select pass('a'); select 1/0; {FINISH}", "division by zero"),
        (f"begin; select plan(1); select pas('a'); {FINISH}", "pas(unknown) does not exist"),
        ("begin; select plan(1); select pass('a'); select * from finish();", "does not end in `rollback;`"),
        (
            "begin; select plan(1); select pass('a'); select * from finish(); commit;",
            "does not end in `rollback;`",
        ),
        (f"\\set x 1\nbegin; select plan(1); select pass('a'); {FINISH}", "no psql commands"),
    ],
    ids=lambda value: value if len(value) < 40 and ";" not in value else "",
)
def test_a_planted_fault_is_convicted(layer: psycopg.Connection[Any], sql: str, problem: str) -> None:
    verdict = run_tap(layer, sql)
    assert not verdict.passed
    assert any(problem in found for found in verdict.problems), verdict


def test_the_lines_before_an_error_are_reported(layer: psycopg.Connection[Any]) -> None:
    verdict = run_tap(layer, f"begin; select plan(2); select pass('came first'); select 1/0; {FINISH}")
    assert "ok 1 - came first" in verdict.lines


def test_nothing_of_a_file_remains_for_the_next(layer: psycopg.Connection[Any]) -> None:
    good = f"begin; select plan(1); select pass('a'); {FINISH}"
    assert not run_tap(layer, f"begin; select plan(1); select 1/0; {FINISH}").passed
    assert not run_tap(layer, "begin; select plan(1);").passed
    assert run_tap(layer, good).passed
    assert run_tap(layer, good).passed


def test_assertions_work_as_another_role(layer: psycopg.Connection[Any]) -> None:
    verdict = run_tap(
        layer,
        "begin; create role tap_layer_test nologin; select plan(2); select pass('owner');"
        f" set local role tap_layer_test; select pass('other'); {FINISH}",
    )
    assert verdict.passed, verdict


def test_every_assertion_of_the_layer_holds_and_fails_as_described(layer: psycopg.Connection[Any]) -> None:
    verdict = run_tap(layer, (TAP / "verdicts.sql").read_text(encoding="utf-8"))
    assert verdict.ran == verdict.planned == 65, verdict
    assert {
        name: passed for name, passed in said(verdict).items() if passed == name.startswith("fails: ")
    } == {}


def test_the_real_pgtap_agrees_with_the_layer(raw_database: Any) -> None:
    with psycopg.connect(raw_database.owner_url, autocommit=True) as connection:
        if install_tap(connection) != "pgtap":
            pytest.skip("this server has no pgTAP; the CI's Debian PostgreSQL has")
        verdict = run_tap(connection, (TAP / "verdicts.sql").read_text(encoding="utf-8"))
    assert verdict.ran == verdict.planned == 65, verdict
    assert {
        name: passed for name, passed in said(verdict).items() if passed == name.startswith("fails: ")
    } == {}
