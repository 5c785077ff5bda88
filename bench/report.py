"""The lines of the bench: medians, spreads, verdicts, and the table of docs/bench.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

LEAST_REPETITIONS = 5
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


@dataclass(slots=True)
class Line:
    """One measurement against one baseline; `values[i]` and `baseline_values[i]` were measured side by side.

    `goal` and `aim` are about the ratio, `goal_value` about the value itself, `also` is whatever else has to
    hold; a line without any goal is there for comparison only. `detail` is what else was seen.
    """

    name: str
    unit: str
    baseline: str
    values: Sequence[float]
    baseline_values: Sequence[float]
    goal: float | None = None
    aim: float | None = None
    goal_value: float | None = None
    better: Literal["higher", "lower"] = "higher"
    also: bool = True
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        return [
            value / base if base else 0.0
            for value, base in zip(self.values, self.baseline_values, strict=True)
        ]

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def met(self) -> bool | None:
        wanted = [
            _reaches(reached, goal, self.better)
            for reached, goal in ((self.ratio, self.goal), (self.value, self.goal_value))
            if goal is not None
        ]
        return all((*wanted, self.also)) if wanted else None

    def as_json(self) -> dict[str, Any]:
        if len(self.values) < LEAST_REPETITIONS:
            raise ValueError(f"{self.name}: {len(self.values)} repetitions are no measurement")
        return {
            "name": self.name,
            "value": _rounded(self.value),
            "unit": self.unit,
            "baseline": self.baseline,
            "baseline_value": _rounded(median(self.baseline_values)),
            "ratio": _rounded(self.ratio),
            "goal": self.goal,
            "met": self.met,
            "better": self.better,
            "aim": self.aim,
            "goal_value": self.goal_value,
            "repetitions": len(self.values),
            "spread": {
                "value": spread(self.values),
                "baseline_value": spread(self.baseline_values),
                "ratio": spread(self.ratios),
            },
            "detail": dict(self.detail),
        }

    def told(self) -> str:
        """The line as a person reads it while the bench runs."""
        low, high = min(self.ratios), max(self.ratios)
        verdict = {True: "met", False: "NOT MET", None: "no goal"}[self.met]
        return (
            f"{self.name}: {_figure(self.value)} {self.unit}, "
            f"against {_figure(median(self.baseline_values))}: "
            f"{_figure(self.ratio)} ({_figure(low)} to {_figure(high)}), {verdict}"
        )


def _reaches(reached: float, goal: float, better: str) -> bool:
    return reached >= goal if better == "higher" else reached <= goal


def spread(values: Sequence[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4, method="inclusive")
    named = {"min": min(values), "q1": low, "q3": high, "max": max(values)}
    return {name: _rounded(value) for name, value in named.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _figure(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def write_json(path: Path, document: object) -> None:
    """Whole or not at all: a run that is interrupted leaves the former file."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def render(lines: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> str:
    """The results as the Markdown table of docs/bench.md."""
    rows = [
        f"Measured {environment['measured_at']} on {environment['cores']} cores ({environment['cpu']}), "
        f"PostgreSQL {environment['postgresql']}, Python {environment['python']}; "
        "fsync, synchronous_commit and full_page_writes on; "
        f"one commit takes {environment['commit_ms']} ms. "
        "Medians; in brackets the least and the most of the repetitions.",
        "",
        "| line | value | baseline | ratio | goal | met |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        ratio = line["spread"]["ratio"]
        rows.append(
            f"| `{line['name']}` | {_figure(line['value'])} {line['unit']} "
            f"| {_figure(line['baseline_value'])}: {line['baseline']} "
            f"| {_figure(line['ratio'])} ({_figure(ratio['min'])} to {_figure(ratio['max'])}) "
            f"| {_goal(line)} | {'' if line['met'] is None else 'yes' if line['met'] else '**no**'} |"
        )
    return "\n".join(rows)


def _goal(line: Mapping[str, Any]) -> str:
    word = "at least" if line["better"] == "higher" else "at most"
    parts = []
    if line["goal"] is not None:
        parts.append(f"ratio {word} {_figure(line['goal'])}")
    if line["goal_value"] is not None:
        parts.append(f"{word} {_figure(line['goal_value'])}")
    return ", ".join(parts)


def fill_table(page: Path, lines: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> None:
    """Put the table between the markers of `page`."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no markers for the results")
    page.write_text(f"{before}{begin}\n{render(lines, environment)}\n{end}{after}", encoding="utf-8")
