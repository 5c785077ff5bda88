"""What a terminal shows of an examination."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from convsync.console import escape_controls, stdout
from convsync.doctor.check import Check
from convsync.facts import Json

_SIGNS = {"ok": "ok      ", "problem": "PROBLEM ", "skipped": "skipped "}


def as_json(checks: Sequence[Check]) -> Json:
    return {"healthy": healthy(checks), "checks": [one.as_json() for one in checks]}


def healthy(checks: Sequence[Check]) -> bool:
    """Whether nothing was found. What could not be looked at is no finding: its cause is one."""
    return all(one.state != "problem" for one in checks)


def show(checks: Sequence[Check]) -> None:
    for one in checks:
        name = one.check if one.page_id is None else f"{one.check} of Page {one.page_id}"
        lines = [f"{_SIGNS[one.state]}{name}: {one.what}"]
        if one.state == "problem":
            lines += [f"          why it matters: {one.why}", f"          to mend it: {one.mend}"]
        stdout.print(Text(escape_controls("\n".join(lines))), soft_wrap=True)
    found = sum(one.state == "problem" for one in checks)
    told = "nothing is wrong" if not found else f"{found} problem{'s' if found > 1 else ''}"
    stdout.print(f"\n{told}", highlight=False)
