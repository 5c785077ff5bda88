"""Sockets on one address that share the connections."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, Final

_BACKLOG: Final = 1024


def bound(host: str, port: int) -> list[socket.socket]:
    """A socket on each address of `host`, beside others on the same port that are bound in this way."""
    sockets: list[socket.socket] = []
    try:
        for one, address in _sockets(host, port):
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.setblocking(False)
            # Of port 0 the first address chooses for all.
            one.bind((address[0], port or _port(sockets), *address[2:]))
    except BaseException:
        for one in sockets:
            one.close()
        raise
    return sockets


def listening(host: str, port: int) -> list[socket.socket]:
    """The same, listening: of connections that come, this set gets its share."""
    sockets = bound(host, port)
    for one in sockets:
        one.listen(_BACKLOG)
    return sockets


def refuse_a_taken_port(host: str, port: int) -> None:
    """Without this another service on the port, if it shares too, would get some of the connections."""
    for probe, address in _sockets(host, port):
        with probe:
            probe.bind(address)


def _sockets(host: str, port: int) -> Iterator[tuple[socket.socket, Any]]:
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        one = socket.socket(family, kind, protocol)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        yield one, address


def _port(sockets: list[socket.socket]) -> int:
    port: int = sockets[0].getsockname()[1]
    return port
