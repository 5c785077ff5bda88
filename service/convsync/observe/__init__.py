"""Logging; what the service tells of itself."""
