"""Scenario files: a population, its life, and what goes wrong when, written down as TOML.

    why = "One line: what a client learns from it."
    [population]   pages, conversations, messages, longest, seed
    [graph]        calls_per_second, hourly_calls and what else a `SimulatorConfig` says of Graph
    [webhooks]     subscribed, timeout, retries, retry_delay, backoff, alert_after, unsubscribe_after, ..
    [time]         speed
    [life]         rate, seed, kinds, silent, count
    [[faults]]            at | at_calls, until | until_calls, and a fault as `POST /_sim/faults` takes it
    [[webhook_faults]]    the same, and a fault as `POST /_sim/webhooks/faults` takes it
    [[steps]]             at | at_calls, until | until_calls, do, and what that takes

Nothing is guessed: a name or value that does not fit is an error that says where it stands.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsync.simulator.config import LifePlan, SimulatorConfig, Step, default_pages
from convsync.simulator.life import check_plan
from convsync.simulator.timeline import StepError, check_step

LIBRARY = Path(__file__).parent / "scenarios"
_TABLES = frozenset({"population", "graph", "webhooks", "time", "life"})
_LISTS = {"faults": "fault", "webhook_faults": "webhook_fault", "steps": ""}
_WHEN = ("at", "at_calls", "until", "until_calls")


class ScenarioError(ValueError):
    """A scenario that cannot be; the text says which file and which field."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario that was read and checked. `why` is one line."""

    name: str
    why: str
    config: SimulatorConfig


def library() -> list[Scenario]:
    """The scenarios that come with the simulator, by name."""
    return [load_scenario(path.stem) for path in sorted(LIBRARY.glob("*.toml"))]


def load_scenario(name_or_file: str) -> Scenario:
    """A scenario of the library by its name, or any file whose name ends in `.toml`. Raises ScenarioError."""
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = LIBRARY / f"{name_or_file}.toml"
        if path.parent != LIBRARY or not path.is_file():
            known = ", ".join(sorted(one.stem for one in LIBRARY.glob("*.toml")))
            raise ScenarioError(
                f"no scenario is named {name_or_file!r}; known: {known}; a file ends in .toml"
            )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read: {error}") from None
    try:
        return parse_scenario(text, path.stem)
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from None


