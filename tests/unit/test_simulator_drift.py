"""The schema moves under a client's feet."""

from __future__ import annotations

import time
from typing import Any

import pytest
from graph_reader import GraphReader, reading

from convsync.simulator.drift import KINDS, NO_ID
from convsync.simulator.faults import FaultError, Faults

FIELDS = "id,updated_time,unread_count,snippet,participants,messages.limit(2){id,created_time,from,to}"


async def both(reader: GraphReader, *kinds: str, **more: Any) -> tuple[list[Any], list[Any]]:
    """A page of the list as it is, and drifted."""
    plain = await reader.ok(reader.list, limit=100, fields=FIELDS)
    reader.simulator.faults.add("/conversations", "drift", times=1, kinds=list(kinds), **more)
    moved = await reader.ok(reader.list, limit=100, fields=FIELDS)
    return plain["data"], moved["data"]


async def test_one_item_of_a_hundred_without_an_id_has_ninety_nine_siblings() -> None:
    async with reading(conversations=100, messages=3) as reader:
        plain, moved = await both(reader, NO_ID, item=41)
    assert [number for number, one in enumerate(moved) if "id" not in one] == [41]
    assert [one for number, one in enumerate(moved) if number != 41] == [
        one for number, one in enumerate(plain) if number != 41
    ]


async def test_lists_lose_their_wrapper() -> None:
    async with reading() as reader:
        plain, moved = await both(reader, "unwrapped")
    assert [one.get("participants") for one in moved] == [
        one["participants"]["data"] if "participants" in one else None for one in plain
    ]


async def test_every_kind_of_drift_changes_threads_and_leaves_their_number() -> None:
    async with reading() as reader:
        for kind in KINDS:
            plain, moved = await both(reader, kind)
            assert len(moved) == len(plain) == 60
            assert moved != plain, kind


async def test_times_are_the_same_instants_in_unix_seconds() -> None:
    async with reading() as reader:
        plain, moved = await both(reader, "unix_time")
    assert [time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(one["updated_time"])) for one in moved] == [
        one["updated_time"] for one in plain
    ]
    assert all(isinstance(one["messages"]["data"][0]["created_time"], int) for one in moved)


def test_a_kind_of_drift_that_nobody_knows_is_not_planted() -> None:
    with pytest.raises(FaultError, match="kinds is a list of"):
        Faults().add("", "drift", kinds=["sideways"])
