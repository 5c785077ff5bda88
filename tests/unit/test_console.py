"""What a terminal shows: a progress bar that fits a narrow one, and what keeps a Page from its rate."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from convsync import console

RUN = {
    "status": "succeeded",
    "mode": "full",
    "conversations_seen": 100_000,
    "messages_added": 20_000_000,
    "calls": 1_000_000,
}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 80 columns instead of stderr."""
    shown = io.StringIO()
    monkeypatch.setattr(
        console, "stderr", Console(file=shown, width=80, force_terminal=True, color_system=None)
    )
    return shown


async def read() -> dict[str, Any]:
    return RUN


async def test_the_progress_line_is_whole_in_80_columns(terminal: io.StringIO) -> None:
    async with console.progress(quiet=False) as bar:
        assert await bar.follow(read, expected=100_000) == RUN
    shown = terminal.getvalue()
    assert "100000/100000 conversations, 20,000,000 messages 0:00:0" in shown
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown


PAGE_ID = "100000000000001"


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_table_cuts_nothing_off_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, width: int, is_terminal: bool
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        console,
        "stdout",
        Console(file=shown, width=width, force_terminal=is_terminal, color_system=None),
    )
    row = (PAGE_ID, "متجر [/b] \x1b[2J", "incremental succeeded", "2026-11-30T07:21:58.709497+00:00")
    table = console.Table("Page", "Name", "Last sync", "Last webhook")
    for _ in range(2):
        table.add_row(*row)
    table.show()
    lines = shown.getvalue().splitlines()
    for cell in (PAGE_ID, "متجر [/b] \\x1b[2J", *row[2:]):
        assert sum(cell in line for line in lines) == 2
    in_a_line = [line for line in lines if all(cell in line for cell in (PAGE_ID, *row[2:]))]
    assert len(in_a_line) == (0 if is_terminal and width == 80 else 2)
    if is_terminal:
        assert all(len(line.rstrip()) <= width for line in lines)


def test_where_there_are_no_pages_the_command_is_said_that_adds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "stdout", Console(file=shown, width=80))
    console.show_pages([])
    assert "convsync page add PAGE_ID --token-stdin" in shown.getvalue()


async def test_quiet_shows_nothing(terminal: io.StringIO) -> None:
    async with console.progress(quiet=True) as bar:
        await bar.follow(read)
    assert terminal.getvalue() == ""


BUDGET: dict[str, Any] = {
    "calls": 12,
    "calls_per_second": 2,
    "pace": 1,
    "pace_reason": None,
    "usage_percent": 84,
    "app_usage_percent": 91.5,
    "response_ms": 4000.1,
    "blocked_until": None,
    "block_scope": None,
    "block_reason": None,
}
BLOCK = {"blocked_until": "2026-03-01T12:01:00+00:00", "block_reason": "(#4)\x1b[2J"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        (
            {"pace": 0.68, "pace_reason": "usage"},
            "Page 1: called at 68% of its rate: 84 % of its allowance is used",
        ),
        (
            {"pace": 0.41, "pace_reason": "app_usage", "calls_per_second": None},
            "Page 1: called at 41% of its rate: 91.5 % of the app's allowance is used",
        ),
        (
            {"pace": 0.5, "pace_reason": "slow_answers"},
            "Page 1: called at 50% of its rate: answers take 4000 ms",
        ),
        (
            {"block_scope": "app", "pace": 0.5, "pace_reason": "usage", **BLOCK},
            "Page 1: no calls until 2026-03-01 12:01:00+00, Meta told the app to wait: (#4)\\x1b[2J",
        ),
        (
            {"block_scope": "page", **BLOCK, "block_reason": None},
            "Page 1: no calls until 2026-03-01 12:01:00+00, Meta told the Page to wait",
        ),
    ],
)
def test_what_keeps_a_page_from_its_rate_is_said(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "stdout", Console(file=shown, width=200))
    console.show_budget({"page_id": "1", "budget": {**BUDGET, **changes}})
    assert shown.getvalue().strip() == told
