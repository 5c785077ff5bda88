"""The alert rules and the dashboard: they name what is served and say what to do, and promtool tries them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import promtool
from convsync.observe.alerts import CAUSES, PROBLEMS

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "alerts.yml"
TESTS = ROOT / "deploy" / "alerts.test.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "convsync.json"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
METRICS = ROOT / "docs" / "metrics.md"

METRIC = re.compile(r"\b(?:convsync_\w+|up)\b(?=[\[{ )]|$)")
ALERT = re.compile(r"ALERTS\{(.*)\}")
# Whose series is there only while something is wrong.
ABSENT_WHILE_WELL = {"convsync_page_problem"}


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def scenarios() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(TESTS.read_text(encoding="utf-8"))["tests"]
    return found


def plain(name: str) -> str:
    """A histogram's name, of one of its series."""
    return name if name in served() else re.sub(r"_(bucket|sum|count)$", "", name)


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression reads, by the names that /metrics gives them."""
    return {plain(name) for name in METRIC.findall(re.sub(r'"[^"]*"', '""', expression))}


def served() -> dict[str, str]:
    """Metric and type, from the document that a test of /metrics holds to be exact."""
    return dict(re.findall(r"^\| `(convsync_\w+)` \| (\w+) \|", METRICS.read_text("utf-8"), re.MULTILINE))


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def expressions_of_the_dashboard() -> Iterator[tuple[str, str]]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def fired_in(scenario: dict[str, Any]) -> set[str]:
    """The alerts that a scenario expects to fire."""
    return {
        name
        for test in scenario.get("promql_expr_test", [])
        if test["expr"] == 'ALERTS{alertstate="firing"}'
        for sample in test["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }


def test_alerts_and_dashboard_read_metrics_that_are_served() -> None:
    known = set(served()) | {"up"}
    assert len(known) > 50
    for rule in rules():
        assert metrics_of(rule["expr"]), rule["alert"]
        assert metrics_of(rule["expr"]) <= known, rule["alert"]
    for title, expression in expressions_of_the_dashboard():
        assert metrics_of(expression), title
        assert metrics_of(expression) <= known, title


def test_counters_and_histograms_are_read_by_their_rate_and_gauges_are_not() -> None:
    kinds = served()
    every = [(rule["alert"], rule["expr"]) for rule in rules()] + list(expressions_of_the_dashboard())
    for where, expression in every:
        rising = {plain(name) for name in re.findall(r"(?:rate|increase)\((\w+)", expression)}
        for name in metrics_of(expression) - {"up"}:
            assert (name in rising) == (kinds[name] != "gauge"), (where, name)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_says_how_grave_it_is_what_has_happened_and_what_to_do(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Convsync[A-Z]\w+", rule["alert"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert "for" in rule
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    document, _, section = rule["annotations"]["runbook_url"].partition("#")
    assert ROOT / document == RUNBOOKS
    parts = re.split(r"^## (.+)$", RUNBOOKS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    sections = {anchor(heading): text for heading, text in zip(parts[1::2], parts[2::2], strict=True)}
    assert section == anchor(rule["alert"])
    assert "**What:**" in sections[section]
    assert "**Do:**" in sections[section]


def test_no_runbook_is_of_an_alert_that_is_gone() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in rules())


def test_what_the_alert_webhook_tells_is_a_rule_too_and_is_described() -> None:
    text = METRICS.read_text(encoding="utf-8")
    named = {rule["alert"] for rule in rules()}
    for name in [*PROBLEMS, *(cause.name for cause in CAUSES)]:
        row = re.search(rf"^\| `{name}`.*?`(Convsync\w+)`.*$", text, re.MULTILINE)
        assert row is not None, name
        assert row[1] in named, name


def test_each_alert_fires_in_a_scenario_and_is_silent_in_the_healthy_hour_with_all_it_reads() -> None:
    healthy, *others = scenarios()
    assert fired_in(healthy) == set()
    whole = {
        "expr": 'count_over_time(ALERTS{alertstate="firing"}[60m])',
        "eval_time": "60m",
        "exp_samples": [],
    }
    assert whole in healthy["promql_expr_test"]
    fired = set().union(*(fired_in(scenario) for scenario in others))
    assert fired == {rule["alert"] for rule in rules()}
    present = set().union(*(metrics_of(one["series"]) for one in healthy["input_series"]))
    for rule in rules():
        assert metrics_of(rule["expr"]) <= present | ABSENT_WHILE_WELL, rule["alert"]


def test_the_dashboard_can_be_imported() -> None:
    document = dashboard()
    assert (document["title"], document["uid"]) == ("convsync", "convsync")
    identities = [panel["id"] for panel in document["panels"]]
    assert len(set(identities)) == len(identities) > 25
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert taken.isdisjoint(cells), panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            # Whichever Prometheus whoever imports it has.
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_the_rules_are_sound() -> None:
    code, said = promtool.run("check", "rules", RULES)
    assert code == 0, said
    assert f"{len(rules())} rules found" in said


def test_each_alert_fires_on_its_scenario_and_a_healthy_hour_is_silent() -> None:
    code, said = promtool.run("test", "rules", TESTS)
    assert code == 0, said
    assert "SUCCESS" in said


def test_rules_that_are_wrong_are_found_out(tmp_path: Path) -> None:
    """With limits that nothing reaches each scenario misses its alert."""
    document = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for rule in document["groups"][0]["rules"]:
        changed = re.sub(r"(?:> [\d.]+|== 0)(?=$|,)", "> 1e9", rule["expr"])
        assert changed != rule["expr"], rule["alert"]
        rule["expr"] = changed
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
    shutil.copy(TESTS, tmp_path)
    code, said = promtool.run("test", "rules", tmp_path / TESTS.name)
    assert code != 0
    assert set(re.findall(r'alertname="(\w+)"', said)) == {rule["alert"] for rule in rules()}


def test_the_expressions_of_the_dashboard_are_sound(tmp_path: Path) -> None:
    recorded = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, (_, expression) in enumerate(expressions_of_the_dashboard())
    ]
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}), encoding="utf-8")
    code, said = promtool.run("check", "rules", path)
    assert code == 0, said
    assert f"{len(recorded)} rules found" in said
