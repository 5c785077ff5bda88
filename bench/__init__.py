"""What convsync does per second, each line against a baseline measured beside it: docs/bench.md."""
