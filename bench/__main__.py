"""Measure, write bench/results.json and fill docs/bench.md."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bench import ingest, others, simulator, sync, webhooks
from bench.report import Line, fill_table, write_json
from bench.server import ROOT, Server, open_server

HERE = Path(__file__).resolve().parent
PAGE = ROOT / "docs" / "bench.md"
GROUPS: dict[str, Callable[[Server, bool, Callable[[str], None]], list[Line]]] = {
    "webhook": webhooks.rates,
    "rss": webhooks.memory,
    "ingest_history": ingest.ingest_history,
    "ingest_first": ingest.ingest_first,
    "ingest_p50_growth": ingest.ingest_growth,
    "compare": others.compare,
    "simulator": simulator.serves,
    "sync_full": sync.full,
    "sync_full_growth": sync.growth,
    "sync_incremental": sync.incremental,
    "sync_utilisation": sync.utilisation,
    "sync_rss": sync.memory,
}


def tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def measure(names: list[str], quick: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    results: list[dict[str, Any]] = []
    began = time.monotonic()
    with open_server() as server:
        environment = server.environment() | {"quick": quick}
        for name in names:
            for line in GROUPS[name](server, quick, tell):
                tell(line.told())
                results.append(line.as_json())
        environment["seconds"] = round(time.monotonic() - began)
    return results, environment


def _ended(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # so that every server and process is stopped on the way out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="under a minute; no record, only whether it works"
    )
    parser.add_argument("--only", choices=GROUPS, action="append", help="one group of lines; no record")
    parser.add_argument(
        "--table", action="store_true", help="measure nothing, fill docs/bench.md from the record"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _ended)
    record = HERE / "results.json", HERE / "environment.json"
    if options.table:
        fill_table(PAGE, *(json.loads(path.read_text(encoding="utf-8")) for path in record))
        return 0
    partial = options.quick or options.only
    if partial:
        record = HERE / "partial.json", HERE / "partial-environment.json"
    results, environment = measure(options.only or list(GROUPS), options.quick)
    for path, document in zip(record, (results, environment), strict=True):
        write_json(path, document)
    if not partial:
        fill_table(PAGE, results, environment)
    missed = [line["name"] for line in results if line["met"] is False]
    tell(
        f"{environment['seconds']} s; " + (f"not met: {', '.join(missed)}" if missed else "every goal is met")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
