"""What is wrong with a Page, and the command that mends it: each case is planted, and found alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sessions import Connection, eventually, rows

NOW = "2026-03-01T12:00:00Z"


def at(owner: Connection, now: str) -> None:
    owner.execute("select set_config('convsync.now', %s, false)", [now])


@pytest.fixture
def page(owner: Connection) -> Connection:
    """A Page that is in order: a token, a full sync that succeeded a minute ago, webhooks since."""
    at(owner, "2026-03-01T09:00:00Z")
    owner.execute(r"select convsync_api.add_page('100', p_token_sealed => '\x01', p_token_key_id => 'k')")
    owner.execute("select convsync_api.mark_subscribed('100')")
    message(owner, "webhook", "m_1", "2026-03-01T09:00:00Z")
    at(owner, "2026-03-01T11:59:00Z")
    end(owner, begin(owner, "full"))
    at(owner, NOW)
    return owner


def message(owner: Connection, source: str, message_id: str, sent: str) -> None:
    owner.execute(
        """select convsync_api.ingest(jsonb_build_array(jsonb_build_object('kind', 'message',
             'page_id', '100', 'sender_id', '2001', 'message_id', %s::text, 'direction', 'in',
             'event_type', 'message', 'at', %s::text)), %s)""",
        [message_id, sent, source],
    )


def begin(owner: Connection, mode: str) -> tuple[int, int]:
    [run] = rows(
        owner, "select run_id, fence from convsync_api.begin_sync('100', %(m)s, 'worker-1', 60)", m=mode
    )
    return run["run_id"], run["fence"]


def end(owner: Connection, run: tuple[int, int]) -> None:
    for _ in range(2):
        owner.execute(
            """select from convsync_api.apply_sync_page('100', %s, %s, 'list', null, null, null,
               convsync_api._now(), '[]')""",
            run,
        )
    owner.execute("select convsync_api.finish_sync('100', %s, %s)", run)


def problems(owner: Connection, page_id: str | None = None) -> list[dict[str, Any]]:
    """The problems there are. On a shared server another test's transaction may hold the feed back: its end
    is waited for.
    """
    until = time.monotonic() + 60
    while True:
        found = rows(owner, "select * from convsync_api.list_problems(%(p)s)", p=page_id)
        ours = rows(owner, "select pid from pg_stat_activity where datname = current_database()")
        holders = [one["mend"] for one in found if one["problem"] == "feed_held_back"]
        if all(any(f"({row['pid']})" in mend for row in ours) for mend in holders):
            return found
        assert time.monotonic() < until, holders
        time.sleep(0.05)


def only(owner: Connection, problem: str) -> dict[str, Any]:
    """The one problem there is, the same for the Page as for all."""
    (found,) = problems(owner)
    if found["page_id"] is not None:
        assert problems(owner, found["page_id"]) == [found]
    assert found["problem"] == problem
    assert found["what"].endswith(".")
    assert found["why"].endswith(".")
    return found


def test_a_page_in_order_has_no_problem(page: Connection) -> None:
    assert problems(page) == []
    assert problems(page, "100") == []
    assert problems(page, "nobody") == []


def _token_invalid(owner: Connection) -> None:
    owner.execute("select convsync_api.mark_token('100', 'invalid', 'It has ended.')")


def _token_missing(owner: Connection) -> None:
    owner.execute("select convsync_api.remove_page('100')")
    owner.execute("select convsync_api.add_page('100')")


def _blocked(owner: Connection) -> None:
    owner.execute(
        """select convsync_api.record_call('100', 400, 80, p_block_scope => 'page', p_block_seconds => 3600,
           p_block_reason => 'used up')"""
    )


def _abandoned(owner: Connection) -> None:
    begin(owner, "incremental")
    at(owner, "2026-03-01T12:03:30Z")


def _without_progress(owner: Connection) -> None:
    run = begin(owner, "reconcile")
    for minute in range(1, 16):
        at(owner, f"2026-03-01T12:{minute:02}:00Z")
        owner.execute("select convsync_api.renew_sync_lease('100', %s, %s, 90)", run)


def _overdue(owner: Connection) -> None:
    at(owner, "2026-03-01T12:45:00Z")


def _failed_batches(owner: Connection) -> None:
    run = begin(owner, "incremental")
    owner.execute(
        """select convsync_api.fail_sync_batch('100', %s, %s, 'list', '', null, 5,
           '{"class": "transient", "message": "try later"}')""",
        run,
    )
    owner.execute("select convsync_api.finish_sync('100', %s, %s)", run)


def _failed(owner: Connection) -> None:
    owner.execute(
        "select convsync_api.finish_sync('100', %s, %s, 'internal_error')", begin(owner, "incremental")
    )


def _silent(owner: Connection) -> None:
    message(owner, "sync", "m_2", "2026-03-01T11:58:00Z")
    at(owner, "2026-03-01T12:14:00Z")


def _lost(owner: Connection) -> None:
    """One of them did not come; a later one did."""
    message(owner, "sync", "m_2", "2026-03-01T11:40:00Z")
    message(owner, "webhook", "m_3", "2026-03-01T11:59:00Z")


def _dead_letter(owner: Connection) -> None:
    owner.execute(
        """select convsync_api.ingest(
             '[{"kind": "dead_letter", "page_id": "100", "reason": "odd", "raw": "YQ=="}]', 'webhook')"""
    )


def _dead_letter_of_nobody(owner: Connection) -> None:
    owner.execute(
        """select convsync_api.ingest(
             '[{"kind": "dead_letter", "page_id": "", "reason": "odd", "raw": "YQ=="}]', 'webhook')"""
    )


def _held_back_deletions(owner: Connection) -> None:
    run = begin(owner, "reconcile")
    owner.execute(
        """update convsync.sync_runs set deletions_proposed = 40, deletions_held_back = true,
             status = 'partial', reason = 'deletion_breaker', lease_expires_at = null,
             finished_at = convsync_api._now()
           where run_id = %s""",
        run[:1],
    )


@pytest.mark.parametrize(
    ("plant", "problem", "mend"),
    [
        (_token_invalid, "token_invalid", "convsync page add 100 --token-stdin"),
        (_token_missing, "token_missing", "convsync page add 100 --token-stdin"),
        (_blocked, "calls_blocked", "nothing: it goes on by itself"),
        (_abandoned, "sync_abandoned", "convsync sync 100 --mode incremental"),
        (_without_progress, "sync_without_progress", "convsync psql -f sql/ops/stuck_syncs.sql"),
        (_overdue, "sync_overdue", "convsync sync 100 --mode incremental"),
        (_failed_batches, "failed_batches", "convsync sync 100 --retry {run}"),
        (_failed, "sync_failed", "convsync sync 100 --mode incremental"),
        (_silent, "webhooks_silent", "convsync doctor 100"),
        (_lost, "webhooks_lost", "convsync psql -f sql/ops/webhook_losses.sql"),
        (_dead_letter, "dead_letters", "convsync dead-letters list 100"),
        (_dead_letter_of_nobody, "dead_letters", "convsync dead-letters list"),
        (
            _held_back_deletions,
            "deletions_held_back",
            "convsync deletions allow 100 {run}",
        ),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_problem_is_found_with_the_command_that_mends_it(
    page: Connection, plant: Callable[[Connection], None], problem: str, mend: str
) -> None:
    plant(page)
    [run] = rows(page, "select max(run_id) as run from convsync.sync_runs")
    assert only(page, problem)["mend"] == mend.format(**run)


def test_a_page_that_was_never_synced_has_one_problem(owner: Connection) -> None:
    at(owner, "2026-03-01T09:00:00Z")
    owner.execute(r"select convsync_api.add_page('100', p_token_sealed => '\x01', p_token_key_id => 'k')")
    assert problems(owner) == []
    at(owner, NOW)
    assert only(owner, "never_synced")["mend"] == "convsync sync 100 --mode full"


def test_a_page_known_by_webhook_alone_is_to_be_added(owner: Connection) -> None:
    at(owner, NOW)
    message(owner, "webhook", "m_1", "2026-03-01T11:59:00Z")
    assert only(owner, "page_not_added")["mend"] == "convsync page add 100 --token-stdin"


def test_a_sync_that_succeeds_ends_the_problems_of_the_one_before(page: Connection) -> None:
    _failed_batches(page)
    assert only(page, "failed_batches")
    end(page, begin(page, "incremental"))
    assert problems(page) == []


def test_a_dead_token_is_the_one_problem_of_all_that_follows_from_it(page: Connection) -> None:
    _failed(page)
    _token_invalid(page)
    at(page, "2026-03-02T12:00:00Z")
    assert only(page, "token_invalid")["what"] == "It has ended."


def test_who_holds_the_feed_back_is_named_with_the_command_that_ends_them(
    page: Connection, database: Any
) -> None:
    with psycopg.connect(database.owner_url, application_name="idle report") as holder:
        holder.execute("select pg_current_xact_id()")
        message(page, "webhook", "m_2", "2026-03-01T11:59:30Z")
        at(page, "2026-03-01T12:04:00Z")
        assert problems(page) == []
        at(page, "2026-03-01T12:06:00Z")
        found = only(page, "feed_held_back")
        assert found["page_id"] is None
        assert found["mend"] == f'convsync psql -c "select pg_terminate_backend({holder.info.backend_pid})"'


def test_an_outgoing_webhook_that_is_paused_is_a_problem_until_it_goes_on(page: Connection) -> None:
    page.execute(r"select convsync_api.add_outgoing('crm', 'https://crm.example/hook', '\x01', 'k')")
    message(page, "webhook", "m_2", "2026-03-01T11:59:30Z")
    (claimed,) = eventually(lambda: rows(page, "select * from convsync_api.claim_outgoing()"))
    assert problems(page) == []
    record = "select convsync_api.record_outgoing('crm', %(f)s, false, 500, 'HTTP 500', 0, 1) as state"
    assert rows(page, record, f=claimed["fence"]) == [{"state": "paused"}]
    found = only(page, "outgoing_paused")
    assert found["page_id"] is None
    assert "webhook crm is paused since" in found["what"]
    assert "could not be delivered" in found["what"]
    assert found["mend"] == "convsync outgoing resume crm"
    assert problems(page, "100") == []
    page.execute("select convsync_api.resume_outgoing('crm')")
    assert problems(page) == []


def test_an_outgoing_webhook_whose_changes_have_expired_goes_on_only_without_them(page: Connection) -> None:
    page.execute(r"select convsync_api.add_outgoing('crm', 'https://crm.example/hook', '\x01', 'k')")
    page.execute(
        """update convsync.outgoing_webhooks set state = 'paused', pause_reason = 'changes_expired',
             paused_at = convsync_api._now()"""
    )
    found = only(page, "outgoing_paused")
    assert "have expired" in found["what"]
    assert found["mend"] == "convsync outgoing resume crm --skip"


def test_a_pages_id_is_one_word_of_the_command_whatever_it_is(owner: Connection) -> None:
    at(owner, NOW)
    owner.execute("select convsync_api.add_page(%s)", ["1; echo 'oh' $(no)"])
    (found,) = problems(owner)
    assert found["mend"] == "convsync page add '1; echo '\\''oh'\\'' $(no)' --token-stdin"


def test_who_reads_for_operators_sees_every_view_and_nothing_else(page: Connection) -> None:
    views = [
        row["viewname"]
        for row in rows(page, "select viewname from pg_views where schemaname = 'convsync_ops' order by 1")
    ]
    assert len(views) == 13
    with page.transaction(force_rollback=True):
        page.execute("set local role convsync_reader")
        for view in views:
            page.execute(sql.SQL("select * from convsync_ops.{}").format(sql.Identifier(view)))
    for refused in (
        "select from convsync.pages",
        "select convsync_api.list_pages()",
        "select convsync_api.mark_subscribed('100')",
        "select from convsync_read.conversations",
    ):
        with page.transaction(force_rollback=True):
            page.execute("set local role convsync_reader")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                page.execute(refused.encode())
