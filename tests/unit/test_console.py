"""The progress bar: it fits a narrow terminal, and ends with what it shows."""

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


async def test_quiet_shows_nothing(terminal: io.StringIO) -> None:
    async with console.progress(quiet=True) as bar:
        await bar.follow(read)
    assert terminal.getvalue() == ""
