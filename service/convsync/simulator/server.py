"""Starting and stopping a simulator: as an application, as a handle in tests, as a process of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType

import orjson
from aiohttp import web

from convsync.simulator.calls import CallLog
from convsync.simulator.config import SimulatedPage, SimulatorConfig
from convsync.simulator.control import add_control_routes
from convsync.simulator.faults import Faults
from convsync.simulator.graph_api import graph
from convsync.simulator.life import Life
from convsync.simulator.population import Population
from convsync.simulator.state import STATE, SimulatorState
from convsync.simulator.timeline import TIMELINE, Timeline, begin_life, count_graph_calls
from convsync.simulator.traffic import TrafficReport, live_traffic
from convsync.simulator.webhooks import WebhookSender

# A planted fault may hold a request for an hour; nobody waits for it at the end.
_SHUTDOWN_SECONDS = 0.5


async def _living(app: web.Application) -> AsyncIterator[None]:
    """Webhooks, life and the timeline, for as long as the application runs."""
    state, timeline = app[STATE], app[TIMELINE]
    await state.webhooks.open()
    begin_life(state)
    steps = asyncio.create_task(timeline.run())
    yield
    steps.cancel()
    await asyncio.gather(steps, return_exceptions=True)
    await state.life.close()
    await state.webhooks.close()


def create_simulator_app(config: SimulatorConfig) -> web.Application:
    """The simulated Graph API with its control under `/_sim/`. Its state is `app[STATE]`."""
    app = web.Application(client_max_size=16 * 1024**2)
    app[STATE] = SimulatorState(config)
    app[TIMELINE] = Timeline(app[STATE])
    if app[TIMELINE].counts_calls:
        app.middlewares.append(count_graph_calls)
    app.cleanup_ctx.append(_living)
    add_control_routes(app)
    app.router.add_route("*", "/{tail:.*}", graph)
    return app


class Simulator:
    """A running simulator. Use it as an async context manager, or call `start` and `stop`.

    Without an explicit config it listens on a free port of the loopback interface and has 1,000
    conversations.
    """

    def __init__(self, config: SimulatorConfig | None = None) -> None:
        self.config = config if config is not None else SimulatorConfig(port=0)
        self.app = create_simulator_app(self.config)
        self.state = self.app[STATE]
        self.url = ""
        """`http://host:port`, known once started."""
        self._runner: web.AppRunner | None = None

    @property
    def page(self) -> SimulatedPage:
        """The first Page."""
        return self.config.pages[0]

    @property
    def population(self) -> Population:
        """The inbox of the first Page."""
        return self.state.populations[self.page.page_id]

    @property
    def populations(self) -> dict[str, Population]:
        return self.state.populations

    @property
    def faults(self) -> Faults:
        return self.state.faults

    @property
    def calls(self) -> CallLog:
        return self.state.calls

    @property
    def life(self) -> Life:
        return self.state.life

    @property
    def timeline(self) -> Timeline:
        return self.app[TIMELINE]

    @property
    def webhooks(self) -> WebhookSender:
        return self.state.webhooks

    async def start(self) -> Simulator:
        """Listen. Raises OSError when the port is taken."""
        runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.config.host, self.config.port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        host, port = runner.addresses[0][:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return self

    async def stop(self) -> None:
        """Stop listening; requests that a fault holds are cut off. Safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def traffic(
        self,
        count: int | None = None,
        *,
        rate: float = 0,
        seconds: float | None = None,
        seed: int = 1,
        kinds: Sequence[str] | Mapping[str, float] | None = None,
        silent: bool = False,
        page_id: str | None = None,
    ) -> TrafficReport:
        """Live traffic on a Page (the first if none is named), see `traffic.live_traffic`."""
        return await live_traffic(
            self.population if page_id is None else self.populations[page_id],
            self.webhooks,
            rate=rate,
            count=count,
            seconds=seconds,
            seed=seed,
            kinds=kinds,
            silent=silent,
        )

    async def __aenter__(self) -> Simulator:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def run_simulator(
    config: SimulatorConfig,
    *,
    ready: Callable[[Simulator], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Run until `stop` is set, or SIGINT or SIGTERM when no event is given. `ready` is called once it
    listens.
    """
    if stop is None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Not in a thread, and not on every system; there the caller's own handling has to do.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, stop.set)
    async with Simulator(config) as simulator:
        if ready is not None:
            ready(simulator)
        await stop.wait()


def announce(simulator: Simulator) -> None:
    """Write the one line of JSON that tells a parent process where the simulator listens."""
    first = simulator.page
    line = {
        "url": simulator.url,
        "page_id": first.page_id,
        "pages": [dataclasses.asdict(p) for p in simulator.config.pages],
    }
    sys.stdout.write(orjson.dumps(line).decode() + "\n")
    sys.stdout.flush()
    logging.getLogger(__name__).info("simulator listens on %s", simulator.url)
