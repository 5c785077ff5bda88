"""`python -m convsync.simulator`: the simulator in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from convsync.simulator.config import DEFAULT_PORT, LifePlan, SimulatorConfig, default_pages
from convsync.simulator.life import check_plan
from convsync.simulator.scenario import library, load_scenario
from convsync.simulator.server import Simulator, announce, run_simulator
from convsync.simulator.timeline import check_step


def parse_arguments(arguments: Sequence[str] | None = None) -> SimulatorConfig:
    """The config that a command line asks for: that of its scenario, but for what is given beside it."""
    defaults = SimulatorConfig()
    parser = argparse.ArgumentParser(
        prog="python -m convsync.simulator",
        description="A simulated Graph API and webhook sender. Prints a line of JSON when ready.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--host", help=f"default {defaults.host}")
    parser.add_argument("--port", type=int, help=f"default {DEFAULT_PORT}; 0 asks for a free one")
    parser.add_argument(
        "--scenario", default=None, metavar="NAME|FILE", help="one of --list-scenarios, or a file"
    )
    parser.add_argument("--list-scenarios", action=_ListScenarios, nargs=0, help="tell them and end")
    parser.add_argument("--seed", type=int, help=f"default {defaults.seed}")
    parser.add_argument("--conversations", type=int, help=f"per Page, default {defaults.conversations}")
    parser.add_argument("--messages", type=float, help=f"mean per conversation, default {defaults.messages}")
    parser.add_argument("--pages", type=int, help="default 1")
    parser.add_argument(
        "--calls-per-second", type=float, help=f"per Page, default {defaults.calls_per_second}, 0: off"
    )
    parser.add_argument("--hourly-calls", type=int, help="allowance that ends in code 80006")
    parser.add_argument("--webhooks-to", metavar="URL")
    parser.add_argument(
        "--subscribed", action="store_true", help="the app is subscribed to the Pages from the start"
    )
    parser.add_argument(
        "--traffic", type=float, metavar="RATE", help="live things per simulated second and Page, 0: none"
    )
    parser.add_argument("--speed", type=float, help="how much faster than the wall simulated time runs")
    parser.add_argument("--faults", metavar="FILE", help="a JSON list of faults to plant at the start")
    parser.add_argument("--require-appsecret-proof", action="store_true")
    given = vars(parser.parse_args(arguments))
    try:
        return _config(given)
    except ValueError as error:
        parser.error(str(error))


def _config(given: dict[str, Any]) -> SimulatorConfig:
    name = given.pop("scenario")
    config = SimulatorConfig() if name is None else load_scenario(name).config
    if "pages" in given:
        given["pages"] = default_pages(given["pages"])
    if "faults" in given:
        given["faults"] = tuple(orjson.loads(Path(given["faults"]).read_bytes()))
    rate = given.pop("traffic", None)
    if rate is not None:
        given["life"] = LifePlan(rate) if rate > 0 else None
    config = dataclasses.replace(config, **given)
    if config.life is not None:
        check_plan(config.life)
    for step in config.timeline:
        check_step(step, len(config.pages))
    return config


class _ListScenarios(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        for scenario in library():
            sys.stdout.write(f"{scenario.name:20} {scenario.why}\n")
        parser.exit()


def main() -> None:
    config = parse_arguments()
    # Answers are big trees of short-lived dicts without cycles; looking for cycles costs much.
    gc.set_threshold(100_000, 50, 50)
    asyncio.run(run_simulator(config, ready=_begin))


def _begin(simulator: Simulator) -> None:
    gc.freeze()
    announce(simulator)


if __name__ == "__main__":
    main()
