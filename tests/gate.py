"""Graph calls that wait until a test lets them go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web

from convsync.simulator import Simulator
from convsync.simulator import faults as simulator_faults


class Gate:
    """Holds the simulator's answers back until it is opened; `reached` when somebody waits."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._open = asyncio.Event()
        self.reached = asyncio.Event()

    def shut(self, match: str = "/conversations", **when: Any) -> None:
        self._simulator.faults.add(match, "hold", **when)

    def open(self) -> None:
        self._open.set()

    async def hold(self, fault: object, request: web.Request) -> None:
        self.reached.set()
        await self._open.wait()


@contextmanager
def gate_before(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate of that simulator; nobody waits for it any more in the end."""
    one = Gate(simulator)
    monkeypatch.setitem(simulator_faults.BEFORE, "hold", one.hold)
    monkeypatch.setattr(simulator_faults, "ACTIONS", simulator_faults.ACTIONS | {"hold"})
    yield one
    one.open()
