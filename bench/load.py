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
    address: tuple[str, int]
    sent: Delivery | None = None
    sent_at: float = 0.0
    received: bytes = b""


class Traffic(Protocol):
    """Moments are seconds of `time.monotonic`."""

    def next(self, now: float) -> Delivery | None:
        """What a free connection is to send; None while there is nothing."""
        ...

    def answered(self, delivery: Delivery, status: int, sent_at: float, now: float) -> None: ...

    def lost(self, delivery: Delivery | None, sent_at: float, now: float) -> None:
        """The service closed a connection, before it answered the delivery if there was one."""
        ...

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
    return [Connection(_connected((host, port)), (host, port)) for _ in range(connections)]


def _connected(address: tuple[str, int]) -> socket.socket:
    one = socket.create_connection(address, timeout=10)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


def drive(everybody: Sequence[Connection], traffic: Traffic) -> int:
    """Send and receive until the traffic is over, then close; how many requests were left unanswered."""
    selector = selectors.DefaultSelector()
    free = list(everybody)
    closed: list[Connection] = []
    for connection in everybody:
        selector.register(connection.socket, selectors.EVENT_READ, connection)

    def send(connection: Connection, now: float) -> bool:
        """Whether it is busy now, or closed."""
        delivery = traffic.next(now)
        if delivery is None:
            return False
        connection.sent, connection.sent_at, connection.received = delivery, now, b""
        try:
            connection.socket.sendall(delivery.request)
        except ConnectionError:
            lose(connection, now)
        return True

    def send_all(now: float) -> None:
        while free:
            connection = free.pop()
            if not send(connection, now):
                free.append(connection)
                return

    def lose(connection: Connection, now: float) -> None:
        selector.unregister(connection.socket)
        connection.socket.close()
        if connection in free:
            free.remove(connection)
        closed.append(connection)
        traffic.lost(connection.sent, connection.sent_at, now)
        connection.sent = None

    def reconnect() -> None:
        for connection in closed[:]:
            try:
                connection.socket = _connected(connection.address)
            except OSError:
                return  # nobody listens
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            closed.remove(connection)
            free.append(connection)

    now = time.monotonic()
    send_all(now)
    while (pause := traffic.pause(now, len(everybody) - len(free) - len(closed))) is not None:
        for key, _ in selector.select(pause):
            connection = key.data
            now = time.monotonic()
            try:
                part = connection.socket.recv(65536)
            except ConnectionError:
                part = b""
            if not part:
                lose(connection, now)
                continue
            connection.received += part
            status = status_of(connection.received)
            if status is None:
                continue
            delivery, connection.sent = connection.sent, None
            traffic.answered(delivery, status, connection.sent_at, now)
            if not send(connection, now):
                free.append(connection)
        now = time.monotonic()
        if closed:
            reconnect()
        send_all(now)
    for connection in everybody:
        connection.socket.close()
    selector.close()
    return len(everybody) - len(free) - len(closed)


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

    def lost(self, delivery: Delivery | None, sent_at: float, now: float) -> None:
        raise ConnectionError("the service closed a connection")

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
