"""What the documents point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from convsync.cli import main
from faults.test_control import FLAWS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def names(document: Path) -> set[tuple[str, str]]:
    """Each `tests/file.py::test_name`; a bare `::test_name` belongs to the file named before it."""
    found, file = set(), ""
    text = document.read_text(encoding="utf-8")
    for part in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?(?:\[[^]`]*\])?`", text):
        file = part[0] or file
        if part[1]:
            found.add((file, part[1]))
    return found


def test_the_flaws_are_proved_by_tests_that_exist() -> None:
    cited = names(ROOT / "docs" / "flaws.md")
    assert len(cited) > 30
    missing = [
        f"{file}::{name}"
        for file, name in sorted(cited)
        if not (ROOT / file).is_file() or f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_each_flaw_is_played_to_the_old_algorithm_or_named_as_one_that_cannot_be() -> None:
    played = {
        int(number)
        for scenario in FLAWS
        for number in re.match(r"\d+(, \d+)*", scenario.id)[0].split(", ")  # type: ignore[index]
    }
    head, *_ = (ROOT / "docs" / "flaws.md").read_text(encoding="utf-8").partition("\n| flaw |")
    besides = {int(number) for number in re.findall(r"(\d+) \(", head)}
    assert played & besides == set()
    assert played | besides == set(range(1, 24))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if not (document.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", ["simulator.md", "simulator-scenarios.md"])
def test_options_that_the_simulators_manual_names_are_taken_by_its_command(document: str) -> None:
    taken = {
        option
        for name in ("simulate", "demo")
        for parameter in main.commands[name].params
        for option in parameter.opts
    }
    named = set(
        re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / "docs" / document).read_text(encoding="utf-8"))
    )
    assert len(named) > 3
    assert named - taken == set()