def parse_scenario(text: str, name: str) -> Scenario:
    """A scenario from its text. Raises ScenarioError, whose text begins with the field's place."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"not TOML: {error}") from None
    for key in document:
        if key != "why" and key not in _TABLES and key not in _LISTS:
            known = ", ".join(("why", *sorted(_TABLES), *_LISTS))
            raise ScenarioError(f"{key}: is no part of a scenario; known: {known}")
    why = document.get("why")
    if not isinstance(why, str) or not why.strip() or "\n" in why:
        raise ScenarioError("why: one line is wanted")
    settings = _population(_table(document, "population"))
    settings |= _typed(_table(document, "graph"), "graph", _graph_fields())
    settings |= _rules(_table(document, "graph"))
    webhooks = _typed(_table(document, "webhooks"), "webhooks", _webhook_fields())
    settings |= {_WEBHOOK_NAMES.get(key, f"webhook_{key}"): value for key, value in webhooks.items()}
    settings |= _typed(_table(document, "time"), "time", {"speed": _number_from(0.001, 10**6)})
    if "life" in document:
        settings["life"] = _life(_table(document, "life"))
    settings["timeline"] = _steps(document, len(settings.get("pages", default_pages())))
    return Scenario(name, why, SimulatorConfig(**settings))


# -- tables

Check = Callable[[Any], Any]


def _table(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ScenarioError(f"{name}: a table is wanted, [{name}]")
    return table


def _typed(table: Mapping[str, Any], where: str, fields: Mapping[str, Check]) -> dict[str, Any]:
    found = {}
    nested = _rule_fields() if where == "graph" else {}
    for key, value in table.items():
        if key in nested:
            continue
        if key not in fields:
            known = ", ".join(sorted((*fields, *nested)))
            raise ScenarioError(f"{where}.{key}: is not known here; known: {known}")
        try:
            found[key] = fields[key](value)
        except ValueError as error:
            raise ScenarioError(f"{where}.{key}: {error}") from None
    return found


def _whole_from(least: int, most: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most} is wanted")
        return value

    return check


def _number_from(least: float, most: float) -> Check:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"a number from {least:g} to {most:g} is wanted")
        return float(value)

    return check


def _yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is wanted")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is wanted")
    return value


def _platforms(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not all(one in ("messenger", "instagram") for one in value):
        raise ValueError('a list of "messenger" and "instagram" is wanted')
    return frozenset(value)


def _like(default: Any) -> Check:
    """The check of a setting by the type of its default; what is off by default (None) is a whole number."""
    if isinstance(default, bool):
        return _yes_or_no
    if isinstance(default, float):
        return _number_from(0, 10**9)
    if isinstance(default, str):
        return _text
    return _whole_from(0, 10**9)


_SIMPLE = (bool, int, float, str)
_POPULATION: dict[str, Check] = {
    "pages": _whole_from(1, 999),
    "conversations": _whole_from(0, 10_000_000),
    "messages": _number_from(1, 10_000),
    "longest": _whole_from(0, 1_000_000),
    "seed": _whole_from(-(2**63), 2**63),
}
# What is not about Graph, though it is a setting of the simulator.
_ELSEWHERE = frozenset(
    {
        *("host", "port", "seed", "conversations", "messages", "longest", "speed"),
        *("subscribed", "echo_before_answer", "app_id", "app_secret", "verify_token"),
    }
)
_WEBHOOK_NAMES = {"subscribed": "subscribed", "echo_before_answer": "echo_before_answer"}


def _defaults() -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(SimulatorConfig)}


def _graph_fields() -> dict[str, Check]:
    return {
        name: _like(default)
        for name, default in _defaults().items()
        if name not in _ELSEWHERE
        and not name.startswith("webhook")
        and (isinstance(default, _SIMPLE) or name == "hourly_calls")
    }


def _rule_fields() -> dict[str, Check]:
    """Rules of Graph that the config keeps together as one value named `graph`, if it has one."""
    rules = _defaults().get("graph")
    if not dataclasses.is_dataclass(rules) or isinstance(rules, type):
        return {}
    likely = {field.name: _like(getattr(rules, field.name)) for field in dataclasses.fields(rules)}
    return likely | {"twenty_messages": _platforms, "requests": _number_from(0, 1)}


def _rules(table: Mapping[str, Any]) -> dict[str, Any]:
    fields = _rule_fields()
    given: dict[str, Any] = {}
    for key in fields.keys() & table.keys():
        try:
            given[key] = fields[key](table[key])
        except ValueError as error:
            raise ScenarioError(f"graph.{key}: {error}") from None
    return {"graph": dataclasses.replace(_defaults()["graph"], **given)} if given else {}


def _webhook_fields() -> dict[str, Check]:
    defaults = _defaults()
    found = {
        name.removeprefix("webhook_"): _like(default)
        for name, default in defaults.items()
        if name.startswith("webhook_") and isinstance(default, _SIMPLE)
    }
    return found | {name: _like(defaults[name]) for name in _WEBHOOK_NAMES}


def _population(table: Mapping[str, Any]) -> dict[str, Any]:
    given = _typed(table, "population", _POPULATION)
    if "pages" in given:
        given["pages"] = default_pages(given["pages"])
    return given


def _life(table: Mapping[str, Any]) -> LifePlan:
    known = [field.name for field in dataclasses.fields(LifePlan)]
    for key in table:
        if key not in known:
            raise ScenarioError(f"life.{key}: is not known here; known: {', '.join(known)}")
    if "rate" not in table:
        raise ScenarioError("life.rate: is wanted")
    plan = LifePlan(**table)
    try:
        check_plan(plan)
    except ValueError as error:
        raise ScenarioError(f"life.{error}") from None
    return plan


# -- lists


def _steps(document: Mapping[str, Any], pages: int) -> tuple[Step, ...]:
    steps = []
    for name, do in _LISTS.items():
        items = document.get(name, [])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ScenarioError(f"{name}: a list of tables is wanted, [[{name}]]")
        for number, item in enumerate(items, 1):
            where = f"{name}[{number}]"
            try:
                step = _step(item, do)
                check_step(step, pages)
            except (StepError, ValueError) as error:
                raise ScenarioError(f"{where}.{error}") from None
            steps.append(step)
    return tuple(steps)


def _step(item: Mapping[str, Any], do: str) -> Step:
    what = {key: value for key, value in item.items() if key not in _WHEN}
    if not do:
        do = str(what.pop("do", ""))
    when: dict[str, Any] = {}
    for key in _WHEN:
        if key in item:
            check = _whole_from(0, 10**9) if key.endswith("calls") else _number_from(0, 10**9)
            try:
                when[key] = check(item[key])
            except ValueError as error:
                raise StepError(f"{key}: {error}") from None
    for one, other in (("at", "at_calls"), ("until", "until_calls")):
        if one in when and other in when:
            raise StepError(f"{other}: one of {one} and {other} is wanted, not both")
    return Step(do, what, **when)
