"""The webhook's half of the way in: raw bytes -> signature -> facts -> group commit.

`signature` and `payload` are pure functions; `group_commit` gets its `ingest` injected. Nothing here
knows HTTP or the database.
"""

from __future__ import annotations
