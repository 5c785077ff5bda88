"""Tells systemd (Type=notify) how far the service is; without systemd, nothing."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """`READY=1`, `STOPPING=1`: see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            # An abstract socket's name begins with a zero byte, which systemd spells `@`.
            one.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            one.sendall(state.encode())
    except OSError:
        pass  # nobody listens; that is no reason not to serve
