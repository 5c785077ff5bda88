"""Deliveries as Meta sends them, from a process of its own: what is refused is sent again, until it is taken.

`python -m faults.meta` reads an order, one line of JSON, from stdin. It sends until its stdin ends, then only
what was refused, and ends when everything was answered 200. Each answer is a line of its log:

    STATUS MESSAGE_ID PAGE_ID SENDER_ID DUE TAKEN

STATUS is 0 where the service closed the connection before it answered; that delivery is sent again too.
DUE is the second (of `time.monotonic`) at which the delivery should have been sent, TAKEN how long after that
its answer was there: so it counts as a slow answer if no connection was free to send it.
"""

from __future__ import annotations

import heapq
import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from bench.load import connect, drive
from bench.shapes import Delivery, deliveries

_LOOK_AGAIN_SECONDS = 0.05
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 8.0


class Meta:
    """`rate`: deliveries a second, or None for as many as are taken. No more than `seconds` in all."""

    def __init__(
        self,
        source: Iterator[Delivery],
        rate: float | None,
        seconds: float,
        log: TextIO,
        last: threading.Event,
    ) -> None:
        self._source = source
        self._step = 1 / rate if rate else None
        self._log = log
        self._last = last
        self._due = time.monotonic()
        self._until = self._due + seconds
        self._under_way: dict[str, tuple[float, int]] = {}  # when it was due, how often it was refused
        self._again: list[tuple[float, int, Delivery]] = []
        self._random = random.Random(1)  # noqa: S311 - jitter, no secret

    @property
    def left(self) -> int:
        """Deliveries that have not been answered 200."""
        return len(self._under_way) + len(self._again)

    def next(self, now: float) -> Delivery | None:
        if self._again and self._again[0][0] <= now:
            due, refusals, delivery = heapq.heappop(self._again)
        elif self._last.is_set() or (self._step is not None and now < self._due):
            return None
        else:
            due, refusals, delivery = now, 0, next(self._source)
            if self._step is not None:
                due = self._due
                self._due += self._step
        self._under_way[delivery.message_id] = (due, refusals)
        return delivery

    def answered(self, delivery: Delivery, status: int, sent_at: float, now: float) -> None:
        self._told(delivery, status, now)

    def lost(self, delivery: Delivery | None, sent_at: float, now: float) -> None:
        if delivery is not None:
            self._told(delivery, 0, now)

    def _told(self, delivery: Delivery, status: int, now: float) -> None:
        due, refusals = self._under_way.pop(delivery.message_id)
        message = f"{delivery.message_id} {delivery.page_id} {delivery.sender_id}"
        self._log.write(f"{status} {message} {due:.4f} {now - due:.4f}\n")
        if status != 200:
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**refusals) * self._random.uniform(0.5, 1)
            heapq.heappush(self._again, (now + pause, refusals + 1, delivery))

    def pause(self, now: float, busy: int) -> float | None:
        self._log.flush()
        if now > self._until or (self._last.is_set() and not self.left):
            return None
        moments = [now + _LOOK_AGAIN_SECONDS]
        if self._again:
            moments.append(self._again[0][0])
        if self._step is not None and not self._last.is_set():
            moments.append(self._due)
        return max(0.0, min(moments) - now)


def main() -> None:
    order = json.loads(sys.stdin.readline())
    last = threading.Event()

    def listen() -> None:
        sys.stdin.read()  # ends with whoever gave the order
        last.set()

    threading.Thread(target=listen, daemon=True).start()
    host, port = order["host"], order["port"]
    source = deliveries(order["secret"], order["seed"], f"{host}:{port}", order["people"])
    everybody = connect(host, port, order["connections"])
    with open(order["log"], "w", encoding="ascii") as log:
        meta = Meta(source, order["rate"], order["seconds"], log, last)
        drive(everybody, meta)
    if meta.left:
        sys.exit(f"{meta.left} deliveries were not taken within {order['seconds']} s")


if __name__ == "__main__":
    main()
