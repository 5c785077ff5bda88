"""What a purge reads: of each conversation its oldest event, and not all that the Page ever had."""

from __future__ import annotations

from datetime import timedelta

from sessions import PAGE, Connection, at, call, ingest, rows, told


def test_a_purge_that_finds_nothing_reads_none_of_the_events_that_stay(
    service: Connection, owner: Connection
) -> None:
    for person in range(100):
        ingest(service, *(told(f"m_{person}_{n}", n, sender=str(3000 + person)) for n in range(50)))
    horizon = at(0) - timedelta(days=1)
    call(service, "select convsync_api.purge_events(%(page)s, %(before)s)", page=PAGE, before=horizon)
    owner.execute("analyze convsync.contact_interaction_events, convsync.messenger_conversations")

    with owner.transaction():
        done = call(
            owner, "select convsync_api.purge_events(%(page)s, %(before)s)", page=PAGE, before=horizon
        )
        (read,) = rows(
            owner,
            """select seq_tup_read, idx_tup_fetch from pg_stat_xact_user_tables
               where schemaname = 'convsync' and relname = 'contact_interaction_events'""",
        )

    assert (done["events"], done["more"]) == (0, False)
    assert read["seq_tup_read"] == 0
    assert read["idx_tup_fetch"] < 100
