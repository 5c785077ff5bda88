"""The load generator: a process of its own, so that it takes no time from the event loop it measures.

`python -m bench.load` reads a JSON object from stdin and writes one to stdout. Each connection has one
request on its way at a time; an answer is followed by the next request at once. Plain sockets and `select`:
several times as fast as any handler it is pointed at (the bench measures that too).

What is sent when, and what becomes of the answers, is a `Traffic`; the fault tests have one of their own.
"""

from __future__ import annotations

import itertools
import json
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.shapes import Delivery, deliveries

_DRAIN_SECONDS = 8.0
_LOOK_AGAIN_SECONDS = 0.2


@dataclass(slots=True)
class Connection:
    socket: socket.socket
    sent: Delivery | None = None
    sent_at: float = 0.0
    received: bytes = b""


class Traffic(Protocol):
    """Moments are seconds of `time.monotonic`."""

    def next(self, now: float) -> Delivery | None:
        """What a free connection is to send; None while there is nothing."""
        ...

    def answered(self, delivery: Delivery, status: int, sent_at: float, now: float) -> None: ...

    def pause(self, now: float, busy: int) -> float | None:
        """How long there may be nothing to send; None when all is over. `busy`: how many are unanswered."""
        ...


def status_of(received: bytes) -> int | None:
    """The status of a complete answer; None while some of it is missing."""
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return None
    start, _, length = head.lower().partition(b"content-length:")
    if len(body) < int(length.split(b"\r\n", 1)[0] or 0):
        return None
    return int(start[9:12])


def connect(host: str, port: int, connections: int) -> list[Connection]:
    everybody = [Connection(socket.create_connection((host, port), timeout=10)) for _ in range(connections)]
    for connection in everybody:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return everybody


def drive(everybody: Sequence[Connection], traffic: Traffic) -> int:
    """Send and receive until the traffic is over, then close; how many requests were left unanswered."""
    selector = selectors.DefaultSelector()
    free = list(everybody)
    for connection in everybody:
        selector.register(connection.socket, selectors.EVENT_READ, connection)

    def send(connection: Connection, now: float) -> bool:
        delivery = traffic.next(now)
        if delivery is None:
            return False
        connection.sent, connection.sent_at, connection.received = delivery, now, b""
        connection.socket.sendall(delivery.request)
        return True

    now = time.monotonic()
    while free and send(free[-1], now):
        free.pop()
    while (pause := traffic.pause(now, len(everybody) - len(free))) is not None:
        for key, _ in selector.select(pause):
            connection = key.data
            part = connection.socket.recv(65536)
            if not part:
                raise ConnectionError("the service closed a connection")
            connection.received += part
            status = status_of(connection.received)
            if status is None:
                continue
            now = time.monotonic()
            traffic.answered(connection.sent, status, connection.sent_at, now)
            if not send(connection, now):
                free.append(connection)
        now = time.monotonic()
        while free and send(free[-1], now):
            free.pop()
    for connection in everybody:
        connection.socket.close()
    selector.close()
    return len(everybody) - len(free)


class FullLoad:
    """As much as is taken, for some seconds; then what is on its way is waited for."""

    def __init__(self, source: Iterator[Delivery], seconds: float) -> None:
        self._source = source
        self._began = time.monotonic()
        self._until = self._ended = self._began + seconds
        self._statuses: Counter[int] = Counter()
        self._taken: list[float] = []

    def next(self, now: float) -> Delivery | None:
        if now >= self._until:
            return None
        delivery = next(self._source, None)
        if delivery is None:
            self._ended = min(self._ended, now)  # all that was prepared is sent
        return delivery

    def answered(self, delivery: Delivery, status: int, sent_at: float, now: float) -> None:
        self._statuses[status] += 1
        if status == 200 and now < self._until:
            self._taken.append(now - sent_at)

    def pause(self, now: float, busy: int) -> float | None:
        return _LOOK_AGAIN_SECONDS if busy and now <= self._until + _DRAIN_SECONDS else None

    def report(self, unanswered: int) -> dict[str, object]:
        taken = sorted(self._taken)
        return {
            "per_second": len(taken) / (self._ended - self._began),
            "statuses": {str(status): count for status, count in self._statuses.items()},
            "unanswered": unanswered,
            "p50_ms": taken[len(taken) // 2] * 1000 if taken else 0.0,
            "p99_ms": taken[len(taken) * 99 // 100] * 1000 if taken else 0.0,
        }


def main() -> None:
    order = json.load(sys.stdin)
    made = deliveries(order["secret"], order["seed"], f"{order['host']}:{order['port']}")
    if order["prepared"]:
        # Before the clock starts; what is signed meanwhile would take its core from the service.
        made = iter(
            list(itertools.islice(made, int(order["prepared"] * order["seconds"]) + order["connections"]))
        )
    everybody = connect(order["host"], order["port"], order["connections"])
    load = FullLoad(made, order["seconds"])
    json.dump(load.report(drive(everybody, load)), sys.stdout)


if __name__ == "__main__":
    main()
