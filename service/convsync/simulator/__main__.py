"""`python -m convsync.simulator`: the simulator in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import gc
from collections.abc import Sequence
from pathlib import Path

import orjson

from convsync.simulator.config import DEFAULT_PORT, SimulatorConfig, default_pages
from convsync.simulator.server import Simulator, announce, run_simulator


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[SimulatorConfig, float]:
    """The config and the rate of live traffic that a command line asks for."""
    defaults = SimulatorConfig()
    parser = argparse.ArgumentParser(
        prog="python -m convsync.simulator",
        description="A simulated Graph API and webhook sender. Prints a line of JSON when ready.",
    )
    parser.add_argument("--host", default=defaults.host)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 asks for a free one")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--conversations", type=int, default=defaults.conversations, help="per Page")
    parser.add_argument("--messages", type=float, default=defaults.messages, help="mean per conversation")
    parser.add_argument("--pages", type=int, default=1)
    parser.add_argument(
        "--calls-per-second", type=float, default=defaults.calls_per_second, help="per Page, 0: off"
    )
    parser.add_argument("--hourly-calls", type=int, default=None, help="allowance that ends in code 80006")
    parser.add_argument("--webhooks-to", metavar="URL", default=None)
    parser.add_argument(
        "--subscribed", action="store_true", help="the app is subscribed to the Pages from the start"
    )
    parser.add_argument("--traffic", type=float, default=0, metavar="RATE", help="live events per second")
    parser.add_argument("--faults", metavar="FILE", help="a JSON list of faults to plant at the start")
    parser.add_argument("--require-appsecret-proof", action="store_true")
    given = parser.parse_args(arguments)
    config = SimulatorConfig(
        host=given.host,
        port=given.port,
        seed=given.seed,
        conversations=given.conversations,
        messages=given.messages,
        calls_per_second=given.calls_per_second,
        hourly_calls=given.hourly_calls,
        pages=default_pages(given.pages),
        webhooks_to=given.webhooks_to,
        subscribed=given.subscribed,
        faults=tuple(orjson.loads(Path(given.faults).read_bytes())) if given.faults else (),
        require_appsecret_proof=given.require_appsecret_proof,
    )
    return config, given.traffic


def main() -> None:
    config, rate = parse_arguments()
    # Answers are big trees of short-lived dicts without cycles; looking for cycles costs much.
    gc.set_threshold(100_000, 50, 50)
    asyncio.run(run_simulator(config, ready=_begin, traffic_rate=rate))


def _begin(simulator: Simulator) -> None:
    gc.freeze()
    announce(simulator)


if __name__ == "__main__":
    main()
