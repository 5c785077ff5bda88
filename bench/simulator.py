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
        self.url: str = announced["url"]
        self.pages: list[dict[str, str]] = announced["pages"]
        self._pid = process.pid
        self._page = self.pages[0]
        address = urlsplit(self.url)
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

    def truth(self, place: int) -> list[dict[str, Any]]:
        """The conversations of a Page with their messages, as they are."""
        found: list[dict[str, Any]] = self._ask(f"/_sim/truth/{self.pages[place]['page_id']}")[
            "conversations"
        ]
        return found

    def call_times(self) -> list[float]:
        """When the calls came that are in the log (Unix seconds), oldest first."""
        return sorted(call["at"] for call in self._ask("/_sim/calls?limit=1000000")["calls"])

    def violations(self) -> int:
        """How often a Page was called more often than its limit allows."""
        told: dict[str, int] = self._ask("/_sim/calls?limit=1")["violations"]
        return sum(told.values())

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._ask(path, "POST", orjson.dumps(body))

    def _ask(self, path: str, method: str = "GET", body: bytes | None = None) -> Any:
        self._connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        if not 200 <= answer.status < 300:
            raise RuntimeError(f"the simulator answered {answer.status}: {text[:200]!r}")
        return orjson.loads(text)

    def _page_after(self, after: str | None) -> Any:
        query = {"access_token": self._page["token"], "fields": _FIELDS, "limit": _CONVERSATIONS_PER_PAGE}
        if after is not None:
            query["after"] = after
        return self._ask(f"/v26.0/{self._page['page_id']}/conversations?{urlencode(query)}")


@contextmanager
def open_simulator(
    conversations: int, messages: int, *more: str, calls_per_second: float = 0
) -> Iterator[SimulatorProcess]:
    """A simulator with so many conversations and so many messages on average in each, limits off."""
    process = subprocess.Popen(  # noqa: S603 - our own module, no shell
        [
            *(sys.executable, "-m", "convsync.simulator", "--port", "0"),
            *("--conversations", str(conversations), "--messages", str(messages)),
            *("--calls-per-second", str(calls_per_second), *more),
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
        with open_simulator(pages * _CONVERSATIONS_PER_PAGE, 100) as simulator:
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
            with open_simulator(conversations, 30) as simulator:
                seconds.append(simulator.processor_seconds())
                if conversations == _BIG:
                    memory.append(simulator.memory_mb())
    with open_simulator(_HUGE, 30) as simulator:
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
