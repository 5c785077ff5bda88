"""Runs one pgTAP file and judges what it said.

The judge is strict on purpose: a file passes only if it stated one plan, ran exactly the planned tests in
order, all of them passed, no statement raised, and it ended in ``rollback``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.pq import ExecStatus, TransactionStatus

TAP_LAYER = Path(__file__).with_name("tap.sql")

_PLAN = re.compile(r"1\.\.(\d+)\s*$")
_TEST = re.compile(r"(not )?ok\b(?: (\d+))?")
_META_COMMAND = re.compile(r"^\\\w+", re.MULTILINE)


@dataclass
class Verdict:
    """What a pgTAP file said: its output, the tests that ran, and every reason to call it failed."""

    lines: list[str] = field(default_factory=list)
    planned: int | None = None
    ran: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        return "\n".join([*(f"! {problem}" for problem in self.problems), "", *self.lines])


def install_tap(connection: psycopg.Connection[object]) -> str:
    """Puts the pgTAP functions into ``public``: the real extension if the server has it, else the layer.

    Returns ``"pgtap"`` or ``"layer"``. The connection must be in autocommit mode.
    """
    row = connection.execute("select from pg_available_extensions where name = 'pgtap'").fetchone()
    if row is not None:
        connection.execute("create extension if not exists pgtap with schema public")
        return "pgtap"
    connection.execute(TAP_LAYER.read_bytes())
    return "layer"


def run_tap(connection: psycopg.Connection[object], sql: str) -> Verdict:
    """Runs the text of a pgTAP file as psql would, statement after statement, up to the first error."""
    verdict = Verdict()
    if meta := _META_COMMAND.search(sql):
        verdict.problems.append(f"{meta[0]!r}: no psql commands in pgTAP files, they run without psql too")
        return verdict

    last_command = ""
    connection.pgconn.send_query(sql.encode())
    # one result after the other: what was said before an error is part of the report
    while (result := connection.pgconn.get_result()) is not None:
        if result.status == ExecStatus.FATAL_ERROR:
            verdict.problems.append(result.error_message.decode(errors="replace").strip())
            continue
        last_command = (result.command_status or b"").decode()
        if result.nfields != 1:
            continue
        for row in range(result.ntuples):
            value = result.get_value(row, 0)
            verdict.lines.extend((value or b"").decode().splitlines())
    if connection.info.transaction_status != TransactionStatus.IDLE or last_command != "ROLLBACK":
        verdict.problems.append("the file does not end in `rollback;`")
        if connection.info.transaction_status != TransactionStatus.IDLE:
            connection.rollback()

    _judge(verdict)
    return verdict


def _judge(verdict: Verdict) -> None:
    for line in verdict.lines:
        if plan := _PLAN.match(line):
            if verdict.planned is not None:
                verdict.problems.append(f"a second plan: {line}")
            verdict.planned = int(plan[1])
        elif line.startswith("Bail out!"):
            verdict.problems.append(line)
        elif test := _TEST.match(line):
            verdict.ran += 1
            if test[1]:
                verdict.problems.append(line)
            if test[2] and int(test[2]) != verdict.ran:
                verdict.problems.append(f"out of order, test {verdict.ran} expected: {line}")
    if verdict.planned is None:
        verdict.problems.append("no plan")
    elif verdict.planned != verdict.ran:
        verdict.problems.append(f"planned {verdict.planned} tests, ran {verdict.ran}")
    elif verdict.ran == 0:
        verdict.problems.append("no test ran")
