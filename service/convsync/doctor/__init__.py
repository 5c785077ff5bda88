"""`convsync doctor`: is everything there that convsync needs, and if not, which command mends it."""

from convsync.doctor.check import Check
from convsync.doctor.examination import examine

__all__ = ["Check", "examine"]
