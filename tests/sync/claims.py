"""What a run claims, held against the truth: by its status, its failed batches, and the certificate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from convsync.simulator.checker import compare, fetch_truth
from convsync.simulator.verdict import Verdict, truth_from_json
from sync.world import World

_LIVE = """
    select message_id from convsync.contact_interaction_events
    where page_id = %(page)s and in_thread and deleted_at is null
"""
_KNOWN = """
    select thread_id from convsync.messenger_conversations
    where page_id = %(page)s and thread_id is not null and deleted_at is null
"""


@dataclass(slots=True)
class Judgement:
    """`lacking` are the listed threads of which something is missing that can be read, `beyond` those of
    which something cannot be read; `complaints` what the product says of them and has no right to."""

    verdict: Verdict
    run: dict[str, Any]
    lacking: set[str]
    beyond: set[str]
    complaints: list[str] = field(default_factory=list)


async def judge(world: World, page_id: str, run_id: int) -> Judgement:
    """What a run that has ended claims, while nothing happens: `succeeded` with an equal mirror, or exactly
    what is missing."""
    run = await world.store.get_sync_run(run_id=run_id)
    verdict = await compare(world.owner, fetch_truth(world.simulator.url, page_id), page_id)
    found = Judgement(verdict, run, set(), set())
    await _look_for_missing(world, page_id, found)
    found.complaints = [*await _of_certificate(world, page_id, found), *_of_run(found)]
    if verdict.extra or verdict.differing > len(found.lacking):
        found.complaints.append(f"what is there is not right: {verdict.examples}")
    return found


async def _look_for_missing(world: World, page_id: str, found: Judgement) -> None:
    live = {row["message_id"] for row in await world.rows(_LIVE, page=page_id)}
    known = {row["thread_id"] for row in await world.rows(_KNOWN, page=page_id)}
    async for document in fetch_truth(world.simulator.url, page_id):
        thread = truth_from_json(document)
        missing = [one for one in thread.messages if not one.deleted and one.message_id not in live]
        if not thread.listed:
            continue
        if thread.thread_id not in known or any(one.readable for one in missing):
            found.lacking.add(thread.thread_id)
        if not all(one.readable for one in missing):
            found.beyond.add(thread.thread_id)


async def _of_certificate(world: World, page_id: str, found: Judgement) -> list[str]:
    told = await world.store.certificate_conversations(page_id=page_id, limit=1000)
    certified = {one.thread_id for one in told if one.complete}
    incomplete = found.lacking | found.beyond
    complaints = [f"{thread} is called complete" for thread in sorted(incomplete & certified)]
    if incomplete and (await world.store.certificate(page_id=page_id))["whole"]:
        complaints.append(f"the Page is called whole without {sorted(incomplete)}")
    return complaints


def _of_run(found: Judgement) -> list[str]:
    run, batches = found.run, found.run["failed_batches"]
    named = {batch["thread_id"] for batch in batches if batch["kind"] == "thread"}
    match run["status"]:
        case "succeeded" if batches:
            return [f"succeeded beside failed batches: {batches}"]
        case "succeeded" if len(found.lacking) > run["unreadable"]:
            # What Graph lists and does not return is counted, and is no failure.
            return [f"succeeded, and the mirror differs: {found.verdict.examples}"]
        case "partial":
            needless = [f"in a failed batch without need: {one}" for one in sorted(named - found.lacking)]
            if any(batch["kind"] == "list" for batch in batches):
                return needless
            return [f"in no failed batch: {one}" for one in sorted(found.lacking - named)] + needless
        case "failed" if run["reason"]:
            return []
        case "succeeded":
            return []
    return [f"no end: {run['status']}, {run['reason']}"]
