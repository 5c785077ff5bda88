"""Prometheus' own tool, from Debian's package `prometheus`.

Where it is missing its tests are skipped, but in CI, which says that it has to be there
(`CONVSYNC_TEST_PROMTOOL=required`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def promtool() -> str:
    """Where it is; skips the test where it is not."""
    found = shutil.which("promtool")
    if found is None:
        missing = "promtool is missing: apt-get install prometheus"
        if os.environ.get("CONVSYNC_TEST_PROMTOOL") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def run(*arguments: str | Path, text: str | None = None) -> tuple[int, str]:
    """Its exit code, and what it said."""
    done = subprocess.run(  # noqa: S603 - our own arguments
        [promtool(), *arguments], input=text, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr
