"""convsync: an exact, provable mirror of a Page's Messenger conversations in PostgreSQL."""

from __future__ import annotations

__version__ = "0.1.0"
