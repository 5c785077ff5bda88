"""Which syncs there are, and which of them this release can run."""

from __future__ import annotations

AVAILABLE_MODES = ("full", "incremental")
"""Of full, incremental and reconcile. Asking for another answers 422 `mode_unavailable`."""
