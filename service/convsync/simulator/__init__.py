"""A Facebook that can be started on a laptop: a simulated Graph API and webhook sender, and the verdict on a
mirror.

It shares no code with the rest of convsync: what checks must not repeat the mistakes of what it checks.
"""

from __future__ import annotations

from convsync.simulator.config import (
    DEFAULT_APP_ID,
    DEFAULT_APP_SECRET,
    DEFAULT_PAGE_ID,
    DEFAULT_PAGE_TOKEN,
    DEFAULT_VERIFY_TOKEN,
    SimulatedPage,
    SimulatorConfig,
    default_pages,
)
from convsync.simulator.population import Population
from convsync.simulator.server import Simulator, create_simulator_app, run_simulator
from convsync.simulator.traffic import TrafficReport, live_traffic

__all__ = [
    "DEFAULT_APP_ID",
    "DEFAULT_APP_SECRET",
    "DEFAULT_PAGE_ID",
    "DEFAULT_PAGE_TOKEN",
    "DEFAULT_VERIFY_TOKEN",
    "Population",
    "SimulatedPage",
    "Simulator",
    "SimulatorConfig",
    "TrafficReport",
    "create_simulator_app",
    "default_pages",
    "live_traffic",
    "run_simulator",
]
