"""The simulator in a process of its own, and what it may import."""

from __future__ import annotations

import ast
import asyncio
import json
import signal
import sys
from pathlib import Path

import aiohttp

import convsync.simulator
from convsync.simulator.__main__ import parse_arguments

FOLDER = Path(convsync.simulator.__file__).parent


async def test_it_says_where_it_listens_and_ends_when_told() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "convsync.simulator",
        *("--port", "0", "--conversations", "5", "--messages", "2"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        url = json.loads(line)["url"]
        async with aiohttp.ClientSession() as session, session.get(f"{url}/_sim/pages") as answer:
            assert (await answer.json())["pages"][0]["conversations"] == 5
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0


def test_arguments_become_a_config() -> None:
    config = parse_arguments(
        [
            "--seed",
            "9",
            "--pages",
            "3",
            "--calls-per-second",
            "0",
            "--webhooks-to",
            "http://x/",
            "--traffic",
            "2",
        ]
    )
    assert (config.seed, len(config.pages), config.calls_per_second) == (9, 3, 0)
    assert config.webhooks_to == "http://x/"
    assert config.life is not None
    assert config.life.rate == 2
    assert len({page.token for page in config.pages}) == 3


def test_it_shares_no_code_with_what_it_checks() -> None:
    imported = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
            elif isinstance(node, ast.Import):
                imported.update(name.name for name in node.names)
    own = {name for name in imported if name.partition(".")[0] == "convsync"}
    assert all(name.startswith("convsync.simulator") for name in own), own
