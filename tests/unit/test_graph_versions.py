"""How long the pinned version of the Graph API lives, and when somebody is told."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from structlog.testing import capture_logs

from convsync.graph.versions import EXPIRES, WARN_DAYS, lifetime, warn_of_version
from convsync.settings import Settings

ENDS = date(2027, 1, 21)  # of v21.0


@pytest.mark.parametrize(
    ("today", "state"),
    [
        (ENDS - timedelta(days=WARN_DAYS + 1), "current"),
        (ENDS - timedelta(days=WARN_DAYS), "ending"),
        (ENDS - timedelta(days=1), "ending"),
        (ENDS, "expired"),
        (ENDS + timedelta(days=400), "expired"),
    ],
)
def test_the_end_of_a_version_is_told_90_days_ahead(today: date, state: str) -> None:
    found = lifetime("v21.0", today)
    assert (found.state, found.expires) == (state, ENDS)
    if state == "current":
        assert found.told is None
    else:
        assert found.told is not None
        assert "2027-01-21" in found.told
        assert "CONVSYNC_GRAPH_VERSION" in found.told


def test_the_days_that_are_left_are_told() -> None:
    assert "in 57 days" in str(lifetime("v21.0", date(2026, 11, 25)).told)
    assert "in 1 day." in str(lifetime("v21.0", ENDS - timedelta(days=1)).told)


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("v26.0", "current"),
        ("v27.0", "unknown"),
        ("v17.0", "expired"),
        ("v2.12", "expired"),
        ("v25.3", "unknown"),
    ],
)
def test_versions_before_and_beyond_the_table_have_a_state_too(version: str, state: str) -> None:
    found = lifetime(version, date(2026, 11, 25))
    assert (found.version, found.state, found.expires) == (version, state, None)
    assert (found.told is None) == (state == "current")


def test_the_version_that_is_pinned_is_in_the_table_and_alive() -> None:
    pinned = Settings.model_fields["graph_version"].default
    assert pinned in EXPIRES
    assert lifetime(pinned, date(2026, 11, 25)).state == "current"


def test_newer_versions_never_end_before_older_ones() -> None:
    days = [expires for expires in EXPIRES.values() if expires is not None]
    assert days == sorted(days, reverse=True)
    assert list(EXPIRES.values()).count(None) == 1


def test_the_log_is_told_once_a_look_and_only_when_there_is_something_to_do() -> None:
    with capture_logs() as logs:
        warn_of_version("v21.0", ENDS - timedelta(days=30))
        warn_of_version("v21.0", ENDS - timedelta(days=300))
        warn_of_version("v26.0", ENDS)
    assert [(entry["event"], entry["log_level"], entry["state"]) for entry in logs] == [
        ("graph_version", "warning", "ending")
    ]
