"""The simulator in a process of its own: what a core of it serves, and what a big Page costs at the start.

Time is the processor time of that process alone (`/proc/PID/stat`), whatever else the machine does; who asks
is not counted.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson

from bench.report import Line
from bench.server import Server

Tell = Callable[[str], None]

_CONVERSATIONS_PER_PAGE = 25
_FIELDS = (
    "id,updated_time,message_count,unread_count,snippet,can_reply,participants,messages.limit(25)"
    "{id,created_time,from,to,message,attachments,shares{id,link,name,description,picture},sticker,tags,"
    "reactions,reply_to,is_unsupported}"
)
_SERVES, _SERVES_AIM = 20_000, 60_000
_BIG, _BIG_SECONDS, _BIG_MB = 100_000, 5.0, 300.0
_HUGE = 1_000_000
_ANSWER_SECONDS = 60


class SimulatorProcess:
    """A simulator that was started and announced itself."""

    def __init__(self, process: subprocess.Popen[bytes], announced: dict[str, Any]) -> None:
        self._pid = process.pid
        self._page = announced["pages"][0]
        address = urlsplit(announced["url"])
        self._connection = http.client.HTTPConnection(
            address.hostname or "", address.port, timeout=_ANSWER_SECONDS
        )

    def processor_seconds(self) -> float:
        """User and system time of the process since it began."""
        fields = Path(f"/proc/{self._pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """The most that was ever resident."""
        status = Path(f"/proc/{self._pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def walk(self, pages: int) -> int:
        """Read up to `pages` pages of the list from its front; how many messages came."""
        after: str | None = None
        messages = 0
        for _ in range(pages):
            body = self._page_after(after)
            messages += sum(len(one["messages"]["data"]) for one in body["data"] if "messages" in one)
            if "next" not in body["paging"]:
                break
            after = body["paging"]["cursors"]["after"]
        return messages

    def _page_after(self, after: str | None) -> Any:
        query = {"access_token": self._page["token"], "fields": _FIELDS, "limit": _CONVERSATIONS_PER_PAGE}
        if after is not None:
            query["after"] = after
        self._connection.request("GET", f"/v26.0/{self._page['page_id']}/conversations?{urlencode(query)}")
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the simulator answered {answer.status}: {body[:200]!r}")
        return orjson.loads(body)


@contextmanager
def _simulator(conversations: int, messages: int) -> Iterator[SimulatorProcess]:
    process = subprocess.Popen(  # noqa: S603 - our own module, no shell
        [
            *(sys.executable, "-m", "convsync.simulator", "--port", "0", "--calls-per-second", "0"),
            *("--conversations", str(conversations), "--messages", str(messages)),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None  # noqa: S101 - asked for above
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the simulator did not start")
        yield SimulatorProcess(process, orjson.loads(line))
    finally:
        process.terminate()
        process.wait()


def serves(server: Server, quick: bool, tell: Tell) -> list[Line]:
    """simulator_serves, simulator_start_100k (with a million in its detail)."""
    repetitions, pages = (5, 12) if quick else (5, 80)
    first: list[float] = []
    again: list[float] = []
    served = 0
    for _ in range(repetitions):
        with _simulator(pages * _CONVERSATIONS_PER_PAGE, 100) as simulator:
            simulator.walk(1)  # imports, the compiled field list
            for rates in (first, again):
                before = simulator.processor_seconds()
                served = simulator.walk(pages)
                rates.append(served / (simulator.processor_seconds() - before))
    tell(f"simulator_serves: {served:,} messages a walk")
    line = Line(
        "simulator_serves",
        "messages/s",
        "the same pages read a second time",
        first,
        again,
        goal_value=_SERVES,
        detail={"messages": served, "pages": pages, "aim_value": _SERVES_AIM},
    )
    return [line, _start(repetitions)]


def _start(repetitions: int) -> Line:
    big: list[float] = []
    small: list[float] = []
    memory: list[float] = []
    for _ in range(repetitions):
        for conversations, seconds in ((_BIG, big), (100, small)):
            with _simulator(conversations, 30) as simulator:
                seconds.append(simulator.processor_seconds())
                if conversations == _BIG:
                    memory.append(simulator.memory_mb())
    with _simulator(_HUGE, 30) as simulator:
        huge = {"seconds": round(simulator.processor_seconds(), 2), "mb": round(simulator.memory_mb())}
    return Line(
        "simulator_start_100k",
        "s",
        "a Page of 100 conversations",
        big,
        small,
        goal_value=_BIG_SECONDS,
        better="lower",
        also=max(memory) <= _BIG_MB,
        detail={"mb": round(median(memory)), "goal_mb": _BIG_MB, "million": huge},
    )
