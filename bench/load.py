"""The load generator: a process of its own, so that it takes no time from the event loop it measures.

`python -m bench.load` reads a JSON object from stdin and writes one to stdout. Each connection has one
request on its way at a time; an answer is followed by the next request at once. Plain sockets and `select`:
several times as fast as any handler it is pointed at (the bench measures that too).
"""

from __future__ import annotations

import itertools
import json
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bench.shapes import deliveries

_DRAIN_SECONDS = 8.0


@dataclass(slots=True)
class Connection:
    socket: socket.socket
    sent_at: float = 0.0
    received: bytes = b""


def status_of(received: bytes) -> int | None:
    """The status of a complete answer; None while some of it is missing."""
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return None
    start, _, length = head.lower().partition(b"content-length:")
    if len(body) < int(length.split(b"\r\n", 1)[0] or 0):
        return None
    return int(start[9:12])


def run(
    host: str, port: int, connections: int, seconds: float, requests: Iterator[bytes]
) -> dict[str, object]:
    selector = selectors.DefaultSelector()
    statuses: Counter[int] = Counter()
    taken: list[float] = []
    waiting = 0
    in_window = 0

    def send(connection: Connection, now: float) -> int:
        request = next(requests, None)
        if request is None:
            return 0
        connection.sent_at = now
        connection.received = b""
        connection.socket.sendall(request)
        return 1

    everybody = [Connection(socket.create_connection((host, port), timeout=10)) for _ in range(connections)]
    began = time.perf_counter()
    until = began + seconds
    ended = until
    for connection in everybody:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        waiting += send(connection, began)
    while waiting:
        now = time.perf_counter()
        if now > until + _DRAIN_SECONDS:
            break
        for key, _ in selector.select(0.2):
            connection = key.data
            part = connection.socket.recv(65536)
            if not part:
                raise ConnectionError("the service closed a connection")
            connection.received += part
            status = status_of(connection.received)
            if status is None:
                continue
            now = time.perf_counter()
            statuses[status] += 1
            waiting -= 1
            if now < until:
                if status == 200:
                    in_window += 1
                    taken.append(now - connection.sent_at)
                sent = send(connection, now)
                if not sent:
                    ended = min(ended, now)  # all that was prepared is sent
                waiting += sent
    for connection in everybody:
        connection.socket.close()
    taken.sort()
    return {
        "per_second": in_window / (ended - began),
        "statuses": {str(status): count for status, count in statuses.items()},
        "unanswered": waiting,
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
    json.dump(run(order["host"], order["port"], order["connections"], order["seconds"], made), sys.stdout)


if __name__ == "__main__":
    main()
