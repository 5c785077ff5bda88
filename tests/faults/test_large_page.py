"""Ten thousand conversations, a thread of twenty thousand messages among them, twenty seconds at a time."""

from __future__ import annotations

import json
from collections import Counter
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from faults.processes import commands
from sync.world import LIST_CALL, open_world

CONVERSATIONS = 10_000
LONGEST = 20_000
# At 2 calls a second it would be as right, and take the whole coffee break.
CALLS_PER_SECOND = 4
LISTED_AT_ONCE, MESSAGES_AT_ONCE = 200, 100
MOST_CALLS = 30


@pytest.mark.faults
async def test_calls_of_twenty_seconds_get_through_a_large_page_and_the_certificate_says_so(
    database: Any, tmp_path: Path
) -> None:
    """Each goes on where the last one ended: nothing is read twice but the front of the list."""
    inbox: dict[str, Any] = {"conversations": CONVERSATIONS, "messages": 8.0, "longest": LONGEST}
    async with (
        open_world(database, **inbox) as world,
        commands(world, tmp_path, CONVSYNC_CALLS_PER_SECOND=str(CALLS_PER_SECOND)) as cli,
    ):
        codes: list[int] = []
        runs: list[dict[str, Any]] = []
        made = [0]
        while (not codes or codes[-1] == 3) and len(codes) < MOST_CALLS:
            code, out, err = await cli.run("sync", world.page_id, "--deadline", "20", "--json")
            codes.append(code)
            assert code in (0, 3), err
            runs.append(json.loads(out))
            made.append(world.calls())
            assert made[-1] > made[-2], (runs, err)
        assert codes == [3] * (len(codes) - 1) + [0]
        assert len(codes) >= 3
        assert {run["run_id"] for run in runs} == {runs[0]["run_id"]}
        assert {(run["status"], run["reason"]) for run in runs[:-1]} == {("paused", "deadline")}
        assert runs[-1]["status"] == "succeeded"
        assert runs[-1]["calls"] == made[-1]

        read = Counter(
            (call.path, tuple(parse_qs(call.query).get("after", ()))) for call in world.simulator.calls.calls
        )
        twice = {path.rsplit("/", 1)[-1] for (path, _), times in read.items() if times > 1}
        assert twice <= {"conversations"}
        again = sum(times - 1 for times in read.values())
        assert again <= 2, "the front of the list, once its end was reached"

        code, out, err = await cli.run("status", world.page_id, "--json")
        assert code == 0, err
        certificate = json.loads(out)["certificate"]
        assert (certificate["complete"], certificate["conversations"]) == (CONVERSATIONS, CONVERSATIONS)
        assert (certificate["whole"], certificate["unreadable"]) == (True, 0)
        stored = await world.value("select max(message_count) from convsync.messenger_conversations")
        assert stored == LONGEST
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples
        assert verdict.conversations == CONVERSATIONS

        lengths = [one.message_count for one in world.simulator.population.conversations]
        beyond = sum(ceil(max(0, one - MESSAGES_AT_ONCE) / MESSAGES_AT_ONCE) for one in lengths)
        least = ceil(CONVERSATIONS / LISTED_AT_ONCE) + beyond
        assert made[-1] <= 1.15 * least
        print(  # noqa: T201
            f"{len(codes)} calls of `sync`, {made[1:]} Graph calls by their ends, "
            f"{world.calls(LIST_CALL)} for the list; least {least}; {verdict.messages} messages"
        )
