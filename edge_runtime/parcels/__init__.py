"""Artifacts, fetched piece by piece: what to ask for, when, and the file in which they come together."""
