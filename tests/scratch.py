"""Directories for the servers of the tests, in memory where there is room.

A test makes and drops a database of some 450 files. ext4 does not use an inode again for some seconds after
its file was removed, and looks through those it passes over: beside such a suite a clone takes 100 to 200 ms
there, and 12 ms on tmpfs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "convsync-test-"
# A container's /dev/shm is often 64 MB.
_ROOM = 4 * 1024**3
# The path of a Unix socket has to be short.
PLACES = (Path("/dev/shm"), Path("/tmp"))  # noqa: S108


def scratch_directory() -> Path:
    """A new directory that the user PostgreSQL runs as may pass; whoever asks removes it."""
    for place in PLACES:
        if place is PLACES[-1] or (os.access(place, os.W_OK) and shutil.disk_usage(place).free >= _ROOM):
            break
    made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    if os.geteuid() == 0:
        made.chmod(0o711)
    return made
