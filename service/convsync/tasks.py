"""Ending tasks."""

from __future__ import annotations

import asyncio
from typing import Any, Final

_CANCEL_AGAIN_SECONDS: Final = 0.5


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel the task until it has ended.

    Once may not be enough: on Python 3.11 `asyncio.wait_for`, which the pool waits with, loses a cancellation
    that comes in the moment it is served.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_AGAIN_SECONDS)
