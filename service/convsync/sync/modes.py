"""Which syncs there are, and which of them this release can run."""

from __future__ import annotations

AVAILABLE_MODES = ("full",)
"""Of full, incremental and reconcile. Asking for another answers 422 `mode_unavailable`."""
